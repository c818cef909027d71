// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/vfio_transport.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "pci_sysfs.hpp"
#include "vfio_device.hpp"
#include "virtio_capabilities.hpp"
#include "virtio_registers.hpp"

namespace vvfu::guest {
namespace {

constexpr std::size_t kNotificationRegisters = 4;  // bytes
/// Notifications that get an MSI-X vector; the others are reported by message.
constexpr unsigned kConnectedNotifications = 8;

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

class VfioTransport final : public Transport {
public:
    static Result<std::unique_ptr<VfioTransport>> create(std::unique_ptr<VfioDevice> device);
    ~VfioTransport() override;

    [[nodiscard]] const char *name() const override { return device_->name().c_str(); }
    void reset() override;
    Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required) override;
    [[nodiscard]] DeviceConfig config() override { return read_device_config(config_registers_, common_); }
    Result<SharedBuffer> allocate(std::size_t bytes) override { return device_->allocate(bytes); }
    std::uint16_t queue_size_max(unsigned queue) override { return common_.queue_size_max(queue); }
    Result<void> setup_queue(unsigned queue, const QueueAddresses &addresses) override;
    Result<void> driver_ok() override;
    void notify(unsigned queue) override;
    [[nodiscard]] int queue_event(unsigned queue) const override { return events_[queue_vector(queue)].get(); }
    [[nodiscard]] int config_event() const override { return events_[kConfigVector].get(); }
    [[nodiscard]] bool needs_reset() override { return common_.needs_reset(); }
    [[nodiscard]] std::span<std::byte> window() override { return window_; }
    [[nodiscard]] std::span<std::byte> region_memory() override { return region_memory_; }
    void ring_doorbell(std::uint32_t index) override;
    [[nodiscard]] bool doorbell_pending(std::uint32_t index) override;
    [[nodiscard]] int notification_event(std::uint32_t index) override;

private:
    explicit VfioTransport(std::unique_ptr<VfioDevice> device) : device_(std::move(device)) {}
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
    std::unique_ptr<VfioDevice> device_;
    MappedRegisters common_registers_, config_registers_, notification_registers_, doorbell_registers_;
    CommonConfig common_{common_registers_};
    DeviceConfig initial_config_;
    std::span<std::byte> notify_area_, window_, region_memory_;
    std::uint32_t notify_multiplier_ = 0, doorbell_multiplier_ = 0;
    std::array<MappedRegisters, kBaseQueues> notify_registers_{};
};

Result<std::unique_ptr<VfioTransport>> VfioTransport::create(std::unique_ptr<VfioDevice> device)
{
    const auto config = device->config();
    if (!config) {
        return make_unexpected(config.error());
    }
    const auto caps = find_virtio_capabilities(*config);
    std::unique_ptr<VfioTransport> transport{new VfioTransport(std::move(device))};
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

VfioTransport::~VfioTransport()
{
    // The device must forget our queues before their memory goes away.
    if (common_registers_.size() > 0) {
        reset();
    }
}

Result<std::span<std::byte>> VfioTransport::map(const PciCap &cap, std::uint64_t at_least)
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

Result<void> VfioTransport::map_structures(const VirtioCapabilities &caps)
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

Result<void> VfioTransport::map_memory(const VirtioCapabilities &caps)
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

Result<void> VfioTransport::check_doorbells()
{
    const auto multiplier = doorbell_multiplier_;
    if (multiplier == 0 || multiplier % 4 != 0 || initial_config_.doorbells > kMaxDoorbells ||
        std::uint64_t{initial_config_.doorbells} * multiplier > doorbell_registers_.size()) {
        return failure(fmt::format("{}: {} doorbells, {} bytes apart, do not fit its doorbell capability of {} bytes",
                                   device_->name(), initial_config_.doorbells, multiplier, doorbell_registers_.size()));
    }
    return {};
}

Result<void> VfioTransport::enable_interrupts()
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

void VfioTransport::reset()
{
    if (!common_.reset()) {
        spdlog::warn("[{}] the device does not take a reset", name());
    }
}

Result<std::uint64_t> VfioTransport::negotiate(std::uint64_t wanted, std::uint64_t required)
{
    auto accepted = common_.negotiate(wanted, required);
    return accepted ? accepted : fail<std::uint64_t>(accepted.error());
}

// VIRTIO 4.1.4.4: queue_notify_off * notify_off_multiplier bytes into the notify structure.
Result<void> VfioTransport::setup_queue(unsigned queue, const QueueAddresses &addresses)
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

Result<void> VfioTransport::driver_ok()
{
    auto result = common_.set_config_vector(kConfigVector);
    if (result) {
        result = common_.driver_ok();
    }
    return result ? result : fail<void>(result.error());
}

void VfioTransport::notify(unsigned queue)
{
    if (queue < kBaseQueues && notify_registers_[queue].size() > 0) {
        // The available index must be visible to the device first (VIRTIO 2.7.13.4).
        std::atomic_thread_fence(std::memory_order_seq_cst);
        notify_registers_[queue].write16(0, static_cast<std::uint16_t>(queue));
    }
}

void VfioTransport::ring_doorbell(std::uint32_t index)
{
    if (index >= initial_config_.doorbells) {
        return;
    }
    //= VVFU-DOORBELL-6
    //# The driver MUST make its earlier writes to the window visible to the peer before it writes to a doorbell.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    doorbell_registers_.write32(std::size_t{index} * doorbell_multiplier_, 1);
}

bool VfioTransport::doorbell_pending(std::uint32_t index)
{
    return index < initial_config_.doorbells &&
           doorbell_registers_.read32(std::size_t{index} * doorbell_multiplier_) == 1;
}

int VfioTransport::notification_event(std::uint32_t index)
{
    const auto vector = notification_vector(index);
    if (index >= kConnectedNotifications || vector >= events_.size() ||
        !connect_notification(notification_registers_, index, vector)) {
        return -1;
    }
    return events_[vector].get();
}

std::string describe_ids(const PciSysfs &sysfs, const PciAddress &address)
{
    return fmt::format("{:04x}:{:04x}", sysfs.vendor_id(address), sysfs.device_id(address));
}

bool has_virtio_id(const PciSysfs &sysfs, const PciAddress &address)
{
    return sysfs.vendor_id(address) == kPciVendorVirtio && sysfs.device_id(address) >= kPciDeviceVirtioBase;
}

//= VVFU-ID-3
//# The driver MUST NOT drive a function that lacks a doorbell capability or a shared memory capability for the
//# window.
Result<void> check_identity(const PciSysfs &sysfs, const PciAddress &address)
{
    const auto name = to_string(address);
    if (!sysfs.exists(address)) {
        return failure(name + ": there is no such PCI function; `vvfu-guest list` shows the usable ones");
    }
    if (!has_virtio_id(sysfs, address)) {
        return failure(
            fmt::format("{}: is not a virtio-vfio-user function: its PCI ID is {}, not {:04x}:{:04x} or "
                        "above",
                        name, describe_ids(sysfs, address), kPciVendorVirtio, kPciDeviceVirtioBase));
    }
    const auto caps = find_virtio_capabilities(sysfs.config(address));
    if (!caps.is_vfio_user()) {
        return failure(
            fmt::format("{}: is not a virtio-vfio-user function: the virtio function {} has no {} capability", name,
                        describe_ids(sysfs, address), caps.doorbell ? "shared memory (type 8)" : "doorbell (type 6)"));
    }
    return {};
}

std::vector<PciAddress> find_candidates(const PciSysfs &sysfs)
{
    auto found = sysfs.functions();
    std::erase_if(found, [&](const PciAddress &address) { return !check_identity(sysfs, address); });
    return found;
}

Result<std::unique_ptr<VfioTransport>> open_function(const PciSysfs &sysfs, const PciAddress &address)
{
    if (auto identity = check_identity(sysfs, address); !identity) {
        return make_unexpected(identity.error());
    }
    auto device = VfioDevice::open(sysfs, address);
    if (!device) {
        return make_unexpected(device.error());
    }
    return VfioTransport::create(std::move(*device));
}

FunctionInfo inspect(const PciSysfs &sysfs, const PciAddress &address)
{
    FunctionInfo info{to_string(address), sysfs.driver(address), "", std::nullopt, 0, "ready"};
    if (const auto group = sysfs.iommu_group(address)) {
        info.iommu_group = std::to_string(*group);
    }
    const auto caps = find_virtio_capabilities(sysfs.config(address));
    info.window_size = caps.window ? caps.window->length : 0;
    auto transport = open_function(sysfs, address);
    if (!transport) {
        // The table has the address already.
        const auto &message = transport.error().message;
        const auto prefix = info.address + ": ";
        info.state = message.starts_with(prefix) ? message.substr(prefix.size()) : message;
        return info;
    }
    const auto config = (*transport)->config();
    if (config.uuid != Uuid{}) {  // all zero: none
        info.uuid = config.uuid;
    }
    info.window_size = config.window_size;
    return info;
}

int hex_digit(char c)
{
    constexpr std::string_view digits = "0123456789abcdef";
    const auto lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    const auto at = digits.find(lower);
    return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

}  // namespace

bool is_pci_address(std::string_view text)
{
    return parse_pci_address(text).has_value();
}

std::optional<Uuid> parse_uuid(std::string_view text)
{
    Uuid uuid{};
    std::size_t digits = 0;
    for (const char c : text) {
        if (c == '-') {
            // Dashes stand where RFC 4122 puts them, or not at all.
            if (digits != 8 && digits != 12 && digits != 16 && digits != 20) {
                return std::nullopt;
            }
            continue;
        }
        const int digit = hex_digit(c);
        if (digit < 0 || digits == 32) {
            return std::nullopt;
        }
        auto &byte = uuid[digits / 2];
        byte = static_cast<std::uint8_t>(byte * 16 + digit);
        ++digits;
    }
    return digits == 32 ? std::optional{uuid} : std::nullopt;
}

std::string to_string(const Uuid &uuid)
{
    std::string text;
    for (std::size_t i = 0; i < uuid.size(); ++i) {
        text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
    return text;
}

std::vector<FunctionInfo> list_functions(const std::string &sysfs_root)
{
    const PciSysfs sysfs{sysfs_root};
    std::vector<FunctionInfo> functions;
    for (const auto &address : find_candidates(sysfs)) {
        functions.push_back(inspect(sysfs, address));
    }
    return functions;
}

Result<std::unique_ptr<Transport>> open_vfio_transport(std::string_view text, const std::string &sysfs_root)
{
    const auto address = parse_pci_address(text);
    if (!address) {
        return failure(fmt::format("'{}' is not a PCI address of the form 0000:00:04.0", text));
    }
    return open_function(PciSysfs{sysfs_root}, *address).map([](auto transport) {
        return std::unique_ptr<Transport>{std::move(transport)};
    });
}

Result<std::unique_ptr<Transport>> open_vfio_transport(const Uuid &uuid, const std::string &sysfs_root)
{
    const PciSysfs sysfs{sysfs_root};
    std::string unusable;
    for (const auto &address : find_candidates(sysfs)) {
        auto transport = open_function(sysfs, address);
        if (!transport) {
            unusable += "; not looked at: " + transport.error().message;
        } else if ((*transport)->config().uuid == uuid) {
            return std::unique_ptr<Transport>{std::move(*transport)};
        }
    }
    return failure("no usable virtio-vfio-user function has UUID " + to_string(uuid) + unusable);
}

}  // namespace vvfu::guest
