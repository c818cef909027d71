// SPDX-License-Identifier: BSD-3-Clause
#include "peer_dma.hpp"

#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

constexpr std::uint64_t kBase = 0x100000;
constexpr std::uint64_t kSize = 0x400000;

class PeerDmaTest : public CoreTest {
protected:
    void start(const std::string &json = "{}")
    {
        start_session(json);
        ASSERT_EQ(0, map(kBase, kSize));
    }
    std::uint64_t start_read(std::uint64_t address, std::uint64_t count, std::uint32_t epoch = 1)
    {
        return start_control(control::Type::dma_read, epoch, [&](control::Buffer &out) {
            control::append(out, control::DmaAccess{address, count});
        });
    }
    std::uint64_t start_write(std::uint64_t address, const ByteVector &data, std::uint32_t epoch = 1)
    {
        return start_control(control::Type::dma_write, epoch, [&](control::Buffer &out) {
            control::append(out, control::DmaAccess{address, data.size()}, data);
        });
    }
    bool done(std::uint64_t token) const { return port.completed.contains(token); }
    control::Status status(std::uint64_t token) { return control_reply(token).header.status; }
    void reply_to(const PeerReply &sent, const ByteVector &payload, int error = 0)
    {
        vu::Header header = sent.header;
        header.size = static_cast<std::uint32_t>(16 + payload.size());
        header.flags = vu::kTypeReply | (error != 0 ? vu::kFlagError : 0u);
        header.error = static_cast<std::uint32_t>(error);
        feed(concat(header, payload));
    }
};

//= VVFU-QUEUE-12
//= type=test
//= VVFU-QUEUE-13
//= type=test
TEST_F(PeerDmaTest, RequestsAreLeftInTheirQueueWhileMuchDataWaitsForThePeer)
{
    constexpr std::uint64_t kChunk = 200 * 1024, kMost = 4 * 1024 * 1024;
    start();
    const auto fill = [&] {
        std::vector<std::uint64_t> tokens;
        while (core->wants_control_requests()) {
            tokens.push_back(tokens.size() % 2 == 0 ? start_write(kBase, filled(kChunk, 1))
                                                    : start_read(kBase, kChunk));
            EXPECT_LE(tokens.size() * kChunk, kMost + kChunk);
        }
        return tokens;
    };
    auto tokens = fill();
    EXPECT_GE(tokens.size() * kChunk, kMost) << "not sooner than needed";
    // The peer's commands and the guest's replies go on.
    const auto write = take_sent();
    port.sent.clear();
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    answer_well(take_request());
    EXPECT_EQ(vu::Command::region_read, take_sent().header.kind());
    EXPECT_FALSE(core->wants_control_requests());
    // So does the peer's reply, which makes room.
    reply_to(write, concat(vu::DmaAccess{kBase, kChunk}));
    EXPECT_EQ(control::Status::ok, status(tokens[0]));
    EXPECT_TRUE(core->wants_control_requests());
    // Or it is made by the deadline, a reset, or the end of the session.
    fill();
    advance(config.access_timeout);
    EXPECT_EQ(control::Status::timeout, status(tokens[1]));
    EXPECT_TRUE(core->wants_control_requests());
    tokens = fill();
    feed(command(vu::Command::device_reset, {}));
    EXPECT_EQ(control::Status::busy, status(tokens[0]));
    EXPECT_TRUE(core->wants_control_requests());
    answer_all();
    tokens = fill();
    core->peer_closed(now, 0);
    EXPECT_EQ(control::Status::stale, status(tokens[0]));
    EXPECT_TRUE(core->wants_control_requests());
}

