// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

class SessionRegionsTest : public CoreTest {
protected:
    void send_read(std::uint32_t region, std::uint64_t offset, std::uint32_t count)
    {
        feed(command(vu::Command::region_read, concat(vu::RegionAccess{offset, region, count})));
    }
    void send_write(std::uint32_t region, std::uint64_t offset, const ByteVector &data, std::uint32_t flags = 0)
    {
        const vu::RegionAccess access{offset, region, static_cast<std::uint32_t>(data.size())};
        feed(command(vu::Command::region_write, concat(access, data), flags));
    }
    int read_errno(vu::RegionAccess access) { return call_errno(vu::Command::region_read, concat(access)); }
};

TEST_F(SessionRegionsTest, ReadIsAnsweredByTheGuest)
{
    start_session();
    send_read(0, 0x1c, 4);
    const auto request = take_request(control::Type::region_read);
    EXPECT_EQ((control::RegionAccess{0x1c, 0, 4}), *control::decode_region_access(request.payload));
    EXPECT_EQ(1u, request.header.epoch);
    EXPECT_FALSE(has_reply());
    answer(request, concat(vu::RegionAccess{0x1c, 0, 4}, std::uint32_t{0x12345678}));
    const auto reply = take_sent();
    EXPECT_EQ(concat(vu::RegionAccess{0x1c, 0, 4}, std::uint32_t{0x12345678}), reply.payload);
    EXPECT_EQ(36u, reply.header.size);
}

TEST_F(SessionRegionsTest, TheWholeConfigurationSpaceIsReadInOneReply)  // stock QEMU does that
{
    start_session();
    const auto reply = call(vu::Command::region_read, concat(vu::RegionAccess{0, control::kRegionConfig, 4096}));
    EXPECT_EQ(concat(vu::RegionAccess{0, 7, 4096}, filled(4096, 0x5a)), reply.payload);
}

TEST_F(SessionRegionsTest, ALongReadIsSplitAndPutTogether)
{
    start_session();
    send_read(4, 0x100, 10000);
    ASSERT_EQ(3u, port.requests.size());
    const auto first = take_request(), second = take_request(), third = take_request();
    EXPECT_EQ((control::RegionAccess{0x100 + 8192, 4, 10000 - 8192}), *control::decode_region_access(third.payload));
    read_fill = 3;
    answer_well(third);
    read_fill = 1;
    answer_well(first);
    EXPECT_FALSE(has_reply());
    read_fill = 2;
    answer_well(second);
    const auto reply = take_sent();
    EXPECT_EQ(concat(vu::RegionAccess{0x100, 4, 10000}, filled(4096, 1), filled(4096, 2), filled(10000 - 8192, 3)),
              reply.payload);
}

TEST_F(SessionRegionsTest, TheLargestReadIsOneMebibyte)
{
    start_session();
    EXPECT_EQ(0, read_errno({0, 4, 1u << 20}));
    EXPECT_EQ(EINVAL, read_errno({0, 4, (1u << 20) + 1}));
}

//= VVFU-DEADLINE-1
//= type=test
TEST_F(SessionRegionsTest, AReadThatTheGuestDoesNotAnswerGetsAllOnesOfFullSize)
{
    start_session();
    send_read(0, 0, 8);
    advance(config.access_timeout);
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 8}, filled(8, 0xff)), take_sent().payload);
    EXPECT_EQ(1u, core->state().deadline_expiries);
}

//= VVFU-ACCESS-3
//= type=test
TEST_F(SessionRegionsTest, AReadThatTheGuestRefusesGetsAllOnesOfFullSize)
{
    start_session();
    send_read(0, 0, 8);
    answer(take_request(), filled(2, 'x'), control::Status::invalid);
    const auto reply = take_sent();
    EXPECT_EQ(0u, reply.header.error);
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 8}, filled(8, 0xff)), reply.payload);
}

//= VVFU-ACCESS-1
//= type=test
TEST_F(SessionRegionsTest, AccessesOutsideTheRegionAreRefusedWithoutTheGuest)
{
    start_session();
    for (const vu::RegionAccess bad :
         {vu::RegionAccess{0x4000, 0, 1}, vu::RegionAccess{0x3fff, 0, 2}, vu::RegionAccess{~std::uint64_t{0}, 0, 2},
          vu::RegionAccess{0, 9, 1}, vu::RegionAccess{0, 0xffffffff, 1}, vu::RegionAccess{0, 8, 1},
          vu::RegionAccess{4096, 7, 4}}) {
        EXPECT_EQ(EINVAL, read_errno(bad));
        EXPECT_EQ(EINVAL, call_errno(vu::Command::region_write, concat(bad, filled(bad.count & 0xff, 0))));
    }
    EXPECT_EQ(EINVAL, call_errno(vu::Command::region_read, filled(15, 0)));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(3, 0))));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(5, 0))));
    EXPECT_TRUE(port.requests.empty());
}

