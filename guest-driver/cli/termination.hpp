// SPDX-License-Identifier: BSD-3-Clause
//
// How the programs are told to end.
#pragma once

#include "vvfu/base/fd.hpp"

namespace vvfu::cli {

/// A signalfd of SIGTERM, SIGINT and, unless it is ignored as under nohup, SIGHUP, which are blocked from then on.
/// Called before threads are started, so that all of them inherit the mask. SIGPIPE is ignored: a peer may go at any
/// time.
[[nodiscard]] Fd termination_signals();

}  // namespace vvfu::cli