TEST_F(PeerDmaTest, ReadAsksThePeer)
{
    start();
    const auto token = start_read(kBase + 16, 8);
    const auto sent = take_sent();
    EXPECT_EQ(vu::Command::dma_read, sent.header.kind());
    EXPECT_EQ(vu::kTypeCommand, sent.header.type());
    EXPECT_EQ(concat(vu::DmaAccess{kBase + 16, 8}), sent.payload);
    EXPECT_FALSE(done(token));
    reply_to(sent, concat(vu::DmaAccess{kBase + 16, 8}, filled(8, 0x42)));
    const auto reply = control_reply(token);
    EXPECT_EQ(control::Status::ok, reply.header.status);
    EXPECT_EQ(concat(vu::DmaAccess{kBase + 16, 8}, filled(8, 0x42)), reply.payload);
    EXPECT_EQ(kNever, core->next_deadline());
}

//= VVFU-ORDER-3
//= type=test
TEST_F(PeerDmaTest, WriteSendsTheDataToThePeer)
{
    start();
    const auto token = start_write(kBase, filled(5, 3));
    const auto sent = take_sent();
    EXPECT_EQ(vu::Command::dma_write, sent.header.kind());
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 5}, filled(5, 3)), sent.payload);
    EXPECT_FALSE(port.completed.contains(token));
    reply_to(sent, concat(vu::DmaAccess{kBase, 5}));
    const auto reply = control_reply(token);
    EXPECT_EQ(control::Status::ok, reply.header.status);
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 5}), reply.payload);
}

TEST_F(PeerDmaTest, RepliesWith32BitCountsAreUnderstood)  // QEMU up to 10.2.2
{
    start();
    const auto read = start_read(kBase, 8);
    reply_to(take_sent(), concat(kBase, std::uint32_t{8}, filled(8, 0x42)));
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 8}, filled(8, 0x42)), control_reply(read).payload);
    const auto write = start_write(kBase, filled(8, 1));
    reply_to(take_sent(), {});
    EXPECT_EQ(control::Status::ok, status(write));
    const auto write2 = start_write(kBase, filled(8, 1));
    reply_to(take_sent(), concat(kBase, std::uint32_t{8}));
    EXPECT_EQ(control::Status::ok, status(write2));
}

TEST_F(PeerDmaTest, RepliesThatDoNotFitAreIoErrors)
{
    start();
    for (const auto &bad :
         {ByteVector{}, concat(vu::DmaAccess{kBase, 8}), concat(vu::DmaAccess{kBase + 1, 8}, filled(8, 0)),
          concat(vu::DmaAccess{kBase, 7}, filled(8, 0)), concat(vu::DmaAccess{kBase, 8}, filled(9, 0))}) {
        const auto token = start_read(kBase, 8);
        reply_to(take_sent(), bad);
        EXPECT_EQ(control::Status::io, status(token));
    }
}

TEST_F(PeerDmaTest, ErrorsOfThePeerAreTranslated)
{
    start();
    for (const auto &[error, expected] :
         {std::pair{EFAULT, control::Status::fault}, std::pair{EPERM, control::Status::permission},
          std::pair{EACCES, control::Status::permission}, std::pair{E2BIG, control::Status::io}}) {
        const auto token = start_read(kBase, 8);
        reply_to(take_sent(), {}, error);
        EXPECT_EQ(expected, status(token));
    }
}

//= VVFU-DMA-1
//= type=test
TEST_F(PeerDmaTest, AccessesOutsideThePeersMemoryAreRefusedHere)
{
    start();
    map(kBase + kSize, 0x1000, {}, 0, vu::kDmaRead);
    EXPECT_EQ(control::Status::fault, status(start_read(kBase - 1, 2)));
    EXPECT_EQ(control::Status::fault, status(start_read(0, 1)));
    EXPECT_EQ(control::Status::fault, status(start_read(kBase + kSize + 0xfff, 2)));
    EXPECT_EQ(control::Status::fault, status(start_read(~std::uint64_t{0}, 2)));
    EXPECT_EQ(control::Status::permission, status(start_write(kBase + kSize - 1, filled(2, 0))));
    EXPECT_EQ(control::Status::permission, status(start_write(kBase + kSize, filled(2, 0))));
    EXPECT_FALSE(has_reply());
    start_read(kBase + kSize - 1, 2);  // crosses two ranges that both allow it
    EXPECT_TRUE(has_reply());
}

