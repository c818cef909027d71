// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/core/core.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "core_impl.hpp"

namespace vvfu::core {

using control::Type;

// ---- lifecycle ----

Core::Impl::~Impl()
{
    drop_session();
    withdraw();
}

void Core::Impl::settle(Nanoseconds now)
{
    for (;;) {
        if (guest_.failure()) {
            return break_device(*guest_.failure());
        }
        // What a silent guest is not waited for is over in the call that began it.
        if (guest_.next_deadline() <= now) {
            guest_.tick(now);
            continue;
        }
        if (!session_) {
            return;
        }
        if (guest_.overrun()) {
            log_.write(LogLevel::error, "requests not taken", "the device guest takes no requests: session given up");
            session_->end(control::DownReason::host_error);
        }
        if (session_->ended()) {
            end_session(now, *session_->ended());
            continue;
        }
        //= VVFU-SESSION-5
        if (down_pending_) {
            return;
        }
        session_->pump(now);
        if (!guest_.failure() && !session_->ended() && guest_.next_deadline() > now) {
            return;
        }
    }
}

//= VVFU-ERROR-5
/// Ends the session without a word to the guest, which reset the device or broke it.
void Core::Impl::drop_session()
{
    if (session_) {
        session_->release();
        guest_.drop_session();
        session_.reset();
        port_.close_peer();
    }
    down_pending_ = false;
}

void Core::Impl::end_session(Nanoseconds now, control::DownReason reason)
{
    //= VVFU-SESSION-4
    //# The device MUST remove all ranges from the window and the targets of all doorbells before it sends
    //# PEER(DOWN).
    session_->release();
    session_->abort_dma();
    port_.close_peer();
    const auto ended = std::exchange(session_, nullptr);
    const bool begun = ended->epoch() != 0;
    // A session that the guest has not heard of needs no end: neither UP nor DOWN is sent then.
    //= VVFU-SESSION-3
    const bool announced = begun && !guest_.cancel(ended->up_request(), Type::peer);
    const bool down_was_pending = down_pending_;
    if (!down_was_pending) {
        guest_.drop_session();
    }
    if (begun) {
        log_.write(LogLevel::info, "a session ended",
                   "session " + std::to_string(ended->epoch()) + " ended: " + std::string{control::name(reason)});
    }
    if (announced) {
        send_down(now, ended->epoch(), reason);
    }
    port_.state_changed();
}

void Core::Impl::send_down(Nanoseconds now, std::uint32_t epoch, control::DownReason reason)
{
    control::Peer down;
    down.op = control::PeerOp::down;
    down.reason = reason;
    down_pending_ = true;
    guest_.request(
        now, Type::peer, epoch, config_.access_timeout,
        [this](const GuestReply &reply) {
            down_pending_ = false;
            if (!reply.expired) {
                window_.release_retired();  // its DMA of all sessions so far is over
            }
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, down); });
}

void Core::Impl::withdraw()
{
    irqs_.release();
    if (device_) {
        device_.reset();
        port_.unlisten();
    }
}

//= VVFU-ERROR-5
void Core::Impl::break_device(std::string_view reason)
{
    broken_ = true;
    drop_session();
    withdraw();
    port_.device_broken(reason);
    // Last: it may be memory that has run out.
    log_.write(LogLevel::error, "the device broke", "device broken: " + std::string{reason});
    port_.state_changed();
}

void Core::Impl::fail_safe(const char *cause) noexcept
{
    try {
        break_device(cause);
    } catch (...) {
        broken_ = true;  // not even memory for a log line
    }
}

void Core::Impl::driver_ok()
{
    driver_ok_ = true;
    port_.state_changed();
}

//= VVFU-ERROR-6
void Core::Impl::driver_reset()
{
    drop_session();
    withdraw();
    //= VVFU-INIT-3
    guest_.reset();
    open_requests_.clear();
    window_.release_retired();
    log_.forget();
    driver_ok_ = false;
    port_.state_changed();
}

