// SPDX-License-Identifier: BSD-3-Clause
//
// One connection of one peer: vfio-user commands in, replies out (docs/spec/virtio-vfio-user.md 8 and 11).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device_registry.hpp"
#include "epochs.hpp"
#include "fd_checks.hpp"
#include "framer.hpp"
#include "guest_channel.hpp"
#include "irq_table.hpp"
#include "peer_dma.hpp"
#include "peer_memory.hpp"
#include "refusal.hpp"
#include "region_memory.hpp"
#include "support.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::core {

/// What a session uses and does not own; all of it outlives the session.
struct SessionEnvironment {
    const CoreConfig &config;
    const EventfdCheck &is_eventfd;
    Port &port;
    Counters &counters;
    Log &log;
    GuestChannel &guest;
    IrqTable &irqs;
    const Device &device;
    WindowAllocator &window;
    Epochs &epochs;  ///< a session takes the next one when it begins
};

class Session {
public:
    /// From the connection to a complete VERSION command (VVFU-SESSION-9). Longer than the guest may take to answer the
    /// end of the session before, while nothing is read.
    static constexpr Nanoseconds kHandshakeTimeout = std::chrono::seconds{10};

    Session(Nanoseconds now, const SessionEnvironment &environment, const PeerCredentials &credentials);

    /// What one recvmsg() returned. Commands are kept until pump(); replies are taken at once.
    void feed(Nanoseconds now, std::span<const std::byte> data, std::span<Fd> fds);
    /// Dispatches the commands that may be dispatched now. Not called while the guest has not let go of the session
    /// before.
    void pump(Nanoseconds now);
    [[nodiscard]] bool wants_data() const;
    void tick(Nanoseconds now);
    [[nodiscard]] Nanoseconds next_deadline() const;
    void send_drained() { dma_.resume(); }
    [[nodiscard]] bool wants_control_requests() const noexcept { return dma_.has_room(); }
    /// Notification 0 fired and the guest has no vector for it.
    void intx_unmasked(Nanoseconds now);

    /// Accesses of the guest to the peer's memory; the status of one that is refused without asking the peer.
    control::Status dma_read(Nanoseconds now, const control::DmaAccess &access, PeerDma::Done done);
    control::Status dma_write(Nanoseconds now, const control::DmaData &request, PeerDma::Done done);

    /// The session is to end; the first reason counts.
    void end(control::DownReason reason);
    [[nodiscard]] const std::optional<control::DownReason> &ended() const noexcept { return ended_; }
    /// Gives back what the peer gave us: window, interrupts. No reply is sent any more.
    void release();
    /// Answers the guest's unfinished DMA requests with STALE.
    void abort_dma() { dma_.abort(control::Status::stale); }

    /// 0 until the session began (PEER(UP) was sent).
    [[nodiscard]] std::uint32_t epoch() const noexcept { return epoch_; }
    [[nodiscard]] std::uint64_t up_request() const noexcept { return up_request_; }
    [[nodiscard]] bool connected() const noexcept { return state_ == State::connected; }
    [[nodiscard]] const PeerCredentials &credentials() const noexcept { return credentials_; }
    [[nodiscard]] const PeerMemory &memory() const noexcept { return memory_; }

private:
    enum class State { awaiting_version, negotiating, connected };
    using Header = vfio_user::Header;
    /// Not refused: the handler has sent or will send the reply.
    using Handler = Refusal (Session::*)(Nanoseconds, Message &);

    /// Commands kept while DMA commands of ours are outstanding, whose replies must not be stuck behind them, or while
    /// a command waits, so that it is known how long those behind it have waited.
    static constexpr std::size_t kMaxKeptBytes = 2 * 1024 * 1024;
    static constexpr std::size_t kMaxKeptFds = 64;
    /// Bytes that the peer does not read, and bytes of reads in progress, beyond which nothing is dispatched.
    static constexpr std::size_t kMaxSendBacklog = 4 * 1024 * 1024;
    static constexpr std::size_t kMaxReadBytes = 8 * 1024 * 1024;

