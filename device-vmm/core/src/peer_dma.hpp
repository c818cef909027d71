// SPDX-License-Identifier: BSD-3-Clause
//
// DMA_READ and DMA_WRITE commands to the peer on behalf of the guest: splitting, message IDs, replies, deadlines
// (docs/spec/virtio-vfio-user.md 10.9).
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "framer.hpp"
#include "support.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::core {

class PeerDma {
public:
    /// Called once with the outcome; `data` is what a successful read brought. Not called after destruction.
    using Done = std::function<void(control::Status status, control::Bytes data)>;

    /// Commands that wait for the peer's reply at the same time.
    static constexpr std::size_t kMaxOutstanding = 256;
    /// Bytes of operations that are not over beyond which no further one is wanted: each is held here, and those that
    /// were sent once more by the port.
    static constexpr std::uint64_t kMaxHeldBytes = 4 * 1024 * 1024;
    /// While the peer has not read this much of what was sent, no further command is.
    static constexpr std::size_t kMaxBacklog = 4 * 1024 * 1024;
    /// Data of one read command, and cost of all that the peer still has to answer. QEMU (10.1 to 11.1) takes a partial
    /// write for a whole one: replies that do not fit into its socket buffer (212992 bytes unless configured, each
    /// message with overhead) are cut short, and the stream is out of step.
    static constexpr std::uint64_t kMaxReadPiece = 64 * 1024;
    static constexpr std::uint64_t kMaxReplyCost = 144 * 1024;

    PeerDma(Port &port, Counters &counters, Log &log, Nanoseconds timeout)
        : port_(port), counters_(counters), log_(log), timeout_(timeout)
    {
    }
    /// Largest data of one command: the smaller of the peer's limit and ours.
    void set_max_transfer(std::uint64_t bytes) { max_transfer_ = std::min(bytes, max_transfer_); }

    /// `address` and `count` (not 0) were checked against the peer's memory.
    void read(Nanoseconds now, std::uint64_t address, std::uint64_t count, Done done);
    void write(Nanoseconds now, std::uint64_t address, std::vector<std::byte> data, Done done);

    /// Ends the operations that `lost` (address, count in bytes, whether they are written) selects with `status`, at
    /// once: the peer may be unable to answer before we do. Their commands keep their message IDs and their share of
    /// the limits until the peer's replies come, which have no effect, or the deadline passes.
    using Lost = std::function<bool(std::uint64_t, std::uint64_t, bool)>;
    void cancel(control::Status status, const Lost &lost);

    /// Takes a reply-type message of the peer. False: it answers nothing that was ever asked.
    bool reply(const Message &message);
    /// The peer read what was sent to it: more commands may follow.
    void resume() { issue(); }
    /// The session is over: answers everything that is not answered yet with `status`.
    void abort(control::Status status);
    void tick(Nanoseconds now);
    [[nodiscard]] Nanoseconds next_deadline() const;
    [[nodiscard]] bool has_room() const noexcept { return held_bytes_ < kMaxHeldBytes; }
    /// Commands that wait for a reply: the port must go on reading the socket.
    [[nodiscard]] bool outstanding() const noexcept { return !pieces_.empty() || !waiting_.empty(); }
    /// The peer left so many commands unanswered that message IDs run out.
    [[nodiscard]] bool exhausted() const noexcept { return expired_.size() > kMaxExpired; }

private:
    static constexpr std::size_t kMaxExpired = 32768;

    struct Operation {
        vfio_user::Command command{};
        std::uint64_t address = 0, count = 0;
        std::vector<std::byte> data;  // read: filled as replies arrive; write: what is left to send and was sent
        std::uint64_t issued = 0;     // bytes covered by commands
        std::uint64_t completed = 0;  // bytes covered by replies
        std::size_t in_flight = 0;    // commands without a reply
        Nanoseconds deadline{};
        bool finished = false;
        Done done;
    };
    using OperationPtr = std::shared_ptr<Operation>;
    struct Piece {
        OperationPtr operation;
        vfio_user::DmaAccess access;
    };

    /// Socket buffer that the reply of a read takes at the peer, at most; 0 for a write.
    static std::uint64_t reply_cost(vfio_user::Command command, std::uint64_t count) noexcept;
    [[nodiscard]] std::uint64_t next_count(const Operation &operation) const;
    [[nodiscard]] bool may_issue(const Operation &operation) const;

    void start(Nanoseconds now, Operation operation);
    void issue();
    void issue_piece(const OperationPtr &operation);
    void finish(const OperationPtr &operation, control::Status status);
    void forget_finished();
    control::Status take(Piece &piece, const Message &message);
    std::uint16_t next_message_id();

    Port &port_;
    Counters &counters_;
    Log &log_;
    Nanoseconds timeout_;
    std::uint64_t max_transfer_ = vfio_user::kMaxDataXferSize;
    std::uint64_t reply_cost_ = 0;  // of all pieces
    std::uint64_t held_bytes_ = 0;  // of operations that are not finished
    std::uint16_t last_message_id_ = 0;
    std::map<std::uint16_t, Piece> pieces_;  // by message ID
    std::deque<OperationPtr> waiting_;       // not everything issued yet, in order
    std::deque<OperationPtr> by_deadline_;   // all of them, oldest first; a finished one leaves when it is the first
    // Message IDs whose deadline passed: a reply may still come, so the ID cannot be used again.
    std::map<std::uint16_t, std::uint16_t> expired_;  // ID -> command
    vfio_user::Buffer scratch_;
};

}  // namespace vvfu::core
