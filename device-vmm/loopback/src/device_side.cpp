// SPDX-License-Identifier: BSD-3-Clause
#include "device_side.hpp"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

#include "eventfd.hpp"

namespace vvfu::loopback {
namespace {

using controlq::DeviceQueue;
using guest::Reactor;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM: offered and required.
constexpr std::uint64_t kRequiredFeatures = std::uint64_t{3} << 32;
constexpr unsigned kRound = 256;  ///< messages taken before other events get their turn
constexpr auto kAcceptRetry = std::chrono::seconds{1};

spdlog::level::level_enum to_spdlog(core::LogLevel level)
{
    switch (level) {
        case core::LogLevel::error: return spdlog::level::err;
        case core::LogLevel::warning: return spdlog::level::warn;
        case core::LogLevel::info:  // sessions come and go: the driver's half of this process says so, too
        case core::LogLevel::debug: break;
    }
    return spdlog::level::debug;
}

core::PeerCredentials credentials_of(int fd)
{
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
        return {};
    }
    return {static_cast<std::uint32_t>(credentials.pid), credentials.uid, credentials.gid};
}

}  // namespace

// ---- life ---------------------------------------------------------------------------------------

guest::Result<std::unique_ptr<DeviceSide>> DeviceSide::create(core::CoreConfig config, Resources resources)
{
    auto reactor = Reactor::create();
    if (!reactor) {
        return make_unexpected(reactor.error());
    }
    std::unique_ptr<DeviceSide> side{new DeviceSide{config, std::move(resources), std::move(*reactor)}};
    if (auto result = side->open_events(); !result) {
        return make_unexpected(result.error());
    }
    if (auto result = side->create_core(config); !result) {
        return make_unexpected(result.error());
    }
    side->thread_ = std::thread{[pointer = side.get()] { pointer->thread_main(); }};
    return side;
}

DeviceSide::DeviceSide(const core::CoreConfig &config, Resources resources, std::unique_ptr<Reactor> reactor)
    : resources_(std::move(resources)),
      reactor_(std::move(reactor)),
      doorbells_(config.doorbells, [this](unsigned index) { core_->doorbell_written(index); })
{
}

guest::Result<void> DeviceSide::open_events()
{
    prepare_signals();
    const auto open = [] { return Fd{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)}; };
    config_event_ = open();
    for (unsigned queue = 0; queue < kBaseQueues; ++queue) {
        kick_events_[queue] = open();
        used_events_[queue] = open();
        if (!kick_events_[queue] || !used_events_[queue] || !config_event_) {
            return guest::failure(std::string{"cannot create eventfds: "} + std::strerror(errno));
        }
        // Edge-triggered: the counter never needs a read.
        auto watched = reactor_->watch(kick_events_[queue].get(), EPOLLIN | EPOLLET,
                                       [this, queue](std::uint32_t) { on_kick(queue); });
        if (!watched) {
            return watched;
        }
    }
    return {};
}

guest::Result<void> DeviceSide::create_core(core::CoreConfig config)
{
    auto core = core::Core::create(config, *this);
    if (!core) {
        return guest::failure(core.error());
    }
    core_ = std::move(*core);
    config_ = core_->device_config();
    //= VVFU-FEAT-1
    //= VVFU-FEAT-4
    //= VVFU-FEAT-6
    features_ = core_->device_features() | kRequiredFeatures;
    return {};
}

DeviceSide::~DeviceSide()
{
    if (thread_.joinable()) {
        reactor_->post([this] { stopping_ = true; });
        thread_.join();
    }
}

void DeviceSide::thread_main()
{
    while (!stopping_) {
        const auto deadline = core_->next_deadline();
        reactor_->run_once(deadline);
        if (deadline != kNever || core_->next_deadline() != kNever) {
            if (const auto now = Reactor::now(); core_->next_deadline() <= now) {
                core_->tick(now);
                settle();
            }
        }
    }
    core_->driver_reset(Reactor::now());  // ends the session while the port still works
    settle();
    drop_peer();
    resources_.listener.close();
    core_.reset();
}

