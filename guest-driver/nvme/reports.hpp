// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <spdlog/spdlog.h>

#include <array>
#include <cstddef>
#include <string>

#include "vvfu/base/rate_limit.hpp"

namespace vvfu::nvme {

/// Lines of the controller about what the storage or the host makes happen: limited for each kind of event.
class Reports {
public:
    enum class Kind { storage_error, no_space, storage_lost, fatal, reset };

    explicit Reports(Nanoseconds (*now)() = steady_now) : now_(now) {}

    void report(Kind kind, spdlog::level::level_enum level, const std::string &text)
    {
        auto &limit = limits_[static_cast<std::size_t>(kind)];
        const auto now = now_();
        const auto before = limit.take_kept_back(now);
        if (limit.admit(now)) {
            spdlog::log(level, "nvme: {}{}", text,
                        before == 0 ? std::string{} : " (" + std::to_string(before) + " more like it before)");
        }
    }

private:
    static Nanoseconds steady_now() { return std::chrono::steady_clock::now().time_since_epoch(); }

    Nanoseconds (*now_)();
    std::array<RateLimit, static_cast<std::size_t>(Kind::reset) + 1> limits_;
};

}  // namespace vvfu::nvme
