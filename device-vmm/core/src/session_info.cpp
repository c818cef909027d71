// SPDX-License-Identifier: BSD-3-Clause
//
// Commands that are answered from what the guest registered, and those that this version refuses.
#include <algorithm>

#include "session.hpp"

namespace vvfu::core {
namespace {

/// Complete reply to DEVICE_GET_REGION_INFO; the caller cuts it to the client's argsz.
vfio_user::Buffer region_info_payload(std::uint32_t index, const Region &region, bool with_caps)
{
    const bool mmap = (region.flags & control::kRegionMmap) != 0;
    vfio_user::RegionInfo info;
    info.argsz = sizeof info;
    info.index = index;
    info.size = region.size;
    info.flags = ((region.flags & control::kRegionRead) != 0 ? vfio_user::kRegionFlagRead : 0u) |
                 ((region.flags & control::kRegionWrite) != 0 ? vfio_user::kRegionFlagWrite : 0u);
    vfio_user::Buffer out;
    if (!mmap) {
        vfio_user::append(out, info);
        return out;
    }
    info.flags |= vfio_user::kRegionFlagMmap;
    // Of the region's own file: see RegionMemory::fd().
    info.offset = 0;
    info.argsz +=
        static_cast<std::uint32_t>(sizeof(vfio_user::SparseCap) + region.areas.size() * sizeof(vfio_user::SparseArea));
    if (!with_caps) {
        vfio_user::append(out, info);
        return out;
    }
    info.flags |= vfio_user::kRegionFlagCaps;
    info.cap_offset = sizeof info;
    vfio_user::append(out, info);
    vfio_user::SparseCap cap;
    cap.nr_areas = static_cast<std::uint32_t>(region.areas.size());
    vfio_user::append(out, cap);
    for (const auto &area : region.areas) {
        vfio_user::append(out, vfio_user::SparseArea{area.offset, area.size});
    }
    return out;
}

std::uint32_t full_region_info_size(const Region &region)
{
    const auto areas = region.areas.size();
    return static_cast<std::uint32_t>(
        sizeof(vfio_user::RegionInfo) +
        (areas == 0 ? 0 : sizeof(vfio_user::SparseCap) + areas * sizeof(vfio_user::SparseArea)));
}

}  // namespace

Refusal Session::get_info(Nanoseconds, Message &message)
{
    // cloud-hypervisor's argsz counts the header too; more than needed is fine.
    if (const auto request = vfio_user::decode_argsz<vfio_user::DeviceInfo>(message.payload); !request) {
        return malformed_argsz(message.payload, request.error());
    }
    vfio_user::DeviceInfo info;
    info.argsz = sizeof info;
    info.flags = vfio_user::kDeviceFlagPci | (env_.device.resettable() ? vfio_user::kDeviceFlagReset : 0u);
    info.num_regions = control::kRegionCount;
    info.num_irqs = control::kIrqIndexCount;
    send_reply(message.header, reply_with(message.header, info));
    return {};
}

Refusal Session::get_region_info(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::RegionInfo>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (request->index >= control::kRegionCount) {
        return {EINVAL, "no such region", {{"index", request->index}}};
    }
    auto region = env_.device.regions[request->index];
    if (!peer_takes_fds_) {
        region.flags &= ~control::kRegionMmap;
        region.areas.clear();
    }
    const bool complete = request->argsz >= full_region_info_size(region);
    const auto payload = region_info_payload(request->index, region, complete);
    vfio_user::Buffer reply;
    vfio_user::begin_reply(reply, message.header);
    vfio_user::append_bytes(reply, payload);
    // One fd for all areas: stock clients refuse more (reference: exactly one with the MMAP flag).
    //= VVFU-REGION-1
    send_reply(message.header, std::move(reply),
               complete && !region.areas.empty() ? region_memory_.fd(request->index) : -1);
    return {};
}

Refusal Session::get_region_io_fds(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::RegionIoFds>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (request->flags != 0 || request->count != 0) {
        return {EINVAL, "not 0", {{"flags", request->flags}, {"count", request->count}}};
    }
    if (request->argsz > vfio_user::kMaxDataXferSize) {
        return {EINVAL, "more than a message holds", {{"argsz", request->argsz}}};
    }
    if (request->index >= control::kRegionCount || env_.device.regions[request->index].size == 0) {
        return {EINVAL, "no such region", {{"index", request->index}}};
    }
    return {ENOTSUP, "not supported", {}};
}

Refusal Session::get_irq_info(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::IrqInfo>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (request->index >= control::kIrqIndexCount) {
        return {EINVAL, "no such interrupt index", {{"index", request->index}}};
    }
    vfio_user::IrqInfo info;
    info.argsz = sizeof info;
    info.flags = vfio_user::kIrqFlagEventfd;
    info.index = request->index;
    info.count = env_.device.irqs[request->index];
    send_reply(message.header, reply_with(message.header, info));
    return {};
}

Refusal Session::device_feature(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::DeviceFeature>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    return {ENOTSUP, "not supported", {{"flags", request->flags}}};
}

Refusal Session::mig_data_read(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::MigData>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (request->size > vfio_user::kMaxDataXferSize) {
        return {EINVAL, "more than a message holds", {{"size", request->size}}};
    }
    return {ENOTSUP, "not supported", {}};
}

Refusal Session::mig_data_write(Nanoseconds, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::MigData>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (message.payload.size() - sizeof *request != request->size) {
        return {EINVAL, "disagrees with the message size", {{"size", request->size}}};
    }
    return {ENOTSUP, "not supported", {}};
}

}  // namespace vvfu::core
