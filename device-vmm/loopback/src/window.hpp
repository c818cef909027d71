// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/guest/error.hpp"

namespace vvfu::loopback {

/// A reserved range of this process's addresses into which the peer's memory is mapped. What was unmapped is private
/// scratch memory from then on: a late access hits neither the peer nor an unmapped page.
class Window {
public:
    /// Ranges at a time. Each takes up to two of the 65530 mappings that Linux allows a process (vm.max_map_count), and
    /// without any left even malloc() fails.
    static constexpr unsigned kMaxRanges = 24 * 1024;

    /// `size` is a multiple of 4096 and not 0; reserving costs address space only.
    static guest::Result<Window> create(std::uint64_t size);
    Window(Window &&other) noexcept;
    Window &operator=(Window &&) = delete;
    ~Window();

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

    /// As Port::window_map() and window_unmap(). map() returns 0 or a negative errno; values outside the window are
    /// -EINVAL, more than kMaxRanges are -ENOSPC.
    int map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset);
    void unmap(std::uint64_t offset, std::uint64_t size);

private:
    Window(std::byte *reservation, std::size_t reserved, std::span<std::byte> bytes);
    [[nodiscard]] bool contains(std::uint64_t offset, std::uint64_t size) const noexcept;

    std::byte *reservation_;
    std::size_t reserved_;
    std::span<std::byte> bytes_;
    unsigned ranges_ = 0;
};

}  // namespace vvfu::loopback