TEST_F(PeerDmaTest, MappedRangesCanBeReachedByMessagesToo)
{
    start_session();
    map(kBase, 0x1000, memory(0x1000));
    start_read(kBase, 4);
    EXPECT_EQ(vu::Command::dma_read, take_sent().header.kind());
}

//= VVFU-DMA-4
//= type=test
TEST_F(PeerDmaTest, EmptyAndOversizedAccessesAreInvalid)
{
    start();
    EXPECT_EQ(control::Status::invalid, status(start_read(kBase, 0)));
    EXPECT_EQ(control::Status::invalid, status(start_read(kBase, kMaxMessageSize)));
    EXPECT_EQ(control::Status::invalid, status(start_write(kBase, {})));
    const auto token = start_control(control::Type::dma_write, 1, [](control::Buffer &out) {
        control::append(out, control::DmaAccess{kBase, 9}, filled(8, 0));
    });
    EXPECT_EQ(control::Status::invalid, status(token));
    start_read(kBase, kMaxMessageSize - 48);
    EXPECT_TRUE(has_reply());
}

//= VVFU-DMA-2
//= type=test
TEST_F(PeerDmaTest, AccessesAreSplitToThePeersLimit)
{
    start(R"({"capabilities":{"max_data_xfer_size":4096}})");
    const auto token = start_read(kBase, 10000);
    ASSERT_EQ(3u, port.sent.size());
    const auto first = take_sent(), second = take_sent(), third = take_sent();
    EXPECT_EQ(concat(vu::DmaAccess{kBase + 8192, 10000 - 8192}), third.payload);
    reply_to(third, concat(third.payload, filled(10000 - 8192, 3)));
    reply_to(first, concat(first.payload, filled(4096, 1)));
    EXPECT_FALSE(done(token));
    reply_to(second, concat(second.payload, filled(4096, 2)));
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 10000}, filled(4096, 1), filled(4096, 2), filled(10000 - 8192, 3)),
              control_reply(token).payload);
}

TEST_F(PeerDmaTest, RepliesToReadsFitIntoThePeersSocketBuffer)  // QEMU 11.1 cuts them short otherwise
{
    start();
    constexpr std::uint64_t kLength = 200 * 1024;
    const auto token = start_read(kBase, kLength);
    const auto small = start_read(kBase, 8);
    for (std::uint64_t asked = 0; asked < 192 * 1024; asked += core::PeerDma::kMaxReadPiece) {
        ASSERT_EQ(1u, port.sent.size()) << "one piece of 64 KiB fills the buffer";
        const auto sent = take_sent();
        EXPECT_EQ(concat(vu::DmaAccess{kBase + asked, core::PeerDma::kMaxReadPiece}), sent.payload);
        reply_to(sent, concat(sent.payload, filled(core::PeerDma::kMaxReadPiece, 7)));
    }
    // Only 8 KiB are left: they and the second read go out together.
    ASSERT_EQ(2u, port.sent.size());
    const auto last = take_sent(), behind = take_sent();
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 8}), behind.payload);
    reply_to(behind, concat(behind.payload, filled(8, 1)));
    EXPECT_TRUE(done(small));
    EXPECT_FALSE(done(token));
    reply_to(last, concat(last.payload, filled(8 * 1024, 7)));
    EXPECT_EQ(control::Status::ok, status(token));
}

