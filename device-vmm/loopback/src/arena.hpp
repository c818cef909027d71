// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/guest/error.hpp"

namespace vvfu::loopback {

/// A reserved range of this process's addresses. Parts of it show files for a while, all others private memory. One
/// thread at a time.
class Arena {
public:
    /// `size` is a multiple of 4096 and may be 0; the addresses begin at a multiple of `alignment`, a power of two.
    /// Reserving costs address space only. Fails with the reason alone ("Cannot allocate memory").
    static guest::Result<Arena> create(std::uint64_t size, std::uint64_t alignment);
    Arena(Arena &&other) noexcept;
    Arena &operator=(Arena &&) = delete;
    ~Arena();

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

    /// Shows [fd_offset, fd_offset + size) of `fd`, shared, with a protection of mmap(). Returns 0, or a negative errno
    /// and the arena is as it was: -EINVAL for values outside of it.
    [[nodiscard]] int map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset);
    /// Undoes one map(): zeroed private memory is there. When it returns, no access reaches the file. If that cannot be
    /// done it does not return: it ends the process with one line.
    void unmap(std::uint64_t offset, std::uint64_t size) noexcept;

private:
    Arena(std::byte *reservation, std::size_t reserved, std::span<std::byte> bytes);
    [[nodiscard]] bool contains(std::uint64_t offset, std::uint64_t size) const noexcept;

    std::byte *reservation_;
    std::size_t reserved_;
    std::span<std::byte> bytes_;
};

}  // namespace vvfu::loopback
