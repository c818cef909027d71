// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <atomic>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "doorbells.hpp"
#include "listener.hpp"
#include "peer_socket.hpp"
#include "queue_memory.hpp"
#include "region_memory.hpp"
#include "vvfu/controlq/split_queue.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/transport.hpp"
#include "window.hpp"

namespace vvfu::loopback {

/// The device VMM: the core, its thread, the peer's socket and the device's ends of the queues.
class DeviceSide final : public core::Port {
public:
    struct Resources {
        Listener listener;
        QueueMemory queue_memory;
        RegionMemory region_memory;
        Window window;
    };
    /// Starts the thread.
    static guest::Result<std::unique_ptr<DeviceSide>> create(core::CoreConfig config, Resources resources);
    ~DeviceSide() override;

    // ---- for the driver; any thread but the device VMM's own ----

    [[nodiscard]] const DeviceConfig &config() const noexcept { return config_; }
    [[nodiscard]] std::uint64_t features() const noexcept { return features_; }
    [[nodiscard]] QueueMemory &queue_memory() noexcept { return resources_.queue_memory; }
    [[nodiscard]] std::span<std::byte> region_memory() const noexcept { return resources_.region_memory.bytes(); }
    [[nodiscard]] std::span<std::byte> window() const noexcept { return resources_.window.bytes(); }
    /// These four return when the device VMM has done it.
    void reset();
    /// FEATURES_OK; fails when the device does not take this set.
    guest::Result<void> accept_features(std::uint64_t features);
    guest::Result<void> setup_queue(unsigned queue, const guest::QueueAddresses &addresses);
    void driver_ok();
    [[nodiscard]] core::CoreState state();
    void kick(unsigned queue);
    [[nodiscard]] int used_event(unsigned queue) const { return used_events_.at(queue).get(); }
    [[nodiscard]] int config_event() const { return config_event_.get(); }
    [[nodiscard]] bool needs_reset() const noexcept { return needs_reset_.load(std::memory_order_acquire); }
    void ring_doorbell(unsigned index) { doorbells_.ring(index); }
    [[nodiscard]] bool doorbell_pending(unsigned index) const { return core_->doorbell_pending(index); }

private:
    struct Queue {
        controlq::DeviceQueue ring;
        bool used_dirty = false;         // elements pushed, and the driver perhaps not notified
        bool notifications_off = false;  // asked the driver not to notify
    };

    DeviceSide(const core::CoreConfig &config, Resources resources, std::unique_ptr<guest::Reactor> reactor);
    guest::Result<void> open_events();
    guest::Result<void> create_core(core::CoreConfig config);
    void thread_main();
    template <typename Function>
    auto call(Function function);

    // core::Port; the device VMM's thread, except signal_eventfd()
    int listen() override;
    void unlisten() override;
    void send(std::span<const std::byte> message, std::span<const int> fds) override;
    [[nodiscard]] std::size_t send_backlog() const override;
    void close_peer() override;
    int push_request(unsigned queue, std::span<const std::byte> message) override;
    void complete_control(std::uint64_t token, std::span<const std::byte> reply) override;
    void device_broken(std::string_view reason) override;
    int window_map(std::uint64_t window_offset, std::uint64_t size, int protection, int fd,
                   std::uint64_t fd_offset) override;
    void window_unmap(std::uint64_t window_offset, std::uint64_t size) override;
    int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) override;
    void region_memory_unmap(std::uint64_t offset, std::uint64_t size) override;
    void doorbell_set(unsigned index, int fd) override;
    void notification_set(unsigned index, int fd) override;
    void signal_eventfd(int fd) override;
    void log(core::LogLevel level, std::string_view text) override;
    void state_changed() override {}

    // events of the thread
    void on_connection();
    [[nodiscard]] bool finish_departed_peer();
    void on_peer(std::uint32_t events);
    void on_kick(unsigned queue);
    void receive();
    void peer_lost(int error);
    void drop_peer();
    /// What a call into the core leaves to do. After every one.
    void settle();
    void flush_peer();
    void update_interest();
    void notify_driver(unsigned queue);

    void drain(unsigned queue, void (DeviceSide::*take)(const controlq::DeviceQueue::Element &));
    void take_control(const controlq::DeviceQueue::Element &element);
    void take_reply(const controlq::DeviceQueue::Element &element);
    void queue_failed(unsigned queue, controlq::QueueError error);
    void set_needs_reset();
    [[nodiscard]] bool copy_message(const controlq::DeviceQueue::Element &element, std::size_t limit);

    Resources resources_;
    std::unique_ptr<guest::Reactor> reactor_;
    Doorbells doorbells_;
    std::unique_ptr<core::Core> core_;
    DeviceConfig config_;
    std::uint64_t features_ = 0;

    std::array<Fd, kBaseQueues> kick_events_, used_events_;
    Fd config_event_;
    std::atomic<bool> needs_reset_{false};
    bool features_ok_ = false, driver_ok_ = false;  // as in the device status of VIRTIO
    std::array<std::optional<Queue>, kBaseQueues> queues_;
    std::optional<std::string> queue_failure_;
    std::uint64_t next_token_ = 1;
    std::unordered_map<std::uint64_t, controlq::DeviceQueue::Element> control_chains_;  // open, by token
    bool control_left_ = false;  // chains may be in the control queue that the core did not want
    controlq::DeviceQueue::Element element_, request_element_;
    bool burst_ = false;  // a request was pushed, and the driver woken for it, since the last settle()
    std::vector<std::byte> message_;

    std::unique_ptr<PeerSocket> peer_;
    std::unique_ptr<PeerSocket> closed_peer_;  // dropped where nobody can be using it
    std::uint32_t peer_events_ = 0;            // watched for; 0: not watched
    std::map<unsigned, int> notifications_;

    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace vvfu::loopback
