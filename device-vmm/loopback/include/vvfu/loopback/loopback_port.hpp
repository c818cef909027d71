// SPDX-License-Identifier: BSD-3-Clause
//
// The embedded port: device VMM and device guest in one process. The core runs on a thread of its own, the guest driver
// on the caller's; between them are real split virtqueues in a memfd and real eventfds.
#pragma once

#include <memory>
#include <string>

#include "vvfu/base/fd.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::loopback {

struct LoopbackOptions {
    std::string socket_path;  ///< bound when a device is registered, unlinked when it is withdrawn; or
    Fd listen_fd;             ///< a listening AF_UNIX stream socket that somebody else made
    /// Sizes are bytes, multiples of 4096.
    core::CoreConfig core;
};

class LoopbackPort {
public:
    /// Starts the device VMM's thread. Errors are one line for a person: bad path, socket in use, bad size, out of
    /// memory.
    static guest::Result<std::unique_ptr<LoopbackPort>> create(LoopbackOptions options);
    /// Ends the session and the thread. The transport's user is gone by then.
    ~LoopbackPort();
    LoopbackPort(const LoopbackPort &) = delete;
    LoopbackPort &operator=(const LoopbackPort &) = delete;

    /// The function as its driver sees it.
    [[nodiscard]] guest::Transport &transport();
    /// Any thread but the device VMM's.
    [[nodiscard]] core::CoreState state();

private:
    class Impl;
    explicit LoopbackPort(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace vvfu::loopback
