// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace vvfu::loopback {

/// Adds 1 to an eventfd that somebody else made. Never waits: a full counter is left full, or becomes full, whatever
/// the other side does to the fd meanwhile.
void signal_eventfd(int fd) noexcept;

}  // namespace vvfu::loopback
