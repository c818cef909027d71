// SPDX-License-Identifier: BSD-3-Clause
//
// Registers of a virtio-pci function, and what a driver does with the common configuration structure (VIRTIO
// 4.1.4.3). Knows nothing of how the registers are reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/guest/error.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// Registers in device memory or in a test. Each call is one access of that width.
class Registers {
public:
    virtual ~Registers() = default;
    [[nodiscard]] virtual std::uint8_t read8(std::size_t offset) const = 0;
    [[nodiscard]] virtual std::uint16_t read16(std::size_t offset) const = 0;
    [[nodiscard]] virtual std::uint32_t read32(std::size_t offset) const = 0;
    virtual void write8(std::size_t offset, std::uint8_t value) = 0;
    virtual void write16(std::size_t offset, std::uint16_t value) = 0;
    virtual void write32(std::size_t offset, std::uint32_t value) = 0;
};

/// Registers in mapped device memory (not owned). Little-endian hosts only, like the rest of this driver.
class MappedRegisters final : public Registers {
public:
    MappedRegisters() = default;
    explicit MappedRegisters(std::span<std::byte> memory) : memory_(memory) {}

    [[nodiscard]] std::uint8_t read8(std::size_t offset) const override { return *at<std::uint8_t>(offset); }
    [[nodiscard]] std::uint16_t read16(std::size_t offset) const override { return *at<std::uint16_t>(offset); }
    [[nodiscard]] std::uint32_t read32(std::size_t offset) const override { return *at<std::uint32_t>(offset); }
    void write8(std::size_t offset, std::uint8_t value) override { *at<std::uint8_t>(offset) = value; }
    void write16(std::size_t offset, std::uint16_t value) override { *at<std::uint16_t>(offset) = value; }
    void write32(std::size_t offset, std::uint32_t value) override { *at<std::uint32_t>(offset) = value; }

    [[nodiscard]] std::size_t size() const noexcept { return memory_.size(); }

private:
    template <typename T>
    [[nodiscard]] volatile T *at(std::size_t offset) const
    {
        return reinterpret_cast<volatile T *>(memory_.data() + offset);
    }
    std::span<std::byte> memory_;
};

/// Bytes of the common configuration structure that this driver uses.
inline constexpr std::size_t kCommonConfigSize = 56;

class CommonConfig {
public:
    explicit CommonConfig(Registers &registers) : registers_(registers) {}

    /// VIRTIO 3.1.1 step 1. False: the device did not become 0 within a second (or is gone).
    bool reset();
    /// Steps 2 to 6, see Transport::negotiate().
    Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required);
    [[nodiscard]] std::uint16_t queue_size_max(unsigned queue);
    /// Part of step 7: returns queue_notify_off.
    Result<std::uint16_t> setup_queue(unsigned queue, const QueueAddresses &addresses, std::uint16_t vector);
    Result<void> set_config_vector(std::uint16_t vector);
    /// Step 8.
    Result<void> driver_ok();
    [[nodiscard]] std::uint8_t status() const;
    [[nodiscard]] bool needs_reset() const;
    [[nodiscard]] std::uint8_t generation() const;

private:
    void add_status(std::uint8_t bits);
    [[nodiscard]] std::uint64_t device_features();
    void set_driver_features(std::uint64_t features);
    /// A 64-bit field as two 32-bit accesses (VIRTIO 4.1.3.1).
    void write64(std::size_t offset, std::uint64_t value);

    Registers &registers_;
};

/// Device configuration space, read so that all fields belong together (VIRTIO 2.5.3).
[[nodiscard]] DeviceConfig read_device_config(const Registers &registers, const CommonConfig &common);

/// Connects notification `index` to MSI-X vector `vector`. False: the device did not take it.
bool connect_notification(Registers &registers, std::uint32_t index, std::uint16_t vector);

}  // namespace vvfu::guest
