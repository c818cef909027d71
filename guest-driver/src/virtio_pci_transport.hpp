// SPDX-License-Identifier: BSD-3-Clause
//
// The driver of a virtio-vfio-user function: modern virtio-pci (VIRTIO 4.1) over whatever reaches the function.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "device_access.hpp"
#include "virtio_capabilities.hpp"
#include "virtio_registers.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// Notifications that get an MSI-X vector; the others are reported by message.
inline constexpr unsigned kConnectedNotifications = 8;

class VirtioPciTransport final : public Transport {
public:
    /// Maps the structures and enables the interrupts. The device is not touched otherwise.
    static Result<std::unique_ptr<VirtioPciTransport>> create(std::unique_ptr<DeviceAccess> device);
    ~VirtioPciTransport() override;

    [[nodiscard]] const char *name() const override { return device_->name().c_str(); }
    void reset() override;
    Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required) override;
    [[nodiscard]] DeviceConfig config() override { return read_device_config(config_registers_, common_); }
    Result<SharedBuffer> allocate(std::size_t bytes) override { return device_->allocate(bytes); }
    std::uint16_t queue_size_max(unsigned queue) override { return common_.queue_size_max(queue); }
    Result<void> setup_queue(unsigned queue, const QueueAddresses &addresses) override;
    Result<void> driver_ok() override;
    void notify(unsigned queue) override;
    [[nodiscard]] int queue_event(unsigned queue) const override;
    [[nodiscard]] int config_event() const override;
    [[nodiscard]] int removal_event() const override;
    [[nodiscard]] int error_event() const override;
    [[nodiscard]] bool needs_reset() override { return common_.needs_reset(); }
    [[nodiscard]] std::span<std::byte> window() override { return window_; }
    [[nodiscard]] std::span<std::byte> region_memory() override { return region_memory_; }
    void ring_doorbell(std::uint32_t index) override;
    [[nodiscard]] bool doorbell_pending(std::uint32_t index) override;
    [[nodiscard]] int notification_event(std::uint32_t index) override;

private:
    explicit VirtioPciTransport(std::unique_ptr<DeviceAccess> device) : device_(std::move(device)) {}
    Result<void> map_structures(const VirtioCapabilities &caps);
    Result<void> map_memory(const VirtioCapabilities &caps);
    Result<void> check_doorbells();
    Result<void> enable_interrupts();
    Result<std::span<std::byte>> map(const PciCap &cap, std::uint64_t at_least);
    template <typename T>
    Result<T> fail(const Error &error) const
    {
        return failure(device_->name() + ": " + error.message);
    }

    // Last to be destroyed: everything below points into its mappings, and MSI-X ends before the eventfds close.
    std::vector<Fd> events_;  // by vector
    std::unique_ptr<DeviceAccess> device_;
    MappedRegisters common_registers_, config_registers_, notification_registers_, doorbell_registers_;
    CommonConfig common_{common_registers_};
    DeviceConfig initial_config_;
    std::span<std::byte> notify_area_, window_, region_memory_;
    std::uint32_t notify_multiplier_ = 0, doorbell_multiplier_ = 0;
    std::array<MappedRegisters, kBaseQueues> notify_registers_{};
};

}  // namespace vvfu::guest