TEST_F(SessionRegionsTest, EmptyAccessesSucceedWithoutTheGuest)
{
    start_session();
    send_read(0, 0, 0);
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 0}), take_sent().payload);
    send_write(0, 0x4000, {});
    EXPECT_EQ(concat(vu::RegionAccess{0x4000, 0, 0}), take_sent().payload);
    EXPECT_TRUE(port.requests.empty());
}

TEST_F(SessionRegionsTest, RegionsWithoutReadOrWriteAnswerLikeABusThatNobodyDrives)
{
    start_session();
    send_read(5, 0, 4);  // write-only
    EXPECT_EQ(concat(vu::RegionAccess{0, 5, 4}, filled(4, 0xff)), take_sent().payload);
    send_write(2, 0, filled(4, 1));  // read-only
    EXPECT_EQ(concat(vu::RegionAccess{0, 2, 4}), take_sent().payload);
    EXPECT_TRUE(port.requests.empty());
}

TEST_F(SessionRegionsTest, WriteIsAnsweredByTheGuest)
{
    start_session();
    send_write(0, 0x10, filled(4, 7));
    const auto request = take_request(control::Type::region_write);
    EXPECT_FALSE(request.header.is_posted());
    const auto data = control::decode_region_data(request.payload);
    ASSERT_TRUE(data.has_value());
    EXPECT_EQ((control::RegionAccess{0x10, 0, 4}), data->access);
    EXPECT_TRUE(std::equal(data->data.begin(), data->data.end(), filled(4, 7).begin()));
    EXPECT_FALSE(has_reply());
    answer_well(request);
    const auto reply = take_sent();
    EXPECT_EQ(concat(vu::RegionAccess{0x10, 0, 4}), reply.payload);
}

TEST_F(SessionRegionsTest, AWriteThatTheGuestDoesNotAnswerSucceedsAtTheDeadline)
{
    start_session();
    send_write(0, 0x10, filled(4, 7));
    advance(config.access_timeout);
    EXPECT_EQ(concat(vu::RegionAccess{0x10, 0, 4}), take_sent().payload);
}

//= VVFU-ACCESS-4
//= type=test
TEST_F(SessionRegionsTest, WritesWithoutReplyArePosted)
{
    start_session();
    send_write(0, 0x10, filled(4, 7), vu::kFlagNoReply);
    send_write(4, 0, filled(5000, 7), vu::kFlagNoReply);
    ASSERT_EQ(3u, port.requests.size());
    for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(take_request(control::Type::region_write).header.is_posted());
    }
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(kNever, core->next_deadline());
}

//= VVFU-QUEUE-7
//= type=test
TEST_F(SessionRegionsTest, RequestsHaveTheOrderOfTheSocket)
{
    start_session();
    send_write(0, 0, filled(4, 1), vu::kFlagNoReply);
    send_read(0, 4, 4);
    feed(command(vu::Command::device_reset, {}));
    feed(command(vu::Command::dma_map, dma_map_payload(0, 4096)));
    send_write(0, 8, filled(4, 1));
    using control::Type;
    for (const auto type :
         {Type::region_write, Type::region_read, Type::device_reset, Type::memory_info, Type::region_write}) {
        take_request(type);
    }
}

