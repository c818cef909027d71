// SPDX-License-Identifier: BSD-3-Clause
#include "window.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "vvfu/core/port.hpp"

namespace vvfu::loopback {
namespace {

/// Offsets keep their congruence to file offsets up to this size, for huge pages.
constexpr std::uint64_t kAlignment = std::uint64_t{1} << 30;

std::uint64_t mappings_of_a_process()
{
    std::uint64_t limit = 0;
    std::ifstream{"/proc/sys/vm/max_map_count"} >> limit;
    return limit != 0 ? limit : 65530;  // Linux's default
}

}  // namespace

unsigned ranges_within(std::uint64_t mappings) noexcept
{
    const auto ranges = mappings / 8 * 3;
    return static_cast<unsigned>(std::clamp<std::uint64_t>(ranges, 1, std::numeric_limits<unsigned>::max()));
}

guest::Result<Window> Window::create(std::uint64_t size)
{
    auto arena = Arena::create(size, kAlignment);
    if (!arena) {
        return guest::failure("cannot reserve " + std::to_string(size >> 20) +
                              " MiB of addresses for the window (choose a smaller --window-size)");
    }
    //= VVFU-WINDOW-5
    return Window{std::move(*arena), ranges_within(mappings_of_a_process())};
}

Window::Window(Arena arena, unsigned max_ranges) : arena_(std::move(arena)), max_ranges_(max_ranges) {}

int Window::map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset)
{
    if (ranges_ == max_ranges_) {
        return -ENOSPC;
    }
    const int prot =
        ((protection & core::kProtRead) != 0 ? PROT_READ : 0) | ((protection & core::kProtWrite) != 0 ? PROT_WRITE : 0);
    const int rc = arena_.map(offset, size, prot, fd, fd_offset);
    ranges_ += rc == 0 ? 1u : 0u;
    return rc;
}

void Window::unmap(std::uint64_t offset, std::uint64_t size) noexcept
{
    arena_.unmap(offset, size);
    ranges_ -= ranges_ > 0 ? 1u : 0u;
}

}  // namespace vvfu::loopback