/// Runs `function` on the device VMM's thread and waits for its result.
template <typename Function>
auto DeviceSide::call(Function function)
{
    std::packaged_task<std::invoke_result_t<Function>()> task{std::move(function)};
    auto result = task.get_future();
    reactor_->post([&task] { task(); });
    return result.get();
}

// ---- the driver's side of things ----------------------------------------------------------------

void DeviceSide::reset()
{
    call([this] {
        core_->driver_reset(Reactor::now());
        control_chains_.clear();
        for (auto &queue : queues_) {
            queue.reset();
        }
        queue_failure_.reset();
        features_ok_ = driver_ok_ = false;
        needs_reset_.store(false, std::memory_order_release);
        settle();
    });
}

//= VVFU-FEAT-5
//# The device MUST NOT let FEATURES_OK be set unless the driver accepted VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM,
//# and no feature that is not offered.
guest::Result<void> DeviceSide::accept_features(std::uint64_t features)
{
    return call([this, features]() -> guest::Result<void> {
        features_ok_ = (features & kRequiredFeatures) == kRequiredFeatures && (features & ~features_) == 0;
        return features_ok_ ? guest::Result<void>{} : guest::failure("the device does not take these features");
    });
}

guest::Result<void> DeviceSide::setup_queue(unsigned queue, const guest::QueueAddresses &addresses)
{
    if (queue >= queues_.size()) {
        return guest::failure("the device has no queue " + std::to_string(queue));
    }
    return call([this, queue, addresses]() -> guest::Result<void> {
        auto ring = DeviceQueue::create(addresses.size, addresses.descriptors, addresses.driver_area,
                                        addresses.device_area, [this](std::uint64_t address, std::uint64_t length) {
                                            return resources_.queue_memory.translate(address, length);
                                        });
        if (!ring) {
            return guest::failure(std::string{"the device refuses the queue: "} + controlq::describe(ring.error()));
        }
        queues_[queue] = Queue{std::move(*ring)};
        if (queue == kRequestQueue) {
            // Buffers are taken as they are needed; a notification helps only once there is none.
            queues_[queue]->ring.want_notifications(false);
            queues_[queue]->notifications_off = true;
        }
        return {};
    });
}

void DeviceSide::driver_ok()
{
    call([this] {
        driver_ok_ = features_ok_;
        if (driver_ok_) {
            core_->driver_ok(Reactor::now());
        }
        settle();
    });
}

core::CoreState DeviceSide::state()
{
    return call([this] { return core_->state(); });
}

void DeviceSide::kick(unsigned queue)
{
    if (queue < kick_events_.size()) {
        static_cast<void>(::eventfd_write(kick_events_[queue].get(), 1));
    }
}

// ---- queues -------------------------------------------------------------------------------------

void DeviceSide::on_kick(unsigned queue)
{
    //= VVFU-INIT-4
    if (!queues_[queue] || needs_reset() || !driver_ok_) {
        return;
    }
    switch (queue) {
        case kControlQueue: drain(queue, &DeviceSide::take_control); break;
        case kReplyQueue: drain(queue, &DeviceSide::take_reply); break;
        default:
            queues_[queue]->ring.want_notifications(false);
            queues_[queue]->notifications_off = true;
            core_->request_buffers(Reactor::now(), queue);
    }
    settle();
}

void DeviceSide::drain(unsigned index, void (DeviceSide::*take)(const DeviceQueue::Element &))
{
    for (unsigned taken = 0; taken < kRound; ++taken) {
        // Looked up each time: what is taken can reset the queues.
        auto &queue = queues_[index];
        if (!queue || queue_failure_ || needs_reset()) {
            return;
        }
        //= VVFU-QUEUE-12
        //= VVFU-QUEUE-13
        if (index == kControlQueue && !core_->wants_control_requests()) {
            control_left_ = true;  // settle() comes back here
            return;
        }
        const auto found = queue->ring.pop(element_);
        if (!found) {
            queue_failed(index, found.error());
            return;
        }
        if (*found) {
            if (!std::exchange(queue->notifications_off, true)) {
                queue->ring.want_notifications(false);  // awake anyway
            }
            (this->*take)(element_);
            continue;
        }
        if (!std::exchange(queue->notifications_off, false)) {
            return;
        }
        queue->ring.want_notifications(true);
        if (queue->ring.empty()) {
            return;
        }
    }
    reactor_->post([this, index] { on_kick(index); });
}

