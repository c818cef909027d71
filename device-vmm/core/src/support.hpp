// SPDX-License-Identifier: BSD-3-Clause
//
// What every part of the core needs from its surroundings: configuration, port, counters, a log that a peer cannot
// flood.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <new>
#include <set>
#include <string>
#include <string_view>

#include "vvfu/base/rate_limit.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/core/port.hpp"

namespace vvfu::core {

struct Counters {
    std::uint64_t requests = 0;
    std::uint64_t protocol_errors = 0;
    std::uint64_t deadline_expiries = 0;
    std::uint64_t unknown_replies = 0;
    std::uint64_t silences = 0;
    std::uint64_t dropped_accesses = 0;
};

//= VVFU-DEADLINE-2
/// What is left of `timeout` for a request on behalf of a command that has to be answered at `latest`.
inline Nanoseconds time_left(Nanoseconds now, Nanoseconds latest, Nanoseconds timeout)
{
    return std::clamp(latest - now, Nanoseconds{0}, timeout);
}

/// What the exception that is being handled says; valid until the next call in this thread.
inline const char *exception_text() noexcept
{
    static thread_local char text[256];
    try {
        throw;
    } catch (const std::bad_alloc &) {
        return "out of memory";
    } catch (const std::exception &error) {
        std::snprintf(text, sizeof text, "%s", error.what());
        return text;
    } catch (...) {
        return "unknown exception";
    }
}

/// For logs: 0x and digits.
inline std::string hex(std::uint64_t value)
{
    char text[19];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

/// For logs.
inline std::string describe(const PeerCredentials &credentials)
{
    return "pid " + std::to_string(credentials.pid) + " uid " + std::to_string(credentials.uid);
}

/// Log that neither peer nor guest can flood: of each kind of line RateLimit admits some, the others become a number.
class Log {
public:
    explicit Log(Port &port) : port_(port) {}

    /// `kind`: one of a bounded set, in words that fit behind "5 more times: ". Debug lines are not limited: whoever
    /// asks for them wants them all.
    void write(LogLevel level, std::string_view kind, std::string_view text)
    {
        if (level == LogLevel::debug || admit(level, kind, text)) {
            port_.log(level, text);
        }
    }
    /// As write(), and of each kind only the first line since forget().
    void once(LogLevel level, std::string_view kind, std::string_view text)
    {
        if (!seen_.contains(kind)) {
            seen_.emplace(kind);
            write(level, kind, text);
        }
    }
    /// A new session, or a new driver.
    void forget() { seen_.clear(); }

    /// Sets the time of what is written next, and reports what was kept back.
    void tick(Nanoseconds now)
    {
        now_ = now;
        if (now < due_) {
            return;
        }
        due_ = kNever;
        for (auto &[name, kind] : kinds_) {
            if (const auto count = kind.limit.take_kept_back(now); count != 0) {
                port_.log(kind.level, std::to_string(count) + " more times: " + name + "; the last: " + kind.last);
            }
            due_ = std::min(due_, kind.limit.due());
        }
    }
    /// When tick() has something to report.
    [[nodiscard]] Nanoseconds next_deadline() const noexcept { return due_; }

private:
    struct Kind {
        LogLevel level{};
        RateLimit limit;
        std::string last = {};  ///< text that was kept back: it may be what still goes on
    };

    bool admit(LogLevel level, std::string_view name, std::string_view text)
    {
        auto it = kinds_.find(name);
        if (it == kinds_.end()) {
            it = kinds_.emplace(name, Kind{level, {}}).first;
        }
        const bool admitted = it->second.limit.admit(now_);
        if (!admitted) {
            it->second.last = text;
        }
        due_ = std::min(due_, it->second.limit.due());
        return admitted;
    }

    Port &port_;
    Nanoseconds now_{};
    Nanoseconds due_ = kNever;
    std::map<std::string, Kind, std::less<>> kinds_;
    std::set<std::string, std::less<>> seen_;
};

}  // namespace vvfu::core
