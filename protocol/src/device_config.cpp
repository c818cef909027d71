// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/device_config.hpp"

#include <algorithm>
#include <boost/endian/buffers.hpp>
#include <cstring>

namespace vvfu {
namespace {

using boost::endian::little_uint32_buf_t;
using boost::endian::little_uint64_buf_t;

struct DeviceConfigWire {
    std::uint8_t uuid[16];
    little_uint64_buf_t window_size;
    little_uint64_buf_t region_memory_size;
    little_uint32_buf_t doorbells;
    little_uint32_buf_t notifications;
    little_uint32_buf_t access_queue_pairs;
    little_uint32_buf_t max_message_size;
    little_uint32_buf_t request_buffer_size;
    little_uint32_buf_t max_regions;
    little_uint32_buf_t unmap_timeout;
    little_uint32_buf_t access_timeout;
};
static_assert(sizeof(DeviceConfigWire) == kDeviceConfigSize && offsetof(DeviceConfigWire, window_size) == 16 &&
              offsetof(DeviceConfigWire, doorbells) == 32 && offsetof(DeviceConfigWire, access_timeout) == 60);

// VIRTIO 4.1.4 struct virtio_pci_cap, followed by what cap types add.
struct PciCapWire {
    std::uint8_t cap_vndr;
    std::uint8_t cap_next;
    std::uint8_t cap_len;
    std::uint8_t cfg_type;
    std::uint8_t bar;
    std::uint8_t id;
    std::uint8_t padding[2];
    little_uint32_buf_t offset;
    little_uint32_buf_t length;
};
static_assert(sizeof(PciCapWire) == kPciCapSize);

constexpr std::uint8_t kPciCapIdVendor = 0x09;
constexpr std::uint8_t kCapNotify = 2;  // VIRTIO_PCI_CAP_NOTIFY_CFG

bool has_multiplier(std::uint8_t cfg_type)
{
    return cfg_type == kCapDoorbell || cfg_type == kCapNotify;
}

}  // namespace

//= VVFU-CONF-1
void encode(const DeviceConfig &config, std::span<std::byte, kDeviceConfigSize> out)
{
    DeviceConfigWire w{};
    std::copy(config.uuid.begin(), config.uuid.end(), w.uuid);
    w.window_size = config.window_size;
    w.region_memory_size = config.region_memory_size;
    w.doorbells = config.doorbells;
    w.notifications = config.notifications;
    w.access_queue_pairs = config.access_queue_pairs;
    w.max_message_size = config.max_message_size;
    w.request_buffer_size = config.request_buffer_size;
    w.max_regions = config.max_regions;
    w.unmap_timeout = config.unmap_timeout;
    w.access_timeout = config.access_timeout;
    std::memcpy(out.data(), &w, sizeof w);
}

DeviceConfig decode_device_config(std::span<const std::byte, kDeviceConfigSize> bytes)
{
    DeviceConfigWire w{};
    std::memcpy(&w, bytes.data(), sizeof w);
    DeviceConfig config;
    std::copy(std::begin(w.uuid), std::end(w.uuid), config.uuid.begin());
    config.window_size = w.window_size.value();
    config.region_memory_size = w.region_memory_size.value();
    config.doorbells = w.doorbells.value();
    config.notifications = w.notifications.value();
    config.access_queue_pairs = w.access_queue_pairs.value();
    config.max_message_size = w.max_message_size.value();
    config.request_buffer_size = w.request_buffer_size.value();
    config.max_regions = w.max_regions.value();
    config.unmap_timeout = w.unmap_timeout.value();
    config.access_timeout = w.access_timeout.value();
    return config;
}

std::size_t encode_pci_cap(const PciCap &cap, std::span<std::byte, kPciCap64Size> out)
{
    PciCapWire w{};
    const std::size_t size = has_multiplier(cap.cfg_type)       ? kPciCapDoorbellSize
                             : cap.cfg_type == kCapSharedMemory ? kPciCap64Size
                                                                : kPciCapSize;
    w.cap_vndr = kPciCapIdVendor;
    w.cap_len = static_cast<std::uint8_t>(size);
    w.cfg_type = cap.cfg_type;
    w.bar = cap.bar;
    w.id = cap.id;
    w.offset = static_cast<std::uint32_t>(cap.offset);
    w.length = static_cast<std::uint32_t>(cap.length);
    std::memcpy(out.data(), &w, sizeof w);
    if (has_multiplier(cap.cfg_type)) {
        little_uint32_buf_t multiplier;
        multiplier = cap.multiplier;
        std::memcpy(out.data() + kPciCapSize, &multiplier, sizeof multiplier);
    } else if (cap.cfg_type == kCapSharedMemory) {
        little_uint32_buf_t high[2];
        high[0] = static_cast<std::uint32_t>(cap.offset >> 32);
        high[1] = static_cast<std::uint32_t>(cap.length >> 32);
        std::memcpy(out.data() + kPciCapSize, high, sizeof high);
    }
    return size;
}

Expected<PciCap, control::DecodeError> decode_pci_cap(std::span<const std::byte> bytes)
{
    using control::DecodeError;
    PciCapWire w{};
    if (bytes.size() < sizeof w) {
        return make_unexpected(DecodeError::too_short);
    }
    std::memcpy(&w, bytes.data(), sizeof w);
    const std::size_t available = std::min<std::size_t>(bytes.size(), w.cap_len);
    //= VVFU-PCI-5
    if (available < kPciCapSize) {
        return make_unexpected(DecodeError::too_short);
    }
    PciCap cap{w.cfg_type, w.bar, w.id, w.offset.value(), w.length.value(), 0};
    if (has_multiplier(w.cfg_type)) {
        if (available < kPciCapDoorbellSize) {
            return make_unexpected(DecodeError::too_short);
        }
        little_uint32_buf_t multiplier;
        std::memcpy(&multiplier, bytes.data() + kPciCapSize, sizeof multiplier);
        cap.multiplier = multiplier.value();
    } else if (w.cfg_type == kCapSharedMemory) {
        if (available < kPciCap64Size) {
            return make_unexpected(DecodeError::too_short);
        }
        little_uint32_buf_t high[2];
        std::memcpy(high, bytes.data() + kPciCapSize, sizeof high);
        cap.offset |= std::uint64_t{high[0].value()} << 32;
        cap.length |= std::uint64_t{high[1].value()} << 32;
    }
    return cap;
}

}  // namespace vvfu
