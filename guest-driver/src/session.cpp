// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/session.hpp"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "control_client.hpp"
#include "reply_sender.hpp"
#include "transport_queue.hpp"

namespace vvfu::guest {
namespace {

using control::Bytes;
using control::Header;
using control::Status;
using control::Type;

constexpr std::uint64_t kVersion1 = std::uint64_t{1} << 32;        // VIRTIO_F_VERSION_1
constexpr std::uint64_t kAccessPlatform = std::uint64_t{1} << 33;  // VIRTIO_F_ACCESS_PLATFORM
constexpr std::uint32_t kMinRequestBuffer = 4144;                  // VVFU-CONF-2
constexpr std::uint32_t kMaxRequestBuffer = 1024 * 1024;
constexpr std::uint32_t kMinMessage = 4096;
/// Requests kept while the model resets; further ones stay in the ring, and the device VMM stops reading its socket.
constexpr std::size_t kMaxBacklog = 1024;
constexpr std::size_t kMaxWaitingReplies = 256;
/// Requests handled before other events get their turn, and before the device hears of the replies.
constexpr unsigned kRound = 256, kFlushInterval = 16;
constexpr unsigned kLoggedErrors = 20;  ///< per session: a device VMM gone wrong must not fill the disk

/// Why a request gets no OK.
struct Refusal {
    Status status;
    const char *text;
};
using Handled = Expected<void, Refusal>;

Handled refuse(Status status, const char *text)
{
    return make_unexpected(Refusal{status, text});
}

}  // namespace

class Session::Impl : public std::enable_shared_from_this<Session::Impl> {
public:
    Impl(Session &session, Transport &transport, Reactor &reactor, Workers &workers, SessionOptions options)
        : transport_(transport), reactor_(reactor), workers_(workers), options_(options), dma_(&session)
    {
    }
    ~Impl() { unwatch(); }

    void start(DeviceModel &model, std::function<void(Result<void>)> registered, std::function<void(Error)> failed);
    void stop(std::function<void()> stopped);
    void trigger(std::uint32_t index, std::uint32_t vector);
    bool pending(std::uint32_t index, std::uint32_t vector);
    void message_dma(DmaDirection direction, DmaAddress address, std::span<std::byte> buffer, DmaCallback done);

    Transport &transport_;
    Reactor &reactor_;
    Workers &workers_;
    const SessionOptions options_;
    DmaSpace dma_;
    SessionCounters counters_;
    bool peer_up_ = false;
    std::unique_ptr<ControlClient> control_;

private:
    enum class State { idle, registering, registered, restarting, stopping, stopped };

    // ---- bringing the function up, and what happens when it fails ----
    Result<void> allocate();
    Result<void> bring_up();
    Result<void> check_config();
    Result<void> post_buffers();
    Result<void> watch();
    void unwatch();
    void register_device();
    void registration_answered(const ControlClient::Reply &reply);
    void give_up(std::string reason);
    void broken(std::string reason);
    void recover(const std::string &reason);
    void restart();
    void leave_session();
    void quiesce(std::function<void()> then);
    void shut_down();

    // ---- requests ----
    void on_control_queue();
    void on_request_queue();
    void on_reply_queue();
    void on_config_change();
    bool receive();
    [[nodiscard]] bool can_receive() const;
    void drain_backlog();
    void flush();
    void handle(Bytes message);
    Handled dispatch(const Header &header, Bytes payload);
    Handled peer(const Header &header, Bytes payload);
    Handled feature_bits(const Header &header, Bytes payload);
    Handled memory_info(const Header &header, Bytes payload);
    Handled memory_add(const control::MemoryInfo &info);
    Handled memory_del(const Header &header, const control::MemoryInfo &info);
    Handled region_read(const Header &header, Bytes payload);
    Handled region_write(const Header &header, Bytes payload);
    Handled region_write_multi(Bytes payload);
    Handled irq_info(Bytes payload);
    Handled check_access(const control::RegionAccess &access, std::uint32_t flag) const;
    void intx_unmasked();

    // ---- replies ----
    void begin_reply(const Header &header, Status status = Status::ok);
    void send_reply();
    void reply(const Header &header, Status status = Status::ok, std::string_view text = {});
    void reply_later(const Header &header);

    /// Runs a reset of the model; requests wait until it is done, then `then` runs.
    void run_reset(const std::function<void(std::function<void()>)> &reset, std::function<void()> then);
    void reset_done();