TEST_F(SessionRegionsTest, WriteMultiIsCheckedEntryByEntry)
{
    start_session();
    const auto entry = [](std::uint64_t offset, std::uint32_t region, std::uint32_t count) {
        vu::MultiWrite write;
        write.offset = offset;
        write.region = region;
        write.count = count;
        std::fill(std::begin(write.data), std::end(write.data), std::byte{9});
        return write;
    };
    const auto multi = [&](const ByteVector &payload) { return call_errno(vu::Command::region_write_multi, payload); };
    EXPECT_EQ(EINVAL, multi(filled(7, 0)));
    EXPECT_EQ(EINVAL, multi(concat(std::uint64_t{2}, entry(0, 0, 4))));
    EXPECT_EQ(EINVAL, multi(concat(std::uint64_t{1}, entry(0, 0, 4), std::uint8_t{0})));
    EXPECT_EQ(EINVAL, multi(concat(std::uint64_t{2}, entry(0, 0, 4), entry(0, 0, 9))));
    EXPECT_EQ(EINVAL, multi(concat(std::uint64_t{2}, entry(0, 0, 4), entry(0x3ffd, 0, 4))));
    EXPECT_EQ(EINVAL, multi(concat(std::uint64_t{2}, entry(0, 0, 4), entry(0, 9, 4))));
    EXPECT_EQ(EINVAL, multi(concat(~std::uint64_t{0})));
    EXPECT_TRUE(port.requests.empty());

    feed(command(vu::Command::region_write_multi,
                 concat(std::uint64_t{3}, entry(0, 0, 4), entry(0, 0, 0), entry(8, 4, 8))));
    const auto request = take_request(control::Type::region_write_multi);
    const auto writes = control::decode_multi_write(request.payload);
    ASSERT_TRUE(writes.has_value());
    ASSERT_EQ(2u, writes->size());
    EXPECT_EQ((control::RegionAccess{8, 4, 8}), (*writes)[1].access);
    answer(request);
    EXPECT_EQ(concat(std::uint64_t{3}), take_sent().payload);
}

TEST_F(SessionRegionsTest, ALongWriteMultiIsSplitInOrder)
{
    start_session();
    ByteVector payload = concat(std::uint64_t{600});
    for (std::uint32_t i = 0; i < 600; ++i) {
        vu::MultiWrite write;
        write.offset = i * 4;
        write.region = 4;
        write.count = 4;
        payload = concat(payload, write);
    }
    feed(command(vu::Command::region_write_multi, payload, vu::kFlagNoReply));
    std::uint64_t expected = 0;
    while (!port.requests.empty()) {
        const auto request = take_request(control::Type::region_write_multi);
        EXPECT_TRUE(request.header.is_posted());
        const auto writes = control::decode_multi_write(request.payload);
        ASSERT_TRUE(writes.has_value());
        for (const auto &write : *writes) {
            EXPECT_EQ(expected, write.access.offset);
            expected += 4;
        }
    }
    EXPECT_EQ(2400u, expected);
}

//= VVFU-ERROR-3
//= type=test
TEST_F(SessionRegionsTest, RepliesOfTheWrongShapeBreakTheDevice)
{
    const std::vector<ByteVector> bad = {
        {},
        concat(vu::RegionAccess{0, 0, 4}),                    // no data
        concat(vu::RegionAccess{0, 0, 4}, std::uint16_t{0}),  // too little
        concat(vu::RegionAccess{0, 0, 8}, std::uint64_t{0}),  // of another count
        concat(vu::RegionAccess{4, 0, 4}, std::uint32_t{0}),  // of another offset
        concat(vu::RegionAccess{0, 1, 4}, std::uint32_t{0}),  // of another region
    };
    for (const auto &payload : bad) {
        start_session();
        send_read(0, 0, 4);
        answer(take_request(), payload);
        EXPECT_TRUE(port.broken.has_value());
        EXPECT_STREQ("broken", core->state().state);
        core.reset();
        port.broken.reset();
    }
}

// ---- order of replies behind posted writes ----

//= VVFU-OP-5
//= type=test
TEST_F(SessionRegionsTest, RepliesWaitForPostedWritesBeforeThem)
{
    start_session();
    send_write(0, 0, filled(4, 1), vu::kFlagNoReply);
    send_read(0, 0, 0);  // needs nothing from the guest
    EXPECT_FALSE(has_reply());
    take_request(control::Type::region_write);
    const auto fence = take_request(control::Type::irq_info);
    EXPECT_EQ((control::IrqInfo{0, 0, 0, control::IrqAction::assign}), *control::decode_irq_info(fence.payload));
    answer(fence);
    EXPECT_EQ(16u + 16u, take_sent().header.size);
    // Known to be complete now.
    send_read(0, 0, 0);
    EXPECT_TRUE(has_reply());
}

//= VVFU-OP-5
//= type=test
TEST_F(SessionRegionsTest, SetIrqsWaitsForPostedWritesBeforeIt)
{
    start_session();
    send_write(0, 0, filled(4, 1), vu::kFlagNoReply);
    feed(command(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x21, 2, 0, 0})));
    EXPECT_FALSE(has_reply());
    answer_all();
    EXPECT_EQ(16u, take_sent().header.size);
}

// ---- back-pressure ----

