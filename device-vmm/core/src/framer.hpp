// SPDX-License-Identifier: BSD-3-Clause
//
// Finds vfio-user messages, and the file descriptors that belong to each, in what recvmsg() returns.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "vvfu/base/fd.hpp"
#include "vvfu/base/time.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::core {

struct Message {
    vfio_user::Header header;
    std::vector<std::byte> payload;
    std::vector<Fd> fds;     ///< at most kMaxMsgFds
    Nanoseconds received{};  ///< set by the owner of the framer
    bool too_many_fds = false;
    /// The size in the header is impossible: there is no payload, and where the next message starts is unknown.
    bool out_of_step = false;
};

class Framer {
public:
    /// Takes one recvmsg() worth of bytes and fds, appends the messages that are now complete to `out`. After an
    /// out_of_step message everything further is discarded (fds are closed).
    ///
    /// Linux ends a recvmsg() on a stream socket with the skb whose fds it returns, so the fds belong to the last
    /// message that starts in `data`, or, if none does, to the one in progress.
    void feed(std::span<const std::byte> data, std::span<Fd> fds, std::deque<Message> &out);

    [[nodiscard]] bool in_step() const noexcept { return in_step_; }
    /// A message has begun and is not complete.
    [[nodiscard]] bool mid_message() const noexcept { return header_bytes_ != 0; }

private:
    std::span<const std::byte> take_header(std::span<const std::byte> data);
    std::span<const std::byte> take_payload(std::span<const std::byte> data);
    void complete(std::deque<Message> &out);
    static void attach(Message &message, std::span<Fd> fds);

    std::byte header_[vfio_user::kHeaderSize] = {};
    std::size_t header_bytes_ = 0;
    Message current_;
    bool in_step_ = true;
};

}  // namespace vvfu::core
