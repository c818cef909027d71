// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "vvfu/base/fd.hpp"

namespace vvfu::loopback {

/// One connection of a peer: bytes and fds in, whole messages out, never blocking.
class PeerSocket {
public:
    /// `fd` is connected and non-blocking.
    explicit PeerSocket(Fd fd);

    struct Received {
        std::span<const std::byte> data;  ///< valid until the next receive()
        std::vector<Fd> fds;
        bool would_block = false;
        bool closed = false;  ///< end of file, or `error`
        int error = 0;        ///< errno; EMSGSIZE: fds were lost, the stream is of no use any more
    };
    Received receive();

    /// Queues one message; `fds` are borrowed. Messages without fds are collected until flush() or until enough are
    /// there.
    void send(std::span<const std::byte> message, std::span<const int> fds);
    /// Gives the socket what it takes.
    void flush();
    /// Bytes that the socket refused to take so far.
    [[nodiscard]] std::size_t backlog() const noexcept { return backlog_bytes_; }
    /// Once after each time that backlog() was not 0: whether it is 0 again.
    [[nodiscard]] bool take_drained() noexcept;
    /// errno of a failed send, 0 if all is well.
    [[nodiscard]] int send_error() const noexcept { return send_error_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

private:
    struct Outgoing {
        std::vector<std::byte> bytes;
        std::size_t sent = 0;
        std::vector<Fd> fds;  // with the first byte
    };
    void flush_batch();
    void queue(std::span<const std::byte> bytes, std::span<const int> fds);
    /// Bytes taken; 0 if none now.
    std::size_t transmit(std::span<const std::byte> bytes, std::span<const int> fds);

    Fd fd_;
    std::unique_ptr<std::byte[]> buffer_;
    std::vector<std::byte> batch_;
    std::deque<Outgoing> backlog_;
    std::size_t backlog_bytes_ = 0;
    bool refused_ = false;
    int send_error_ = 0;
};

}  // namespace vvfu::loopback
