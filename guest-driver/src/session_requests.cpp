// SPDX-License-Identifier: BSD-3-Clause
#include <spdlog/spdlog.h>

#include <utility>

#include "session_impl.hpp"

namespace vvfu::guest {
namespace {

using control::Type;

/// Requests kept while the model resets; further ones stay in the ring, and the device VMM stops reading its socket.
constexpr std::size_t kMaxBacklog = 1024;
constexpr std::size_t kMaxWaitingReplies = 256;
/// Requests handled before other events get their turn, and before the device hears of the replies.
constexpr unsigned kRound = 256, kFlushInterval = 16;
constexpr unsigned kLoggedErrors = 20;  ///< per session: a device VMM gone wrong must not fill the disk

auto refuse(control::Status status, const char *text)
{
    return make_unexpected(Refusal{status, text});
}

}  // namespace

// ---- receiving ----------------------------------------------------------------------------------

void Session::Impl::on_control_queue()
{
    // First what may explain the replies: a reset of the model and the removal of memory end its DMA with errors.
    on_request_queue();
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
    return !broken_ && backlog_.size() + held_replies_.size() < kMaxBacklog && replies_->waiting() < kMaxWaitingReplies;
}

void Session::Impl::schedule_receive()
{
    if (std::exchange(receive_scheduled_, true)) {
        return;
    }
    reactor_.post([self = weak_from_this()] {
        if (const auto impl = self.lock()) {
            impl->receive_scheduled_ = false;
            impl->on_request_queue();
        }
    });
}

void Session::Impl::on_request_queue()
{
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
        const bool polls = options_.poll > Nanoseconds::zero();
        if (polls && received > 0) {
            poll_until_ = Reactor::now() + options_.poll;
        }
        // Polling is rounds of the reactor that do not sleep: what else is ready has its turn in each of them.
        if (received >= kRound || (polls && Reactor::now() < poll_until_)) {
            schedule_receive();
            return;
        }
        if (std::exchange(notifications_off_, false)) {
            ring.want_notifications(true);
        }
        if (!ring.has_used()) {
            return;
        }
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
    if ((resetting_ || !backlog_.empty()) && !refused_by_reset(message_)) {
        backlog_.push_back(message_);
    } else {
        handle(message_);
    }
    return true;
}

//= VVFU-RESET-2
//# The driver MUST answer a region access that follows DEVICE_RESET before the reset is complete at once, a read with
//# all-ones, and a write without any effect.
bool Session::Impl::refused_by_reset(Bytes message) const
{
    const auto header = control::decode_header(message);
    if (!resetting_ || !peer_up_ || !header || header->epoch != epoch_) {
        return false;
    }
    return header->type == Type::region_read || header->type == Type::region_write ||
           header->type == Type::region_write_multi;
}

//= VVFU-QUEUE-8
void Session::Impl::drain_backlog()
{
    if (backlog_.empty() || resetting_) {
        return;
    }
    // A request may begin a reset, which then holds up what is behind it, as in receive().
    std::deque<control::Buffer> kept;
    for (; !backlog_.empty() && !broken_; backlog_.pop_front()) {
        auto &message = backlog_.front();
        if ((resetting_ || !kept.empty()) && !refused_by_reset(message)) {
            kept.push_back(std::move(message));
        } else {
            handle(message);
        }
    }
    backlog_ = std::move(kept);
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
            if (handled && !header.is_posted()) {
                begin_reply(header);
                send_access_reply();
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
        if (const auto silent = sessions_logged_.take_kept_back(Reactor::now()); silent != 0) {
            spdlog::info("[{}] {} more sessions", transport_.name(), silent);
        }
        session_logged_ = sessions_logged_.admit(Reactor::now());
        if (session_logged_) {
            spdlog::info("[{}] session {} begins: peer pid {} uid {}, protocol {}.{}", transport_.name(), epoch_,
                         info->pid, info->uid, info->major, info->minor);
        }
        reply(header);
        return {};
    }
    if (!peer_up_ || header.epoch != epoch_) {
        ++counters_.stale_requests;
        return refuse(Status::stale, "ended session");
    }
    if (session_logged_) {
        spdlog::info("[{}] session {} ended: {}", transport_.name(), epoch_, name(info->reason));
    }
    dma_.clear();
    held_replies_.clear();
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
    //= VVFU-EXT-2
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
    if (!removed) {
        return refuse(Status::not_found, "no such range");
    }
    return {};
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
    const auto out = std::span{reply_}.subspan(data);
    if (resetting_) {
        std::fill(out.begin(), out.end(), std::byte{0xff});
    } else {
        model_->region_read(access->region, access->offset, out);
    }
    send_access_reply();
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
    if (!resetting_) {
        model_->region_write(write->access.region, write->access.offset, write->data);
    }
    if (!header.is_posted()) {
        begin_reply(header);
        //= VVFU-ACCESS-2
        control::append(reply_, write->access);
        send_access_reply();
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
        if (resetting_) {
            break;
        }
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
    if (!resetting_) {
        return;  // a model that reports twice
    }
    forget_triggers();
    //= VVFU-RESET-1
    // A trigger that is not answered may still become an interrupt.
    reset_waits_for_triggers_ = triggers_in_flight_ > 0;
    if (reset_waits_for_triggers_) {
        return;
    }
    resetting_ = false;
    std::exchange(reset_then_, nullptr)();
    if (!backlog_.empty() && !broken_) {
        schedule_receive();
    }
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

//= VVFU-RESET-8
//# The driver MUST NOT answer a register write that stops the emulated device's DMA (it clears Bus Master Enable, enters
//# D3hot or starts a function level reset), nor a region access that follows it, before DMA and message-signalled
//# interrupts of the time before are over, its DMA_WRITE and IRQ_TRIGGER requests included.
void Session::Impl::send_access_reply()
{
    //= VVFU-RESET-2
    if (resetting_ || !in_flight_before(dma_.closings())) {
        send_reply();
    } else {
        held_replies_.push_back({dma_.closings(), reply_});
    }
}

bool Session::Impl::in_flight_before(std::uint64_t closings) const
{
    return !in_flight_.empty() && in_flight_.begin()->first < closings;
}

std::function<void()> Session::Impl::message_begun()
{
    const auto time = dma_.closings();
    ++in_flight_[time];
    return [self = weak_from_this(), generation = generation_, time] {
        const auto impl = self.lock();
        if (!impl || impl->generation_ != generation) {
            return;
        }
        if (const auto it = impl->in_flight_.find(time); --it->second == 0) {
            impl->in_flight_.erase(it);
            impl->release_replies();
        }
    };
}

void Session::Impl::release_replies()
{
    bool sent = false;
    while (!held_replies_.empty() && !in_flight_before(held_replies_.front().closings) && !broken_) {
        reply_ = std::move(held_replies_.front().message);
        held_replies_.pop_front();
        send_reply();
        sent = true;
    }
    if (sent && !broken_) {
        replies_->flush();
        schedule_receive();  // too many may have been held to take more requests
    }
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

}  // namespace vvfu::guest