// ---- peer ----

int Core::Impl::peer_connected(Nanoseconds now, const PeerCredentials &credentials)
{
    if (!device_) {
        //= VVFU-INIT-2
        return -ENODEV;
    }
    //= VVFU-SESSION-2
    //# The device MUST serve at most one peer at a time.
    if (session_) {
        log_.write(LogLevel::warning, "a second peer was refused",
                   "a second peer was refused, " + describe(credentials) + ": one is served already");
        return -EBUSY;
    }
    log_.forget();
    session_ = std::make_unique<Session>(
        now,
        SessionEnvironment{config_, is_eventfd_, port_, counters_, log_, guest_, irqs_, *device_, window_, epochs_},
        credentials);
    port_.state_changed();
    return 0;
}

void Core::Impl::peer_closed(Nanoseconds now, int error)
{
    if (!session_) {
        return;
    }
    if (error != 0) {
        log_.write(LogLevel::warning, "a connection failed",
                   std::string{"connection to the peer: "} + std::strerror(error));
    }
    end_session(now, control::DownReason::peer_closed);
}

CoreState Core::Impl::state() const
{
    CoreState out;
    out.state = broken_                 ? "broken"
                : !driver_ok_           ? "no driver"
                : !device_              ? "no device"
                : !session_             ? "listening"
                : session_->connected() ? "connected"
                                        : "negotiating";
    out.epoch = epochs_.latest();
    if (session_) {
        out.peer = session_->credentials();
        out.mapped_bytes = session_->memory().mapped_bytes();
        out.mapped_ranges = session_->memory().mapped_ranges();
        out.message_ranges = session_->memory().message_ranges();
    }
    out.requests = counters_.requests;
    out.protocol_errors = counters_.protocol_errors;
    out.deadline_expiries = counters_.deadline_expiries;
    out.unknown_replies = counters_.unknown_replies;
    out.silences = counters_.silences;
    out.dropped_accesses = counters_.dropped_accesses;
    return out;
}

// ---- Core ----

namespace {

bool page_multiple(std::uint64_t size)
{
    return size % 4096 == 0;
}

bool in_range(Nanoseconds timeout)
{
    return timeout >= std::chrono::milliseconds{1} && timeout <= kPeerPatience;
}

std::uint32_t milliseconds(Nanoseconds timeout)
{
    return static_cast<std::uint32_t>(std::chrono::ceil<std::chrono::milliseconds>(timeout).count());
}

const char *problem(const CoreConfig &config)
{
    if (config.window_size == 0 || !page_multiple(config.window_size)) {
        return "window size must be a multiple of 4096 and not 0";
    }
    if (!page_multiple(config.region_memory_size)) {
        return "region memory size must be a multiple of 4096";
    }
    if (config.doorbells == 0 || config.doorbells > kMaxDoorbells) {
        return "the number of doorbells must be 1 to 4096";
    }
    if (config.notifications == 0 || config.notifications > kMaxNotifications) {
        return "the number of notifications must be 1 to 1024";
    }
    if (!in_range(config.unmap_timeout) || !in_range(config.access_timeout)) {
        return "timeouts must be 1 to 4000 ms";
    }
    return nullptr;
}

}  // namespace

