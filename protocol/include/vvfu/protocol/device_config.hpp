// SPDX-License-Identifier: BSD-3-Clause
//
// What the device guest sees of the virtio-vfio-user PCI function besides its queues: device
// configuration space, feature bits, queue numbers, doorbell and notification capabilities.
// Normative text: docs/spec/virtio-vfio-user.md. All fields are little-endian.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/base/expected.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu {

using Uuid = std::array<std::uint8_t, 16>;

/// Virtio device ID used unless the device VMM is told otherwise. None is assigned by the VIRTIO specification.
inline constexpr std::uint16_t kDefaultVirtioId = 63;
/// PCI device ID of a modern virtio function: this plus the virtio device ID (VIRTIO 4.1.2).
//= VVFU-ID-1
inline constexpr std::uint16_t kPciVendorVirtio = 0x1af4;
inline constexpr std::uint16_t kPciDeviceVirtioBase = 0x1040;

/// Queue numbers.
inline constexpr unsigned kControlQueue = 0;  ///< guest -> device requests, replies in the same chain
inline constexpr unsigned kRequestQueue = 1;  ///< device -> guest requests
inline constexpr unsigned kReplyQueue = 2;    ///< guest -> device replies to those
inline constexpr unsigned kBaseQueues = 3;
inline constexpr unsigned kQueueSize = 256;  ///< maximum (and default) size of every queue

/// Device feature bits. Bit 0 (VIRTIO_VFIO_USER_F_ACCESS_QUEUES) is reserved and never offered by this version.
inline constexpr unsigned kFeatureBitAccessQueues = 0;

/// Shared memory region IDs (VIRTIO 2.10).
inline constexpr std::uint8_t kShmidWindow = 0;
inline constexpr std::uint8_t kShmidRegionMemory = 1;

/// Every request buffer that the guest posts has at least this many writable bytes, and no request is longer.
inline constexpr std::uint32_t kRequestBufferSize = 8192;
/// What no device is below: a REGION_WRITE_MULTI of 256 entries; more than a page of register data.
//= VVFU-CONF-2
inline constexpr std::uint32_t kMinRequestBufferSize = control::kHeaderSize + 8 + 256 * 24;
static_assert(kRequestBufferSize >= kMinRequestBufferSize && kMinRequestBufferSize == 6184);
/// Longest message on the control queue, in bytes, either direction.
inline constexpr std::uint32_t kMaxMessageSize = 256 * 1024;
inline constexpr std::uint32_t kMaxRegions = control::kRegionCount;

/// Device configuration space (read-only for the driver).
struct DeviceConfig {
    Uuid uuid{};                           ///< all zero: none
    std::uint64_t window_size = 0;         ///< bytes
    std::uint64_t region_memory_size = 0;  ///< bytes, may be 0
    std::uint32_t doorbells = 0;
    std::uint32_t notifications = 0;
    std::uint32_t access_queue_pairs = 0;
    std::uint32_t max_message_size = kMaxMessageSize;
    std::uint32_t request_buffer_size = kRequestBufferSize;
    std::uint32_t max_regions = kMaxRegions;
    std::uint32_t unmap_timeout = 0;   ///< ms until the device goes on without an answer to MEMORY_INFO(DEL)
    std::uint32_t access_timeout = 0;  ///< ms, likewise for all other requests
    friend bool operator==(const DeviceConfig &, const DeviceConfig &) = default;
};
inline constexpr std::size_t kDeviceConfigSize = 64;

void encode(const DeviceConfig &config, std::span<std::byte, kDeviceConfigSize> out);
[[nodiscard]] DeviceConfig decode_device_config(std::span<const std::byte, kDeviceConfigSize> bytes);

/// PCI capability types beside those of VIRTIO 4.1.4 (virtio_pci_cap.cfg_type), as the auxiliary
/// notification drafts number them.
inline constexpr std::uint8_t kCapDoorbell = 6;
inline constexpr std::uint8_t kCapNotification = 7;
inline constexpr std::uint8_t kCapSharedMemory = 8;  // VIRTIO_PCI_CAP_SHARED_MEMORY_CFG

/// Body of a vendor capability as in VIRTIO 4.1.4 (struct virtio_pci_cap), 16 bytes, plus the doorbell
/// multiplier (le32) for kCapDoorbell.
struct PciCap {
    std::uint8_t cfg_type = 0;
    std::uint8_t bar = 0;
    std::uint8_t id = 0;
    std::uint64_t offset = 0;      ///< in the BAR; above 4 GiB for 64-bit capabilities only
    std::uint64_t length = 0;      ///< bytes
    std::uint32_t multiplier = 0;  ///< kCapDoorbell: bytes between doorbells; notify cap: its multiplier
    friend bool operator==(const PciCap &, const PciCap &) = default;
};
inline constexpr std::size_t kPciCapSize = 16;          // kCapNotification and the standard ones
inline constexpr std::size_t kPciCapDoorbellSize = 20;  // and the notify capability
inline constexpr std::size_t kPciCap64Size = 24;        // kCapSharedMemory

/// Encodes a kCapDoorbell or kCapNotification capability; byte 1 (next) is left 0. Returns bytes used.
std::size_t encode_pci_cap(const PciCap &cap, std::span<std::byte, kPciCap64Size> out);
/// Decodes any virtio vendor capability from its bytes in configuration space (starting at cap_vndr).
/// Fails with too_short when cap_len or `bytes` is below what its type needs.
[[nodiscard]] Expected<PciCap, control::DecodeError> decode_pci_cap(std::span<const std::byte> bytes);

/// A doorbell is rung by a 32-bit write of any value to offset + index * multiplier. A 32-bit read
/// returns 1 while a write is latched pending, else 0.
inline constexpr std::uint32_t kDoorbellMultiplier = 4;
inline constexpr std::uint32_t kMaxDoorbells = 4096;

/// Notification registers (kCapNotification): two le16, select at 0, msix_vector at 2.
inline constexpr std::uint32_t kNotificationSelect = 0;
inline constexpr std::uint32_t kNotificationVector = 2;
inline constexpr std::uint16_t kNoVector = 0xffff;  // VIRTIO_MSI_NO_VECTOR
/// Notification 0 fires when the peer unmasks INTx through its resample eventfd; the others are for
/// ioeventfd sub-regions.
inline constexpr std::uint32_t kNotificationIntxUnmask = 0;
inline constexpr std::uint32_t kMaxNotifications = 1024;

}  // namespace vvfu