TEST_F(PeerDmaTest, APeerThatTakesOneByteAtATimeIsServedWithinBounds)
{
    start(R"({"capabilities":{"max_data_xfer_size":1}})");
    const auto token = start_write(kBase, filled(1000, 9));
    EXPECT_EQ(core::PeerDma::kMaxOutstanding, port.sent.size());
    unsigned commands = 0;
    while (has_reply()) {
        const auto sent = take_sent();
        ++commands;
        reply_to(sent, {sent.payload.begin(), sent.payload.begin() + 16});
    }
    EXPECT_EQ(1000u, commands);
    EXPECT_EQ(control::Status::ok, status(token));
}

//= VVFU-DMA-3
//= type=test
TEST_F(PeerDmaTest, CommandsOfThePeerAreServedWhileItOwesReplies)
{
    start();
    const auto first = start_read(kBase, 4);
    const auto second = start_read(kBase + 4, 4);
    const auto ask_first = take_sent(), ask_second = take_sent();
    EXPECT_NE(ask_first.header.message_id, ask_second.header.message_id);
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    reply_to(ask_second, concat(vu::DmaAccess{kBase + 4, 4}, filled(4, 2)));
    EXPECT_TRUE(done(second));
    answer_all();
    EXPECT_EQ(vu::Command::region_read, take_sent().header.kind());
    reply_to(ask_first, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    EXPECT_TRUE(done(first));
}

TEST_F(PeerDmaTest, AReplyThatIsBehindWaitingCommandsIsTakenAtOnce)
{
    start();
    port.request_buffers = 0;
    const auto token = start_read(kBase, 4);
    const auto sent = take_sent();
    // Far more than the guest's backlog may hold.
    for (int i = 0; i < 1100; ++i) {
        feed(command(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(4, 0)), vu::kFlagNoReply));
    }
    EXPECT_TRUE(core->wants_peer_data());
    reply_to(sent, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    EXPECT_TRUE(done(token));
    EXPECT_FALSE(core->wants_peer_data());
}

TEST_F(PeerDmaTest, ReadingForTheSakeOfRepliesIsBounded)
{
    start();
    port.request_buffers = 0;
    start_read(kBase, 4);
    std::size_t bytes = 0;
    while (core->wants_peer_data() && bytes < (64u << 20)) {
        feed(command(vu::Command::region_write, concat(vu::RegionAccess{0, 4, 100000}, filled(100000, 0)),
                     vu::kFlagNoReply));
        bytes += 100000;
    }
    EXPECT_LT(bytes, 8u << 20);
}

//= VVFU-OP-4
//= VVFU-DMA-5
//= type=test
TEST_F(PeerDmaTest, AResetEndsEveryAccessWithoutThePeer)
{
    start();
    const auto read = start_read(kBase, 4), write = start_write(kBase + 8, filled(4, 1));
    const auto pieces = start_read(kBase, 200 * 1024);  // not all of it is asked for yet
    port.events.clear();
    const auto reset = command(vu::Command::device_reset, {});
    feed(reset);
    // A guest that answers only when its DMA is over can do so now, and learns why before it learns that.
    for (const auto token : {read, write, pieces}) {
        ASSERT_TRUE(done(token));
        EXPECT_EQ(control::Status::busy, status(token));
        EXPECT_TRUE(control_reply(token).payload.empty());
    }
    EXPECT_EQ((std::vector<std::string>{"request", "complete", "complete", "complete"}), port.events);
    port.sent.clear();
    answer(take_request(control::Type::device_reset));
    EXPECT_EQ(vu::Command::device_reset, take_sent().header.kind());
    EXPECT_FALSE(has_reply()) << "no further piece";
    EXPECT_EQ(0u, core->state().deadline_expiries);
}

//= VVFU-DMA-6
//= type=test
TEST_F(PeerDmaTest, DuringAResetNoAccessStarts)
{
    start();
    feed(command(vu::Command::device_reset, {}));
    feed(command(vu::Command::device_reset, {}));
    const auto first = take_request(control::Type::device_reset), second = take_request(control::Type::device_reset);
    EXPECT_EQ(control::Status::busy, status(start_read(kBase, 4)));
    EXPECT_EQ(control::Status::fault, status(start_read(0, 4)));
    answer(first);
    take_sent();
    EXPECT_EQ(control::Status::busy, status(start_write(kBase, filled(4, 0))));
    EXPECT_FALSE(has_reply());
    answer(second);
    take_sent();
    start_read(kBase, 4);
    EXPECT_EQ(vu::Command::dma_read, take_sent().header.kind());
}

//= VVFU-DMA-6
//= type=test
TEST_F(PeerDmaTest, AResetThatTheGuestDoesNotAnswerGoesOnAfterItsDeadline)
{
    start();
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    EXPECT_EQ(vu::Command::device_reset, take_sent().header.kind());
    const auto read = start_read(kBase, 4), write = start_write(kBase, filled(4, 1));
    EXPECT_EQ(control::Status::busy, status(read));
    EXPECT_EQ(control::Status::busy, status(write));
    EXPECT_FALSE(has_reply());
    answer(take_request(control::Type::device_reset));  // late
    start_read(kBase, 4);
    EXPECT_EQ(vu::Command::dma_read, take_sent().header.kind());
}

//= VVFU-DMA-7
//= type=test
TEST_F(PeerDmaTest, LateRepliesToAccessesThatAResetEndedHaveNoEffect)
{
    start();
    const auto ended = start_read(kBase, 4);
    const auto late = take_sent();
    EXPECT_EQ(0, call_errno(vu::Command::device_reset, {}));
    const auto token = start_read(kBase, 4);
    const auto sent = take_sent();
    EXPECT_NE(late.header.message_id, sent.header.message_id);
    reply_to(late, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    EXPECT_FALSE(done(token));
    EXPECT_TRUE(control_reply(ended).payload.empty());
    reply_to(sent, concat(vu::DmaAccess{kBase, 4}, filled(4, 2)));
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 4}, filled(4, 2)), control_reply(token).payload);
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(0u, core->state().unknown_replies);
    EXPECT_EQ(0u, core->state().protocol_errors);
    EXPECT_EQ(kNever, core->next_deadline());
}

