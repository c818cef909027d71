// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_registers.hpp"

#include <fmt/format.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include <array>
#include <bit>
#include <chrono>
#include <thread>

namespace vvfu::guest {
namespace {

static_assert(std::endian::native == std::endian::little, "virtio registers are little-endian");

constexpr std::uint8_t kGone = 0xff;  // what an absent or dead function reads as
constexpr int kConfigReads = 16;      // a device that changes its configuration all the time is not waited for
constexpr auto kResetTime = std::chrono::seconds{1};

}  // namespace

std::uint8_t CommonConfig::status() const
{
    return registers_.read8(VIRTIO_PCI_COMMON_STATUS);
}

std::uint8_t CommonConfig::generation() const
{
    return registers_.read8(VIRTIO_PCI_COMMON_CFGGENERATION);
}

bool CommonConfig::needs_reset() const
{
    return (status() & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

void CommonConfig::add_status(std::uint8_t bits)
{
    // VIRTIO 2.1.1: the driver MUST NOT clear a device status bit.
    registers_.write8(VIRTIO_PCI_COMMON_STATUS, static_cast<std::uint8_t>(status() | bits));
}

bool CommonConfig::reset()
{
    registers_.write8(VIRTIO_PCI_COMMON_STATUS, 0);
    // VIRTIO 4.1.4.3.2: after writing 0, the driver MUST wait for a read to return 0.
    const auto deadline = std::chrono::steady_clock::now() + kResetTime;
    while (status() != 0) {
        if (status() == kGone || std::chrono::steady_clock::now() > deadline) {
            return false;
        }
        std::this_thread::yield();
    }
    return true;
}

std::uint64_t CommonConfig::device_features()
{
    std::uint64_t features = 0;
    for (const std::uint32_t half : {0u, 1u}) {
        registers_.write32(VIRTIO_PCI_COMMON_DFSELECT, half);
        features |= std::uint64_t{registers_.read32(VIRTIO_PCI_COMMON_DF)} << (32 * half);
    }
    return features;
}

void CommonConfig::set_driver_features(std::uint64_t features)
{
    for (const std::uint32_t half : {0u, 1u}) {
        registers_.write32(VIRTIO_PCI_COMMON_GFSELECT, half);
        registers_.write32(VIRTIO_PCI_COMMON_GF, static_cast<std::uint32_t>(features >> (32 * half)));
    }
}

Result<std::uint64_t> CommonConfig::negotiate(std::uint64_t wanted, std::uint64_t required)
{
    if (status() == kGone) {
        return failure("the device does not answer");
    }
    add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);  // step 2
    add_status(VIRTIO_CONFIG_S_DRIVER);       // step 3
    const auto offered = device_features();   // step 4
    if (const auto missing = required & ~offered; missing != 0) {
        add_status(VIRTIO_CONFIG_S_FAILED);
        return failure(
            fmt::format("the device does not offer required feature bits {:#x} (needed are VIRTIO_F_VERSION_1 and "
                        "VIRTIO_F_ACCESS_PLATFORM: check disable-legacy=on,iommu_platform=on)",
                        missing));
    }
    //= VVFU-EXT-2
    const auto accepted = wanted & offered;
    set_driver_features(accepted);
    add_status(VIRTIO_CONFIG_S_FEATURES_OK);              // step 5
    if ((status() & VIRTIO_CONFIG_S_FEATURES_OK) == 0) {  // step 6
        add_status(VIRTIO_CONFIG_S_FAILED);
        return failure(fmt::format("the device rejects feature bits {:#x}", accepted));
    }
    return accepted;
}

std::uint16_t CommonConfig::queue_size_max(unsigned queue)
{
    if (queue >= registers_.read16(VIRTIO_PCI_COMMON_NUMQ)) {
        return 0;
    }
    registers_.write16(VIRTIO_PCI_COMMON_Q_SELECT, static_cast<std::uint16_t>(queue));
    return registers_.read16(VIRTIO_PCI_COMMON_Q_SIZE);
}

void CommonConfig::write64(std::size_t offset, std::uint64_t value)
{
    registers_.write32(offset, static_cast<std::uint32_t>(value));
    registers_.write32(offset + 4, static_cast<std::uint32_t>(value >> 32));
}

// VIRTIO 4.1.5.1.3.
Result<std::uint16_t> CommonConfig::setup_queue(unsigned queue, const QueueAddresses &addresses, std::uint16_t vector)
{
    const auto maximum = queue_size_max(queue);
    if (addresses.size == 0 || addresses.size > maximum) {
        return failure(fmt::format("queue {} has at most {} entries, {} are needed", queue, maximum, addresses.size));
    }
    registers_.write16(VIRTIO_PCI_COMMON_Q_SIZE, addresses.size);
    write64(VIRTIO_PCI_COMMON_Q_DESCLO, addresses.descriptors);
    write64(VIRTIO_PCI_COMMON_Q_AVAILLO, addresses.driver_area);
    write64(VIRTIO_PCI_COMMON_Q_USEDLO, addresses.device_area);
    registers_.write16(VIRTIO_PCI_COMMON_Q_MSIX, vector);
    // VIRTIO 4.1.5.1.2: the device answers NO_VECTOR when it cannot map the vector.
    if (registers_.read16(VIRTIO_PCI_COMMON_Q_MSIX) != vector) {
        return failure(fmt::format("the device does not take MSI-X vector {} for queue {}", vector, queue));
    }
    registers_.write16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
    return registers_.read16(VIRTIO_PCI_COMMON_Q_NOFF);
}

Result<void> CommonConfig::set_config_vector(std::uint16_t vector)
{
    registers_.write16(VIRTIO_PCI_COMMON_MSIX, vector);
    if (registers_.read16(VIRTIO_PCI_COMMON_MSIX) != vector) {
        return failure(fmt::format("the device does not take MSI-X vector {} for configuration changes", vector));
    }
    return {};
}

Result<void> CommonConfig::driver_ok()
{
    add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    const auto now = status();
    if ((now & VIRTIO_CONFIG_S_DRIVER_OK) == 0 || (now & VIRTIO_CONFIG_S_NEEDS_RESET) != 0) {
        return failure(fmt::format("the device does not start (device status {:#04x})", now));
    }
    return {};
}

DeviceConfig read_device_config(const Registers &registers, const CommonConfig &common)
{
    std::array<std::byte, kDeviceConfigSize> bytes{};
    for (int attempt = 0; attempt < kConfigReads; ++attempt) {
        const auto before = common.generation();
        for (std::size_t offset = 0; offset < bytes.size(); offset += 4) {
            const auto word = registers.read32(offset);
            for (std::size_t i = 0; i < 4; ++i) {
                bytes[offset + i] = static_cast<std::byte>(word >> (8 * i));
            }
        }
        if (common.generation() == before) {
            break;
        }
    }
    return decode_device_config(bytes);
}

//= VVFU-NOTIFY-4
//# The driver MUST read `notification_msix_vector` back and treat the notification as not connected if the value
//# differs from what it wrote.
bool connect_notification(Registers &registers, std::uint32_t index, std::uint16_t vector)
{
    registers.write16(kNotificationSelect, static_cast<std::uint16_t>(index));
    registers.write16(kNotificationVector, vector);
    return registers.read16(kNotificationVector) == vector;
}

}  // namespace vvfu::guest
