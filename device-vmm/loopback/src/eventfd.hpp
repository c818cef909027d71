// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace vvfu::loopback {

/// Adds 1 to an eventfd that somebody else made. Never waits: a full counter is left full, or becomes full, whatever
/// the other side does to the fd meanwhile.
void signal_eventfd(int fd) noexcept;
/// Takes what signal_eventfd() needs of the kernel now, and not at the first interrupt of a session.
void prepare_signals();

}  // namespace vvfu::loopback
