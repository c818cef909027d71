// SPDX-License-Identifier: BSD-3-Clause
#include "device_registry.hpp"

#include <algorithm>
#include <optional>

namespace vvfu::core {
namespace {

using control::Area;
using control::Status;

constexpr std::uint64_t kPage = 4096;
/// The largest BAR that 64-bit PCI addressing leaves room for; keeps every sum of offsets below 2^64.
constexpr std::uint64_t kMaxRegionSize = std::uint64_t{1} << 56;

using Problem = std::optional<DeviceRefusal>;

DeviceRefusal invalid(std::string reason)
{
    return {Status::invalid, std::move(reason)};
}

std::string region_name(std::uint32_t index)
{
    return "region " + std::to_string(index);
}

/// Page-aligned, not empty, inside the region, disjoint, inside region memory.
Problem check_areas(const control::RegionInfo &info, const std::vector<Area> &sorted, std::uint64_t region_memory_size)
{
    const auto name = region_name(info.index);
    if (info.region_memory_offset % kPage != 0) {
        return invalid(name + ": region_memory_offset is not page-aligned");
    }
    std::uint64_t end = 0;
    for (const auto &area : sorted) {
        if (area.size == 0 || area.offset % kPage != 0 || area.size % kPage != 0) {
            return invalid(name + ": an area is empty or not page-aligned");
        }
        if (area.offset > info.size || area.size > info.size - area.offset) {
            return invalid(name + ": an area lies outside the region");
        }
        if (area.offset < end) {
            return invalid(name + ": areas overlap");
        }
        end = area.offset + area.size;
    }
    if (info.region_memory_offset > region_memory_size || end > region_memory_size - info.region_memory_offset) {
        return {{Status::no_space,
                 name + ": areas end beyond region memory (" + std::to_string(region_memory_size) + " bytes)"}};
    }
    return std::nullopt;
}

Problem add_region(Device &device, const control::RegionInfo &info, const CoreConfig &config)
{
    const auto name = region_name(info.index);
    if (info.index >= control::kRegionCount) {
        return invalid(name + ": no such index");
    }
    constexpr std::uint32_t kKnown = control::kRegionRead | control::kRegionWrite | control::kRegionMmap;
    if ((info.flags & ~kKnown) != 0) {
        return invalid(name + ": undefined flags");
    }
    if (info.size > kMaxRegionSize) {
        return invalid(name + ": larger than 2^56 bytes");
    }
    if (((info.flags & control::kRegionMmap) != 0) != !info.areas.empty()) {
        return invalid(name + ": MMAP without areas, or areas without MMAP");
    }
    if (info.index == control::kRegionConfig && !info.areas.empty()) {
        return invalid(name + ": configuration space cannot have areas");
    }
    auto areas = info.areas;
    std::sort(areas.begin(), areas.end(), [](const Area &a, const Area &b) { return a.offset < b.offset; });
    if (!areas.empty()) {
        if (auto problem = check_areas(info, areas, config.region_memory_size)) {
            return problem;
        }
    }
    device.regions[info.index] = {info.size, info.flags, info.region_memory_offset, std::move(areas)};
    return std::nullopt;
}

/// The parts of region memory from byte 0 of a region to the end of its last area.
Problem check_spans(const Device &device)
{
    std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;
    for (const auto &region : device.regions) {
        if (!region.areas.empty()) {
            const auto &last = region.areas.back();
            spans.emplace_back(region.region_memory_offset, region.region_memory_offset + last.offset + last.size);
        }
    }
    std::sort(spans.begin(), spans.end());
    for (std::size_t i = 1; i < spans.size(); ++i) {
        if (spans[i].first < spans[i - 1].second) {
            return invalid("two regions overlap in region memory");
        }
    }
    return std::nullopt;
}

Problem add_regions(Device &device, const control::DeviceInfo &info, const CoreConfig &config)
{
    std::array<bool, control::kRegionCount> seen{};
    for (const auto &region : info.regions) {
        if (auto problem = add_region(device, region, config)) {
            return problem;
        }
        if (std::exchange(seen[region.index], true)) {
            return invalid(region_name(region.index) + ": listed twice");
        }
    }
    if (auto problem = check_spans(device)) {
        return problem;
    }
    const auto config_size = device.regions[control::kRegionConfig].size;
    if (config_size != 256 && config_size != 4096) {
        return invalid("configuration space (region 7) must have 256 or 4096 bytes");
    }
    return std::nullopt;
}

Problem add_irqs(Device &device, const control::DeviceInfo &info, const CoreConfig &config)
{
    std::array<bool, control::kIrqIndexCount> seen{};
    for (const auto &irq : info.irqs) {
        if (irq.index >= control::kIrqIndexCount) {
            return invalid("interrupt index " + std::to_string(irq.index) + ": no such index");
        }
        if (std::exchange(seen[irq.index], true)) {
            return invalid("interrupt index " + std::to_string(irq.index) + ": listed twice");
        }
        device.irqs[irq.index] = irq.count;
    }
    for (const auto index : {control::kIrqIntx, control::kIrqErr, control::kIrqReq}) {
        if (device.irqs[index] > 1) {
            return invalid("INTx, ERR and REQ have at most one vector");
        }
    }
    const auto vectors =
        std::uint64_t{device.irqs[control::kIrqIntx]} + device.irqs[control::kIrqMsi] + device.irqs[control::kIrqMsix];
    if (vectors > config.doorbells) {
        return {{Status::no_space, std::to_string(vectors) + " interrupt vectors, but only " +
                                       std::to_string(config.doorbells) + " doorbells"}};
    }
    return std::nullopt;
}

Problem check_flags(const control::DeviceInfo &info)
{
    if ((info.flags & control::kDeviceRetain) != 0) {
        return {{Status::unsupported, "RETAIN is not supported"}};
    }
    if ((info.flags & ~std::uint32_t{control::kDeviceReset | control::kDeviceQuiesce}) != 0) {
        return invalid("undefined device flags");
    }
    return std::nullopt;
}

}  // namespace

//= VVFU-DEVICE-1
Expected<Device, DeviceRefusal> make_device(const control::DeviceInfo &info, const CoreConfig &config)
{
    Device device;
    device.flags = info.flags;
    device.features = info.features;
    auto problem = check_flags(info);
    if (!problem) {
        problem = add_regions(device, info, config);
    }
    if (!problem) {
        problem = add_irqs(device, info, config);
    }
    if (problem) {
        return make_unexpected(std::move(*problem));
    }
    return device;
}

}  // namespace vvfu::core
