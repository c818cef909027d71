// SPDX-License-Identifier: BSD-3-Clause
//
// The bridge between a vfio-user peer and the device guest. Sans-I/O: it is fed bytes, fds, buffers and time, and
// acts through Port. One thread at a time, except doorbell_written() and doorbell_pending().
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vvfu/base/expected.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/base/time.hpp"
#include "vvfu/core/port.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu::core {

/// Longest time from the arrival of a peer's command to its reply, as far as the guest has a part in it: QEMU's client
/// gives up after 5 s.
inline constexpr Nanoseconds kPeerPatience = std::chrono::seconds{4};

struct CoreConfig {
    Uuid uuid{};
    std::uint64_t window_size = 0;         ///< bytes, multiple of 4096, not 0
    std::uint64_t region_memory_size = 0;  ///< bytes, multiple of 4096, may be 0
    std::uint32_t doorbells = 64;          ///< 1..kMaxDoorbells
    std::uint32_t notifications = 8;       ///< 1..kMaxNotifications
    bool trust_peer_memory = false;        ///< map fds that could shrink
    /// Deadlines for the guest's answers; 1 ms to kPeerPatience.
    Nanoseconds unmap_timeout = std::chrono::seconds{1};
    Nanoseconds access_timeout = std::chrono::seconds{2};
};

struct PeerCredentials {
    std::uint32_t pid = 0, uid = 0, gid = 0;
};

struct CoreState {
    const char *state = "";  ///< "no driver", "no device", "listening", "negotiating", "connected", "broken"
    std::uint32_t epoch = 0;
    PeerCredentials peer;
    std::uint64_t mapped_bytes = 0;
    std::uint32_t mapped_ranges = 0;
    std::uint32_t message_ranges = 0;
    std::uint64_t requests = 0;
    std::uint64_t protocol_errors = 0;
    std::uint64_t deadline_expiries = 0;
    std::uint64_t unknown_replies = 0;
    std::uint64_t silences = 0;          ///< times that the guest answered nothing any more
    std::uint64_t dropped_accesses = 0;  ///< to regions, answered without the guest because of that or of a reset
};

class Core {
public:
    /// Fails with one line when a value of `config` is out of range or /proc is not there. `port` outlives the core.
    static Expected<std::unique_ptr<Core>, std::string> create(const CoreConfig &config, Port &port);
    ~Core();  ///< ends the session through the port
    Core(const Core &) = delete;
    Core &operator=(const Core &) = delete;

    // ---- virtio side ----

    [[nodiscard]] DeviceConfig device_config() const;
    [[nodiscard]] std::uint64_t device_features() const;  ///< device-specific bits 0..23

    void driver_ok(Nanoseconds now);
    /// Device reset by the guest (or before a new driver): the device is withdrawn, the session ends. Tokens of
    /// control chains that are still open are dead: complete_control() is not called for them.
    void driver_reset(Nanoseconds now);
    /// A control-queue chain: `message` is a private copy of its readable part (at most kMaxMessageSize),
    /// `reply_capacity` the bytes of its writable part. Completed once through Port::complete_control(), in this call
    /// or later.
    void control_request(Nanoseconds now, std::uint64_t token, std::span<const std::byte> message,
                         std::size_t reply_capacity);
    /// False while DMA requests that wait for the peer hold much memory: the port then leaves further chains in the
    /// control queue, and in no other. Look again after every call; their deadlines end it.
    [[nodiscard]] bool wants_control_requests() const;
    /// A message from a reply queue (a private copy).
    void reply(Nanoseconds now, unsigned queue, std::span<const std::byte> message);
    /// The guest made buffers of a request queue available.
    void request_buffers(Nanoseconds now, unsigned queue);

    // ---- peer side ----

    /// A peer connected. 0: it is served from now on; negative errno: the port closes that connection.
    int peer_connected(Nanoseconds now, const PeerCredentials &credentials);
    /// What one recvmsg() returned: bytes and the fds that came with them. Message boundaries are found here.
    void peer_data(Nanoseconds now, std::span<const std::byte> data, std::span<Fd> fds);
    /// End of file (0) or a socket error (errno).
    void peer_closed(Nanoseconds now, int error);
    /// False while the guest is too slow, the peer does not read, or the guest has not answered the end of the session
    /// before this one: the port then stops reading the socket. Look again after every call.
    [[nodiscard]] bool wants_peer_data() const;
    /// Port::send_backlog() went back to 0.
    void send_drained(Nanoseconds now);

    // ---- interrupts ----

    /// A write to a doorbell that is not connected (any thread): latched until it is.
    void doorbell_written(unsigned index) noexcept;
    [[nodiscard]] bool doorbell_pending(unsigned index) const noexcept;
    /// A watched notification eventfd fired and the guest selected no vector for it.
    void notification_fired(Nanoseconds now, unsigned index);

    // ---- log ----

    /// A line of the port itself about what a peer or guest can repeat: limited like the core's own, and written by
    /// Port::log(). Lines of one `kind` (of a bounded set, in words that fit behind "5 more times: ") share a limit.
    /// The only call that a port may make from inside a Port call.
    void log(Nanoseconds now, LogLevel level, std::string_view kind, std::string_view text) noexcept;

    // ---- time ----

    [[nodiscard]] Nanoseconds next_deadline() const;
    void tick(Nanoseconds now);

    [[nodiscard]] CoreState state() const;

private:
    class Impl;
    explicit Core(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace vvfu::core
