// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "arena.hpp"
#include "vvfu/guest/error.hpp"

namespace vvfu::loopback {

/// Memory of the device model that nobody else can map, and over parts of it, for a session, files that the peer can.
class RegionMemory {
public:
    /// `size` is a multiple of 4096 and may be 0. Fails with a line that says why.
    static guest::Result<RegionMemory> create(std::uint64_t size);

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return arena_.bytes(); }

    /// As Port::region_memory_map() and region_memory_unmap(). map() returns 0 or a negative errno; values outside are
    /// -EINVAL.
    int map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset);
    void unmap(std::uint64_t offset, std::uint64_t size) noexcept;

private:
    explicit RegionMemory(Arena arena);

    Arena arena_;
};

}  // namespace vvfu::loopback
