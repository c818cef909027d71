// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_pci_transport.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace vvfu::guest {
namespace {

constexpr std::size_t kNotificationRegisters = 4;  // bytes

// MSI-X vectors: one for configuration changes, one per queue, then one per notification.
constexpr std::uint16_t kConfigVector = 0;
constexpr std::uint16_t queue_vector(unsigned queue)
{
    return static_cast<std::uint16_t>(1 + queue);
}
constexpr std::uint16_t notification_vector(std::uint32_t index)
{
    return static_cast<std::uint16_t>(1 + kBaseQueues + index);
}

}  // namespace

Result<std::unique_ptr<VirtioPciTransport>> VirtioPciTransport::create(std::unique_ptr<DeviceAccess> device)
{
    const auto config = device->config();
    if (!config) {
        return make_unexpected(config.error());
    }
    const auto caps = find_virtio_capabilities(*config);
    std::unique_ptr<VirtioPciTransport> transport{new VirtioPciTransport(std::move(device))};
    auto result = transport->map_structures(caps);
    if (result) {
        result = transport->map_memory(caps);
    }
    if (result) {
        result = transport->check_doorbells();
    }
    if (result) {
        result = transport->enable_interrupts();
    }
    if (!result) {
        return make_unexpected(result.error());
    }
    return transport;
}

VirtioPciTransport::~VirtioPciTransport()
{
    // The device must forget our queues before their memory goes away.
    if (common_registers_.size() > 0) {
        reset();
    }
}

Result<std::span<std::byte>> VirtioPciTransport::map(const PciCap &cap, std::uint64_t at_least)
{
    if (cap.length < at_least) {
        return failure(fmt::format("{}: the capability of type {} describes {:#x} bytes, {:#x} are needed",
                                   device_->name(), cap.cfg_type, cap.length, at_least));
    }
    if (cap.offset % 4 != 0) {
        return failure(fmt::format("{}: the capability of type {} is at offset {:#x}, which is not a multiple of 4",
                                   device_->name(), cap.cfg_type, cap.offset));
    }
    return device_->map_bar(cap.bar, cap.offset, cap.length);
}

Result<void> VirtioPciTransport::map_structures(const VirtioCapabilities &caps)
{
    const struct {
        const std::optional<PciCap> &cap;
        const char *name;
        std::uint64_t size;
        MappedRegisters *registers;
    } structures[] = {
        {caps.common, "common configuration", kCommonConfigSize, &common_registers_},
        {caps.device, "device configuration", kDeviceConfigSize, &config_registers_},
        {caps.notification, "notification", kNotificationRegisters, &notification_registers_},
        {caps.doorbell, "doorbell", 4, &doorbell_registers_},
    };
    for (const auto &structure : structures) {
        if (!structure.cap) {
            return failure(fmt::format("{}: not a virtio-vfio-user function: it has no {} capability", device_->name(),
                                       structure.name));
        }
        const auto memory = map(*structure.cap, structure.size);
        if (!memory) {
            return make_unexpected(memory.error());
        }
        *structure.registers = MappedRegisters{*memory};
    }
    if (!caps.notify) {
        return failure(device_->name() + ": not a virtio-vfio-user function: it has no notify capability");
    }
    const auto notify = map(*caps.notify, 2);
    if (!notify) {
        return make_unexpected(notify.error());
    }
    notify_area_ = *notify;
    notify_multiplier_ = caps.notify->multiplier;
    doorbell_multiplier_ = caps.doorbell->multiplier;
    initial_config_ = config();
    return {};
}

Result<void> VirtioPciTransport::map_memory(const VirtioCapabilities &caps)
{
    const struct {
        const std::optional<PciCap> &cap;
        const char *name;
        std::uint64_t size;
        std::span<std::byte> *memory;
    } memories[] = {{caps.window, "window", initial_config_.window_size, &window_},
                    {caps.region_memory, "region memory", initial_config_.region_memory_size, &region_memory_}};
    for (const auto &[cap, what, size, memory] : memories) {
        if (size == 0) {
            continue;
        }
        if (!cap) {
            return failure(fmt::format("{}: it has no shared memory capability for its {}", device_->name(), what));
        }
        const auto mapped = map(*cap, size);
        if (!mapped) {
            return make_unexpected(mapped.error());
        }
        *memory = mapped->first(size);
    }
    if (window_.empty()) {
        return failure(device_->name() + ": its window has no bytes: set window-size of the device");
    }
    return {};
}

