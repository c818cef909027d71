// SPDX-License-Identifier: BSD-3-Clause
#include "arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

namespace vvfu::loopback {
namespace {

constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/// Private memory at certain addresses. `flags`: which of the two ways to insist on them.
void put_private(void *address, std::uint64_t size, int flags) noexcept
{
    if (::mmap(address, size, PROT_READ | PROT_WRITE, kPrivate | flags, -1, 0) != MAP_FAILED) {
        return;
    }
    // The peer would be told that its memory is out of reach. What holds it does not outlive the process. Without
    // memory for a log line, perhaps.
    constexpr std::string_view kLine =
        "vvfu-loopback: cannot take the peer's memory out of reach (no mappings left, see vm.max_map_count): ending\n";
    static_cast<void>(::write(STDERR_FILENO, kLine.data(), kLine.size()) == 0);
    ::_exit(EXIT_FAILURE);
}

}  // namespace

guest::Result<Arena> Arena::create(std::uint64_t size, std::uint64_t alignment)
{
    if (size == 0) {
        return Arena{nullptr, 0, {}};
    }
    const auto reserved = size + alignment;
    errno = ENOMEM;
    void *address = reserved < size ? MAP_FAILED : ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, kPrivate, -1, 0);
    if (address == MAP_FAILED) {
        return guest::failure(std::strerror(errno));
    }
    const auto start = (reinterpret_cast<std::uintptr_t>(address) + alignment - 1) & ~(alignment - 1);
    return Arena{static_cast<std::byte *>(address), reserved, {reinterpret_cast<std::byte *>(start), size}};
}

Arena::Arena(std::byte *reservation, std::size_t reserved, std::span<std::byte> bytes)
    : reservation_(reservation), reserved_(reserved), bytes_(bytes)
{
}

Arena::Arena(Arena &&other) noexcept
    : reservation_(std::exchange(other.reservation_, nullptr)),
      reserved_(other.reserved_),
      bytes_(std::exchange(other.bytes_, {}))
{
}

Arena::~Arena()
{
    if (reservation_ != nullptr) {
        ::munmap(reservation_, reserved_);
    }
}

bool Arena::contains(std::uint64_t offset, std::uint64_t size) const noexcept
{
    return size != 0 && size <= bytes_.size() && offset <= bytes_.size() - size;
}

int Arena::map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset)
{
    if (!contains(offset, size)) {
        return -EINVAL;
    }
    // Made elsewhere and moved here: a MAP_FIXED that the peer's file refuses (its seals can) leaves a gap in the
    // reservation on Linux before 6.12, which other memory of this process may take before the next range is put there.
    void *made = ::mmap(nullptr, size, protection, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(fd_offset));
    if (made == MAP_FAILED) {
        return -errno;
    }
    auto *address = bytes_.data() + offset;
    if (::mremap(made, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, address) == MAP_FAILED) {
        const int error = errno;
        ::munmap(made, size);
        // It may have removed what was there; ENOMEM tells of the gap. Other memory of this process is not replaced.
        if (::msync(address, size, MS_ASYNC) != 0) {
            put_private(address, size, MAP_FIXED_NOREPLACE);
        }
        return -error;
    }
    return 0;
}

//= VVFU-WINDOW-4
//# The device MUST ensure that after a range's removal no access of the driver reaches the peer's memory in that
//# range.
void Arena::unmap(std::uint64_t offset, std::uint64_t size) noexcept
{
    if (contains(offset, size)) {
        put_private(bytes_.data() + offset, size, MAP_FIXED);
    }
}

}  // namespace vvfu::loopback
