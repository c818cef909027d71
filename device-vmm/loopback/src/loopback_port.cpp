// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/loopback/loopback_port.hpp"

#include <utility>

#include "device_side.hpp"

namespace vvfu::loopback {
namespace {

/// The driver's view of DeviceSide.
class LoopbackTransport final : public guest::Transport {
public:
    explicit LoopbackTransport(DeviceSide &device) : device_(device) {}

    [[nodiscard]] const char *name() const override { return "loopback"; }
    void reset() override { device_.reset(); }
    guest::Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required) override
    {
        const auto offered = device_.features();
        if ((required & ~offered) != 0) {
            return guest::failure("the device does not offer a required feature");
        }
        const auto accepted = (wanted | required) & offered;
        if (auto result = device_.accept_features(accepted); !result) {
            return make_unexpected(result.error());
        }
        return accepted;
    }
    DeviceConfig config() override { return device_.config(); }
    guest::Result<guest::SharedBuffer> allocate(std::size_t bytes) override
    {
        return device_.queue_memory().allocate(bytes);
    }
    std::uint16_t queue_size_max(unsigned queue) override { return queue < kBaseQueues ? kQueueSize : 0; }
    guest::Result<void> setup_queue(unsigned queue, const guest::QueueAddresses &addresses) override
    {
        return device_.setup_queue(queue, addresses);
    }
    guest::Result<void> driver_ok() override
    {
        device_.driver_ok();
        return {};
    }
    void notify(unsigned queue) override { device_.kick(queue); }
    [[nodiscard]] int queue_event(unsigned queue) const override { return device_.used_event(queue); }
    [[nodiscard]] int config_event() const override { return device_.config_event(); }
    bool needs_reset() override { return device_.needs_reset(); }
    std::span<std::byte> window() override { return device_.window(); }
    std::span<std::byte> region_memory() override { return device_.region_memory(); }
    void ring_doorbell(std::uint32_t index) override { device_.ring_doorbell(index); }
    bool doorbell_pending(std::uint32_t index) override { return device_.doorbell_pending(index); }
    /// The peer's eventfds come and go with its sessions: the device VMM watches them and reports by message.
    int notification_event(std::uint32_t) override { return -1; }

private:
    DeviceSide &device_;
};

guest::Result<Listener> make_listener(LoopbackOptions &options)
{
    return options.listen_fd ? Listener::from_fd(std::move(options.listen_fd)) : Listener::at_path(options.socket_path);
}

}  // namespace

class LoopbackPort::Impl {
public:
    explicit Impl(std::unique_ptr<DeviceSide> device) : device_(std::move(device)), transport_(*device_) {}

    std::unique_ptr<DeviceSide> device_;
    LoopbackTransport transport_;
};

guest::Result<std::unique_ptr<LoopbackPort>> LoopbackPort::create(LoopbackOptions options)
{
    auto listener = make_listener(options);
    if (!listener) {
        return make_unexpected(listener.error());
    }
    auto queues = QueueMemory::create();
    if (!queues) {
        return make_unexpected(queues.error());
    }
    auto regions = RegionMemory::create(options.core.region_memory_size);
    if (!regions) {
        return make_unexpected(regions.error());
    }
    auto window = Window::create(options.core.window_size);
    if (!window) {
        return make_unexpected(window.error());
    }
    auto device = DeviceSide::create(
        options.core, {std::move(*listener), std::move(*queues), std::move(*regions), std::move(*window)});
    if (!device) {
        return make_unexpected(device.error());
    }
    return std::unique_ptr<LoopbackPort>{new LoopbackPort{std::make_unique<Impl>(std::move(*device))}};
}

LoopbackPort::LoopbackPort(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

LoopbackPort::~LoopbackPort() = default;

guest::Transport &LoopbackPort::transport()
{
    return impl_->transport_;
}

core::CoreState LoopbackPort::state()
{
    return impl_->device_->state();
}

}  // namespace vvfu::loopback
