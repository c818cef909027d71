// SPDX-License-Identifier: BSD-3-Clause
//
// What Session hides: session.cpp has the function's life (start, recovery, stop), session_requests.cpp what happens in
// between.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "control_client.hpp"
#include "reply_sender.hpp"
#include "transport_queue.hpp"
#include "vvfu/base/rate_limit.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::guest {

/// Why a request gets no OK.
struct Refusal {
    control::Status status;
    const char *text;
};
using Handled = Expected<void, Refusal>;

class Session::Impl : public std::enable_shared_from_this<Session::Impl> {
public:
    using Bytes = control::Bytes;
    using Header = control::Header;
    using Status = control::Status;

    Impl(Session &session, Transport &transport, Reactor &reactor, Workers &workers, SessionOptions options)
        : transport_(transport), reactor_(reactor), workers_(workers), options_(options), dma_(&session)
    {
    }
    ~Impl() { unwatch(); }

    void start(DeviceModel &model, std::function<void(Result<void>)> registered, std::function<void(Error)> failed);
    void stop(std::function<void()> stopped);
    void trigger(std::uint32_t index, std::uint32_t vector);
    std::vector<std::uint32_t> withdraw(std::uint32_t index);
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
    void schedule_receive();
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
    [[nodiscard]] bool refused_by_reset(Bytes message) const;
    Handled check_access(const control::RegionAccess &access, std::uint32_t flag) const;
    void intx_unmasked();

    // ---- replies ----
    void begin_reply(const Header &header, Status status = Status::ok);
    void send_reply();
    void reply(const Header &header, Status status = Status::ok, std::string_view text = {});
    void reply_later(const Header &header);
    /// Sends the reply to a region access, now or when what could still reach the peer from before the gate was last
    /// closed is over.
    void send_access_reply();
    [[nodiscard]] bool in_flight_before(std::uint64_t closings) const;
    /// A DMA_WRITE or IRQ_TRIGGER is sent; returns what is to be called when it is over.
    std::function<void()> message_begun();
    void release_replies();

    /// Runs a reset of the model; requests wait until it is done, then `then` runs.
    void run_reset(const std::function<void(std::function<void()>)> &reset, std::function<void()> then);
    void reset_done();

    // ---- interrupts of vectors without a doorbell ----
    void send_triggers();
    bool take_trigger();
    void forget_triggers();

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
    bool reset_waits_for_triggers_ = false;  // the model is done
    std::function<void()> reset_then_;
    bool receive_scheduled_ = false;
    bool notifications_off_ = false;  // of the request queue
    Nanoseconds poll_until_{};
    std::deque<control::Buffer> backlog_;
    control::Buffer message_, reply_;
    unsigned logged_errors_ = 0;
    RateLimit sessions_logged_;
    bool session_logged_ = false;  ///< the beginning of this one was

    using Vector = std::pair<std::uint32_t, std::uint32_t>;  // interrupt index, and vector in it
    std::set<Vector> triggers_;                              // not sent yet
    Vector last_trigger_{};                                  // sent
    std::size_t triggers_in_flight_ = 0;
    /// What can still reach the peer: DMA_WRITEs and IRQ_TRIGGERs, by DmaSpace::closings() when they were sent.
    std::map<std::uint64_t, std::size_t> in_flight_;
    struct HeldReply {
        std::uint64_t closings;  // waits for what was sent before
        control::Buffer message;
    };
    std::deque<HeldReply> held_replies_;
};

}  // namespace vvfu::guest
