// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "arena.hpp"
#include "vvfu/guest/error.hpp"

namespace vvfu::loopback {

/// An arena for the peer's memory. What was unmapped is private scratch memory from then on: a late access hits neither
/// the peer nor an unmapped page.
class Window {
public:
    /// `size` is a multiple of 4096 and not 0; reserving costs address space only.
    static guest::Result<Window> create(std::uint64_t size);

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return arena_.bytes(); }
    /// Ranges at a time. Each takes up to two of the mappings that Linux allows a process (vm.max_map_count), and
    /// without any left cutting off fails, and even malloc(): a quarter of them is for the rest of the process.
    [[nodiscard]] unsigned max_ranges() const noexcept { return max_ranges_; }

    /// As Port::window_map() and window_unmap(). map() returns 0 or a negative errno; values outside the window are
    /// -EINVAL, more than max_ranges() are -ENOSPC.
    int map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset);
    void unmap(std::uint64_t offset, std::uint64_t size) noexcept;

private:
    Window(Arena arena, unsigned max_ranges);

    Arena arena_;
    unsigned max_ranges_, ranges_ = 0;
};

/// Ranges for a process that may have `mappings`.
unsigned ranges_within(std::uint64_t mappings) noexcept;

}  // namespace vvfu::loopback
