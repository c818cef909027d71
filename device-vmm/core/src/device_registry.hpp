// SPDX-License-Identifier: BSD-3-Clause
//
// The emulated device as DEVICE_INFO(ADD) registered it, checked (docs/spec/virtio-vfio-user.md 10.1).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "irq_table.hpp"
#include "vvfu/base/expected.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::core {

struct Region {
    std::uint64_t size = 0;
    std::uint32_t flags = 0;  ///< control::RegionFlag
    std::uint64_t region_memory_offset = 0;
    std::vector<control::Area> areas;  ///< sorted by offset
};

struct Device {
    std::array<Region, control::kRegionCount> regions;
    IrqCounts irqs{};
    std::uint32_t flags = 0;     ///< control::DeviceFlag
    std::uint64_t features = 0;  ///< control::Feature

    [[nodiscard]] bool resettable() const noexcept { return (flags & control::kDeviceReset) != 0; }
    /// Whether [offset, offset + count) lies inside region `index`.
    [[nodiscard]] bool contains(std::uint32_t index, std::uint64_t offset, std::uint64_t count) const noexcept
    {
        return index < regions.size() && offset <= regions[index].size && count <= regions[index].size - offset;
    }
};

struct DeviceRefusal {
    control::Status status = control::Status::invalid;
    std::string reason;
};

[[nodiscard]] Expected<Device, DeviceRefusal> make_device(const control::DeviceInfo &info, const CoreConfig &config);

}  // namespace vvfu::core
