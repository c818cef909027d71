// SPDX-License-Identifier: BSD-3-Clause
#include "region_memory.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace vvfu::loopback {
namespace {

constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

}  // namespace

guest::Result<RegionMemory> RegionMemory::create(std::uint64_t size)
{
    if (size == 0) {
        return RegionMemory{{}};
    }
    void *address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, kPrivate, -1, 0);
    if (address == MAP_FAILED) {
        return guest::failure(std::string{"cannot allocate region memory: "} + std::strerror(errno));
    }
    return RegionMemory{{static_cast<std::byte *>(address), size}};
}

RegionMemory::RegionMemory(RegionMemory &&other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

RegionMemory::~RegionMemory()
{
    if (!bytes_.empty()) {
        ::munmap(bytes_.data(), bytes_.size());
    }
}

bool RegionMemory::contains(std::uint64_t offset, std::uint64_t size) const noexcept
{
    return size != 0 && size <= bytes_.size() && offset <= bytes_.size() - size;
}

int RegionMemory::map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset)
{
    if (!contains(offset, size)) {
        return -EINVAL;
    }
    // Made elsewhere and moved here: a MAP_FIXED that fails may leave a gap, where the model still reads and writes.
    void *made = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(fd_offset));
    if (made == MAP_FAILED) {
        return -errno;
    }
    if (::mremap(made, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, bytes_.data() + offset) == MAP_FAILED) {
        const int error = errno;
        ::munmap(made, size);
        return -error;
    }
    return 0;
}

void RegionMemory::unmap(std::uint64_t offset, std::uint64_t size)
{
    if (!contains(offset, size)) {
        return;
    }
    void *address = bytes_.data() + offset;
    if (::mmap(address, size, PROT_READ | PROT_WRITE, kPrivate | MAP_FIXED, -1, 0) == MAP_FAILED) {
        // Over the limit of mappings: a late access faults, which is better than one that reaches the file.
        static_cast<void>(::mprotect(address, size, PROT_NONE));
    }
}

}  // namespace vvfu::loopback
