// SPDX-License-Identifier: BSD-3-Clause
#include "guest_channel.hpp"

#include <algorithm>
#include <cerrno>

#include "vvfu/protocol/device_config.hpp"

namespace vvfu::core {

using control::Type;

void GuestChannel::fail(std::string reason)
{
    if (!failure_) {
        failure_ = std::move(reason);
    }
}

bool GuestChannel::deliver(control::Bytes message)
{
    switch (const int rc = port_.push_request(kRequestQueue, message); rc) {
        case 0: return true;
        case -EAGAIN: return false;
        //= VVFU-ERROR-4
        case -EMSGSIZE: fail("a request buffer of the driver is smaller than request_buffer_size"); return true;
        default: fail("the request queue failed: errno " + std::to_string(-rc)); return true;
    }
}

void GuestChannel::push(Nanoseconds now, const control::Header &header)
{
    if (backlog_.empty() && deliver(scratch_)) {
        return;
    }
    backlog_.push_back({header.request_id, header.type, now, false, scratch_});
    backlog_bytes_ += scratch_.size();
    fresh_bytes_ += scratch_.size();
    ++fresh_count_;
}

void GuestChannel::drop_front()
{
    const auto size = backlog_.front().message.size();
    if (fresh_count_ == backlog_.size()) {
        --fresh_count_;
        fresh_bytes_ -= size;
    }
    backlog_bytes_ -= size;
    backlog_.pop_front();
}

void GuestChannel::flush(Nanoseconds)
{
    while (!backlog_.empty() && !failure_) {
        const auto &front = backlog_.front();
        if (!front.cancelled && !deliver(front.message)) {
            return;
        }
        drop_front();
    }
}

GuestChannel::Queued *GuestChannel::find_queued(std::uint64_t id)
{
    const auto it = std::lower_bound(backlog_.begin(), backlog_.end(), id,
                                     [](const Queued &queued, std::uint64_t key) { return queued.id < key; });
    return it != backlog_.end() && it->id == id ? &*it : nullptr;
}

bool GuestChannel::cancel(std::uint64_t id)
{
    auto *queued = find_queued(id);
    if (queued == nullptr) {
        return false;
    }
    queued->cancelled = true;
    return true;
}

void GuestChannel::reply(Nanoseconds now, unsigned queue, control::Bytes message)
{
    if (failure_) {
        return;
    }
    //= VVFU-ERROR-1
    const auto header = control::decode_header(message);
    if (!header) {
        return fail("reply queue: " + std::string{control::describe(header.error())});
    }
    if (queue != kReplyQueue || !header->is_reply() || header->is_posted()) {
        return fail("reply queue: a message that is not a reply");
    }
    auto [match, entry] = table_.take(*header);
    //= VVFU-ERROR-2
    if (match == decltype(match)::type_mismatch) {
        return fail("reply of type " + std::string{control::name(header->type)} + " to a request of another type");
    }
    //= VVFU-ERROR-8
    if (match == decltype(match)::epoch_mismatch) {
        return fail("reply to " + std::string{control::name(header->type)} + " with another epoch than its request");
    }
    //= VVFU-MSG-7
    if (match == decltype(match)::unknown) {
        ++counters_.unknown_replies;
        return log_.once(LogLevel::warning, "unknown reply of the guest",
                         "reply to an unknown, answered or expired request ignored (type " +
                             std::string{control::name(header->type)} + ")");
    }
    last_answered_ = std::max(last_answered_, header->request_id);
    const auto payload = message.subspan(control::kHeaderSize);
    GuestReply reply{false, header->status, {}, {}, now};
    if (reply.ok()) {
        reply.payload = payload;
    } else if (payload.size() > control::kTextMax) {
        return fail("error reply with more than 256 bytes of text");
    } else {
        reply.text = control::decode_text(payload);
    }
    //= VVFU-ERROR-3
    if (!entry->context(reply)) {
        fail("bad payload in the reply to " + std::string{control::name(header->type)});
    }
}

void GuestChannel::expire(Nanoseconds now, const OnReply &on_reply)
{
    GuestReply reply;
    reply.expired = true;
    reply.now = now;
    on_reply(reply);
}

void GuestChannel::give_up(Nanoseconds now, std::uint64_t id, Type type)
{
    if (const auto entry = table_.cancel(id, type)) {
        expire(now, entry->context);
    }
}

void GuestChannel::age(Nanoseconds now)
{
    while (fresh_count_ > 0) {
        const auto &oldest = backlog_[backlog_.size() - fresh_count_];
        if (now - oldest.created < stale_after_) {
            return;
        }
        --fresh_count_;
        fresh_bytes_ -= oldest.message.size();
    }
}

void GuestChannel::tick(Nanoseconds now)
{
    //= VVFU-DEADLINE-1
    while (auto entry = table_.take_expired(now)) {
        // Nobody waits for the answer to an expired read; expired writes still take effect, in order.
        if (auto *queued = find_queued(entry->id); queued != nullptr && queued->type == Type::region_read) {
            queued->cancelled = true;
        }
        ++counters_.deadline_expiries;
        log_.once(LogLevel::warning, "deadline of the guest",
                  "the device guest did not answer " + std::string{control::name(entry->type)} + " in time");
        expire(now, entry->context);
    }
    age(now);
}

Nanoseconds GuestChannel::next_deadline() const
{
    auto deadline = table_.next_deadline();
    if (fresh_count_ > 0) {
        deadline = std::min(deadline, backlog_[backlog_.size() - fresh_count_].created + stale_after_);
    }
    return deadline;
}

//= VVFU-QUEUE-11
bool GuestChannel::has_room() const noexcept
{
    return fresh_count_ < kSoftMessages && fresh_bytes_ < kSoftBytes && table_.size() < kSoftOutstanding;
}

void GuestChannel::drop_session() noexcept
{
    while (table_.take_any()) {
    }
    std::erase_if(backlog_, [](const Queued &queued) { return queued.type != Type::peer || queued.cancelled; });
    backlog_bytes_ = 0;
    for (const auto &queued : backlog_) {
        backlog_bytes_ += queued.message.size();
    }
    fresh_count_ = fresh_bytes_ = 0;
    last_posted_ = 0;
}

void GuestChannel::reset()
{
    drop_session();
    backlog_.clear();
    backlog_bytes_ = 0;
    failure_.reset();
}

}  // namespace vvfu::core
