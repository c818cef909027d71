// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/base/rate_limit.hpp"

#include <gtest/gtest.h>

namespace vvfu {
namespace {

using namespace std::chrono_literals;

unsigned admitted(RateLimit &limit, Nanoseconds now, unsigned events)
{
    unsigned count = 0;
    for (unsigned i = 0; i < events; ++i) {
        count += limit.admit(now) ? 1u : 0u;
    }
    return count;
}

TEST(RateLimit, AdmitsABurstPerIntervalAndCountsTheRest)
{
    RateLimit limit;
    const auto start = 1000s;
    EXPECT_EQ(RateLimit::kBurst, admitted(limit, start, 100));
    EXPECT_EQ(0u, admitted(limit, start + RateLimit::kInterval - 1ns, 3));
    EXPECT_EQ(start + RateLimit::kInterval, limit.due());
    EXPECT_EQ(0u, limit.take_kept_back(start + RateLimit::kInterval - 1ns));
    EXPECT_EQ(103u - RateLimit::kBurst, limit.take_kept_back(start + RateLimit::kInterval));
    EXPECT_EQ(kNever, limit.due());
    EXPECT_EQ(RateLimit::kBurst, admitted(limit, start + RateLimit::kInterval, 11));
}

TEST(RateLimit, AdmitsRareEventsAlwaysFromTheFirstInstantOn)
{
    RateLimit limit;
    for (auto now = 0ns; now < 100 * RateLimit::kInterval; now += RateLimit::kInterval / RateLimit::kBurst) {
        EXPECT_TRUE(limit.admit(now)) << now.count();
    }
    EXPECT_EQ(kNever, limit.due());
    EXPECT_EQ(0u, limit.take_kept_back(1000 * RateLimit::kInterval));
}

TEST(RateLimit, AnEventInTheNextIntervalDoesNotLoseTheCount)
{
    RateLimit limit;
    admitted(limit, 0ns, RateLimit::kBurst + 7);
    EXPECT_TRUE(limit.admit(RateLimit::kInterval));
    EXPECT_EQ(7u, limit.take_kept_back(2 * RateLimit::kInterval));
}

}  // namespace
}  // namespace vvfu
