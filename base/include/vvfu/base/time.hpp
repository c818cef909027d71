// SPDX-License-Identifier: BSD-3-Clause
//
// Time is a value that callers pass in: nothing below a port owns a clock.
#pragma once

#include <chrono>

namespace vvfu {

/// Monotonic time since an arbitrary origin (CLOCK_MONOTONIC in every port).
using Nanoseconds = std::chrono::nanoseconds;

/// "No deadline": later than every real instant.
inline constexpr Nanoseconds kNever = Nanoseconds::max();

}  // namespace vvfu
