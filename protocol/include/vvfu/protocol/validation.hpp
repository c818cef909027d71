// SPDX-License-Identifier: BSD-3-Clause
//
// What device and driver check of a message, and what follows when it is not as it must be: the table in section 12 of
// docs/spec/virtio-vfio-user.md, row by row and in the order in which checks take precedence. The device acts by it;
// tests compare it with the document and with what the device does.
#pragma once

#include <array>
#include <string_view>

#include "vvfu/protocol/control.hpp"

namespace vvfu::control {

enum class Check {
    // The device, of any message of the driver
    ring,
    header,
    direction,
    // The device, of requests
    reply_part,
    request_id,
    request_type,
    device_info_epoch,
    payload,
    dma_read_reply_part,
    session,
    ignored_in_device_info,
    // The device, of replies and of the buffers of requests
    request_buffer,
    reply_id,
    reply_type,
    reply_epoch,
    reply_status,
    reply_payload,
    reply_text,
    accepted_features,
    // The driver
    driver_header,
    driver_reply,
    driver_epoch,
    driver_posted,
    driver_request_type,
    driver_payload,
    driver_reserved,
};

enum class Consequence {
    needs_reset,    ///< the device sets DEVICE_NEEDS_RESET
    unsupported,    ///< the request is answered with that status, and has no effect
    invalid,        ///< likewise
    stale,          ///< likewise
    session_state,  ///< the request is answered with STALE, INVALID or NOT_CONNECTED, and has no effect
    counted,        ///< the message is counted and has no effect
    refusal,        ///< the same as that of any status that is not OK
    ignored,        ///< none
    driver_resets,  ///< the driver resets the device
};

struct Rule {
    Check check{};
    std::string_view condition;
    std::string_view checked_by;
    Consequence consequence{};
    std::string_view clauses;  ///< without "VVFU-"
};

inline constexpr std::array kRules{
    Rule{Check::ring, "malformed ring; message over `max_message_size`", "device", Consequence::needs_reset, "CONF-3"},
    Rule{Check::header, "message under 32 bytes; `length`; undefined `flags`; `reserved`; `status` of a request",
         "device", Consequence::needs_reset, "ERROR-1"},
    Rule{Check::direction, "REPLY or POSTED on the controlq; no REPLY, or POSTED, on the replyq", "device",
         Consequence::needs_reset, "ERROR-1"},
    Rule{Check::reply_part, "reply part of a request under 288 bytes", "device", Consequence::needs_reset, "ERROR-4"},
    Rule{Check::request_id, "`request_id` of a request is in use", "device", Consequence::needs_reset, "ERROR-9"},
    Rule{Check::request_type, "`type` of a request", "device", Consequence::unsupported, "MSG-6"},
    Rule{Check::device_info_epoch, "`epoch` of DEVICE_INFO is not 0", "device", Consequence::invalid, "DEVICE-4"},
    Rule{Check::payload, "payload of a request: size, counts, undefined `op`, values out of range", "device",
         Consequence::invalid, "DEVICE-1, DMA-4"},
    Rule{Check::dma_read_reply_part, "reply part of a DMA_READ under 48 plus `count` bytes", "device",
         Consequence::needs_reset, "ERROR-4"},
    Rule{Check::session, "`epoch` of another request", "device", Consequence::session_state, "SESSION-6"},
    Rule{Check::ignored_in_device_info,
         "what follows `op` in DEVICE_INFO(DEL); unknown bits of `features`, and `reserved`, in ADD", "device",
         Consequence::ignored, "DEVICE-5, DEVICE-6"},
    Rule{Check::request_buffer, "requestq buffer under `request_buffer_size`, if the request does not fit", "device",
         Consequence::needs_reset, "ERROR-4"},
    Rule{Check::reply_id, "`request_id` of a reply names nothing outstanding", "device", Consequence::counted, "MSG-7"},
    Rule{Check::reply_type, "`type` of a reply is not that of its request", "device", Consequence::needs_reset,
         "ERROR-2"},
    Rule{Check::reply_epoch, "`epoch` of a reply is not that of its request", "device", Consequence::needs_reset,
         "ERROR-8"},
    Rule{Check::reply_status, "undefined `status` of a reply", "device, driver", Consequence::refusal, ""},
    Rule{Check::reply_payload, "payload of a reply with OK", "device", Consequence::needs_reset, "ERROR-3"},
    Rule{Check::reply_text, "text of over 256 bytes in a reply with another status", "device", Consequence::needs_reset,
         "ERROR-3"},
    Rule{Check::accepted_features, "FEATURE_BITS reply with a bit that was not offered", "device",
         Consequence::needs_reset, "ERROR-10"},
    Rule{Check::driver_header, "malformed ring; header as above; REPLY on the requestq", "driver",
         Consequence::driver_resets, ""},
    Rule{Check::driver_reply, "controlq reply without REPLY; its `type`, `request_id`, payload with OK", "driver",
         Consequence::driver_resets, ""},
    Rule{Check::driver_epoch, "`epoch` of a request", "driver", Consequence::stale, "SESSION-7"},
    Rule{Check::driver_posted, "POSTED on a request that needs a reply", "driver", Consequence::counted, "MSG-5"},
    Rule{Check::driver_request_type, "`type` of a request", "driver", Consequence::unsupported, "MSG-6"},
    Rule{Check::driver_payload, "payload of a request: size, counts, undefined `op` or `action`, values out of range",
         "driver", Consequence::invalid, "ERROR-7"},
    Rule{Check::driver_reserved, "`reserved`, padding and undefined flags in a payload", "driver", Consequence::ignored,
         ""},
};

/// The rows are in the order of the enumeration.
[[nodiscard]] constexpr const Rule &rule(Check check) noexcept
{
    return kRules[static_cast<std::size_t>(check)];
}
static_assert([] {
    for (std::size_t i = 0; i < kRules.size(); ++i) {
        if (kRules[i].check != static_cast<Check>(i)) {
            return false;
        }
    }
    return kRules.back().check == Check::driver_reserved;
}());

/// As the document says it.
[[nodiscard]] constexpr std::string_view name(Consequence consequence) noexcept
{
    switch (consequence) {
        case Consequence::needs_reset: return "NEEDS_RESET";
        case Consequence::unsupported: return "UNSUPPORTED";
        case Consequence::invalid: return "INVALID";
        case Consequence::stale: return "STALE";
        case Consequence::session_state: return "STALE, INVALID or NOT_CONNECTED";
        case Consequence::counted: return "counted and ignored";
        case Consequence::refusal: return "as any status but OK";
        case Consequence::ignored: return "ignored";
        case Consequence::driver_resets: return "resets the device";
    }
    return "";
}

}  // namespace vvfu::control
