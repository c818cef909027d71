// SPDX-License-Identifier: BSD-3-Clause
//
// Submission and completion queues as the controller sees them (NVMe 4.1): ring indices and what waits.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "spec.hpp"
#include "vvfu/guest/dma_space.hpp"

namespace vvfu::nvme {

/// Entries that one SQE fetch reads at most.
inline constexpr std::uint32_t kFetchBatch = 16;
/// Commands of one queue between fetch and the completion that the host can see.
inline constexpr std::uint32_t kMaxInFlight = 256;
/// I/O commands of all queues that may hold memory: at kMaxTransfer each, 128 MiB of buffers.
inline constexpr std::uint32_t kMaxCommands = 256;

/// Head and tail of a ring of `size` entries, of which size - 1 can be in use (NVMe 4.1.1, 4.1.2).
struct Ring {
    std::uint32_t size = 0;
    std::uint32_t head = 0;
    std::uint32_t tail = 0;

    [[nodiscard]] std::uint32_t used() const noexcept { return tail >= head ? tail - head : size - head + tail; }
    [[nodiscard]] std::uint32_t free() const noexcept { return size - 1 - used(); }
    /// Entries from `index` to `to` in ring order.
    [[nodiscard]] std::uint32_t distance(std::uint32_t index, std::uint32_t to) const noexcept
    {
        return to >= index ? to - index : size - index + to;
    }
    [[nodiscard]] std::uint32_t advanced(std::uint32_t index, std::uint32_t entries) const noexcept
    {
        const auto sum = index + entries;
        return sum >= size ? sum - size : sum;
    }
};

struct Command;
using CommandPtr = std::shared_ptr<Command>;

struct CompletionQueue {
    std::uint16_t id = 0;
    guest::DmaAddress base{};
    Ring ring;
    bool phase = true;  ///< tag of the entries of this round through the ring (NVMe 4.6)
    bool interrupts = false;
    std::uint16_t vector = 0;
    std::uint32_t submission_queues = 0;  ///< that complete here

    struct Waiting;
    std::deque<Waiting> waiting;  ///< completions that are not in the peer's memory yet
    bool posting = false;         ///< guards against nested posting
    bool writing = false;         ///< a write of entries has not finished
    bool dirty = false;           ///< `waiting` has grown since it was last looked at
    bool deleted = false;
    bool shadowed = false;          ///< the head is in host memory, see ShadowDoorbells
    std::uint32_t unsignalled = 0;  ///< entries in memory since the last interrupt
};

struct SubmissionQueue {
    std::uint16_t id = 0;
    guest::DmaAddress base{};
    Ring ring;
    std::shared_ptr<CompletionQueue> cq;

    std::array<SubmissionEntry, kFetchBatch> batch;  ///< private copy of fetched entries
    bool fetching = false;
    std::vector<CommandPtr> commands;  ///< being carried out
    std::uint32_t in_flight = 0;       ///< commands, and completions in cq->waiting
    bool shadowed = false;             ///< the tail is in host memory, see ShadowDoorbells
    bool unarmed = false;              ///< the host need not tell us about new entries now
    bool deleted = false;
    std::function<void()> drained;  ///< set by deletion: nothing of the queue is left

    /// Entries that one fetch may take now: up to the end of the ring and the limits above.
    [[nodiscard]] std::uint32_t fetchable(std::uint32_t burst) const noexcept;
    void remove(const CommandPtr &command);
};

struct CompletionQueue::Waiting {
    std::shared_ptr<SubmissionQueue> sq;
    CompletionEntry entry;  ///< without phase tag and SQ head
};

/// Counts the I/O commands that exist, aborted ones whose data is still under way included.
struct CommandSlots {
    std::uint32_t used = 0;
    std::function<void()> freed;  ///< called when a slot is free after all were used

    void release()
    {
        if (used-- == kMaxCommands && freed) {
            freed();
        }
    }
};

/// One command between fetch and completion.
struct Command {
    Command() = default;
    explicit Command(std::shared_ptr<CommandSlots> taken) : slots(std::move(taken))
    {
        if (slots) {
            ++slots->used;
        }
    }
    Command(const Command &) = delete;
    Command &operator=(const Command &) = delete;
    ~Command()
    {
        if (slots) {
            slots->release();
        }
    }

    std::shared_ptr<CommandSlots> slots;  ///< I/O commands only: the admin queue always has room
    SubmissionEntry entry;
    std::shared_ptr<SubmissionQueue> sq;
    std::size_t index = 0;  ///< in sq->commands
    bool completed = false;
    /// Cannot be aborted any more: data is being moved.
    bool executing = false;
    guest::DmaMapping data;
    std::vector<std::byte> buffer;  ///< the controller's side of a data transfer, where there is one

    [[nodiscard]] bool admin() const noexcept { return sq->id == 0; }
};

}  // namespace vvfu::nvme