bool DeviceSide::copy_message(const DeviceQueue::Element &element, std::size_t limit)
{
    const auto bytes = element.readable_bytes();
    if (bytes > limit) {
        queue_failure_ = "message of " + std::to_string(bytes) + " bytes, the limit is " + std::to_string(limit);
        return false;
    }
    message_.resize(bytes);
    element.read(message_);
    return true;
}

void DeviceSide::take_control(const DeviceQueue::Element &element)
{
    if (!copy_message(element, kMaxMessageSize)) {
        return;
    }
    const auto token = next_token_++;
    const auto capacity = element.writable_bytes();
    control_chains_.emplace(token, element);
    core_->control_request(Reactor::now(), token, message_, capacity);
}

void DeviceSide::take_reply(const DeviceQueue::Element &element)
{
    if (!copy_message(element, kMaxMessageSize)) {
        return;
    }
    // Given back first: the driver's buffer is free as soon as it is copied.
    auto &queue = *queues_[kReplyQueue];
    queue.ring.push(element, 0);
    queue.used_dirty = true;
    core_->reply(Reactor::now(), kReplyQueue, message_);
}

int DeviceSide::push_request(unsigned index, std::span<const std::byte> message)
{
    if (index != kRequestQueue || !queues_[index] || queue_failure_) {
        return -EAGAIN;
    }
    auto &queue = *queues_[index];
    auto found = queue.ring.pop(request_element_);
    if (found && !*found && std::exchange(queue.notifications_off, false)) {
        queue.ring.want_notifications(true);
        found = queue.ring.pop(request_element_);  // posted before the driver could know
    }
    if (!found) {
        queue_failed(index, found.error());
        return -EAGAIN;
    }
    if (!*found) {
        return -EAGAIN;
    }
    const bool fits = request_element_.writable_bytes() >= message.size();
    queue.ring.push(request_element_, fits ? static_cast<std::uint32_t>(request_element_.write(message)) : 0);
    // The first request of a burst wakes the driver, settle() sees to the others.
    if (std::exchange(burst_, true)) {
        queue.used_dirty = true;
    } else {
        notify_driver(index);
    }
    return fits ? 0 : -EMSGSIZE;
}

void DeviceSide::complete_control(std::uint64_t token, std::span<const std::byte> reply)
{
    const auto chain = control_chains_.find(token);
    if (chain == control_chains_.end() || !queues_[kControlQueue]) {
        return;
    }
    auto &queue = *queues_[kControlQueue];
    queue.ring.push(chain->second, static_cast<std::uint32_t>(chain->second.write(reply)));
    queue.used_dirty = true;
    control_chains_.erase(chain);
}

void DeviceSide::notify_driver(unsigned queue)
{
    if (queues_[queue]->ring.should_notify()) {
        static_cast<void>(::eventfd_write(used_events_[queue].get(), 1));
    }
}

void DeviceSide::queue_failed(unsigned queue, controlq::QueueError error)
{
    queue_failure_ = "queue " + std::to_string(queue) + ": " + controlq::describe(error);
}

void DeviceSide::device_broken(std::string_view)
{
    set_needs_reset();
}

void DeviceSide::set_needs_reset()
{
    needs_reset_.store(true, std::memory_order_release);
    static_cast<void>(::eventfd_write(config_event_.get(), 1));
}

