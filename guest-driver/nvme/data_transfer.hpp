// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "activity.hpp"
#include "prp.hpp"
#include "queues.hpp"
#include "vvfu/guest/dma_space.hpp"

namespace vvfu::nvme {

/// Moves a command's data between the host's memory (by its PRP entries) and the controller. Continuations run inside
/// the call when all memory is mapped, else later; not at all once the command has been aborted.
class DataTransfer {
public:
    using Then = std::function<void(Status)>;

    DataTransfer(guest::DmaSpace &dma, Activity &activity) : dma_(dma), activity_(activity) {}

    /// 12 + CC.MPS.
    void set_page_shift(std::uint32_t shift) noexcept { page_shift_ = shift; }

    /// Fills command->data with a mapping of the first `bytes` bytes.
    void map(const CommandPtr &command, std::uint64_t bytes, guest::DmaDirection direction, Then then);
    /// Ends the use of command->data; success when what was written to it is visible to the host.
    void finish(const CommandPtr &command, Then then);

    /// Copies a buffer to the host.
    void send(const CommandPtr &command, std::vector<std::byte> data, Then then);
    /// Copies `bytes` bytes from the host to command->buffer.
    void receive(const CommandPtr &command, std::uint64_t bytes, Then then);

private:
    struct Job;
    void step(const std::shared_ptr<Job> &job);
    void map_segments(const std::shared_ptr<Job> &job);

    guest::DmaSpace &dma_;
    Activity &activity_;
    std::uint32_t page_shift_ = kMinPageShift;
};

/// Copies mapped pieces into a buffer of the same total size.
void copy_from_pieces(std::span<const iovec> pieces, std::span<std::byte> to);

}  // namespace vvfu::nvme
