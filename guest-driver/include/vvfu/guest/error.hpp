// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

#include "vvfu/base/expected.hpp"

namespace vvfu::guest {

/// A set-up error for a person: one line that says what is wrong and what to do about it.
struct Error {
    std::string message;
};

template <typename T>
using Result = Expected<T, Error>;

inline auto failure(std::string message)
{
    return make_unexpected(Error{std::move(message)});
}

}  // namespace vvfu::guest