Core::Core(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Core::~Core() = default;

Expected<std::unique_ptr<Core>, std::string> Core::create(const CoreConfig &config, Port &port)
{
    if (const char *text = problem(config)) {
        return make_unexpected(std::string{text});
    }
    auto is_eventfd = EventfdCheck::create();
    if (!is_eventfd) {
        return make_unexpected(is_eventfd.error());
    }
    return std::unique_ptr<Core>{new Core{std::make_unique<Impl>(config, port, std::move(*is_eventfd))}};
}

//= VVFU-CONF-1
DeviceConfig Core::device_config() const
{
    DeviceConfig out;
    out.uuid = impl_->config_.uuid;
    out.window_size = impl_->config_.window_size;
    out.region_memory_size = impl_->config_.region_memory_size;
    out.doorbells = impl_->config_.doorbells;
    out.notifications = impl_->config_.notifications;
    //= VVFU-CONF-4
    out.unmap_timeout = milliseconds(impl_->config_.unmap_timeout);
    out.access_timeout = milliseconds(impl_->config_.access_timeout);
    return out;
}

std::uint64_t Core::device_features() const
{
    //= VVFU-FEAT-3
    //= VVFU-EXT-1
    return 0;
}

void Core::driver_ok(Nanoseconds now)
{
    impl_->enter(now, [&] { impl_->driver_ok(); });
}

void Core::driver_reset(Nanoseconds now)
{
    impl_->broken_ = false;
    impl_->enter(now, [&] { impl_->driver_reset(); });
}

void Core::control_request(Nanoseconds now, std::uint64_t token, std::span<const std::byte> message,
                           std::size_t reply_capacity)
{
    impl_->enter(now, [&] { impl_->control_request(now, token, message, reply_capacity); });
}

//= VVFU-QUEUE-12
bool Core::wants_control_requests() const
{
    return !impl_->session_ || impl_->session_->wants_control_requests();
}

void Core::reply(Nanoseconds now, unsigned queue, std::span<const std::byte> message)
{
    impl_->enter(now, [&] { impl_->guest_.reply(now, queue, message); });
}

void Core::request_buffers(Nanoseconds now, unsigned queue)
{
    impl_->enter(now, [&] {
        if (queue == kRequestQueue) {
            impl_->guest_.flush(now);
        }
    });
}

int Core::peer_connected(Nanoseconds now, const PeerCredentials &credentials)
{
    int result = -ENODEV;
    impl_->enter(now, [&] { result = impl_->peer_connected(now, credentials); });
    return impl_->broken_ ? -ENODEV : result;
}

void Core::peer_data(Nanoseconds now, std::span<const std::byte> data, std::span<Fd> fds)
{
    impl_->enter(now, [&] {
        if (impl_->session_) {
            impl_->session_->feed(now, data, fds);
        }
    });
    for (auto &fd : fds) {
        fd.reset();  // there is no session any more
    }
}

void Core::peer_closed(Nanoseconds now, int error)
{
    impl_->enter(now, [&] { impl_->peer_closed(now, error); });
}

bool Core::wants_peer_data() const
{
    return impl_->session_ && !impl_->parked() && impl_->session_->wants_data();
}

void Core::send_drained(Nanoseconds now)
{
    impl_->enter(now, [&] {
        if (impl_->session_) {
            impl_->session_->send_drained();
        }
    });
}

void Core::doorbell_written(unsigned index) noexcept
{
    impl_->irqs_.doorbell_written(index);
}

bool Core::doorbell_pending(unsigned index) const noexcept
{
    return impl_->irqs_.doorbell_pending(index);
}

void Core::notification_fired(Nanoseconds now, unsigned index)
{
    impl_->enter(now, [&] {
        //= VVFU-NOTIFY-3
        if (index == kNotificationIntxUnmask && impl_->session_) {
            impl_->session_->intx_unmasked(now);
        }
    });
}

Nanoseconds Core::next_deadline() const
{
    const auto own = std::min(impl_->guest_.next_deadline(), impl_->log_.next_deadline());
    return impl_->session_ ? std::min(own, impl_->session_->next_deadline()) : own;
}

void Core::tick(Nanoseconds now)
{
    impl_->enter(now, [&] {
        impl_->guest_.tick(now);
        if (impl_->session_) {
            impl_->session_->tick(now);
        }
    });
}

void Core::log(Nanoseconds now, LogLevel level, std::string_view kind, std::string_view text) noexcept
{
    try {
        impl_->log_.tick(now);
        impl_->log_.write(level, kind, text);
    } catch (const std::exception &) {
        // Not even memory for a log line.
    }
}

CoreState Core::state() const
{
    return impl_->state();
}

}  // namespace vvfu::core
