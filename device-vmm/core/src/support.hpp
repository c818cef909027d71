// SPDX-License-Identifier: BSD-3-Clause
//
// What every part of the core needs from its surroundings: configuration, port, counters, a log that a peer cannot
// flood.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "vvfu/core/core.hpp"
#include "vvfu/core/port.hpp"

namespace vvfu::core {

struct Counters {
    std::uint64_t requests = 0;
    std::uint64_t protocol_errors = 0;
    std::uint64_t deadline_expiries = 0;
    std::uint64_t unknown_replies = 0;
};

/// Log with a rate limit: what a peer or guest can repeat is logged once per kind until forget().
class Log {
public:
    explicit Log(Port &port) : port_(port) {}

    void write(LogLevel level, std::string_view text) { port_.log(level, text); }
    /// `kind` is a string literal that names the kind of event.
    void once(LogLevel level, const char *kind, std::string_view text)
    {
        if (seen_.insert(kind).second) {
            port_.log(level, text);
        }
    }
    /// A new session, or a new driver: everything may be logged again.
    void forget() { seen_.clear(); }

private:
    Port &port_;
    std::set<std::string, std::less<>> seen_;
};

}  // namespace vvfu::core
