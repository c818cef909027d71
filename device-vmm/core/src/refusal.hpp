// SPDX-License-Identifier: BSD-3-Clause
//
// Why a command of the peer is refused: the errno for the peer, and for the log what a person needs to find the cause.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "support.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::core {

struct Refusal {
    struct Value {
        std::string_view name;  ///< the field's name in the specification
        std::uint64_t value = 0;
    };

    int error = 0;            ///< positive errno; 0: not refused
    std::string_view reason;  ///< static text
    std::vector<Value> values;

    explicit operator bool() const noexcept { return error != 0; }
};

/// "DMA_MAP (message 0x7) refused, EINVAL: reason, size 0x1".
std::string describe(const vfio_user::Header &request, const Refusal &refusal);

/// Of a payload that could not be decoded.
Refusal malformed(vfio_user::Bytes payload, vfio_user::DecodeError error);
/// Likewise by decode_argsz().
Refusal malformed_argsz(vfio_user::Bytes payload, vfio_user::DecodeError error);

}  // namespace vvfu::core
