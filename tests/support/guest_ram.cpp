// SPDX-License-Identifier: BSD-3-Clause
#include "guest_ram.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace vvfu::test {

GuestRam::GuestRam(std::uint64_t address, std::size_t size, Seal seal)
    : address_(address), fd_(::memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING))
{
    if (!fd_ || ::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0 ||
        (seal == Seal::no_shrink && ::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)) {
        throw std::system_error(errno, std::generic_category(), "memfd");
    }
    void *memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (memory == MAP_FAILED) {
        throw std::system_error(errno, std::generic_category(), "mmap");
    }
    bytes_ = {static_cast<std::byte *>(memory), size};
}

GuestRam::~GuestRam()
{
    ::munmap(bytes_.data(), bytes_.size());
}

std::span<std::byte> GuestRam::at(std::uint64_t address, std::size_t size) const
{
    const auto offset = address - address_;
    if (address < address_ || offset > bytes_.size() || size > bytes_.size() - offset) {
        throw std::out_of_range("outside guest RAM");
    }
    return bytes_.subspan(offset, size);
}

}  // namespace vvfu::test