TEST_F(PeerDmaTest, CommandsThatAResetEndedCountUntilTheirReplyOrDeadline)
{
    start(R"({"capabilities":{"max_data_xfer_size":1}})");
    start_write(kBase, filled(1000, 9));
    ASSERT_EQ(core::PeerDma::kMaxOutstanding, port.sent.size());
    const auto late = take_sent();
    port.sent.clear();
    EXPECT_EQ(0, call_errno(vu::Command::device_reset, {}));
    start_write(kBase, filled(1000, 9));
    EXPECT_FALSE(has_reply()) << "the peer may still answer all of them";
    reply_to(late, concat(vu::DmaAccess{kBase, 1}));
    EXPECT_EQ(1u, port.sent.size());
    advance(config.access_timeout);
    EXPECT_EQ(1u, core->state().deadline_expiries) << "of the second access";
    EXPECT_EQ(1u, port.sent.size());
    start_write(kBase, filled(1, 9));
    EXPECT_EQ(2u, port.sent.size());
}

//= VVFU-OP-4
//= VVFU-DMA-5
//= type=test
TEST_F(PeerDmaTest, AnUnmapEndsTheAccessesToItsRangeWithoutThePeer)
{
    start();
    map(kBase + kSize, 0x1000);
    const auto read = start_read(kBase, 4), across = start_write(kBase + kSize - 2, filled(4, 1));
    const auto other = start_read(kBase + kSize, 4);
    const auto late = take_sent(), late_across = take_sent(), other_sent = take_sent();
    port.events.clear();
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(kBase, kSize)));
    for (const auto token : {read, across}) {
        ASSERT_TRUE(done(token));
        EXPECT_EQ(control::Status::fault, status(token));
    }
    EXPECT_EQ((std::vector<std::string>{"request", "complete", "complete"}), port.events);
    EXPECT_EQ(control::Status::fault, status(start_read(kBase, 4)));
    answer_all();
    EXPECT_EQ(vu::Command::dma_unmap, take_sent().header.kind());
    // Mapped again, and the replies of the time before arrive.
    map(kBase, kSize);
    const auto again = start_read(kBase, 4);
    const auto again_sent = take_sent();
    reply_to(late, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    reply_to(late_across, {}, EFAULT);
    EXPECT_FALSE(done(again));
    EXPECT_FALSE(done(other));
    reply_to(again_sent, concat(vu::DmaAccess{kBase, 4}, filled(4, 2)));
    reply_to(other_sent, concat(vu::DmaAccess{kBase + kSize, 4}, filled(4, 3)));
    EXPECT_EQ(concat(vu::DmaAccess{kBase, 4}, filled(4, 2)), control_reply(again).payload);
    EXPECT_EQ(control::Status::ok, status(other));
    EXPECT_EQ(0u, core->state().unknown_replies);
    EXPECT_EQ(0u, core->state().protocol_errors);
}

