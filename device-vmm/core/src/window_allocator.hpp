// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace vvfu::core {

/// Hands out ranges of the window. Offsets are congruent to the file offset modulo 1 GiB or 2 MiB where size and room
/// allow, so that huge pages stay usable (VVFU-WINDOW-10). Sizes and offsets are multiples of 4096.
class WindowAllocator {
public:
    explicit WindowAllocator(std::uint64_t size);

    /// Window offset of a free range of `size` bytes; nullopt: it does not fit. The offset is congruent to
    /// `file_offset` modulo `alignment` (a power of two, at least 4096) in any case.
    std::optional<std::uint64_t> allocate(std::uint64_t size, std::uint64_t file_offset,
                                          std::uint64_t alignment = 4096);
    /// Gives back the range that allocate() returned. Needs no memory, like all that follows: sessions end without.
    void release(std::uint64_t offset) noexcept;

    /// Takes back a range that the guest may still access, for it was not heard to let go: not handed out again before
    /// release_retired(), so that a late access never reaches another range.
    void retire(std::uint64_t offset) noexcept { retired_.insert(used_.extract(offset)); }
    void release_retired() noexcept;
    /// The guest was heard to let go of one that was retired.
    void release_retired(std::uint64_t offset) noexcept;

    [[nodiscard]] std::uint64_t free_bytes() const noexcept { return free_bytes_; }
    [[nodiscard]] bool has_retired() const noexcept { return !retired_.empty(); }

private:
    using Ranges = std::map<std::uint64_t, std::uint64_t>;  // offset -> size

    std::optional<std::uint64_t> allocate_congruent(std::uint64_t size, std::uint64_t file_offset,
                                                    std::uint64_t alignment);

    void make_hole(Ranges::node_type range) noexcept;

    // A range keeps its node from map to map.
    Ranges holes_;  // never adjacent
    Ranges used_, retired_;
    std::uint64_t free_bytes_;
};

}  // namespace vvfu::core
