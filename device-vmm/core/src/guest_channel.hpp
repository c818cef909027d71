// SPDX-License-Identifier: BSD-3-Clause
//
// Requests of the device VMM to the device guest: encoding, delivery as the guest posts buffers, replies, deadlines,
// a guest that answers nothing, and the limits that back-pressure rests on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "support.hpp"
#include "vvfu/controlq/request_table.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/validation.hpp"

namespace vvfu::core {

struct GuestReply {
    bool expired = false;  ///< the deadline passed; status and payload mean nothing
    bool late = false;     ///< came after that; only with Answer::awaited_late
    control::Status status = control::Status::ok;
    control::Bytes payload;  ///< with status ok; a view that ends with the call
    std::string text;        ///< with another status: the guest's explanation
    Nanoseconds now{};

    [[nodiscard]] bool ok() const noexcept { return !expired && status == control::Status::ok; }
};

/// Returns false when the payload of a successful reply is not what the specification requires (VVFU-ERROR-3).
using OnReply = std::function<bool(const GuestReply &)>;

class GuestChannel {
public:
    /// Undelivered requests beyond which no further command of the peer is dispatched.
    static constexpr std::size_t kSoftMessages = 1024;
    static constexpr std::size_t kSoftBytes = 1024 * 1024;
    /// Delivered or not, unanswered requests beyond which no further command of the peer is dispatched.
    static constexpr std::size_t kSoftOutstanding = 4096;
    /// Undelivered bytes beyond which the session is given up: the guest takes nothing any more.
    static constexpr std::size_t kHardBytes = 16 * 1024 * 1024;
    /// Expired requests other than DEVICE_RESET whose late answer is waited for.
    static constexpr std::size_t kMaxLate = 8192;

    GuestChannel(Port &port, Counters &counters, Log &log, Nanoseconds stale_after)
        : port_(port), counters_(counters), log_(log), stale_after_(stale_after)
    {
    }

    enum class Answer {
        awaited,       ///< the peer waits: not for a silent guest
        awaited_late,  ///< likewise, and an answer after the deadline is reported, too (within kMaxLate)
        unhurried,     ///< nobody waits: always the whole timeout
    };

    /// Sends a request whose payload `append(buffer)` writes. `on_reply` is called once, with the reply or at
    /// now + timeout (tick()), unless drop_session() or reset() comes first; with Answer::awaited_late once more if the
    /// reply comes after that. Returns the request ID.
    template <typename Append>
    std::uint64_t request(Nanoseconds now, control::Type type, std::uint32_t epoch, Nanoseconds timeout,
                          OnReply on_reply, const Append &append, Answer answer = Answer::awaited)
    {
        //= VVFU-DEADLINE-4
        if (answer != Answer::unhurried && (silent_ || (lingering_ && may_linger(type)))) {
            timeout = Nanoseconds{0};
        }
        const auto id = table_.add(type, epoch, now + timeout, {std::move(on_reply), answer});
        send(now, {type, 0, 0, id, epoch, control::Status::ok}, append);
        return id;
    }

    /// Sends a request that gets no reply (VVFU-ACCESS-4).
    template <typename Append>
    void post(Nanoseconds now, control::Type type, std::uint32_t epoch, const Append &append)
    {
        //= VVFU-ACCESS-4
        //= VVFU-MSG-4
        last_posted_ = table_.next_id();
        send(now, {type, control::kFlagPosted, 0, last_posted_, epoch, control::Status::ok}, append);
    }

    /// True until the guest is known to have processed every posted request: it answered a later one.
    [[nodiscard]] bool posted_incomplete() const noexcept { return last_posted_ > last_answered_; }

    /// Takes back a request of that type that was not delivered yet; its `on_reply` is not called any more. False: it
    /// was delivered, or there is none.
    bool cancel(std::uint64_t id, control::Type type);

    /// The guest answers nothing: a request expired, or found no buffer in that time, and no reply came since it was
    /// sent. Further requests expire at once, and accesses to regions are not worth a request.
    [[nodiscard]] bool silent() const noexcept { return silent_; }

    /// A message from a reply queue.
    void reply(Nanoseconds now, unsigned queue, control::Bytes message);
    /// The guest posted buffers.
    void flush(Nanoseconds now);
    void tick(Nanoseconds now);
    [[nodiscard]] Nanoseconds next_deadline() const;

    /// Whether a command of the peer may become requests now.
    [[nodiscard]] bool has_room() const noexcept;
    [[nodiscard]] bool overrun() const noexcept { return backlog_bytes_ > kHardBytes; }

    /// The session ended: forgets its requests. What is left are undelivered PEER messages.
    void drop_session() noexcept;
    /// The driver was reset: forgets everything, the failure included.
    void reset();

    /// The guest broke the protocol: why. Nothing is sent or accepted from then on.
    [[nodiscard]] const std::optional<std::string> &failure() const noexcept { return failure_; }
    /// A message of the guest is not as it must be. What follows is in the table of checks: a failure, or the message
    /// is counted and ignored.
    void violated(control::Check check, std::string text);

private:
    struct Context {
        OnReply on_reply;
        Answer answer = Answer::awaited;
    };
    using Table = controlq::RequestTable<Context>;
    struct Queued {
        std::uint64_t id = 0;
        control::Type type{};
        Nanoseconds created{};
        bool posted = false, cancelled = false;
        control::Buffer message;
    };

    template <typename Append>
    void send(Nanoseconds now, const control::Header &header, const Append &append)
    {
        if (failure_) {
            return;
        }
        control::begin(scratch_, header);
        append(scratch_);
        control::finish(scratch_);
        last_sent_ = header.request_id;
        last_epoch_ = header.epoch;
        push(now, header);
    }
    /// Requests whose answer waits until accesses to memory are over: that none comes says nothing about others.
    [[nodiscard]] static bool may_linger(control::Type type) noexcept
    {
        return type == control::Type::memory_info || type == control::Type::peer;
    }
    void push(Nanoseconds now, const control::Header &header);
    /// True: delivered or failed for good; false: the guest has no buffer.
    bool deliver(control::Bytes message);
    Queued *find_queued(std::uint64_t id);
    void take_back(Queued &queued);
    void drop_front();
    void age(Nanoseconds now);
    std::optional<typename Table::Entry> take(const control::Header &reply);
    void expire(Nanoseconds now, typename Table::Entry entry);
    void heard();
    void not_heard(Nanoseconds now, const typename Table::Entry &entry, bool owed);
    void become_silent(std::string_view cause);
    void probe(Nanoseconds now);
    [[nodiscard]] Nanoseconds stuck_at() const;
    void fail(std::string reason);

    Port &port_;
    Counters &counters_;
    Log &log_;
    Nanoseconds stale_after_;
    Table table_;
    std::map<std::uint64_t, typename Table::Entry> late_;  // expired with Answer::awaited_late, by ID
    std::deque<Queued> backlog_;                           // by ID
    std::size_t backlog_bytes_ = 0, cancelled_ = 0;        // cancelled_: entries
    // Entries younger than stale_after_: [backlog_.size() - fresh_count_, end).
    std::size_t fresh_count_ = 0, fresh_bytes_ = 0;
    std::uint64_t last_posted_ = 0, last_answered_ = 0, last_sent_ = 0;
    std::uint64_t heard_after_ = 0;  // last_sent_ when a reply came last
    Nanoseconds last_progress_{};    // when a reply came last, or a buffer for what waited
    bool silent_ = false, lingering_ = false;
    std::uint32_t last_epoch_ = 0;
    control::Buffer scratch_;
    std::optional<std::string> failure_;
};

}  // namespace vvfu::core