//= VVFU-DMA-5
//= type=test
TEST_F(PeerDmaTest, UnmapOfEverythingEndsEveryAccess)
{
    start();
    map(kBase + kSize, 0x1000);
    const auto read = start_read(kBase, 4), write = start_write(kBase + kSize, filled(4, 1));
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0, 0, vu::kUnmapAll)));
    ASSERT_TRUE(done(read) && done(write));
    EXPECT_EQ(control::Status::fault, status(read));
    EXPECT_EQ(control::Status::fault, status(write));
}

TEST_F(PeerDmaTest, AnUnmapOfSomethingElseEndsNoAccess)
{
    start();
    const auto token = start_read(kBase, 4);
    const auto sent = take_sent();
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_unmap, dma_unmap_payload(kBase, kSize / 2)));
    reply_to(sent, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    EXPECT_EQ(control::Status::ok, status(token));
}

TEST_F(PeerDmaTest, NothingMoreIsAskedOfMemoryThatThePeerTookAway)
{
    start();
    const auto token = start_read(kBase, 200 * 1024);  // in pieces
    const auto first = take_sent();
    ASSERT_FALSE(has_reply());
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(kBase, kSize)));
    EXPECT_EQ(control::Status::fault, status(token));
    answer_all();
    EXPECT_EQ(vu::Command::dma_unmap, take_sent().header.kind());
    reply_to(first, concat(vu::DmaAccess{kBase, 64 * 1024}, filled(64 * 1024, 1)));
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(0u, core->state().unknown_replies);
}

TEST_F(PeerDmaTest, APeerThatDoesNotAnswerIsATimeout)
{
    start();
    const auto token = start_read(kBase, 4);
    EXPECT_EQ(now + config.access_timeout, core->next_deadline());
    const auto sent = take_sent();
    advance(config.access_timeout - 1ns);
    EXPECT_FALSE(done(token));
    advance(1ns);
    EXPECT_EQ(control::Status::timeout, status(token));
    EXPECT_EQ(1u, core->state().deadline_expiries);
    // The late reply is ignored, without an error reply.
    reply_to(sent, concat(vu::DmaAccess{kBase, 4}, filled(4, 1)));
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(1u, core->state().unknown_replies);
    EXPECT_EQ(0u, core->state().protocol_errors);
}

