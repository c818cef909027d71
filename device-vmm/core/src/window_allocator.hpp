// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

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
    /// Gives back exactly what allocate() returned.
    void release(std::uint64_t offset, std::uint64_t size);

    /// Takes back what the guest may still access, for it was not heard to let go: not handed out again before
    /// release_retired(), so that a late access never reaches another range.
    void retire(std::uint64_t offset, std::uint64_t size) { retired_.emplace_back(offset, size); }
    void release_retired();

    [[nodiscard]] std::uint64_t free_bytes() const noexcept { return free_bytes_; }

private:
    std::optional<std::uint64_t> allocate_congruent(std::uint64_t size, std::uint64_t file_offset,
                                                    std::uint64_t alignment);

    std::map<std::uint64_t, std::uint64_t> holes_;  // offset -> size; never adjacent
    std::uint64_t free_bytes_;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> retired_;  // offset, size
};

}  // namespace vvfu::core
