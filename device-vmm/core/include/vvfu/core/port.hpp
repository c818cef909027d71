// SPDX-License-Identifier: BSD-3-Clause
//
// What the core asks of the program that hosts it. A port (QEMU, loopback, a test) implements this class
// and owns every socket, thread, mapping and clock; the core calls it synchronously, from inside one of
// its own entry points, and a port never calls the core back from such a call, but for Core::log().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace vvfu::core {

enum class LogLevel { error = 0, warning = 1, info = 2, debug = 3 };

/// Protection of a window mapping (bits as in <sys/mman.h>).
enum Protection : int { kProtRead = 1, kProtWrite = 2 };

class Port {
public:
    virtual ~Port() = default;

    // ---- the peer's socket ----

    /// Starts accepting peers. Returns 0 or a negative errno (address in use, ...).
    virtual int listen() = 0;
    /// Stops accepting and removes the socket. The served connection, if any, stays.
    virtual void unlisten() = 0;
    /// Queues one whole message for the peer, after everything queued before. The port keeps what the
    /// socket does not take at once; `fds` are borrowed for the duration of the call.
    virtual void send(std::span<const std::byte> message, std::span<const int> fds) = 0;
    /// Bytes queued by send() that the socket has not taken yet.
    [[nodiscard]] virtual std::size_t send_backlog() const = 0;
    /// Closes the connection. No peer entry point is called for it afterwards, peer_closed() included.
    virtual void close_peer() = 0;

    // ---- queues towards the device guest ----

    /// Copies one message into the next buffer of a request queue and notifies the guest. Returns 0,
    /// -EAGAIN (the guest has posted no buffer) or -EMSGSIZE (its buffer is too small; buffer consumed).
    virtual int push_request(unsigned queue, std::span<const std::byte> message) = 0;
    /// Writes the reply of a control-queue chain that control_request() handed over, and gives the chain back.
    /// `token` is dead afterwards. A chain whose reply area is too small never reaches here.
    virtual void complete_control(std::uint64_t token, std::span<const std::byte> reply) = 0;
    /// The guest broke the protocol: set DEVICE_NEEDS_RESET and stop serving its queues until it resets the device.
    virtual void device_broken(std::string_view reason) = 0;

    // ---- memory ----

    /// Makes [fd_offset, fd_offset + size) of `fd` (borrowed) appear at `window_offset` of shmid 0.
    /// All values are page-aligned and inside the window. Returns 0 or a negative errno.
    virtual int window_map(std::uint64_t window_offset, std::uint64_t size, int protection, int fd,
                           std::uint64_t fd_offset) = 0;
    /// Undoes one window_map() (same offset and size). When it returns, no access of the device guest
    /// reaches the memory any more.
    virtual void window_unmap(std::uint64_t window_offset, std::uint64_t size) = 0;

    /// Makes [fd_offset, fd_offset + size) of `fd` (borrowed) appear, shared and writable, at `offset` of shmid 1. All
    /// values are page-aligned and inside region memory. Returns 0 or a negative errno. What is not mapped by this call
    /// is private memory of the port that no peer can map and that keeps what the device guest writes.
    virtual int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) = 0;
    /// Undoes one region_memory_map() (same offset and size): zeroed private memory is there again. When it returns, no
    /// access of the device guest reaches the file any more.
    virtual void region_memory_unmap(std::uint64_t offset, std::uint64_t size) = 0;

    // ---- interrupts ----

    /// Connects doorbell `index` to eventfd `fd` (borrowed: the core keeps it open until it disconnects
    /// the doorbell), or with -1 disconnects it. Writes to a disconnected doorbell go to
    /// Core::doorbell_written().
    virtual void doorbell_set(unsigned index, int fd) = 0;
    /// Watches eventfd `fd` (borrowed likewise; -1: stop) for notification `index`. When it fires, the
    /// port raises the MSI-X vector that the guest selected for it, or, without one, calls
    /// Core::notification_fired().
    virtual void notification_set(unsigned index, int fd) = 0;
    /// Adds 1 to an eventfd (borrowed). Never blocks: a full counter is left full.
    virtual void signal_eventfd(int fd) = 0;

    // ---- other ----

    virtual void log(LogLevel level, std::string_view text) = 0;
    /// The state that Core::state() reports changed (session began or ended, device added or gone).
    virtual void state_changed() = 0;
};

}  // namespace vvfu::core