TEST(PeerDma, MessageIdsOfUnansweredCommandsAreNotUsedAgain)
{
    FakePort port;
    core::Counters counters;
    core::Log log{port};
    core::PeerDma dma{port, counters, log, 1s};
    unsigned done = 0;
    const auto count_done = [&](control::Status, control::Bytes) { ++done; };
    const auto take_id = [&] {
        vu::Header header;
        std::memcpy(&header, port.sent.front().bytes.data(), sizeof header);
        port.sent.pop_front();
        return header.message_id;
    };
    dma.read(0s, 0, 4, count_done);
    const auto expired = take_id();
    dma.tick(1s);
    EXPECT_EQ(1u, done);
    dma.read(2s, 0, 4, count_done);
    const auto cancelled = take_id();
    dma.cancel(control::Status::busy, [](std::uint64_t, std::uint64_t, bool) { return true; });
    EXPECT_EQ(2u, done);
    for (int i = 0; i < 140000; ++i) {
        if (i == 70000) {
            dma.tick(3s);  // the deadline of the cancelled one
        }
        dma.write(2s, 0, filled(1, 0), count_done);
        core::Message reply;
        reply.header = {take_id(), 12, 16, vu::kTypeReply, 0};
        ASSERT_NE(expired, reply.header.message_id);
        ASSERT_NE(cancelled, reply.header.message_id);
        ASSERT_TRUE(dma.reply(reply));
        port.events.clear();
    }
    EXPECT_EQ(140002u, done);
}

TEST_F(PeerDmaTest, APeerThatNeverAnswersLosesTheSessionBeforeIdsRunOut)
{
    start();
    int rounds = 0;
    while (port.closed == 0 && rounds < 1000) {
        for (int i = 0; i < 256; ++i) {
            start_read(kBase, 4);
        }
        port.sent.clear();
        advance(config.access_timeout);
        ++rounds;
    }
    EXPECT_EQ(1u, port.closed);
    EXPECT_LT(rounds, 200);
}

TEST_F(PeerDmaTest, UnknownDmaRepliesAreCountedAndIgnored)
{
    start();
    feed(concat(vu::Header{77, 11, 16, vu::kTypeReply, 0}));
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(1u, core->state().unknown_replies);
}

//= VVFU-SESSION-6
//= type=test
TEST_F(PeerDmaTest, TheEndOfTheSessionAnswersWithStale)
{
    start();
    const auto read = start_read(kBase, 4);
    core->peer_closed(now, 0);
    EXPECT_EQ(control::Status::stale, status(read));
    EXPECT_EQ(control::Status::stale, status(start_read(kBase, 4)));
    answer_all();
    port.sent.clear();
    begin_session();
    map(kBase, kSize);
    EXPECT_EQ(control::Status::stale, status(start_write(kBase, filled(4, 0))));
    EXPECT_EQ(control::Status::invalid, status(start_read(kBase, 4, 3)));
    EXPECT_EQ(control::Status::invalid, status(start_read(kBase, 4, 0)));
    start_read(kBase, 4, 2);
    EXPECT_TRUE(has_reply());
}

TEST_F(PeerDmaTest, WithoutASessionTheAnswerIsNotConnected)
{
    create();
    EXPECT_EQ(control::Status::not_connected, status(start_read(kBase, 4, 1)));
    EXPECT_EQ(control::Status::not_connected, status(start_read(kBase, 4, 0)));
}

//= VVFU-ERROR-4
//= type=test
TEST_F(PeerDmaTest, AReplyPartThatIsTooSmallBreaksTheDevice)
{
    start();
    start_control(
        control::Type::dma_read, 1,
        [](control::Buffer &out) {
            control::append(out, control::DmaAccess{kBase, 1000});
        },
        1047);
    EXPECT_TRUE(port.broken.has_value());
}

TEST_F(PeerDmaTest, ASlowPeerHoldsBackFurtherCommands)
{
    start();
    port.backlog = core::PeerDma::kMaxBacklog;
    const auto token = start_write(kBase, filled(4, 0));
    EXPECT_FALSE(has_reply());
    port.backlog = 0;
    core->send_drained(now);
    reply_to(take_sent(), concat(vu::DmaAccess{kBase, 4}));
    EXPECT_TRUE(done(token));
}

}  // namespace
}  // namespace vvfu::test
