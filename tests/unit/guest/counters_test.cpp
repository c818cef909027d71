// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/counters.hpp"

#include <gtest/gtest.h>

namespace {

using vvfu::guest::CounterGroup;
using vvfu::guest::counters_json;

TEST(Counters, AreOneLineOfJsonInTheOrderGiven)
{
    const std::vector<CounterGroup> groups{{"session", {{"requests", 17}, {"restarts", 0}}},
                                           {"empty", {}},
                                           {"no\"n\nsense", {{"most", ~std::uint64_t{0}}}}};
    EXPECT_EQ(
        counters_json(groups),
        R"({"session":{"requests":17,"restarts":0},"empty":{},"no\"n\u000asense":{"most":18446744073709551615}})");
    EXPECT_EQ(counters_json({}), "{}");
}

}  // namespace
