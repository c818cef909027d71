// SPDX-License-Identifier: BSD-3-Clause
#include "interrupts.hpp"

#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

class InterruptsTest : public testing::Test {
protected:
    void coalesce(std::uint32_t threshold, std::uint32_t time)
    {
        SubmissionEntry entry;
        entry.cdw10 = static_cast<std::uint32_t>(FeatureId::interrupt_coalescing);
        entry.cdw11 = time << 8 | threshold;
        ASSERT_TRUE(features.set(entry, false));
    }

    TestExecutor executor;
    Activity activity;
    Features features{{1, 3, 4, false}};
    std::vector<std::uint16_t> sent;
    Interrupts interrupts{4, features, executor, activity, [this](std::uint16_t vector) { sent.push_back(vector); }};
};

TEST_F(InterruptsTest, AtOnceWithoutCoalescing)
{
    interrupts.completions(2, 1);
    interrupts.completions(0, 5);
    EXPECT_EQ(sent, (std::vector<std::uint16_t>{2, 0}));
    EXPECT_TRUE(executor.timers.empty());
}

TEST_F(InterruptsTest, HeldBackUntilThresholdByVector)
{
    coalesce(2, 1);
    interrupts.completions(1, 2);
    interrupts.completions(2, 2);
    EXPECT_TRUE(sent.empty());
    interrupts.completions(1, 1);
    EXPECT_EQ(sent, (std::vector<std::uint16_t>{1}));
    EXPECT_EQ(executor.timers.size(), 2u) << "one timer for each vector";
    executor.fire_timers();
    EXPECT_EQ(sent, (std::vector<std::uint16_t>{1, 2}));
}

TEST_F(InterruptsTest, TimeIsInUnitsOf100Microseconds)
{
    for (const std::uint32_t time : {1u, 2u, 255u}) {
        coalesce(9, time);
        interrupts.completions(1, 1);
        ASSERT_EQ(executor.timers.size(), 1u);
        EXPECT_EQ(executor.timers[0].first, std::chrono::microseconds{100 * time});
        executor.fire_timers();
    }
    EXPECT_EQ(sent.size(), 3u);
}

TEST_F(InterruptsTest, TimerFindsNothingAfterReset)
{
    coalesce(9, 1);
    interrupts.completions(1, 1);
    interrupts.reset();
    executor.fire_timers();
    EXPECT_TRUE(sent.empty());
    interrupts.completions(1, 1);
    EXPECT_EQ(executor.timers.size(), 1u) << "a new timer can start";
}

TEST_F(InterruptsTest, AdminVectorIsNeverHeldBack)
{
    coalesce(9, 9);
    interrupts.completions(0, 1);
    EXPECT_EQ(sent, (std::vector<std::uint16_t>{0}));
}

}  // namespace
}  // namespace vvfu::nvme::test