//= VVFU-QUEUE-11
//= type=test
TEST_F(SessionRegionsTest, ReadingStopsWhenTheGuestTakesNothingAndGoesOnWhenItDoes)
{
    start_session();
    port.request_buffers = 0;
    unsigned sent = 0;
    while (core->wants_peer_data() && sent < 100000) {
        send_write(0, 0, filled(4, 1), vu::kFlagNoReply);
        ++sent;
    }
    EXPECT_GE(sent, 1000u);
    EXPECT_LT(sent, 5000u);
    port.request_buffers = 1000000;
    core->request_buffers(now, 1);
    EXPECT_TRUE(core->wants_peer_data());
    EXPECT_EQ(sent, port.requests.size());
}

TEST_F(SessionRegionsTest, APeerBehindABlockedGuestIsAnsweredAtDeadlines)
{
    start_session();
    port.request_buffers = 0;
    while (core->wants_peer_data()) {
        send_write(0, 0, filled(4, 1), vu::kFlagNoReply);
    }
    // What the guest has left lying for the access timeout holds nothing up any more.
    send_read(0, 0, 4);
    EXPECT_FALSE(has_reply());
    EXPECT_NE(kNever, core->next_deadline());
    advance(config.access_timeout);
    EXPECT_TRUE(core->wants_peer_data());
    advance(config.access_timeout);
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, 0xff)), take_sent().payload);
}

//= VVFU-DEADLINE-5
//= type=test
TEST_F(SessionRegionsTest, PostedWritesToAGuestThatTakesNothingAreDropped)
{
    start_session();
    port.request_buffers = 0;
    while (core->wants_peer_data()) {
        send_write(4, 0, filled(900000, 1), vu::kFlagNoReply);
    }
    advance(config.access_timeout);
    for (int i = 0; i < 40; ++i) {
        ASSERT_TRUE(core->wants_peer_data());
        send_write(4, 0, filled(900000, 1), vu::kFlagNoReply);
    }
    EXPECT_EQ(0u, port.closed);
    EXPECT_LE(40u, core->state().dropped_accesses);
}

TEST_F(SessionRegionsTest, AGuestThatNeverTakesAnythingLosesTheSession)
{
    start_session();
    port.request_buffers = 0;
    send_write(4, 0, filled(4, 1), vu::kFlagNoReply);
    advance(config.access_timeout);
    constexpr std::uint32_t kMask = 0x0a;  // BOOL, MASK: every other vector
    const auto mask = concat(vu::IrqSet{28, kMask, 2, 0, 8}, filled(1, 1), filled(1, 0), filled(1, 1), filled(1, 0),
                             filled(1, 1), filled(1, 0), filled(1, 1), filled(1, 0));
    for (int i = 0; i < 200000 && port.closed == 0; ++i) {
        feed(command(vu::Command::device_set_irqs, mask));
        port.sent.clear();
        port.events.clear();
    }
    EXPECT_EQ(1u, port.closed);
    EXPECT_TRUE(port.logged("takes no requests"));
    EXPECT_STREQ("listening", core->state().state);
}

TEST_F(SessionRegionsTest, LargeReadsInProgressAreLimited)
{
    start_session();
    for (int i = 0; i < 100; ++i) {
        feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 4, 1u << 20})));
    }
    EXPECT_FALSE(core->wants_peer_data());
    EXPECT_LT(port.requests.size(), 20u * 256);
    answer_all();
    EXPECT_EQ(100u, port.sent.size());
    EXPECT_TRUE(core->wants_peer_data());
}

TEST_F(SessionRegionsTest, NothingIsDispatchedWhileThePeerDoesNotRead)
{
    start_session();
    port.backlog = 5 * 1024 * 1024;
    send_read(0, 0, 4);
    EXPECT_TRUE(port.requests.empty());
    EXPECT_FALSE(core->wants_peer_data());
    port.backlog = 0;
    core->send_drained(now);
    EXPECT_EQ(1u, port.requests.size());
    EXPECT_TRUE(core->wants_peer_data());
}

TEST_F(SessionRegionsTest, ReadsThatExpiredBeforeDeliveryAreNotDeliveredButWritesAre)
{
    start_session();
    port.request_buffers = 0;
    send_read(0, 0, 4);
    send_write(0, 8, filled(4, 1));
    advance(config.access_timeout);
    EXPECT_EQ(2u, port.sent.size());
    port.request_buffers = 10;
    core->request_buffers(now, 1);
    ASSERT_EQ(1u, port.requests.size());
    take_request(control::Type::region_write);
}

}  // namespace
}  // namespace vvfu::test
