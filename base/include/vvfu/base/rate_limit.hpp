// SPDX-License-Identifier: BSD-3-Clause
//
// How often one kind of event may be reported when somebody else decides how often it happens.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

#include "vvfu/base/time.hpp"

namespace vvfu {

/// Admits the first kBurst events of each interval and counts the others. An interval begins with its first event.
class RateLimit {
public:
    static constexpr unsigned kBurst = 10;
    static constexpr Nanoseconds kInterval = std::chrono::seconds{10};

    /// Whether the event is to be reported. `now` never goes back.
    [[nodiscard]] bool admit(Nanoseconds now) noexcept
    {
        if (!begun_ || now - start_ >= kInterval) {
            begun_ = true;
            start_ = now;
            admitted_ = 0;
        }
        if (admitted_ < kBurst) {
            ++admitted_;
            return true;
        }
        ++kept_back_;
        return false;
    }

    /// When take_kept_back() has something to say; kNever: nothing was kept back.
    [[nodiscard]] Nanoseconds due() const noexcept { return kept_back_ == 0 ? kNever : start_ + kInterval; }

    /// Number of events kept back in intervals that are over, once; 0: none.
    [[nodiscard]] std::uint64_t take_kept_back(Nanoseconds now) noexcept
    {
        return now >= due() ? std::exchange(kept_back_, 0) : 0;
    }

private:
    Nanoseconds start_{};
    bool begun_ = false;
    unsigned admitted_ = 0;
    std::uint64_t kept_back_ = 0;
};

}  // namespace vvfu
