// SPDX-License-Identifier: BSD-3-Clause
#include "refusal.hpp"

#include <cstring>

namespace vvfu::core {

using vfio_user::DecodeError;

namespace {

std::string errno_name(int error)
{
    if (error == ENOTSUP) {
        return "ENOTSUP";  // EOPNOTSUPP, for the C library
    }
    const char *name = ::strerrorname_np(error);
    return name != nullptr ? name : std::to_string(error);
}

}  // namespace

std::string describe(const vfio_user::Header &request, const Refusal &refusal)
{
    auto text = std::string{vfio_user::name(request.kind())} + " (message " + hex(request.message_id) + ") refused, " +
                errno_name(refusal.error) + ": " + std::string{refusal.reason};
    const char *separator = ", ";
    for (const auto &[name, value] : refusal.values) {
        text += separator + std::string{name} + " " + hex(value);
        separator = " ";
    }
    return text;
}

Refusal malformed(vfio_user::Bytes payload, DecodeError error)
{
    return {EINVAL, control::describe(error), {{"payload size", payload.size()}}};
}

Refusal malformed_argsz(vfio_user::Bytes payload, DecodeError error)
{
    const auto argsz = vfio_user::decode_prefix<std::uint32_t>(payload);
    if (error == DecodeError::bad_value && argsz) {
        return {EINVAL, "less than the structure", {{"argsz", *argsz}}};
    }
    return malformed(payload, error);
}

}  // namespace vvfu::core
