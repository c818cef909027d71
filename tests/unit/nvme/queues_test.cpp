// SPDX-License-Identifier: BSD-3-Clause
#include "queues.hpp"

#include <gtest/gtest.h>

namespace vvfu::nvme::test {
namespace {

TEST(Ring, CountsAroundTheEnd)
{
    for (std::uint32_t head = 0; head < 5; ++head) {
        for (std::uint32_t used = 0; used < 5; ++used) {
            Ring ring{5, head, 0};
            ring.tail = ring.advanced(head, used);
            EXPECT_EQ(ring.tail, (head + used) % 5);
            EXPECT_EQ(ring.used(), used);
            EXPECT_EQ(ring.free(), 4 - used);
            EXPECT_EQ(ring.distance(ring.head, ring.tail), used);
        }
    }
}

TEST(SubmissionQueue, FetchableStopsAtTheEndOfTheRingAndAtTheLimits)
{
    SubmissionQueue sq;
    sq.ring = {64, 60, 10};
    EXPECT_EQ(sq.fetchable(16), 4u) << "to the end of the ring";
    sq.ring = {64, 0, 40};
    EXPECT_EQ(sq.fetchable(100), kFetchBatch);
    EXPECT_EQ(sq.fetchable(2), 2u) << "burst";
    sq.in_flight = kMaxInFlight - 3;
    EXPECT_EQ(sq.fetchable(16), 3u);
    sq.in_flight = kMaxInFlight;
    EXPECT_EQ(sq.fetchable(16), 0u);
    sq.in_flight = 0;
    sq.fetching = true;
    EXPECT_EQ(sq.fetchable(16), 0u);
    sq.fetching = false;
    sq.deleted = true;
    EXPECT_EQ(sq.fetchable(16), 0u);
}

TEST(SubmissionQueue, RemovingKeepsTheOthersFindable)
{
    SubmissionQueue sq;
    for (std::size_t i = 0; i < 4; ++i) {
        auto command = std::make_shared<Command>();
        command->index = i;
        sq.commands.push_back(command);
    }
    const auto all = sq.commands;
    sq.remove(all[1]);
    sq.remove(all[0]);
    sq.remove(all[3]);
    ASSERT_EQ(sq.commands.size(), 1u);
    EXPECT_EQ(sq.commands[0], all[2]);
    sq.remove(all[2]);
    EXPECT_TRUE(sq.commands.empty());
}

}  // namespace
}  // namespace vvfu::nvme::test
