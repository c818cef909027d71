// SPDX-License-Identifier: BSD-3-Clause
//
// Lifecycle of device, session and guest driver. Entry points are in core.cpp, the control queue is in
// core_control.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "device_registry.hpp"
#include "epochs.hpp"
#include "fd_checks.hpp"
#include "guest_channel.hpp"
#include "irq_table.hpp"
#include "session.hpp"
#include "support.hpp"

namespace vvfu::core {

class Core::Impl {
public:
    Impl(const CoreConfig &config, Port &port, EventfdCheck is_eventfd)
        : config_(config),
          is_eventfd_(std::move(is_eventfd)),
          port_(port),
          log_(port),
          irqs_(port, config.doorbells),
          guest_(port, counters_, log_, config.access_timeout),
          window_(config.window_size)
    {
    }
    ~Impl();

    /// Runs an entry point. Nothing thrown leaves it, and what it found out about guest and peer takes effect.
    template <typename Body>
    void enter(Nanoseconds now, const Body &body) noexcept
    {
        try {
            log_.tick(now);
            if (broken_) {
                return;  // until driver_reset()
            }
            body();
            settle(now);
        } catch (...) {
            fail_safe(exception_text());
        }
    }

    void driver_ok();
    void driver_reset();
    void control_request(Nanoseconds now, std::uint64_t token, control::Bytes message, std::size_t capacity);
    int peer_connected(Nanoseconds now, const PeerCredentials &credentials);
    void peer_closed(Nanoseconds now, int error);
    /// The guest has not answered the end of the session before: a peer may be there, but is not read yet.
    [[nodiscard]] bool parked() const noexcept { return down_pending_; }
    [[nodiscard]] CoreState state() const;

    CoreConfig config_;
    EventfdCheck is_eventfd_;
    Port &port_;
    Counters counters_;
    Log log_;
    IrqTable irqs_;
    GuestChannel guest_;
    std::optional<Device> device_;
    WindowAllocator window_;
    std::unique_ptr<Session> session_;
    bool broken_ = false;

private:
    void settle(Nanoseconds now);
    void end_session(Nanoseconds now, control::DownReason reason);
    void send_down(Nanoseconds now, std::uint32_t epoch, control::DownReason reason);
    void drop_session();
    void withdraw();
    void break_device(std::string_view reason);
    void fail_safe(const char *cause) noexcept;

    void answer(std::uint64_t token, const control::Header &request, control::Status status,
                std::string_view text = {});
    void complete(std::uint64_t token, const control::Header &request, std::span<const std::byte> reply);
    /// A request is not as it must be: what follows is in the table of checks.
    void refuse(std::uint64_t token, const control::Header &request, control::Check check, std::string_view text);
    void device_info(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload);
    void device_add(std::uint64_t token, const control::Header &header, const control::DeviceInfo &info);
    void device_del(Nanoseconds now, std::uint64_t token, const control::Header &header);
    [[nodiscard]] control::Status check_session(const control::Header &header) const;
    void dma_read(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload,
                  std::size_t capacity);
    void dma_write(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload);
    void irq_trigger(std::uint64_t token, const control::Header &header, control::Bytes payload);
    void peer_close(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload);

    Epochs epochs_;
    std::unordered_set<std::uint64_t> open_requests_;  ///< IDs of control requests that are not answered
    bool driver_ok_ = false;
    bool down_pending_ = false;  ///< PEER(DOWN) is not answered
};

}  // namespace vvfu::core
