// SPDX-License-Identifier: BSD-3-Clause
//
// The peer's memory: DMA_MAP and DMA_UNMAP, the window, and what the guest is told about it
// (docs/spec/virtio-vfio-user.md 6.5 and 10.4).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>

#include "guest_channel.hpp"
#include "memory_files.hpp"
#include "refusal.hpp"
#include "support.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/protocol/vfio_user.hpp"
#include "window_allocator.hpp"

namespace vvfu::core {

class PeerMemory {
public:
    /// Called once, when the peer may get its reply; not after release().
    using Done = std::function<void(const Refusal &)>;
    /// The session cannot go on: the guest and the peer would have different ideas of the memory.
    using End = std::function<void(control::DownReason)>;

    static constexpr std::uint64_t kMaxRangeSize = std::uint64_t{8} << 40;

    /// `window` outlives the session: what its guest may still access is not for the next one.
    PeerMemory(const CoreConfig &config, Port &port, GuestChannel &guest, Log &log, WindowAllocator &window, End end);
    PeerMemory(const PeerMemory &) = delete;
    PeerMemory &operator=(const PeerMemory &) = delete;
    ~PeerMemory();  ///< release()

    enum class Map { taken, wait };
    /// A checked DMA_MAP command (its structure, not its values). wait: the window has no room now but will have some
    /// when an unmap in progress is over; nothing happened, call again after unmaps_in_progress() changed.
    Map map(Nanoseconds now, std::uint32_t epoch, const vfio_user::DmaMap &request, std::span<Fd> fds,
            const Done &done);
    /// Removes all ranges that lie wholly inside [address, address + size). `latest`: when the peer has to get its
    /// reply, whatever the configured timeouts.
    void unmap(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, std::uint64_t address, std::uint64_t size,
               Done done);
    void unmap_all(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Done done);

    /// Whether [address, address + count) lies in ranges of the session that all have `flag` (control::kMemoryRead or
    /// kMemoryWrite): ok, fault or permission. count is not 0.
    [[nodiscard]] control::Status check(std::uint64_t address, std::uint64_t count, std::uint32_t flag) const;

    /// Takes all ranges out of the window at once, and those that come until show(). Their offsets stay theirs.
    void hide() noexcept;
    /// Shows them again, where they were.
    void show();

    /// The session is over: empties the window at once. The offsets are retired until the guest has let go of the
    /// session.
    void release() noexcept;

    [[nodiscard]] std::size_t unmaps_in_progress() const noexcept { return removing_.size(); }
    [[nodiscard]] std::uint64_t mapped_bytes() const noexcept { return mapped_bytes_; }
    [[nodiscard]] std::uint32_t mapped_ranges() const noexcept { return mapped_ranges_; }
    [[nodiscard]] std::uint32_t message_ranges() const noexcept { return message_ranges_; }

private:
    struct Range {
        control::MemoryInfo info;       // as announced, op add
        std::uint64_t id = 0;           // never reused
        std::uint64_t add_request = 0;  // its MEMORY_INFO(ADD)
        MemoryFiles::File file = {};    // of one that has a place in the window
        std::uint64_t file_offset = 0;
        bool shown = false;  // in the window now
        [[nodiscard]] bool in_window() const noexcept { return (info.flags & control::kMemoryMessageOnly) == 0; }
        [[nodiscard]] std::uint64_t last() const noexcept { return info.address + (info.size - 1); }
    };
    using Ranges = std::map<std::uint64_t, Range>;  // by address

    [[nodiscard]] Refusal check_map(const vfio_user::DmaMap &request, std::size_t fds) const;
    [[nodiscard]] bool overlaps(std::uint64_t address, std::uint64_t size) const;
    /// Tries to give a range a place in the window: sets window_offset, or kMemoryMessageOnly. False: wait.
    bool place(Range &range, const vfio_user::DmaMap &request, std::span<Fd> fds);
    /// Maps a range at its place, unless all are hidden. 0 or a negative errno.
    int show(Range &range);
    void hide(Range &range) noexcept;
    void explain_message_only(const control::MemoryInfo &info, const char *reason);
    void announce(Nanoseconds now, std::uint32_t epoch, Range &range);
    void refused_by_guest(std::uint64_t address, std::uint64_t id, const std::string &text);
    /// [begin, end), one MEMORY_INFO(DEL) each.
    void remove(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Ranges::iterator begin, Ranges::iterator end,
                Done done);
    void remove(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Ranges::iterator it, Done done);
    /// Whether the guest is known not to access the range any more.
    enum class Guest { let_go, may_access };
    void unmap_from_window(Range &range, Guest guest) noexcept;

    const CoreConfig &config_;
    Port &port_;
    GuestChannel &guest_;
    Log &log_;
    WindowAllocator &window_;
    End end_;
    MemoryFiles files_;
    Ranges ranges_;
    bool hidden_ = false;
    // Withdrawn, still in the window until the guest answers or the deadline passes; by range ID.
    std::map<std::uint64_t, Range> removing_;
    std::uint64_t last_id_ = 0;
    std::uint64_t mapped_bytes_ = 0;
    std::uint32_t mapped_ranges_ = 0, message_ranges_ = 0;
};

}  // namespace vvfu::core
