// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace vvfu::loopback {

/// Adds 1 to an eventfd that somebody else made. A full counter is left full, whether or not the fd is non-blocking.
void signal_eventfd(int fd) noexcept;

/// The same, when the caller knows that O_NONBLOCK is set on the fd.
void signal_nonblocking_eventfd(int fd) noexcept;

[[nodiscard]] bool is_nonblocking(int fd) noexcept;

}  // namespace vvfu::loopback
