// SPDX-License-Identifier: BSD-3-Clause
//
// The one error-carrying return type of the project. std::expected needs C++23; tl::expected has the
// same interface and works with C++20.
#pragma once

#include <tl/expected.hpp>

namespace vvfu {

template <typename T, typename E>
using Expected = tl::expected<T, E>;

using tl::make_unexpected;
using tl::unexpect;

}  // namespace vvfu
