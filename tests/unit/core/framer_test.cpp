// SPDX-License-Identifier: BSD-3-Clause
#include "framer.hpp"

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using core::Framer;
using core::Message;

ByteVector message(std::uint16_t id, std::size_t payload, std::uint8_t fill = 0)
{
    return concat(vu::Header{id, 9, static_cast<std::uint32_t>(16 + payload), 0, 0}, filled(payload, fill));
}

class FramerTest : public ::testing::Test {
protected:
    void feed(const ByteVector &data, unsigned fd_count = 0)
    {
        std::vector<Fd> fds;
        for (unsigned i = 0; i < fd_count; ++i) {
            fds.push_back(make_eventfd());
        }
        framer.feed(data, fds, messages);
        for (const auto &fd : fds) {
            EXPECT_FALSE(fd.valid());
        }
    }
    Framer framer;
    std::deque<Message> messages;
};

TEST_F(FramerTest, MessagesAreFoundWhateverTheChunks)
{
    const auto stream = concat(message(1, 0), message(2, 5, 2), message(3, 300, 3), message(4, 0));
    for (std::size_t chunk = 1; chunk <= stream.size(); ++chunk) {
        messages.clear();
        for (std::size_t at = 0; at < stream.size(); at += chunk) {
            const auto end = std::min(at + chunk, stream.size());
            feed({stream.begin() + static_cast<std::ptrdiff_t>(at), stream.begin() + static_cast<std::ptrdiff_t>(end)});
        }
        ASSERT_EQ(4u, messages.size());
        EXPECT_EQ(1, messages[0].header.message_id);
        EXPECT_EQ(filled(5, 2), messages[1].payload);
        EXPECT_EQ(filled(300, 3), messages[2].payload);
        EXPECT_EQ(4, messages[3].header.message_id);
        EXPECT_FALSE(framer.mid_message());
    }
}

TEST_F(FramerTest, FdsBelongToTheLastMessageThatStartsInTheChunk)
{
    feed(concat(message(1, 4), message(2, 4), message(3, 4)), 2);
    ASSERT_EQ(3u, messages.size());
    EXPECT_TRUE(messages[0].fds.empty());
    EXPECT_TRUE(messages[1].fds.empty());
    EXPECT_EQ(2u, messages[2].fds.size());
}

TEST_F(FramerTest, FdsBelongToAMessageThatStartsAndDoesNotEndInTheChunk)
{
    auto stream = concat(message(1, 4), message(2, 40));
    const ByteVector first(stream.begin(), stream.begin() + 30);
    const ByteVector second(stream.begin() + 30, stream.end());
    feed(first, 1);
    ASSERT_EQ(1u, messages.size());
    EXPECT_TRUE(messages[0].fds.empty());
    feed(second);
    ASSERT_EQ(2u, messages.size());
    EXPECT_EQ(1u, messages[1].fds.size());
}

TEST_F(FramerTest, FdsBelongToTheMessageInProgressIfNoneStarts)
{
    const auto stream = message(1, 40);
    feed({stream.begin(), stream.begin() + 16});
    feed({stream.begin() + 16, stream.begin() + 20}, 1);
    feed({stream.begin() + 20, stream.end()}, 1);
    ASSERT_EQ(1u, messages.size());
    EXPECT_EQ(2u, messages[0].fds.size());
}

TEST_F(FramerTest, FdsThatComeWithTheEndOfAMessageAndTheStartOfAnotherBelongToTheOther)
{
    const auto stream = concat(message(1, 40), message(2, 0));
    feed({stream.begin(), stream.begin() + 20});
    feed({stream.begin() + 20, stream.end()}, 1);
    ASSERT_EQ(2u, messages.size());
    EXPECT_TRUE(messages[0].fds.empty());
    EXPECT_EQ(1u, messages[1].fds.size());
}

TEST_F(FramerTest, AMessageKeepsSixteenFdsAndKnowsThatThereWereMore)
{
    const auto before = open_fds();
    feed(message(1, 0), 16);
    EXPECT_FALSE(messages.back().too_many_fds);
    feed(message(2, 0), 20);
    EXPECT_TRUE(messages.back().too_many_fds);
    EXPECT_EQ(16u, messages.back().fds.size());
    messages.clear();
    EXPECT_EQ(before, open_fds());
}

TEST_F(FramerTest, ImpossibleSizesEndTheStream)
{
    for (const std::uint32_t size : {0u, 15u, vu::kMaxMessageSize + 1, 0xffffffffu}) {
        framer = Framer{};
        messages.clear();
        const auto before = open_fds();
        feed(concat(message(1, 0), vu::Header{2, 9, size, 0, 0}, filled(100, 0)), 1);
        ASSERT_EQ(2u, messages.size());
        EXPECT_FALSE(messages[0].out_of_step);
        EXPECT_TRUE(messages[1].out_of_step);
        EXPECT_FALSE(framer.in_step());
        feed(message(3, 0), 1);
        EXPECT_EQ(2u, messages.size());
        messages.clear();
        EXPECT_EQ(before, open_fds());
    }
}

TEST_F(FramerTest, TheLargestMessagePasses)
{
    feed(message(1, vu::kMaxMessageSize - 16, 7));
    ASSERT_EQ(1u, messages.size());
    EXPECT_FALSE(messages[0].out_of_step);
    EXPECT_EQ(vu::kMaxMessageSize - 16, messages[0].payload.size());
}

}  // namespace
}  // namespace vvfu::test
