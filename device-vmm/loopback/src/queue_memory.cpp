// SPDX-License-Identifier: BSD-3-Clause
#include "queue_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace vvfu::loopback {
namespace {

constexpr std::uint64_t kPage = 4096;

auto system_failure(const char *what)
{
    return guest::failure(std::string{what} + ": " + std::strerror(errno));
}

}  // namespace

guest::Result<SharedMemory> SharedMemory::create(const char *name, std::uint64_t size)
{
    SharedMemory memory;
    if (size == 0) {
        return memory;
    }
    memory.fd_ = Fd{::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (!memory.fd_) {
        return system_failure("cannot create shared memory");
    }
    // Sealed: whoever gets this fd can rely on the size, and so can we.
    if (::ftruncate(memory.fd_.get(), static_cast<off_t>(size)) != 0 ||
        ::fcntl(memory.fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return system_failure("cannot size shared memory");
    }
    void *address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory.fd_.get(), 0);
    if (address == MAP_FAILED) {
        return system_failure("cannot map shared memory");
    }
    memory.bytes_ = {static_cast<std::byte *>(address), size};
    return memory;
}

SharedMemory::SharedMemory(SharedMemory &&other) noexcept
    : fd_(std::move(other.fd_)), bytes_(std::exchange(other.bytes_, {}))
{
}

SharedMemory &SharedMemory::operator=(SharedMemory &&other) noexcept
{
    std::swap(fd_, other.fd_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

SharedMemory::~SharedMemory()
{
    if (!bytes_.empty()) {
        ::munmap(bytes_.data(), bytes_.size());
    }
}

guest::Result<QueueMemory> QueueMemory::create()
{
    auto memory = SharedMemory::create("vvfu-queues", kSize);
    if (!memory) {
        return make_unexpected(memory.error());
    }
    QueueMemory queues;
    queues.memory_ = std::move(*memory);
    return queues;
}

guest::Result<guest::SharedBuffer> QueueMemory::allocate(std::size_t bytes)
{
    if (bytes > kSize - used_) {
        return guest::failure("queue memory is used up");
    }
    const auto offset = used_;
    used_ += (bytes + kPage - 1) & ~(kPage - 1);
    return guest::SharedBuffer{memory_.bytes().subspan(offset, bytes), kBase + offset};
}

std::span<std::byte> QueueMemory::translate(std::uint64_t address, std::uint64_t length) const noexcept
{
    if (address < kBase || address - kBase > kSize || length > kSize - (address - kBase)) {
        return {};
    }
    return memory_.bytes().subspan(address - kBase, length);
}

}  // namespace vvfu::loopback