Result<void> VirtioPciTransport::check_doorbells()
{
    const auto multiplier = doorbell_multiplier_;
    if (multiplier == 0 || multiplier % 4 != 0 || initial_config_.doorbells > kMaxDoorbells ||
        std::uint64_t{initial_config_.doorbells} * multiplier > doorbell_registers_.size()) {
        return failure(fmt::format("{}: {} doorbells, {} bytes apart, do not fit its doorbell capability of {} bytes",
                                   device_->name(), initial_config_.doorbells, multiplier, doorbell_registers_.size()));
    }
    return {};
}

Result<void> VirtioPciTransport::enable_interrupts()
{
    constexpr unsigned needed = 1 + kBaseQueues;
    const auto available = device_->msix_vectors();
    if (available < needed) {
        return failure(fmt::format("{}: has {} MSI-X vectors, {} are needed: raise vectors= of the device",
                                   device_->name(), available, needed));
    }
    const auto notifications = std::min({available - needed, initial_config_.notifications, kConnectedNotifications});
    std::vector<int> eventfds;
    for (unsigned i = 0; i < needed + notifications; ++i) {
        Fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
        if (!event) {
            return failure(fmt::format("{}: eventfd: {}", device_->name(), std::strerror(errno)));
        }
        eventfds.push_back(event.get());
        events_.push_back(std::move(event));
    }
    return device_->enable_msix(eventfds);
}

void VirtioPciTransport::reset()
{
    if (!common_.reset()) {
        spdlog::warn("[{}] the device does not take a reset", name());
    }
}

Result<std::uint64_t> VirtioPciTransport::negotiate(std::uint64_t wanted, std::uint64_t required)
{
    auto accepted = common_.negotiate(wanted, required);
    return accepted ? accepted : fail<std::uint64_t>(accepted.error());
}

// VIRTIO 4.1.4.4: queue_notify_off * notify_off_multiplier bytes into the notify structure.
Result<void> VirtioPciTransport::setup_queue(unsigned queue, const QueueAddresses &addresses)
{
    if (queue >= kBaseQueues) {
        return failure(fmt::format("{}: queue {} is not part of this version", device_->name(), queue));
    }
    const auto notify_offset = common_.setup_queue(queue, addresses, queue_vector(queue));
    if (!notify_offset) {
        return fail<void>(notify_offset.error());
    }
    const auto at = std::uint64_t{*notify_offset} * notify_multiplier_;
    if (at + 2 > notify_area_.size() || at % 2 != 0) {
        return failure(
            fmt::format("{}: the notify register of queue {} is outside its capability", device_->name(), queue));
    }
    notify_registers_[queue] = MappedRegisters{notify_area_.subspan(at, 2)};
    return {};
}

Result<void> VirtioPciTransport::driver_ok()
{
    auto result = common_.set_config_vector(kConfigVector);
    if (result) {
        result = common_.driver_ok();
    }
    return result ? result : fail<void>(result.error());
}

void VirtioPciTransport::notify(unsigned queue)
{
    if (queue < kBaseQueues && notify_registers_[queue].size() > 0) {
        // The available index must be visible to the device first (VIRTIO 2.7.13.4).
        std::atomic_thread_fence(std::memory_order_seq_cst);
        notify_registers_[queue].write16(0, static_cast<std::uint16_t>(queue));
    }
}

void VirtioPciTransport::ring_doorbell(std::uint32_t index)
{
    if (index >= initial_config_.doorbells) {
        return;
    }
    //= VVFU-DOORBELL-6
    //# The driver MUST make its earlier writes to the window visible to the peer before it writes to a doorbell.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    doorbell_registers_.write32(std::size_t{index} * doorbell_multiplier_, 1);
}

bool VirtioPciTransport::doorbell_pending(std::uint32_t index)
{
    return index < initial_config_.doorbells &&
           doorbell_registers_.read32(std::size_t{index} * doorbell_multiplier_) == 1;
}

int VirtioPciTransport::notification_event(std::uint32_t index)
{
    const auto vector = notification_vector(index);
    if (index >= kConnectedNotifications || vector >= events_.size() ||
        !connect_notification(notification_registers_, index, vector)) {
        return -1;
    }
    return events_[vector].get();
}

int VirtioPciTransport::queue_event(unsigned queue) const
{
    return events_[queue_vector(queue)].get();
}

int VirtioPciTransport::config_event() const
{
    return events_[kConfigVector].get();
}

int VirtioPciTransport::removal_event() const
{
    return device_->removal_event();
}

int VirtioPciTransport::error_event() const
{
    return device_->error_event();
}

}  // namespace vvfu::guest