void DeviceSide::settle()
{
    flush_peer();
    update_interest();
    if (queue_failure_ && !needs_reset()) {
        // The core has no part in the rings: for it the driver is gone until it resets the device.
        core_->log(Reactor::now(), core::LogLevel::error, "a queue broke",
                   "the driver broke a queue: " + *queue_failure_);
        core_->driver_reset(Reactor::now());
        control_chains_.clear();
        set_needs_reset();
    }
    for (unsigned i = 0; i < queues_.size(); ++i) {
        if (queues_[i] && std::exchange(queues_[i]->used_dirty, false)) {
            notify_driver(i);
        }
    }
    burst_ = false;
    closed_peer_.reset();
    if (control_left_ && core_->wants_control_requests()) {
        control_left_ = false;
        reactor_->post([this] { on_kick(kControlQueue); });
    }
}

// ---- the peer's socket --------------------------------------------------------------------------

int DeviceSide::listen()
{
    if (const int rc = resources_.listener.open(); rc < 0) {
        return rc;
    }
    if (!reactor_->watch(resources_.listener.fd(), EPOLLIN, [this](std::uint32_t) { on_connection(); })) {
        resources_.listener.close();
        return -ENOSPC;
    }
    return 0;
}

void DeviceSide::unlisten()
{
    if (resources_.listener.fd() >= 0) {
        reactor_->unwatch(resources_.listener.fd());
    }
    resources_.listener.close();
}

/// A peer that has hung up makes room for the next one, once the core has read what it sent last.
bool DeviceSide::finish_departed_peer()
{
    pollfd poll{peer_->fd(), 0, 0};
    if (::poll(&poll, 1, 0) != 1 || (poll.revents & (POLLHUP | POLLERR)) == 0) {
        return true;  // it is here to stay, and the new one is refused
    }
    while (peer_ && (peer_events_ & EPOLLIN) != 0) {
        receive();
    }
    return !peer_;
}

void DeviceSide::on_connection()
{
    if (peer_ && !finish_departed_peer()) {
        reactor_->modify(resources_.listener.fd(), 0);  // until drop_peer()
        return;
    }
    Fd fd{::accept4(resources_.listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!fd) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            // The connection stays in the listener's queue: look again when something may have been freed.
            core_->log(Reactor::now(), core::LogLevel::error, "no connection could be accepted",
                       std::string{"cannot accept a connection: "} + std::strerror(errno));
            const int listener = resources_.listener.fd();
            reactor_->modify(listener, 0);
            reactor_->after(kAcceptRetry, [this, listener] {
                if (resources_.listener.fd() == listener) {
                    reactor_->modify(listener, EPOLLIN);
                }
            });
        }
        return;
    }
    const auto credentials = credentials_of(fd.get());
    //= VVFU-SESSION-2
    //# The device MUST serve at most one peer at a time.
    if (core_->peer_connected(Reactor::now(), credentials) != 0) {
        settle();
        return;
    }
    peer_ = std::make_unique<PeerSocket>(std::move(fd));
    settle();
}

void DeviceSide::on_peer(std::uint32_t events)
{
    if (!peer_) {
        return;
    }
    if ((peer_events_ & EPOLLIN) == 0 && (events & (EPOLLHUP | EPOLLERR)) != 0) {
        // Reported whether asked for or not. What is still unread is read when the core wants it.
        peer_->flush();
        if (peer_->send_error() == 0) {
            reactor_->unwatch(peer_->fd());
            peer_events_ = 0;
            return;
        }
        settle();
        return;
    }
    if ((events & EPOLLOUT) != 0) {
        settle();
    }
    if (peer_ && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        receive();
    }
}

void DeviceSide::receive()
{
    auto received = peer_->receive();
    if (received.would_block) {
        return;
    }
    if (received.closed) {
        peer_lost(received.error);
        return;
    }
    core_->peer_data(Reactor::now(), received.data, received.fds);
    settle();
}

void DeviceSide::peer_lost(int error)
{
    drop_peer();
    core_->peer_closed(Reactor::now(), error);
    settle();
}

void DeviceSide::send(std::span<const std::byte> message, std::span<const int> fds)
{
    if (peer_) {
        peer_->send(message, fds);
    }
}

std::size_t DeviceSide::send_backlog() const
{
    return peer_ ? peer_->backlog() : 0;
}

