// SPDX-License-Identifier: BSD-3-Clause
#include "eventfd.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

namespace vvfu::loopback {

void signal_eventfd(int fd) noexcept
{
    // O_NONBLOCK belongs to the peer, which may read the eventfd blocking: it is not ours to set.
    pollfd poll{fd, POLLOUT, 0};
    if (::poll(&poll, 1, 0) == 1 && (poll.revents & POLLOUT) != 0) {
        signal_nonblocking_eventfd(fd);
    }
}

void signal_nonblocking_eventfd(int fd) noexcept
{
    static_cast<void>(::eventfd_write(fd, 1));
}

bool is_nonblocking(int fd) noexcept
{
    const int flags = ::fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_NONBLOCK) != 0;
}

}  // namespace vvfu::loopback
