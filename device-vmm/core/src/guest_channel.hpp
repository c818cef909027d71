// SPDX-License-Identifier: BSD-3-Clause
//
// Requests of the device VMM to the device guest: encoding, delivery as the guest posts buffers, replies, deadlines,
// and the limits that back-pressure rests on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <string>

#include "support.hpp"
#include "vvfu/controlq/request_table.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::core {

struct GuestReply {
    bool expired = false;  ///< the deadline passed; status and payload mean nothing
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

    GuestChannel(Port &port, Counters &counters, Log &log, Nanoseconds stale_after)
        : port_(port), counters_(counters), log_(log), stale_after_(stale_after)
    {
    }

    /// Sends a request whose payload `append(buffer)` writes. `on_reply` is called once, with the reply or at
    /// now + timeout, unless drop_session() or reset() comes first. Returns the request ID.
    template <typename Append>
    std::uint64_t request(Nanoseconds now, control::Type type, std::uint32_t epoch, Nanoseconds timeout,
                          OnReply on_reply, const Append &append)
    {
        const auto id = table_.add(type, epoch, now + timeout, std::move(on_reply));
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

    /// Takes back a request that was not delivered yet. False: it was, or there is none.
    bool cancel(std::uint64_t id);
    /// Ends the wait for the answer to a request of that type, unless it is over: as if the deadline had passed.
    void give_up(Nanoseconds now, std::uint64_t id, control::Type type);

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
    void fail(std::string reason);

private:
    struct Queued {
        std::uint64_t id = 0;
        control::Type type{};
        Nanoseconds created{};
        bool cancelled = false;
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
        push(now, header);
    }
    void push(Nanoseconds now, const control::Header &header);
    /// True: delivered or failed for good; false: the guest has no buffer.
    bool deliver(control::Bytes message);
    Queued *find_queued(std::uint64_t id);
    static void expire(Nanoseconds now, const OnReply &on_reply);
    void drop_front();
    void age(Nanoseconds now);

    Port &port_;
    Counters &counters_;
    Log &log_;
    Nanoseconds stale_after_;
    controlq::RequestTable<OnReply> table_;
    std::deque<Queued> backlog_;  // by ID
    std::size_t backlog_bytes_ = 0;
    // Entries younger than stale_after_: [backlog_.size() - fresh_count_, end).
    std::size_t fresh_count_ = 0, fresh_bytes_ = 0;
    std::uint64_t last_posted_ = 0, last_answered_ = 0;
    control::Buffer scratch_;
    std::optional<std::string> failure_;
};

}  // namespace vvfu::core
