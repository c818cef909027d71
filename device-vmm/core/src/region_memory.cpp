// SPDX-License-Identifier: BSD-3-Clause
#include "region_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

namespace vvfu::core {
namespace {

/// Zeroed; nobody can change its size. Invalid, with errno: there is none to be had.
Fd make_file(std::uint64_t size)
{
    Fd file{::memfd_create("vvfu-region-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (file && (::ftruncate(file.get(), static_cast<off_t>(size)) != 0 ||
                 ::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)) {
        const int error = errno;
        file.reset();
        errno = error;
    }
    return file;
}

}  // namespace

//= VVFU-REGION-2
int RegionMemory::show(const Device &device)
{
    for (std::uint32_t index = 0; index < files_.size(); ++index) {
        const auto &region = device.regions[index];
        if (region.areas.empty()) {
            continue;
        }
        if (const int rc = show_region(region, files_[index]); rc != 0) {
            release();
            return rc;
        }
    }
    return 0;
}

int RegionMemory::show_region(const Region &region, Fd &file)
{
    const auto &last = region.areas.back();
    file = make_file(last.offset + last.size);
    if (!file) {
        return -errno;
    }
    //= VVFU-REGION-4
    for (const auto &area : region.areas) {
        const Shown place{region.region_memory_offset + area.offset, area.size};
        shown_.push_back(place);  // first, for it can fail
        if (const int rc = port_.region_memory_map(place.offset, place.size, file.get(), area.offset); rc != 0) {
            shown_.pop_back();
            return rc;
        }
    }
    return 0;
}

//= VVFU-REGION-3
void RegionMemory::release()
{
    for (const auto &place : shown_) {
        port_.region_memory_unmap(place.offset, place.size);
    }
    shown_.clear();
    for (auto &file : files_) {
        file.reset();
    }
}

}  // namespace vvfu::core
