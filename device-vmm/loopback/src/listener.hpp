// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "path_lock.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/guest/error.hpp"

namespace vvfu::loopback {

/// The socket that peers connect to.
class Listener {
public:
    /// Checks the path, and keeps other servers from it (PathLock); no socket is created yet. One line says what is
    /// wrong: too long, in use by another server, not a socket.
    static guest::Result<Listener> at_path(std::string path);
    /// Takes a listening AF_UNIX stream socket that somebody else bound. Nothing is unlinked at the end.
    static guest::Result<Listener> from_fd(Fd fd);
    Listener(Listener &&) noexcept = default;
    Listener &operator=(Listener &&) = delete;
    ~Listener() { close(); }

    /// Binds and listens, replacing a socket that no server answers on; those that know no PathLock are asked. 0 or a
    /// negative errno.
    int open();
    /// Stops listening; unlinks the socket if open() made it and it is still there. An fd that was passed stays open.
    void close();
    /// Non-blocking, close-on-exec; -1 while closed.
    [[nodiscard]] int fd() const noexcept { return listening_ ? fd_.get() : -1; }

private:
    Listener() = default;

    std::string path_;
    std::optional<PathLock> lock_;  // none if the socket was passed
    Fd fd_;
    bool passed_ = false, listening_ = false;
    dev_t device_ = 0;  // of the socket that we made
    ino_t inode_ = 0;
};

}  // namespace vvfu::loopback
