// SPDX-License-Identifier: BSD-3-Clause
//
// The memory behind the mappable areas: fresh for each session, so that what a former peer still maps is worthless
// (docs/spec/virtio-vfio-user.md 6.6, docs/decisions/0008-region-memory-per-session.md).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "device_registry.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/core/port.hpp"

namespace vvfu::core {

class RegionMemory {
public:
    explicit RegionMemory(Port &port) : port_(port) {}
    ~RegionMemory() { release(); }
    RegionMemory(const RegionMemory &) = delete;
    RegionMemory &operator=(const RegionMemory &) = delete;

    /// Puts zeroed sealed memory where the areas of `device` are. Returns 0, or a negative errno, and then nothing was
    /// done. Called once.
    int show(const Device &device);
    /// Takes it out again: the device guest finds other zeroed memory there.
    void release();

    /// The file of a region with areas: area a is at byte a.offset. -1 before show() and after release().
    [[nodiscard]] int fd(std::uint32_t region) const { return files_.at(region).get(); }

private:
    struct Shown {
        std::uint64_t offset = 0, size = 0;
    };

    int show_region(const Region &region, Fd &file);

    Port &port_;
    std::array<Fd, control::kRegionCount> files_;
    std::vector<Shown> shown_;
};

}  // namespace vvfu::core
