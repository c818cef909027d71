// SPDX-License-Identifier: BSD-3-Clause
#include "guest_channel.hpp"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <tuple>
#include <utility>

#include "vvfu/protocol/device_config.hpp"

namespace vvfu::core {

using control::Check;
using control::Type;

void GuestChannel::fail(std::string reason)
{
    if (!failure_) {
        failure_ = std::move(reason);
    }
}

void GuestChannel::violated(Check check, std::string text)
{
    if (control::rule(check).consequence == control::Consequence::needs_reset) {
        return fail(std::move(text));
    }
    ++counters_.unknown_replies;
    log_.once(LogLevel::warning, "unknown reply of the guest", text);
}

bool GuestChannel::deliver(control::Bytes message)
{
    switch (const int rc = port_.push_request(kRequestQueue, message); rc) {
        case 0: return true;
        case -EAGAIN: return false;
        //= VVFU-ERROR-4
        case -EMSGSIZE:
            violated(Check::request_buffer, "a request buffer of the driver is smaller than request_buffer_size");
            return true;
        default: fail("the request queue failed: errno " + std::to_string(-rc)); return true;
    }
}

void GuestChannel::push(Nanoseconds now, const control::Header &header)
{
    if (backlog_.empty() && deliver(scratch_)) {
        return;
    }
    backlog_.push_back(
        {header.request_id, header.type, now, (header.flags & control::kFlagPosted) != 0, false, scratch_});
    backlog_bytes_ += scratch_.size();
    fresh_bytes_ += scratch_.size();
    ++fresh_count_;
}

void GuestChannel::drop_front()
{
    const auto size = backlog_.front().message.size();
    cancelled_ -= backlog_.front().cancelled ? 1u : 0u;
    if (fresh_count_ == backlog_.size()) {
        --fresh_count_;
        fresh_bytes_ -= size;
    }
    backlog_bytes_ -= size;
    backlog_.pop_front();
}

void GuestChannel::flush(Nanoseconds now)
{
    while (!backlog_.empty() && !failure_) {
        const auto &front = backlog_.front();
        if (!front.cancelled) {
            if (!deliver(front.message)) {
                return;
            }
            last_progress_ = now;
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

/// Its memory at once, its place when half of the places are like that.
void GuestChannel::take_back(Queued &queued)
{
    const auto is_fresh = [&] { return fresh_count_ != 0 && queued.id >= backlog_[backlog_.size() - fresh_count_].id; };
    backlog_bytes_ -= queued.message.size();
    fresh_bytes_ -= is_fresh() ? queued.message.size() : 0;
    queued.message = {};
    queued.cancelled = true;
    if (++cancelled_ <= backlog_.size() / 2) {
        return;
    }
    const auto fresh = backlog_.end() - static_cast<std::ptrdiff_t>(fresh_count_);
    fresh_count_ -= static_cast<std::size_t>(
        std::count_if(fresh, backlog_.end(), [](const Queued &entry) { return entry.cancelled; }));
    std::erase_if(backlog_, [](const Queued &entry) { return entry.cancelled; });
    cancelled_ = 0;
}

bool GuestChannel::cancel(std::uint64_t id, Type type)
{
    auto *queued = find_queued(id);
    if (queued == nullptr || queued->cancelled || queued->type != type) {
        return false;
    }
    static_cast<void>(table_.cancel(id, type));
    take_back(*queued);
    return true;
}

std::optional<GuestChannel::Table::Entry> GuestChannel::take(const control::Header &reply)
{
    const auto late = late_.find(reply.request_id);
    const bool expired = late != late_.end();
    auto match = Table::Match::found;
    std::optional<Table::Entry> entry;
    if (!expired) {
        std::tie(match, entry) = table_.take(reply);
    } else if (late->second.type != reply.type) {
        match = Table::Match::type_mismatch;
    } else if (late->second.epoch != reply.epoch) {
        match = Table::Match::epoch_mismatch;
    } else {
        entry = std::move(late_.extract(late).mapped());
    }
    //= VVFU-ERROR-2
    if (match == Table::Match::type_mismatch) {
        violated(Check::reply_type,
                 "reply of type " + std::string{control::name(reply.type)} + " to a request of another type");
    }
    //= VVFU-ERROR-8
    if (match == Table::Match::epoch_mismatch) {
        violated(Check::reply_epoch,
                 "reply to " + std::string{control::name(reply.type)} + " with another epoch than its request");
    }
    //= VVFU-MSG-7
    if (match == Table::Match::unknown) {
        violated(Check::reply_id, "reply to an unknown, answered or expired request ignored (type " +
                                      std::string{control::name(reply.type)} + ")");
    }
    return entry;
}

void GuestChannel::reply(Nanoseconds now, unsigned queue, control::Bytes message)
{
    if (failure_) {
        return;
    }
    //= VVFU-ERROR-1
    const auto header = control::decode_header(message);
    if (!header) {
        return violated(Check::header, "reply queue: " + std::string{control::describe(header.error())});
    }
    if (queue != kReplyQueue || !header->is_reply() || header->is_posted()) {
        return violated(Check::direction, "reply queue: a message that is not a reply");
    }
    last_progress_ = now;
    const bool late = late_.contains(header->request_id);
    const auto entry = take(*header);
    if (failure_) {
        return;
    }
    heard();
    if (!entry) {
        return;
    }
    last_answered_ = std::max(last_answered_, header->request_id);
    const auto payload = message.subspan(control::kHeaderSize);
    GuestReply reply{false, late, header->status, {}, {}, now};
    if (reply.ok()) {
        reply.payload = payload;
    } else if (payload.size() > control::kTextMax) {
        return violated(Check::reply_text, "error reply with more than 256 bytes of text");
    } else {
        reply.text = control::decode_text(payload);
    }
    //= VVFU-ERROR-3
    if (!entry->context.on_reply(reply)) {
        violated(Check::reply_payload, "bad payload in the reply to " + std::string{control::name(header->type)});
    }
}

// ---- deadlines ----

void GuestChannel::expire(Nanoseconds now, Table::Entry entry)
{
    const auto on_reply = std::move(entry.context.on_reply);
    if (entry.context.answer == Answer::awaited_late && (late_.size() < kMaxLate || entry.type == Type::device_reset)) {
        entry.context.on_reply = on_reply;
        late_.emplace(entry.id, std::move(entry));
    }
    GuestReply reply;
    reply.expired = true;
    reply.now = now;
    on_reply(reply);
}

void GuestChannel::heard()
{
    heard_after_ = last_sent_;
    lingering_ = false;
    if (std::exchange(silent_, false)) {
        log_.write(LogLevel::info, "the device guest answered again", "the device guest answers again");
    }
}

//= VVFU-DEADLINE-3
void GuestChannel::become_silent(std::string_view cause)
{
    silent_ = true;
    ++counters_.silences;
    log_.write(LogLevel::warning, "the device guest was silent",
               "the device guest is silent (" + std::string{cause} +
                   "): until it answers, the peer's commands are answered without it");
}

/// Sends a request whose answer ends the silence, unless one that waits will be answered.
void GuestChannel::probe(Nanoseconds now)
{
    if (std::any_of(backlog_.begin(), backlog_.end(),
                    [](const Queued &queued) { return !queued.posted && !queued.cancelled; })) {
        return;
    }
    const auto id = table_.next_id();
    const auto epoch = last_epoch_;
    late_.emplace(id, Table::Entry{id,
                                   Type::irq_info,
                                   epoch,
                                   kNever,
                                   {[](const GuestReply &reply) { return reply.payload.empty(); }, Answer::awaited}});
    send(now, {Type::irq_info, 0, 0, id, epoch, control::Status::ok}, [](control::Buffer &out) {
        control::append(out, control::IrqInfo{control::kIrqIntx, 0, 0, control::IrqAction::assign});
    });
}

/// `owed`: the guest will answer it when it goes on.
void GuestChannel::not_heard(Nanoseconds now, const Table::Entry &entry, bool owed)
{
    if (entry.id <= heard_after_) {
        return;
    }
    if (may_linger(entry.type)) {
        lingering_ = true;
    } else if (!silent_) {
        become_silent(control::name(entry.type));
        if (!owed) {
            probe(now);
        }
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

/// When a guest that goes on providing no buffer for what waits is silent.
Nanoseconds GuestChannel::stuck_at() const
{
    return silent_ || backlog_.empty() ? kNever : std::max(backlog_.front().created, last_progress_) + stale_after_;
}

void GuestChannel::tick(Nanoseconds now)
{
    //= VVFU-DEADLINE-1
    while (auto entry = table_.take_expired(now)) {
        // Nobody waits for the answer to an expired read; expired writes still take effect, in order.
        auto *queued = entry->type == Type::region_read ? find_queued(entry->id) : nullptr;
        if (queued != nullptr) {
            take_back(*queued);
        }
        ++counters_.deadline_expiries;
        log_.once(LogLevel::warning, "deadline of the guest",
                  "the device guest did not answer " + std::string{control::name(entry->type)} + " in time");
        not_heard(now, *entry, queued == nullptr);
        expire(now, std::move(*entry));
    }
    age(now);
    if (stuck_at() <= now) {
        become_silent("it takes no requests");
        probe(now);
    }
}

Nanoseconds GuestChannel::next_deadline() const
{
    auto deadline = std::min(table_.next_deadline(), stuck_at());
    if (fresh_count_ > 0) {
        deadline = std::min(deadline, backlog_[backlog_.size() - fresh_count_].created + stale_after_);
    }
    return deadline;
}

//= VVFU-QUEUE-11
bool GuestChannel::has_room() const noexcept
{
    // A silent guest is not worth waiting for: what it is still sent ends at kHardBytes.
    return silent_ || (fresh_count_ < kSoftMessages && fresh_bytes_ < kSoftBytes && table_.size() < kSoftOutstanding);
}

void GuestChannel::drop_session() noexcept
{
    while (table_.take_any()) {
    }
    late_.clear();
    std::erase_if(backlog_, [](const Queued &queued) { return queued.type != Type::peer || queued.cancelled; });
    backlog_bytes_ = 0;
    for (const auto &queued : backlog_) {
        backlog_bytes_ += queued.message.size();
    }
    fresh_count_ = fresh_bytes_ = cancelled_ = 0;
    last_posted_ = 0;
}

void GuestChannel::reset()
{
    drop_session();
    backlog_.clear();
    backlog_bytes_ = 0;
    silent_ = lingering_ = false;
    failure_.reset();
}

}  // namespace vvfu::core