void DeviceSide::close_peer()
{
    if (peer_) {
        peer_->flush();  // the reason for closing, as far as the peer takes it
        drop_peer();
    }
}

void DeviceSide::drop_peer()
{
    if (!peer_) {
        return;
    }
    if (peer_events_ != 0) {
        reactor_->unwatch(peer_->fd());
    }
    peer_events_ = 0;
    if (resources_.listener.fd() >= 0) {
        reactor_->modify(resources_.listener.fd(), EPOLLIN);
    }
    // Its receive buffer may be what the core is looking at; the connection itself ends now.
    ::shutdown(peer_->fd(), SHUT_RDWR);
    closed_peer_ = std::move(peer_);
}

void DeviceSide::flush_peer()
{
    if (!peer_) {
        return;
    }
    peer_->flush();
    if (const int error = peer_->send_error(); error != 0) {
        drop_peer();
        core_->peer_closed(Reactor::now(), error == EPIPE ? 0 : error);
        return;
    }
    // The core may have seen a backlog that is gone already: the peer reads while it is at work.
    if (peer_->take_drained()) {
        core_->send_drained(Reactor::now());
        flush_peer();  // what the core had waiting for that
    }
}

void DeviceSide::update_interest()
{
    if (!peer_) {
        return;
    }
    const std::uint32_t wanted =
        (core_->wants_peer_data() ? std::uint32_t{EPOLLIN} : 0) | (peer_->backlog() > 0 ? std::uint32_t{EPOLLOUT} : 0);
    if (wanted == peer_events_) {
        return;
    }
    if (peer_events_ == 0) {
        if (!reactor_->watch(peer_->fd(), wanted, [this](std::uint32_t events) { on_peer(events); })) {
            core_->log(Reactor::now(), core::LogLevel::error, "a socket could not be watched",
                       "cannot watch the peer's socket");
            drop_peer();
            core_->peer_closed(Reactor::now(), ENOSPC);
            return;
        }
    } else if (wanted == 0) {
        reactor_->unwatch(peer_->fd());
    } else {
        reactor_->modify(peer_->fd(), wanted);
    }
    peer_events_ = wanted;
}

// ---- memory and interrupts ----------------------------------------------------------------------

int DeviceSide::window_map(std::uint64_t window_offset, std::uint64_t size, int protection, int fd,
                           std::uint64_t fd_offset)
{
    return resources_.window.map(window_offset, size, protection, fd, fd_offset);
}

void DeviceSide::window_unmap(std::uint64_t window_offset, std::uint64_t size)
{
    resources_.window.unmap(window_offset, size);
}

int DeviceSide::region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset)
{
    return resources_.region_memory.map(offset, size, fd, fd_offset);
}

void DeviceSide::region_memory_unmap(std::uint64_t offset, std::uint64_t size)
{
    resources_.region_memory.unmap(offset, size);
}

void DeviceSide::doorbell_set(unsigned index, int fd)
{
    doorbells_.set(index, fd);
}

void DeviceSide::notification_set(unsigned index, int fd)
{
    if (const auto watched = notifications_.find(index); watched != notifications_.end()) {
        reactor_->unwatch(watched->second);
        notifications_.erase(watched);
    }
    if (fd < 0) {
        return;
    }
    const auto fired = [this, index](std::uint32_t) {
        core_->notification_fired(Reactor::now(), index);
        settle();
    };
    // Edge-triggered: the peer's counter is not ours to read.
    if (reactor_->watch(fd, EPOLLIN | EPOLLET, fired)) {
        notifications_.emplace(index, fd);
    } else {
        core_->log(Reactor::now(), core::LogLevel::warning, "a notification could not be watched",
                   "cannot watch notification " + std::to_string(index));
    }
}

void DeviceSide::signal_eventfd(int fd)
{
    loopback::signal_eventfd(fd);
}

void DeviceSide::log(core::LogLevel level, std::string_view text)
{
    spdlog::log(to_spdlog(level), "[loopback] {}", text);
}

}  // namespace vvfu::loopback
