// SPDX-License-Identifier: BSD-3-Clause
#include "region_memory.hpp"

#include <sys/mman.h>

#include <utility>

namespace vvfu::loopback {

guest::Result<RegionMemory> RegionMemory::create(std::uint64_t size)
{
    constexpr std::uint64_t kPage = 4096;
    auto arena = Arena::create(size, kPage);
    if (!arena) {
        return guest::failure("cannot allocate region memory: " + arena.error().message);
    }
    return RegionMemory{std::move(*arena)};
}

RegionMemory::RegionMemory(Arena arena) : arena_(std::move(arena)) {}

int RegionMemory::map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset)
{
    return arena_.map(offset, size, PROT_READ | PROT_WRITE, fd, fd_offset);
}

void RegionMemory::unmap(std::uint64_t offset, std::uint64_t size) noexcept
{
    arena_.unmap(offset, size);
}

}  // namespace vvfu::loopback
