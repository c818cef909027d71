// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <system_error>

#include "vvfu/base/fd.hpp"

namespace vvfu::test {

/// An interrupt's eventfd, non-blocking.
class EventFd {
public:
    EventFd() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
    {
        if (!fd_) {
            throw std::system_error(errno, std::generic_category(), "eventfd");
        }
    }
    [[nodiscard]] int fd() const { return fd_.get(); }
    void signal() const
    {
        const std::uint64_t one = 1;
        if (::write(fd_.get(), &one, sizeof one) != sizeof one) {
            throw std::system_error(errno, std::generic_category(), "eventfd write");
        }
    }
    /// The count since the last call, 0 if it was not signalled.
    [[nodiscard]] std::uint64_t take() const
    {
        std::uint64_t count = 0;
        return ::read(fd_.get(), &count, sizeof count) == sizeof count ? count : 0;
    }
    /// Waits until it is signalled; returns the count, 0 after `timeout`.
    [[nodiscard]] std::uint64_t wait(std::chrono::milliseconds timeout = std::chrono::seconds{10}) const
    {
        pollfd poll_fd{fd_.get(), POLLIN, 0};
        return ::poll(&poll_fd, 1, static_cast<int>(timeout.count())) == 1 ? take() : 0;
    }

private:
    Fd fd_;
};

}  // namespace vvfu::test
