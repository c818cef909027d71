// SPDX-License-Identifier: BSD-3-Clause
#include "window.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "vvfu/core/port.hpp"

namespace vvfu::loopback {
namespace {

/// Offsets keep their congruence to file offsets up to this size, for huge pages.
constexpr std::uint64_t kAlignment = std::uint64_t{1} << 30;

}  // namespace

guest::Result<Window> Window::create(std::uint64_t size)
{
    const auto reserved = size + kAlignment;
    void *address = reserved < size ? MAP_FAILED
                                    : ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED) {
        return guest::failure("cannot reserve " + std::to_string(size >> 20) +
                              " MiB of addresses for the window (choose a smaller --window-size)");
    }
    auto *reservation = static_cast<std::byte *>(address);
    //= VVFU-WINDOW-5
    const auto start = (reinterpret_cast<std::uintptr_t>(address) + kAlignment - 1) & ~(kAlignment - 1);
    return Window{reservation, reserved, {reinterpret_cast<std::byte *>(start), size}};
}

Window::Window(std::byte *reservation, std::size_t reserved, std::span<std::byte> bytes)
    : reservation_(reservation), reserved_(reserved), bytes_(bytes)
{
}

Window::Window(Window &&other) noexcept
    : reservation_(std::exchange(other.reservation_, nullptr)),
      reserved_(other.reserved_),
      bytes_(other.bytes_),
      ranges_(other.ranges_)
{
}

Window::~Window()
{
    if (reservation_ != nullptr) {
        ::munmap(reservation_, reserved_);
    }
}

bool Window::contains(std::uint64_t offset, std::uint64_t size) const noexcept
{
    return size != 0 && size <= bytes_.size() && offset <= bytes_.size() - size;
}

int Window::map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset)
{
    if (!contains(offset, size)) {
        return -EINVAL;
    }
    if (ranges_ == kMaxRanges) {
        return -ENOSPC;
    }
    const int prot =
        ((protection & core::kProtRead) != 0 ? PROT_READ : 0) | ((protection & core::kProtWrite) != 0 ? PROT_WRITE : 0);
    // Made elsewhere and moved here: a MAP_FIXED that the peer's file refuses (its seals can) leaves a gap in the
    // reservation on Linux before 6.12, which other memory of this process may take before the next range is put there.
    void *made = ::mmap(nullptr, size, prot, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(fd_offset));
    if (made == MAP_FAILED) {
        return -errno;
    }
    if (::mremap(made, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, bytes_.data() + offset) == MAP_FAILED) {
        const int error = errno;
        ::munmap(made, size);
        return -error;
    }
    ++ranges_;
    return 0;
}

//= VVFU-WINDOW-4
//# The device MUST ensure that after a range's removal no access of the driver reaches the peer's memory in that
//# range.
void Window::unmap(std::uint64_t offset, std::uint64_t size)
{
    if (!contains(offset, size)) {
        return;
    }
    --ranges_;
    void *address = bytes_.data() + offset;
    if (::mmap(address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
        MAP_FAILED) {
        // Over the limit of mappings. The whole mapping at once needs no further one; a late access then faults.
        static_cast<void>(::mprotect(address, size, PROT_NONE));
    }
}

}  // namespace vvfu::loopback
