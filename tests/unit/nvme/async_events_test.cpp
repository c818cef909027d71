// SPDX-License-Identifier: BSD-3-Clause
#include "async_events.hpp"

#include <gtest/gtest.h>

namespace vvfu::nvme::test {
namespace {

class AsyncEventsTest : public testing::Test {
protected:
    static CommandPtr request() { return std::make_shared<Command>(); }

    std::vector<std::pair<CommandPtr, std::uint32_t>> completed;
    AsyncEvents events{
        [this](const CommandPtr &command, std::uint32_t dword) { completed.emplace_back(command, dword); }};
};

TEST_F(AsyncEventsTest, EventMeetsRequestInEitherOrder)
{
    const auto first = request();
    ASSERT_TRUE(events.request(first));
    EXPECT_TRUE(completed.empty());
    events.raise(kInvalidDoorbellValue);
    ASSERT_EQ(completed.size(), 1u);
    EXPECT_EQ(completed[0].first, first);
    EXPECT_EQ(completed[0].second, 0x010100u);
    events.raise(kTemperatureEvent);
    const auto second = request();
    ASSERT_TRUE(events.request(second));
    ASSERT_EQ(completed.size(), 2u);
    EXPECT_EQ(completed[1].second, 0x020101u);
}

TEST_F(AsyncEventsTest, TypeIsMaskedUntilItsLogIsRead)
{
    ASSERT_TRUE(events.request(request()));
    ASSERT_TRUE(events.request(request()));
    events.raise(kInvalidDoorbellValue);
    events.raise(kInvalidDoorbellRegister);
    EXPECT_EQ(completed.size(), 1u);
    events.log_read(LogId::smart);
    events.log_read(LogId::firmware_slot);
    EXPECT_EQ(completed.size(), 1u);
    events.log_read(LogId::error);
    EXPECT_EQ(completed.size(), 2u);
}

TEST_F(AsyncEventsTest, WaitingEventsAreNotRepeated)
{
    for (int i = 0; i < 1000; ++i) {
        events.raise(kInvalidDoorbellValue);
    }
    ASSERT_TRUE(events.request(request()));
    ASSERT_TRUE(events.request(request()));
    events.log_read(LogId::error);
    EXPECT_EQ(completed.size(), 1u);
}

TEST_F(AsyncEventsTest, LimitAndAbort)
{
    const auto first = request();
    ASSERT_TRUE(events.request(first));
    for (std::size_t i = 1; i < kAsyncEventRequests; ++i) {
        ASSERT_TRUE(events.request(request()));
    }
    EXPECT_FALSE(events.request(request()));
    EXPECT_TRUE(events.abort(first));
    EXPECT_FALSE(events.abort(first));
    EXPECT_TRUE(events.request(request()));
}

TEST_F(AsyncEventsTest, ResetForgetsRequestsEventsAndMasks)
{
    ASSERT_TRUE(events.request(request()));
    events.raise(kInvalidDoorbellValue);
    events.raise(kInvalidDoorbellRegister);
    events.reset();
    ASSERT_TRUE(events.request(request()));
    EXPECT_EQ(completed.size(), 1u);
    events.raise(kInvalidDoorbellValue);
    EXPECT_EQ(completed.size(), 2u);
}

}  // namespace
}  // namespace vvfu::nvme::test
