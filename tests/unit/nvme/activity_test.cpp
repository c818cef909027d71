// SPDX-License-Identifier: BSD-3-Clause
#include "activity.hpp"

#include <gtest/gtest.h>

#include <optional>

namespace vvfu::nvme::test {
namespace {

TEST(Activity, IdleWaitsForTheLastOperation)
{
    Activity activity;
    int results = 0, idle = 0;
    auto first = activity.track([&](int value) { results += value; });
    auto second = activity.track([&](int value) { results += value; });
    activity.when_idle([&] { ++idle; });
    first(1);
    EXPECT_EQ(idle, 0);
    second(2);
    EXPECT_EQ(idle, 1);
    EXPECT_EQ(results, 3);
    activity.when_idle([&] { ++idle; });
    EXPECT_EQ(idle, 2) << "at once when nothing is under way";
}

TEST(Activity, OperationStartedByACallbackCounts)
{
    Activity activity;
    std::function<void()> next;
    int idle = 0;
    auto first = activity.track([&] { next = activity.track([] {}); });
    activity.when_idle([&] { ++idle; });
    first();
    EXPECT_EQ(idle, 0);
    next();
    EXPECT_EQ(idle, 1);
}

TEST(Activity, CallbacksAreHarmlessAfterDestruction)
{
    std::optional<Activity> activity(std::in_place);
    int calls = 0;
    auto tracked = activity->track([&] { ++calls; });
    auto guarded = activity->guard([&] { ++calls; });
    activity.reset();
    tracked();
    guarded();
    EXPECT_EQ(calls, 0);
}

TEST(Activity, GuardedCallbacksDoNotCount)
{
    Activity activity;
    int calls = 0;
    auto guarded = activity.guard([&] { ++calls; });
    EXPECT_TRUE(activity.idle());
    guarded();
    EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace vvfu::nvme::test