    // session.cpp
    /// The peer did what cannot be answered with an error.
    void violated(std::string_view what);
    void take_reply(const Message &message);
    [[nodiscard]] bool may_dispatch() const;
    /// False: the command has to wait; nothing was done.
    bool dispatch(Nanoseconds now, Message &message);
    /// Timeout of a request on behalf of the command that is being dispatched.
    [[nodiscard]] Nanoseconds time_left(Nanoseconds now) const;
    void refuse(const Header &request, const Refusal &refusal);
    /// `reply` without its size; fd, unless it is -1, goes with it.
    void send_reply(const Header &request, vfio_user::Buffer reply, int fd = -1);
    void send_empty_reply(const Header &request);
    /// Sends a finished reply when all posted writes before it are known to be complete (VVFU-OP-5).
    void reply_in_order(Nanoseconds now, const Header &request, vfio_user::Buffer reply);
    template <typename Value>
    [[nodiscard]] static vfio_user::Buffer reply_with(const Header &request, const Value &value);
    Refusal version(Nanoseconds now, Message &message);
    void announce(Nanoseconds now, const vfio_user::Version &version);
    void negotiate(Nanoseconds now, const Header &request, std::uint16_t minor, std::uint64_t offered);
    void accept(const Header &request, std::uint16_t minor);
    Refusal dma_map(Nanoseconds now, Message &message);
    Refusal dma_unmap(Nanoseconds now, Message &message);
    [[nodiscard]] control::Status check_dma(const control::DmaAccess &access, std::uint32_t flag) const;
    Refusal device_reset(Nanoseconds now, Message &message);
    void reset_answered(const Header &request, const GuestReply &reply);

    // session_info.cpp
    Refusal get_info(Nanoseconds now, Message &message);
    Refusal get_region_info(Nanoseconds now, Message &message);
    Refusal get_region_io_fds(Nanoseconds now, Message &message);
    Refusal get_irq_info(Nanoseconds now, Message &message);
    Refusal device_feature(Nanoseconds now, Message &message);
    Refusal mig_data_read(Nanoseconds now, Message &message);
    Refusal mig_data_write(Nanoseconds now, Message &message);

    // session_irqs.cpp
    Refusal set_irqs(Nanoseconds now, Message &message);
    [[nodiscard]] Refusal check_irqs(const vfio_user::IrqRequest &request, const std::vector<Fd> &fds) const;
    void apply_irqs(const vfio_user::IrqRequest &request, std::vector<Fd> &fds, std::vector<control::IrqInfo> &changes);
    void mask_irqs(const vfio_user::IrqRequest &request, std::vector<control::IrqInfo> &changes);
    void trigger_irqs(const vfio_user::IrqRequest &request);
    void send_irq_info(Nanoseconds now, Nanoseconds timeout, const control::IrqInfo &info,
                       std::function<void(Nanoseconds)> done = {});

    // session_regions.cpp
    Refusal region_read(Nanoseconds now, Message &message);
    Refusal region_write(Nanoseconds now, Message &message);
    Refusal region_write_multi(Nanoseconds now, Message &message);
    [[nodiscard]] Refusal check_access(const vfio_user::RegionAccess &access) const;
    /// Accesses to regions get their outcome without the guest, at once.
    [[nodiscard]] bool unheard() const noexcept { return reset_overdue_ || env_.guest.silent(); }
    void drop_write(const Header &request, vfio_user::Buffer reply);
    void forward_read(Nanoseconds now, const Header &request, const vfio_user::RegionAccess &access);
    void forward_write(Nanoseconds now, const Header &request, const vfio_user::RegionData &write);
    void forward_multi(Nanoseconds now, const Header &request, const std::vector<control::MultiWrite> &writes,
                       std::uint64_t count);

    SessionEnvironment env_;
    PeerCredentials credentials_;
    Nanoseconds connected_at_;
    State state_ = State::awaiting_version;
    std::optional<control::DownReason> ended_;
    std::uint32_t epoch_ = 0;
    std::uint64_t up_request_ = 0;
    bool write_multiple_ = false;
    // An IRQ_INFO that notification 0 caused is not answered; it fired once more since then.
    bool unmask_outstanding_ = false, unmask_again_ = false;
    bool peer_takes_fds_ = true;
    bool must_wait_ = false;                 // set by a handler: call it again later
    std::optional<Nanoseconds> parked_for_;  // before the first pump()
    Nanoseconds latest_{};                   // when the command that is being dispatched has to be answered

    Framer framer_;
    std::deque<Message> kept_;
    std::size_t kept_bytes_ = 0, kept_fds_ = 0;
    std::size_t read_bytes_ = 0;  // of REGION_READ commands in progress
    std::size_t resets_ = 0;      // DEVICE_RESET commands that the guest has not answered
    bool reset_overdue_ = false;  // the peer was answered all the same
    PeerMemory memory_;
    RegionMemory region_memory_;
    PeerDma dma_;
    vfio_user::Buffer scratch_;
};

template <typename Value>
vfio_user::Buffer Session::reply_with(const Header &request, const Value &value)
{
    vfio_user::Buffer reply;
    vfio_user::begin_reply(reply, request);
    vfio_user::append(reply, value);
    return reply;
}

}  // namespace vvfu::core
