// SPDX-License-Identifier: BSD-3-Clause
//
// The yardstick: a child process with the two threads of vvfu-loopback and nothing else. One thread has the socket, the
// other one is woken by an eventfd and answers by another, so a request crosses a socket and an eventfd each way.
#pragma once

#include <sys/types.h>

#include "vvfu/base/fd.hpp"

namespace vvfu::bench {

class RawServer {
public:
    static constexpr std::size_t kRequestBytes = 32;  ///< a REGION_READ request
    static constexpr std::size_t kReplyBytes = 36;    ///< and the reply to one of 4 bytes
    static constexpr std::size_t kPostedBytes = 36;   ///< a REGION_WRITE of 4 bytes
    enum class Mode {
        ping_pong,  ///< answers every request of kRequestBytes
        sink,       ///< reads messages of kPostedBytes, passes each chunk on, and answers `flush` messages only
    };

    explicit RawServer(Mode mode);
    RawServer(const RawServer &) = delete;
    RawServer &operator=(const RawServer &) = delete;
    ~RawServer();

    /// One request and its reply.
    void round_trip();
    /// Sends `count` messages of kPostedBytes, `batch` per system call, and waits until all of them were passed on.
    void post(unsigned count, unsigned batch);

private:
    Fd socket_;
    pid_t child_ = -1;
};

}  // namespace vvfu::bench
