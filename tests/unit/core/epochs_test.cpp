// SPDX-License-Identifier: BSD-3-Clause
#include "epochs.hpp"

#include <gtest/gtest.h>

namespace vvfu::core {
namespace {

//= VVFU-SESSION-1
//= type=test
TEST(Epochs, TheFirstSessionIsOne)
{
    Epochs epochs;
    EXPECT_EQ(0u, epochs.latest());
    EXPECT_FALSE(epochs.used(0));
    EXPECT_FALSE(epochs.used(1));
    EXPECT_EQ(1u, epochs.next());
    EXPECT_EQ(2u, epochs.next());
    EXPECT_EQ(2u, epochs.latest());
    EXPECT_TRUE(epochs.used(1));
    EXPECT_TRUE(epochs.used(2));
    EXPECT_FALSE(epochs.used(3));
    EXPECT_FALSE(epochs.used(UINT32_MAX));
}

//= VVFU-SESSION-1
//= type=test
//= VVFU-SESSION-6
//= type=test
TEST(Epochs, OnePastTheLastNumberIsOneAgainAndOldNumbersStayUsed)
{
    Epochs epochs{UINT32_MAX - 1};
    EXPECT_EQ(UINT32_MAX, epochs.next());
    EXPECT_EQ(1u, epochs.next());
    EXPECT_EQ(1u, epochs.latest());
    EXPECT_TRUE(epochs.used(UINT32_MAX));
    EXPECT_TRUE(epochs.used(2));
    EXPECT_FALSE(epochs.used(0));
}

}  // namespace
}  // namespace vvfu::core
