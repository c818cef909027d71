// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/session.hpp"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "session_impl.hpp"

namespace vvfu::guest {
namespace {

using control::Status;
using control::Type;

constexpr std::uint64_t kVersion1 = std::uint64_t{1} << 32;        // VIRTIO_F_VERSION_1
constexpr std::uint64_t kAccessPlatform = std::uint64_t{1} << 33;  // VIRTIO_F_ACCESS_PLATFORM
constexpr std::uint32_t kMaxRequestBuffer = 1024 * 1024;
constexpr std::uint32_t kMinMessage = 4096;
/// IRQ_TRIGGER requests that are not answered; the other slots are for DMA.
constexpr std::size_t kTriggersInFlight = ControlClient::kSlots / 2;

}  // namespace

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
    if (config.request_buffer_size < kMinRequestBufferSize || config.request_buffer_size > kMaxRequestBuffer ||
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
    triggers_in_flight_ = 0;
    in_flight_.clear();
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
    forget_triggers();
    dma_.clear();
    held_replies_.clear();
}

/// Brings the model to its power-on state, unless it is there, then runs `then`.
void Session::Impl::quiesce(std::function<void()> then)
{
    if (resetting_) {
        // What waited for that reset before is void by now. A reset that the peer asked for leaves the session in
        // place, so there may be more to do after it.
        reset_then_ = [this, then = std::move(then)] { quiesce(then); };
        if (reset_waits_for_triggers_) {
            reset_done();  // the answers may not come any more
        }
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

// ---- interrupts and DMA -------------------------------------------------------------------------

void Session::Impl::trigger(std::uint32_t index, std::uint32_t vector)
{
    reactor_.require_current();
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
    if (!triggers_.emplace(index, vector).second) {
        return;  // one message will do for both
    }
    reactor_.post([self = weak_from_this()] {
        if (const auto impl = self.lock()) {
            impl->send_triggers();
        }
    });
}

/// As many as may be in flight; their answers bring the others.
void Session::Impl::send_triggers()
{
    if (state_ != State::registered || !peer_up_ || resetting_ || broken_) {
        forget_triggers();
        return;
    }
    while (triggers_in_flight_ < kTriggersInFlight && take_trigger()) {
        control::Buffer payload;
        control::append(payload, control::IrqTrigger{last_trigger_.first, last_trigger_.second});
        ++triggers_in_flight_;
        const auto answered = [this, over = message_begun()](const ControlClient::Reply &) {
            --triggers_in_flight_;
            over();
            if (reset_waits_for_triggers_) {
                reset_done();
            } else {
                send_triggers();
            }
        };
        control_->request(Type::irq_trigger, epoch_, payload, answered);
    }
}

/// The vectors take turns. False: none waits.
bool Session::Impl::take_trigger()
{
    if (triggers_.empty()) {
        return false;
    }
    const auto next = triggers_.upper_bound(last_trigger_);
    last_trigger_ = triggers_.extract(next == triggers_.end() ? triggers_.begin() : next).value();
    return true;
}

void Session::Impl::forget_triggers()
{
    triggers_.clear();
}

std::vector<std::uint32_t> Session::Impl::withdraw(std::uint32_t index)
{
    std::vector<std::uint32_t> vectors;
    std::erase_if(triggers_, [&](const Vector &trigger) {
        if (trigger.first == index) {
            vectors.push_back(trigger.second);
        }
        return trigger.first == index;
    });
    return vectors;
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
    if (direction == DmaDirection::from_peer) {
        control_->dma(direction, epoch_, address, buffer, std::move(done));
        return;
    }
    control_->dma(direction, epoch_, address, buffer,
                  [over = message_begun(), done = std::move(done)](Expected<void, DmaError> result) {
                      done(std::move(result));
                      over();
                  });
}

// ---- Session ------------------------------------------------------------------------------------

Session::Session(Transport &transport, Reactor &reactor, Workers &workers, SessionOptions options)
    : impl_(std::make_shared<Impl>(*this, transport, reactor, workers, options))
{
}

Session::~Session() = default;

DeviceServices Session::services()
{
    const auto uuid = impl_->transport_.config().uuid;
    return {impl_->reactor_,
            impl_->workers_,
            impl_->dma_,
            *this,
            impl_->transport_.region_memory(),
            uuid == Uuid{} ? std::nullopt : std::optional(uuid)};
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

std::vector<std::uint32_t> Session::withdraw(std::uint32_t index)
{
    return impl_->withdraw(index);
}

bool Session::pending(std::uint32_t index, std::uint32_t vector)
{
    return impl_->pending(index, vector);
}

}  // namespace vvfu::guest
