// SPDX-License-Identifier: BSD-3-Clause
#include "queue_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "vvfu/base/fd.hpp"

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
    const Fd file{::memfd_create(name, MFD_CLOEXEC)};
    if (!file) {
        return system_failure("cannot create shared memory");
    }
    if (::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
        return system_failure("cannot size shared memory");
    }
    void *address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
    if (address == MAP_FAILED) {
        return system_failure("cannot map shared memory");
    }
    memory.bytes_ = {static_cast<std::byte *>(address), size};
    return memory;
}

SharedMemory::SharedMemory(SharedMemory &&other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

SharedMemory &SharedMemory::operator=(SharedMemory &&other) noexcept
{
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
