// SPDX-License-Identifier: BSD-3-Clause
#include "reply_sender.hpp"

#include <gtest/gtest.h>

#include "fake_transport.hpp"

namespace vvfu::guest {
namespace {

class ReplySenderTest : public ::testing::Test {
protected:
    void SetUp() override { ASSERT_TRUE(sender->bring_up()); }
    static control::Buffer reply(std::uint64_t id)
    {
        control::Buffer out;
        control::begin(out, {.type = control::Type::peer, .flags = control::kFlagReply, .request_id = id});
        control::finish(out);
        return out;
    }
    std::uint64_t take()
    {
        const auto chain = transport.take(kReplyQueue);
        return chain ? chain->header.request_id : 0;
    }

    FakeTransport transport;
    std::unique_ptr<ReplySender> sender = std::move(*ReplySender::create(transport, 512));
};

TEST_F(ReplySenderTest, NotifiesTheDeviceOncePerFlush)
{
    ASSERT_TRUE(sender->send(reply(1)));
    ASSERT_TRUE(sender->send(reply(2)));
    EXPECT_EQ(transport.notified[kReplyQueue], 0u);
    sender->flush();
    sender->flush();
    EXPECT_EQ(transport.notified[kReplyQueue], 1u);
    EXPECT_EQ(take(), 1u);
    EXPECT_EQ(take(), 2u);
}

TEST_F(ReplySenderTest, UsesItsBuffersAgainWithoutAnInterrupt)
{
    for (std::uint64_t id = 1; id <= 1000; ++id) {
        ASSERT_TRUE(sender->send(reply(id)));
        ASSERT_EQ(take(), id);
        ASSERT_EQ(sender->waiting(), 0u);
    }
    EXPECT_EQ(transport.used_signals, 0u);
}

TEST_F(ReplySenderTest, RepliesThatFindNoBufferWaitAndKeepTheirOrder)
{
    std::uint64_t sent = 0;
    while (sender->waiting() < 10) {
        ASSERT_TRUE(sender->send(reply(++sent)));
        ASSERT_LT(sent, 1000u);
    }
    EXPECT_TRUE(transport.wants_used_notification(kReplyQueue)) << "how else would it learn of free buffers";
    for (std::uint64_t id = 1; id <= sent; ++id) {
        ASSERT_EQ(take(), id);
        ASSERT_TRUE(sender->process());
    }
    EXPECT_EQ(sender->waiting(), 0u);
    EXPECT_FALSE(transport.wants_used_notification(kReplyQueue));
}

TEST_F(ReplySenderTest, ABrokenQueueIsAnError)
{
    std::uint64_t sent = 0;
    while (sender->waiting() == 0) {
        ASSERT_TRUE(sender->send(reply(++sent)));
    }
    transport.corrupt_used_index(kReplyQueue);
    EXPECT_FALSE(sender->process());
}

}  // namespace
}  // namespace vvfu::guest
