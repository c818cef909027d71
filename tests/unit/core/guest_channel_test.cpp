// SPDX-License-Identifier: BSD-3-Clause
#include "guest_channel.hpp"

#include <set>

#include "core_fixture.hpp"
#include "no_memory.hpp"

namespace vvfu::test {
namespace {

using control::Type;
using core::GuestChannel;
using core::GuestReply;

class GuestChannelTest : public ::testing::Test {
protected:
    std::uint64_t request(Type type = Type::irq_info, Nanoseconds timeout = 1s)
    {
        return channel.request(
            now, type, 1, timeout,
            [this](const GuestReply &reply) {
                replies.push_back(reply);
                return accept;
            },
            [](control::Buffer &) {});
    }
    void post()
    {
        channel.post(now, Type::region_write, 1, [](control::Buffer &) {});
    }
    void answer(std::uint64_t id, Type type = Type::irq_info)
    {
        control::Buffer out;
        control::begin(out, {type, control::kFlagReply, 0, id, 1, control::Status::ok});
        control::finish(out);
        channel.reply(now, 2, out);
    }
    std::vector<std::uint64_t> delivered()
    {
        std::vector<std::uint64_t> ids;
        for (const auto &message : port.requests) {
            ids.push_back(control::decode_header(message)->request_id);
        }
        return ids;
    }

    FakePort port;
    core::Counters counters;
    core::Log log{port};
    GuestChannel channel{port, counters, log, 2s};
    Nanoseconds now = 10s;
    std::vector<GuestReply> replies;
    bool accept = true;
};

//= VVFU-MSG-2
//= type=test
TEST_F(GuestChannelTest, RequestIdsAreNeverUsedTwice)
{
    const auto first = request();
    answer(first);
    post();
    const auto second = request();
    channel.drop_session();
    EXPECT_LT(first, second);
    EXPECT_LT(second, request());
    const auto ids = delivered();
    EXPECT_EQ(ids.size(), std::set<std::uint64_t>(ids.begin(), ids.end()).size());
}

TEST_F(GuestChannelTest, WhatTheGuestHasNoBufferForIsDeliveredInOrder)
{
    port.request_buffers = 1;
    std::vector<std::uint64_t> ids;
    for (int i = 0; i < 4; ++i) {
        ids.push_back(request());
    }
    EXPECT_EQ(1u, port.requests.size());
    port.request_buffers = 2;
    channel.flush(now);
    EXPECT_EQ(3u, port.requests.size());
    ids.push_back(request());  // not ahead of the one that waits
    port.request_buffers = 10;
    channel.flush(now);
    EXPECT_EQ(ids, delivered());
}

TEST_F(GuestChannelTest, AReplyIsTakenOnce)
{
    const auto id = request();
    answer(id);
    answer(id);
    EXPECT_EQ(1u, replies.size());
    EXPECT_TRUE(replies[0].ok());
    EXPECT_EQ(1u, counters.unknown_replies);
}

TEST_F(GuestChannelTest, DeadlinesExpireInOrderOfTime)
{
    const auto late = request(Type::irq_info, 3s);
    request(Type::device_reset, 1s);
    EXPECT_EQ(now + 1s, channel.next_deadline());
    now += 1s;
    channel.tick(now);
    ASSERT_EQ(1u, replies.size());
    EXPECT_TRUE(replies[0].expired);
    EXPECT_EQ(1u, counters.deadline_expiries);
    answer(late);
    EXPECT_EQ(2u, replies.size());
    EXPECT_EQ(kNever, channel.next_deadline());
}

TEST_F(GuestChannelTest, PostedRequestsAreCompleteWhenALaterOneIsAnswered)
{
    const auto before = request();
    EXPECT_FALSE(channel.posted_incomplete());
    post();
    answer(before);
    EXPECT_TRUE(channel.posted_incomplete());
    answer(request());
    EXPECT_FALSE(channel.posted_incomplete());
}

TEST_F(GuestChannelTest, OnlyWhatWasNotDeliveredCanBeTakenBack)
{
    port.request_buffers = 1;
    const auto first = request(), second = request(), third = request();
    EXPECT_FALSE(channel.cancel(first, Type::irq_info));
    EXPECT_TRUE(channel.cancel(second, Type::irq_info));
    EXPECT_FALSE(channel.cancel(99999, Type::irq_info));
    port.request_buffers = 10;
    channel.flush(now);
    EXPECT_EQ((std::vector<std::uint64_t>{first, third}), delivered());
}

TEST_F(GuestChannelTest, ASessionCanBeDroppedWithoutMemory)
{
    port.request_buffers = 0;
    const auto up = request(Type::peer);
    request();
    const auto down = request(Type::peer);
    channel.cancel(up, Type::peer);
    {
        const NoMemory no_memory;
        channel.drop_session();
    }
    port.request_buffers = 10;
    channel.flush(now);
    EXPECT_EQ(std::vector{down}, delivered());
}

TEST_F(GuestChannelTest, RoomIsCountedInFreshRequestsOnly)
{
    port.request_buffers = 0;
    while (channel.has_room()) {
        post();
    }
    EXPECT_EQ(now + 2s, channel.next_deadline());
    now += 2s;
    channel.tick(now);
    EXPECT_TRUE(channel.has_room());
    EXPECT_FALSE(channel.overrun());
    port.request_buffers = 100000;
    channel.flush(now);
    EXPECT_EQ(GuestChannel::kSoftMessages + 1, port.requests.size()) << "the last asks for a sign of life";
}

TEST_F(GuestChannelTest, UnansweredRequestsTakeRoomToo)
{
    std::vector<std::uint64_t> ids;
    while (channel.has_room()) {
        ids.push_back(request());
    }
    EXPECT_EQ(GuestChannel::kSoftOutstanding, ids.size());
    answer(ids.front());
    EXPECT_TRUE(channel.has_room());
}

TEST_F(GuestChannelTest, AFailureStopsEverythingUntilReset)
{
    const auto id = request();
    accept = false;
    answer(id);
    ASSERT_TRUE(channel.failure().has_value());
    EXPECT_NE(std::string::npos, channel.failure()->find("IRQ_INFO"));
    request();
    EXPECT_EQ(1u, port.requests.size());
    channel.reset();
    EXPECT_FALSE(channel.failure().has_value());
    request();
    EXPECT_EQ(2u, port.requests.size());
}

}  // namespace
}  // namespace vvfu::test