    DeviceModel *model_ = nullptr;
    control::DeviceInfo info_;
    std::array<control::RegionInfo, control::kRegionCount> regions_;
    std::array<std::uint32_t, control::kIrqIndexCount> irq_counts_{};
    std::array<std::uint32_t, 3> doorbell_base_{};  // of INTx, MSI, MSI-X; constant after start(), read by any thread
    std::uint32_t doorbells_ = 0;

    State state_ = State::idle;
    std::function<void(Result<void>)> registered_;
    std::function<void(Error)> failed_;
    std::function<void()> stopped_;
    std::uint64_t generation_ = 0;  // of the device's life since its last reset
    bool broken_ = false;           // nothing more may be taken from this life
    unsigned restarts_ = 0;
    Nanoseconds registered_at_{};
    std::vector<int> watched_;

    std::optional<TransportQueue> requests_;
    std::optional<BufferArray> request_buffers_;
    std::unique_ptr<ReplySender> replies_;
    DeviceConfig config_;
    std::size_t window_size_ = 0;

    std::uint32_t epoch_ = 0;
    bool resetting_ = false;
    std::function<void()> reset_then_;
    bool receive_scheduled_ = false;
    bool notifications_off_ = false;  // of the request queue
    std::deque<control::Buffer> backlog_;
    control::Buffer message_, reply_;
    unsigned logged_errors_ = 0;
};

// ---- start, restart, stop -----------------------------------------------------------------------

void Session::Impl::start(DeviceModel &model, std::function<void(Result<void>)> registered,
                          std::function<void(Error)> failed)
{
    model_ = &model;
    registered_ = std::move(registered);
    failed_ = std::move(failed);
    info_ = model.describe();
    for (const auto &region : info_.regions) {
        if (region.index < regions_.size()) {
            regions_[region.index] = region;
        }
    }
    for (const auto &irq : info_.irqs) {
        if (irq.index < irq_counts_.size()) {
            irq_counts_[irq.index] = irq.count;
        }
    }
    doorbell_base_ = {0, irq_counts_[control::kIrqIntx],
                      irq_counts_[control::kIrqIntx] + irq_counts_[control::kIrqMsi]};
    state_ = State::registering;
    auto result = bring_up();
    if (!result) {
        reactor_.post([self = weak_from_this(), error = result.error()] {
            if (const auto impl = self.lock(); impl && impl->state_ == State::registering) {
                impl->give_up(error.message);
            }
        });
    }
}

Result<void> Session::Impl::allocate()
{
    if (control_) {
        return {};
    }
    auto control = ControlClient::create(transport_, reactor_);
    if (!control) {
        return make_unexpected(control.error());
    }
    auto requests = TransportQueue::allocate(transport_, kRequestQueue);
    if (!requests) {
        return make_unexpected(requests.error());
    }
    auto buffers = BufferArray::allocate(transport_, requests->size(), config_.request_buffer_size);
    if (!buffers) {
        return make_unexpected(buffers.error());
    }
    auto replies = ReplySender::create(transport_, config_.request_buffer_size + control::kTextMax);
    if (!replies) {
        return make_unexpected(replies.error());
    }
    requests_ = std::move(*requests);
    request_buffers_ = *buffers;
    replies_ = std::move(*replies);
    control_ = std::move(*control);
    message_.reserve(config_.request_buffer_size);
    return {};
}

Result<void> Session::Impl::check_config()
{
    const auto config = transport_.config();
    if (config.request_buffer_size < kMinRequestBuffer || config.request_buffer_size > kMaxRequestBuffer ||
        config.max_message_size < kMinMessage) {
        return failure("the device's configuration is not that of a virtio-vfio-user device");
    }
    if (control_ && config != config_) {
        return failure("the device's configuration changed across a reset");
    }
    config_ = config;
    doorbells_ = config.doorbells;
    window_size_ = transport_.window().size();
    return {};
}

/// Device initialisation as in section 7 of the specification.
Result<void> Session::Impl::bring_up()
{
    ++generation_;
    broken_ = false;
    transport_.reset();
    //= VVFU-FEAT-2
    //# The driver MUST NOT set DRIVER_OK unless VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM are negotiated.
    const auto features = transport_.negotiate(kVersion1 | kAccessPlatform, kVersion1 | kAccessPlatform);
    if (!features) {
        return make_unexpected(features.error());
    }
    for (const auto step : {&Impl::check_config, &Impl::allocate, &Impl::post_buffers, &Impl::watch}) {
        if (auto result = (this->*step)(); !result) {
            return result;
        }
    }
    //= VVFU-INIT-1
    if (auto result = transport_.driver_ok(); !result) {
        return result;
    }
    requests_->notify();
    register_device();
    return {};
}

Result<void> Session::Impl::post_buffers()
{
    if (auto result = control_->bring_up(config_.max_message_size); !result) {
        return result;
    }
    if (auto result = requests_->bring_up(); !result) {
        return result;
    }
    notifications_off_ = false;
    //= VVFU-QUEUE-5
    //# The driver MUST provide only requestq buffers that have at least `request_buffer_size` device-writable
    //# bytes.
    for (std::size_t i = 0; i < requests_->size(); ++i) {
        const controlq::DeviceBuffer buffer{request_buffers_->device_address(i),
                                            static_cast<std::uint32_t>(request_buffers_->size())};
        requests_->ring().add({}, {&buffer, 1}, i);
    }
    return replies_->bring_up();
}

Result<void> Session::Impl::watch()
{
    unwatch();
    const auto add = [this](int fd, void (Impl::*handler)()) -> Result<void> {
        if (fd < 0) {
            return {};
        }
        // Edge-triggered: the counter never needs a read.
        auto result = reactor_.watch(fd, EPOLLIN | EPOLLET, [this, handler](std::uint32_t) { (this->*handler)(); });
        if (result) {
            watched_.push_back(fd);
        }
        return result;
    };
    const std::pair<int, void (Impl::*)()> events[] = {
        {requests_->event(), &Impl::on_request_queue},
        {control_->event(), &Impl::on_control_queue},
        {replies_->event(), &Impl::on_reply_queue},
        {transport_.config_event(), &Impl::on_config_change},
        {transport_.notification_event(kNotificationIntxUnmask), &Impl::intx_unmasked},
    };
    for (const auto &[fd, handler] : events) {
        if (auto result = add(fd, handler); !result) {
            return result;
        }
    }
    return {};
}

void Session::Impl::unwatch()
{
    for (const int fd : watched_) {
        reactor_.unwatch(fd);
    }
    watched_.clear();
}

void Session::Impl::register_device()
{
    control::Buffer payload;
    control::append(payload, info_);
    const auto answered = [this](const ControlClient::Reply &reply) { registration_answered(reply); };
    if (!control_->request(Type::device_info, 0, payload, answered)) {
        broken("the device's messages are too short for the device description");
        return;
    }
    reactor_.after(options_.control_timeout, [self = weak_from_this(), generation = generation_] {
        const auto impl = self.lock();
        const bool waiting = impl && impl->generation_ == generation && impl->registered_at_ == Nanoseconds{};
        if (waiting && impl->state_ != State::stopping && impl->state_ != State::stopped) {
            impl->broken("no answer to DEVICE_INFO");
        }
    });
    registered_at_ = Nanoseconds{};
}

void Session::Impl::registration_answered(const ControlClient::Reply &answer)
{
    if (state_ == State::stopping || state_ == State::stopped) {
        return;
    }
    registered_at_ = Reactor::now();
    if (answer.status != Status::ok) {
        reactor_.post([self = weak_from_this(), text = "the device refuses the registration (" +
                                                       std::string{name(answer.status)} + "): " + answer.text] {
            if (const auto impl = self.lock()) {
                impl->give_up(text);
            }
        });
        return;
    }
    state_ = State::registered;
    if (registered_) {
        std::exchange(registered_, nullptr)({});
    } else {
        spdlog::info("[{}] device registered again", transport_.name());
    }
}

/// No way to go on: says so to whoever started the session.
void Session::Impl::give_up(std::string reason)
{
    if (state_ == State::stopping || state_ == State::stopped) {
        return;
    }
    shut_down();
    if (registered_) {
        std::exchange(registered_, nullptr)(make_unexpected(Error{std::move(reason)}));
    } else if (failed_) {
        std::exchange(failed_, nullptr)(Error{std::move(reason)});
    }
}

/// The device cannot be believed any more. What to do about it happens later, outside of whatever noticed.
void Session::Impl::broken(std::string reason)
{
    if (std::exchange(broken_, true) || state_ == State::stopped) {
        return;
    }
    reactor_.post([self = weak_from_this(), generation = generation_, reason = std::move(reason)] {
        if (const auto impl = self.lock(); impl && impl->generation_ == generation) {
            impl->recover(reason);
        }
    });
}

void Session::Impl::recover(const std::string &reason)
{
    if (state_ == State::stopped) {
        return;
    }
    spdlog::error("[{}] the device is broken: {}", transport_.name(), reason);
    ++generation_;
    unwatch();
    transport_.reset();
    control_->abort();
    leave_session();
    if (state_ == State::stopping) {
        quiesce([this] { shut_down(); });
        return;
    }
    if (state_ == State::registering) {
        quiesce([this, reason] { give_up(reason); });
        return;
    }
    if (registered_at_ != Nanoseconds{} && Reactor::now() - registered_at_ >= options_.stable_after) {
        restarts_ = 0;
    }
    if (restarts_ == options_.max_restarts) {
        quiesce([this, reason] { give_up(reason); });
        return;
    }
    const auto delay = options_.restart_delay * (1u << std::min(restarts_, 16u));
    ++restarts_;
    ++counters_.restarts;
    state_ = State::restarting;
    quiesce([this, delay] {
        reactor_.after(delay, [self = weak_from_this()] {
            if (const auto impl = self.lock()) {
                impl->restart();
            }
        });
    });
}

void Session::Impl::restart()
{
    if (state_ != State::restarting) {
        return;
    }
    if (auto result = bring_up(); !result) {
        give_up(result.error().message);
    }
}

/// Forgets what belongs to the session and to this life of the device; the model is brought to rest by quiesce().
void Session::Impl::leave_session()
{
    backlog_.clear();
    dma_.clear();
}

/// Brings the model to its power-on state, unless it is there, then runs `then`.
void Session::Impl::quiesce(std::function<void()> then)
{
    if (resetting_) {
        reset_then_ = std::move(then);  // what waited for that reset before is void by now
        return;
    }
    if (!peer_up_) {
        then();
        return;
    }
    peer_up_ = false;
    run_reset([this](std::function<void()> done) { model_->peer_gone(std::move(done)); }, std::move(then));
}

void Session::Impl::stop(std::function<void()> stopped)
{
    stopped_ = std::move(stopped);
    if (state_ == State::stopped || state_ == State::idle) {
        reactor_.post([self = shared_from_this()] { self->shut_down(); });
        return;
    }
    const bool known = state_ == State::registered && !broken_;
    state_ = State::stopping;
    reactor_.after(options_.control_timeout, [self = weak_from_this()] {
        if (const auto impl = self.lock(); impl && impl->state_ == State::stopping) {
            spdlog::warn("[{}] stopping took too long, some work was abandoned", impl->transport_.name());
            impl->shut_down();
        }
    });
    const auto rest = [this] {
        leave_session();
        quiesce([this] { shut_down(); });
    };
    if (known) {
        control::Buffer payload;
        control::DeviceInfo withdrawal;
        withdrawal.op = control::DeviceInfoOp::del;
        control::append(payload, withdrawal);
        if (control_->request(Type::device_info, 0, payload, [rest](const ControlClient::Reply &) { rest(); })) {
            return;
        }
    }
    reactor_.post([self = weak_from_this(), rest] {
        if (const auto impl = self.lock(); impl && impl->state_ == State::stopping) {
            rest();
        }
    });
}

void Session::Impl::shut_down()
{
    if (state_ != State::stopped) {
        state_ = State::stopped;
        ++generation_;
        unwatch();
        transport_.reset();
        if (control_) {
            control_->abort();
        }
        leave_session();
    }
    if (stopped_) {
        reactor_.post(std::exchange(stopped_, nullptr));
    }
}

// ---- receiving ----------------------------------------------------------------------------------

void Session::Impl::on_control_queue()
{
    if (broken_ || state_ == State::stopped) {
        return;
    }
    if (auto result = control_->process(); !result) {
        broken(result.error().message);
    }
    flush();
}

void Session::Impl::on_reply_queue()
{
    if (broken_ || state_ == State::stopped) {
        return;
    }
    if (auto result = replies_->process(); !result) {
        broken(result.error().message);
    }
    flush();
    on_request_queue();
}

void Session::Impl::on_config_change()
{
    if (!broken_ && state_ != State::stopped && transport_.needs_reset()) {
        broken("DEVICE_NEEDS_RESET");
    }
}

bool Session::Impl::can_receive() const
{
    return !broken_ && backlog_.size() < kMaxBacklog && replies_->waiting() < kMaxWaitingReplies;
}

void Session::Impl::on_request_queue()
{
    receive_scheduled_ = false;
    if (broken_ || state_ == State::stopped) {
        return;
    }
    drain_backlog();
    auto &ring = requests_->ring();
    unsigned received = 0;
    for (;;) {
        while (can_receive() && received < kRound && receive()) {
            ++received;
            if (!std::exchange(notifications_off_, true)) {
                ring.want_notifications(false);  // awake anyway
            }
            if (received % kFlushInterval == 0) {
                flush();
            }
        }
        flush();
        if (broken_ || !can_receive()) {
            return;  // reset_done() or on_reply_queue() come back here
        }
        if (received >= kRound) {
            break;
        }
        if (options_.poll > Nanoseconds::zero() && received > 0) {
            for (const auto end = Reactor::now() + options_.poll; !ring.has_used() && Reactor::now() < end;) {
            }
        }
        if (std::exchange(notifications_off_, false)) {
            ring.want_notifications(true);
        }
        if (!ring.has_used()) {
            return;
        }
    }
    if (!std::exchange(receive_scheduled_, true)) {
        reactor_.post([self = weak_from_this()] {
            if (const auto impl = self.lock()) {
                impl->on_request_queue();
            }
        });
    }
}

/// Takes one request out of the ring; false: there is none, or the device is broken.
bool Session::Impl::receive()
{
    const auto used = requests_->ring().poll_used();
    if (!used) {
        broken(std::string{"request queue: "} + controlq::describe(used.error()));
        return false;
    }
    if (!*used) {
        return false;
    }
    const auto index = (*used)->token;
    const auto shared = request_buffers_->host(index).first((*used)->length);
    message_.assign(shared.begin(), shared.end());
    //= VVFU-QUEUE-10
    //# The driver MUST NOT let its taking of requests from the requestq wait for the completion of a controlq
    //# request.
    const controlq::DeviceBuffer buffer{request_buffers_->device_address(index),
                                        static_cast<std::uint32_t>(request_buffers_->size())};
    requests_->ring().add({}, {&buffer, 1}, index);
    if (resetting_ || !backlog_.empty()) {
        backlog_.push_back(message_);
    } else {
        handle(message_);
    }
    return true;
}

//= VVFU-QUEUE-8
void Session::Impl::drain_backlog()
{
    while (!backlog_.empty() && !resetting_ && !broken_) {
        const auto message = std::move(backlog_.front());
        backlog_.pop_front();
        handle(message);
    }
}

void Session::Impl::flush()
{
    replies_->flush();
    requests_->notify();
}

void Session::Impl::handle(Bytes message)
{
    ++counters_.requests;
    const auto header = control::decode_header(message);
    if (!header || header->is_reply()) {
        broken(header ? "reply on the request queue"
                      : std::string{"request: "} + std::string{control::describe(header.error())});
        return;
    }
    Handled handled;
    //= VVFU-SESSION-7
    //# The driver MUST answer a request that carries another epoch than that of the session in progress with STALE,
    //# without any other effect.
    if (header->type != Type::peer && (!peer_up_ || header->epoch != epoch_)) {
        ++counters_.stale_requests;
        handled = refuse(Status::stale, "ended session");
    } else if (header->is_posted() && header->type != Type::region_write && header->type != Type::region_write_multi) {
        handled = refuse(Status::invalid, "POSTED on a request that needs a reply");
    } else {
        handled = dispatch(*header, message.subspan(control::kHeaderSize));
    }
    if (handled) {
        return;
    }
    //= VVFU-ERROR-7
    //# The driver MUST check every field of a request before it uses it, and answer a malformed request with
    //# INVALID.
    const auto refusal = handled.error();
    if (refusal.status != Status::stale) {
        ++counters_.bad_requests;
        if (logged_errors_ < kLoggedErrors) {
            ++logged_errors_;
            spdlog::warn("[{}] {} of epoch {} refused: {} ({})", transport_.name(), name(header->type), header->epoch,
                         name(refusal.status), refusal.text);
        }
    }
    reply(*header, refusal.status, refusal.text);
}

Handled Session::Impl::dispatch(const Header &header, Bytes payload)
{
    switch (header.type) {
        case Type::region_read: return region_read(header, payload);
        case Type::region_write: return region_write(header, payload);
        case Type::region_write_multi: {
            auto handled = region_write_multi(payload);
            if (handled) {
                reply(header);
            }
            return handled;
        }
        case Type::peer: return peer(header, payload);
        case Type::feature_bits: return feature_bits(header, payload);
        case Type::memory_info: return memory_info(header, payload);
        case Type::irq_info: {
            auto handled = irq_info(payload);
            if (handled) {
                reply(header);
            }
            return handled;
        }
        case Type::device_reset:
            if (!payload.empty()) {
                return refuse(Status::invalid, "DEVICE_RESET has no payload");
            }
            //= VVFU-RESET-1
            //# The driver MUST NOT answer DEVICE_RESET before the emulated device has stopped all DMA and
            //# interrupts of the time before.
            run_reset([this](std::function<void()> done) { model_->reset(std::move(done)); },
                      [this, header] { reply_later(header); });
            return {};
        default:
            //= VVFU-MSG-6
            //# The responder MUST answer a request of a type that it does not implement with UNSUPPORTED.
            return refuse(Status::unsupported, "unknown request");
    }
}

// ---- requests -----------------------------------------------------------------------------------

Handled Session::Impl::peer(const Header &header, Bytes payload)
{
    const auto info = control::decode_peer(payload);
    if (!info) {
        return refuse(Status::invalid, "malformed PEER");
    }
    if (info->op == control::PeerOp::up) {
        if (peer_up_) {
            return refuse(Status::invalid, "a session is in progress");
        }
        peer_up_ = true;
        epoch_ = header.epoch;
        logged_errors_ = 0;
        spdlog::info("[{}] session {} begins: peer pid {} uid {}, protocol {}.{}", transport_.name(), epoch_, info->pid,
                     info->uid, info->major, info->minor);
        reply(header);
        return {};
    }
    if (!peer_up_ || header.epoch != epoch_) {
        ++counters_.stale_requests;
        return refuse(Status::stale, "ended session");
    }
    spdlog::info("[{}] session {} ended: {}", transport_.name(), epoch_, name(info->reason));
    dma_.clear();
    peer_up_ = false;
    //= VVFU-SESSION-8
    //# The driver MUST NOT answer PEER(DOWN) before it has ended its accesses to the window and forgotten the
    //# ranges of the session.
    run_reset([this](std::function<void()> done) { model_->peer_gone(std::move(done)); },
              [this, header] { reply_later(header); });
    return {};
}

Handled Session::Impl::feature_bits(const Header &header, Bytes payload)
{
    const auto offered = control::decode_feature_bits(payload);
    if (!offered) {
        return refuse(Status::invalid, "malformed FEATURE_BITS");
    }
    begin_reply(header);
    //= VVFU-FEATURES-2
    //# The driver MUST NOT accept a feature that was not offered.
    control::append(reply_, control::FeatureBits{offered->features & info_.features});
    send_reply();
    return {};
}

Handled Session::Impl::memory_info(const Header &header, Bytes payload)
{
    const auto info = control::decode_memory_info(payload);
    if (!info) {
        return refuse(Status::invalid, "malformed MEMORY_INFO");
    }
    if (info->op == control::MemoryOp::del) {
        return memory_del(header, *info);
    }
    auto added = memory_add(*info);
    if (added) {
        reply(header);
    }
    return added;
}

Handled Session::Impl::memory_add(const control::MemoryInfo &info)
{
    DmaRange range;
    range.address = DmaAddress{info.address};
    range.size = info.size;
    range.readable = (info.flags & control::kMemoryRead) != 0;
    range.writable = (info.flags & control::kMemoryWrite) != 0;
    if ((info.flags & control::kMemoryMessageOnly) == 0) {
        //= VVFU-MEMORY-3
        //# The driver MUST check that an announced range lies inside the window before it uses it.
        if (info.size > window_size_ || info.window_offset > window_size_ - info.size) {
            return refuse(Status::invalid, "range outside the window");
        }
        range.host = transport_.window().data() + info.window_offset;
    }
    if (info.size == 0 || info.size - 1 > ~std::uint64_t{0} - info.address) {
        return refuse(Status::invalid, "range is empty or wraps");
    }
    if (!dma_.add(range)) {
        return refuse(Status::busy, "range overlaps another one");
    }
    return {};
}

Handled Session::Impl::memory_del(const Header &header, const control::MemoryInfo &info)
{
    //= VVFU-MEMORY-1
    //# The driver MUST NOT answer MEMORY_INFO(DEL) with OK before it has ended its accesses to the range.
    const bool removed =
        dma_.remove(DmaAddress{info.address}, info.size, [self = weak_from_this(), header, generation = generation_] {
            const auto impl = self.lock();
            if (impl && impl->generation_ == generation) {
                impl->reply_later(header);
            }
        });
    return removed ? Handled{} : refuse(Status::not_found, "no such range");
}

Handled Session::Impl::check_access(const control::RegionAccess &access, std::uint32_t flag) const
{
    if (access.region >= regions_.size() || access.count == 0 || access.count > regions_[access.region].size ||
        access.offset > regions_[access.region].size - access.count) {
        return refuse(Status::invalid, "access outside the region");
    }
    if ((regions_[access.region].flags & flag) == 0) {
        return refuse(Status::permission, "the region does not allow this access");
    }
    return {};
}

Handled Session::Impl::region_read(const Header &header, Bytes payload)
{
    const auto access = control::decode_region_access(payload);
    if (!access) {
        return refuse(Status::invalid, "malformed REGION_READ");
    }
    if (auto checked = check_access(*access, control::kRegionRead); !checked) {
        return checked;
    }
    if (access->count > config_.request_buffer_size - control::kHeaderSize - control::kRegionAccessSize) {
        return refuse(Status::invalid, "too many bytes for one access");
    }
    begin_reply(header);
    control::append(reply_, *access);
    const auto data = reply_.size();
    reply_.resize(data + access->count);
    //= VVFU-ACCESS-2
    model_->region_read(access->region, access->offset, std::span{reply_}.subspan(data));
    send_reply();
    return {};
}

Handled Session::Impl::region_write(const Header &header, Bytes payload)
{
    const auto write = control::decode_region_data(payload);
    if (!write) {
        return refuse(Status::invalid, "malformed REGION_WRITE");
    }
    if (auto checked = check_access(write->access, control::kRegionWrite); !checked) {
        return checked;
    }
    model_->region_write(write->access.region, write->access.offset, write->data);
    if (!header.is_posted()) {
        begin_reply(header);
        //= VVFU-ACCESS-2
        control::append(reply_, write->access);
        send_reply();
    }
    return {};
}

Handled Session::Impl::region_write_multi(Bytes payload)
{
    const auto writes = control::decode_multi_write(payload);
    if (!writes) {
        return refuse(Status::invalid, "malformed REGION_WRITE_MULTI");
    }
    // All are checked before the first has an effect.
    for (const auto &write : *writes) {
        if (auto checked = check_access(write.access, control::kRegionWrite); !checked) {
            return checked;
        }
    }
    //= VVFU-MULTI-1
    //# The driver MUST carry out the entries of a REGION_WRITE_MULTI in their order.
    for (const auto &write : *writes) {
        model_->region_write(write.access.region, write.access.offset, Bytes{write.data}.first(write.access.count));
    }
    return {};
}

Handled Session::Impl::irq_info(Bytes payload)
{
    const auto info = control::decode_irq_info(payload);
    if (!info || info->index >= irq_counts_.size() || info->count > irq_counts_[info->index] ||
        info->start > irq_counts_[info->index] - info->count) {
        return refuse(Status::invalid, "malformed IRQ_INFO");
    }
    model_->irq_info(*info);
    return {};
}

/// Notification 0, which carries no epoch: at worst the line is looked at once too often.
void Session::Impl::intx_unmasked()
{
    if (peer_up_ && !resetting_ && irq_counts_[control::kIrqIntx] != 0) {
        model_->irq_info({control::kIrqIntx, 0, 1, control::IrqAction::unmask});
    }
}

// ---- model reset --------------------------------------------------------------------------------

//= VVFU-RESET-2
//# The driver MUST NOT apply a region access that follows DEVICE_RESET before the reset is complete.
void Session::Impl::run_reset(const std::function<void(std::function<void()>)> &reset, std::function<void()> then)
{
    resetting_ = true;
    reset_then_ = std::move(then);
    reset([self = weak_from_this()] {
        if (const auto impl = self.lock()) {
            impl->reset_done();
        }
    });
}

void Session::Impl::reset_done()
{
    if (!std::exchange(resetting_, false)) {
        return;  // a model that reports twice
    }
    std::exchange(reset_then_, nullptr)();
    if (backlog_.empty() || broken_ || std::exchange(receive_scheduled_, true)) {
        return;
    }
    reactor_.post([self = weak_from_this()] {
        if (const auto impl = self.lock()) {
            impl->on_request_queue();
        }
    });
}

// ---- replies ------------------------------------------------------------------------------------

void Session::Impl::begin_reply(const Header &header, Status status)
{
    //= VVFU-MSG-3
    //# The responder MUST set REPLY, and copy `type`, `request_id` and `epoch` of the request, in a reply.
    control::begin(reply_, {.type = header.type,
                            .flags = control::kFlagReply,
                            .request_id = header.request_id,
                            .epoch = header.epoch,
                            .status = status});
}

void Session::Impl::send_reply()
{
    control::finish(reply_);
    if (auto sent = replies_->send(reply_); !sent) {
        broken(sent.error().message);
    }
}

void Session::Impl::reply(const Header &header, Status status, std::string_view text)
{
    //= VVFU-MSG-5
    //# The responder MUST NOT reply to a request that has POSTED set.
    if (header.is_posted()) {
        return;
    }
    begin_reply(header, status);
    if (status != Status::ok) {
        //= VVFU-MSG-8
        control::append_text(reply_, text);
    }
    send_reply();
}

/// For replies that are not sent while requests are being taken: nobody else would flush.
void Session::Impl::reply_later(const Header &header)
{
    if (broken_ || state_ == State::stopped) {
        return;
    }
    reply(header);
    replies_->flush();
}

// ---- interrupts and DMA -------------------------------------------------------------------------

void Session::Impl::trigger(std::uint32_t index, std::uint32_t vector)
{
    if (index >= irq_counts_.size() || vector >= irq_counts_[index]) {
        return;
    }
    if (index < doorbell_base_.size() && doorbell_base_[index] + vector < doorbells_) {
        //= VVFU-DOORBELL-6
        //# The driver MUST make its earlier writes to the window visible to the peer before it writes to a
        //# doorbell.
        std::atomic_thread_fence(std::memory_order_release);
        transport_.ring_doorbell(doorbell_base_[index] + vector);
        return;
    }
    reactor_.post([self = weak_from_this(), index, vector] {
        const auto impl = self.lock();
        if (!impl || impl->state_ != State::registered || !impl->peer_up_ || impl->broken_) {
            return;
        }
        control::Buffer payload;
        control::append(payload, control::IrqTrigger{index, vector});
        impl->control_->request(Type::irq_trigger, impl->epoch_, payload, nullptr);
    });
}

bool Session::Impl::pending(std::uint32_t index, std::uint32_t vector)
{
    return index < doorbell_base_.size() && vector < irq_counts_[index] &&
           doorbell_base_[index] + vector < doorbells_ && transport_.doorbell_pending(doorbell_base_[index] + vector);
}

void Session::Impl::message_dma(DmaDirection direction, DmaAddress address, std::span<std::byte> buffer,
                                DmaCallback done)
{
    if (!control_ || broken_ || state_ == State::stopped || state_ == State::restarting || state_ == State::idle) {
        reactor_.post([done = std::move(done)] { done(make_unexpected(DmaError::io)); });
        return;
    }
    control_->dma(direction, epoch_, address, buffer, std::move(done));
}

// ---- Session ------------------------------------------------------------------------------------

Session::Session(Transport &transport, Reactor &reactor, Workers &workers, SessionOptions options)
    : impl_(std::make_shared<Impl>(*this, transport, reactor, workers, options))
{
}

Session::~Session() = default;

DeviceServices Session::services()
{
    return {impl_->reactor_, impl_->workers_, impl_->dma_, *this, impl_->transport_.region_memory()};
}

void Session::start(DeviceModel &model, std::function<void(Result<void>)> registered, std::function<void(Error)> failed)
{
    impl_->start(model, std::move(registered), std::move(failed));
}

void Session::stop(std::function<void()> stopped)
{
    impl_->stop(std::move(stopped));
}

bool Session::peer_up() const
{
    return impl_->peer_up_;
}

SessionCounters Session::counters() const
{
    auto counters = impl_->counters_;
    counters.dma_messages = impl_->control_ ? impl_->control_->dma_messages() : 0;
    return counters;
}

void Session::dma_read(DmaAddress address, std::span<std::byte> out, DmaCallback done)
{
    impl_->message_dma(DmaDirection::from_peer, address, out, std::move(done));
}

void Session::dma_write(DmaAddress address, std::span<const std::byte> data, DmaCallback done)
{
    // Only read from with to_peer.
    impl_->message_dma(DmaDirection::to_peer, address, {const_cast<std::byte *>(data.data()), data.size()},
                       std::move(done));
}

void Session::trigger(std::uint32_t index, std::uint32_t vector)
{
    impl_->trigger(index, vector);
}

bool Session::pending(std::uint32_t index, std::uint32_t vector)
{
    return impl_->pending(index, vector);
}

}  // namespace vvfu::guest
