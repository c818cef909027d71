// SPDX-License-Identifier: BSD-3-Clause
//
// What is measured.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "report.hpp"

namespace vvfu::bench {

struct Plan {
    std::string loopback;  ///< path of vvfu-loopback
    unsigned rounds = 9;   ///< each item this often; results are medians
    unsigned round_trips = 5000, posted_writes = 100'000, maps = 500, copies = 20;
    std::uint64_t copy_bytes = 4u * 1024 * 1024;  ///< the most that testdev copies at once
    std::chrono::milliseconds nvme_time{300};     ///< per round
    std::chrono::milliseconds idle_time{3000};
};

/// The same rows, few repetitions: shows that everything works, not how fast it is.
Plan quick(Plan plan);

/// Runs everything; starts and ends vvfu-loopback itself. Throws when something does not work.
std::vector<Row> run(const Plan &plan);

}  // namespace vvfu::bench
