// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_capabilities.hpp"

#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>

#include <algorithm>

namespace vvfu::guest {
namespace {

constexpr unsigned kMaxCapabilities = 48;  // as many as fit: a longer list is a loop
constexpr std::uint8_t kLastBar = 5;

std::uint8_t byte_at(std::span<const std::byte> config, std::size_t offset)
{
    return offset < config.size() ? std::to_integer<std::uint8_t>(config[offset]) : std::uint8_t{0};
}

std::optional<PciCap> *slot_of(VirtioCapabilities &caps, const PciCap &cap)
{
    switch (cap.cfg_type) {
        case VIRTIO_PCI_CAP_COMMON_CFG: return &caps.common;
        case VIRTIO_PCI_CAP_NOTIFY_CFG: return &caps.notify;
        case VIRTIO_PCI_CAP_DEVICE_CFG: return &caps.device;
        case kCapDoorbell: return &caps.doorbell;
        case kCapNotification: return &caps.notification;
        case kCapSharedMemory:
            return cap.id == kShmidWindow ? &caps.window : cap.id == kShmidRegionMemory ? &caps.region_memory : nullptr;
        default: return nullptr;
    }
}

void consider(VirtioCapabilities &caps, std::span<const std::byte> bytes)
{
    //= VVFU-PCI-5
    //# The driver MUST NOT use a capability that is shorter than its type requires, or that describes a range
    //# outside its BAR.
    // The range is checked where the BAR is mapped.
    const auto cap = decode_pci_cap(bytes);
    // VIRTIO 4.1.4: the driver MUST ignore reserved BAR values.
    if (!cap || cap->bar > kLastBar) {
        return;
    }
    //= VVFU-PCI-4
    //# The driver MUST use the first instance of a capability type (and `id`, for type 8), and ignore types that it
    //# does not know.
    auto *slot = slot_of(caps, *cap);
    if (slot != nullptr && !slot->has_value()) {
        *slot = *cap;
    }
}

}  // namespace

VirtioCapabilities find_virtio_capabilities(std::span<const std::byte> config)
{
    VirtioCapabilities caps;
    if ((byte_at(config, PCI_STATUS) & PCI_STATUS_CAP_LIST) == 0) {
        return caps;
    }
    std::size_t at = byte_at(config, PCI_CAPABILITY_LIST) & ~3u;
    for (unsigned i = 0; i < kMaxCapabilities && at != 0 && at < config.size(); ++i) {
        if (byte_at(config, at) == PCI_CAP_ID_VNDR) {
            consider(caps, config.subspan(at));
        }
        at = byte_at(config, at + PCI_CAP_LIST_NEXT) & ~3u;
    }
    return caps;
}

}  // namespace vvfu::guest
