// SPDX-License-Identifier: BSD-3-Clause
#include "peer_memory.hpp"

#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

class PeerMemoryTest : public CoreTest {
protected:
    control::MemoryInfo take_memory_info(GuestRequest &request)
    {
        request = take_request(control::Type::memory_info);
        const auto info = control::decode_memory_info(request.payload);
        EXPECT_TRUE(info.has_value());
        return info.value_or(control::MemoryInfo{});
    }
    control::MemoryInfo take_memory_info()
    {
        GuestRequest request;
        return take_memory_info(request);
    }
    void send_map(std::uint64_t address, std::uint64_t size, std::vector<Fd> fds = {}, std::uint64_t offset = 0,
                  std::uint32_t flags = 3)
    {
        feed(command(vu::Command::dma_map, dma_map_payload(address, size, offset, flags)), std::move(fds));
    }
    void send_unmap(std::uint64_t address, std::uint64_t size, std::uint32_t flags = 0)
    {
        feed(command(vu::Command::dma_unmap, dma_unmap_payload(address, size, flags)));
    }
};

//= VVFU-WINDOW-1
//= type=test
//= VVFU-OP-8
//= type=test
TEST_F(PeerMemoryTest, MapShowsTheRangeInTheWindowThenTellsTheGuestAndRepliesWithoutItsAnswer)
{
    start_session();
    send_map(0x100000, 4 * kMiB, memory(8 * kMiB), 2 * kMiB);
    EXPECT_EQ((std::vector<std::string>{"map", "request", "send"}), port.events);
    const auto reply = take_sent();
    EXPECT_EQ(0u, reply.header.error);
    EXPECT_TRUE(reply.payload.empty());
    GuestRequest request;
    const auto info = take_memory_info(request);
    EXPECT_EQ((control::MemoryInfo{control::MemoryOp::add, control::kMemoryRead | control::kMemoryWrite, 0x100000,
                                   4 * kMiB, 0}),
              info);
    ASSERT_EQ(1u, port.window.size());
    EXPECT_EQ(2 * kMiB, port.window[0].fd_offset);
    EXPECT_EQ(core::kProtRead | core::kProtWrite, port.window[0].protection);
    answer(request);
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(4 * kMiB, core->state().mapped_bytes);
    EXPECT_EQ(1u, core->state().mapped_ranges);
}

//= VVFU-DEADLINE-1
//= type=test
TEST_F(PeerMemoryTest, AMapThatTheGuestDoesNotAnswerStays)
{
    start_session();
    send_map(0, kMiB, memory(kMiB));
    EXPECT_EQ(0u, take_sent().header.error);
    advance(config.access_timeout);
    EXPECT_EQ(1u, core->state().deadline_expiries);
    EXPECT_EQ(1u, port.window.size());
    answer(take_request(control::Type::memory_info), {}, control::Status::no_space);  // late
    EXPECT_STREQ("connected", core->state().state);
}

//= VVFU-MEMORY-4
//= type=test
TEST_F(PeerMemoryTest, AMapThatTheGuestRefusesEndsTheSession)
{
    start_session();
    send_map(0, kMiB, memory(kMiB));
    answer(take_request(control::Type::memory_info), filled(3, 'n'), control::Status::no_space);
    EXPECT_EQ(1u, port.closed);
    EXPECT_TRUE(port.window.empty());
    EXPECT_TRUE(port.logged("refused memory"));
    const auto down = control::decode_peer(take_request(control::Type::peer).payload);
    ASSERT_TRUE(down.has_value());
    EXPECT_EQ(control::DownReason::guest_closed, down->reason);
}

TEST_F(PeerMemoryTest, ARefusalOfARangeThatThePeerHasRemovedChangesNothing)
{
    start_session();
    send_map(0, kMiB, memory(kMiB));
    const auto add = take_request(control::Type::memory_info);
    send_unmap(0, kMiB);
    send_map(0, kMiB, memory(kMiB));
    answer(add, {}, control::Status::no_space);
    answer_all();
    EXPECT_STREQ("connected", core->state().state);
    EXPECT_EQ(1u, port.window.size());
}

//= VVFU-WINDOW-2
//= type=test
TEST_F(PeerMemoryTest, AReadOnlyRangeIsReadOnlyInTheWindow)
{
    start_session();
    EXPECT_EQ(0, map(0, kMiB, memory(kMiB), 0, vu::kDmaRead));
    EXPECT_EQ(core::kProtRead, port.window[0].protection);
}

//= VVFU-WINDOW-3
//= type=test
TEST_F(PeerMemoryTest, UnmapTellsTheGuestRemovesTheRangeThenReplies)
{
    start_session();
    map(0x1000, kMiB, memory(kMiB));
    port.events.clear();
    send_unmap(0x1000, kMiB);
    GuestRequest request;
    const auto info = take_memory_info(request);
    EXPECT_EQ(control::MemoryOp::del, info.op);
    EXPECT_EQ(0x1000u, info.address);
    EXPECT_EQ(kMiB, info.size);
    EXPECT_EQ(1u, port.window.size());
    EXPECT_FALSE(has_reply());
    answer(request);
    EXPECT_EQ((std::vector<std::string>{"request", "unmap", "send"}), port.events);
    const auto reply = take_sent();
    EXPECT_EQ(dma_unmap_payload(0x1000, kMiB), reply.payload);  // QEMU's buffer is exactly that long
}

//= VVFU-WINDOW-3
//= type=test
TEST_F(PeerMemoryTest, UnmapIsCarriedOutAtTheDeadlineWithoutTheGuest)
{
    start_session();
    map(0, kMiB, memory(kMiB));
    port.events.clear();
    send_unmap(0, kMiB);
    advance(config.unmap_timeout - 1ns);
    EXPECT_EQ(1u, port.window.size());
    advance(1ns);
    EXPECT_EQ((std::vector<std::string>{"request", "unmap", "send"}), port.events);
    EXPECT_EQ(1u, core->state().deadline_expiries);
    take_sent();
    answer_all();  // late
    EXPECT_EQ(0u, core->state().unknown_replies);
    answer_all();
    EXPECT_EQ(0, map(0, kMiB, memory(kMiB)));
}

//= VVFU-WINDOW-11
//= type=test
TEST_F(PeerMemoryTest, WindowOffsetsThatTheGuestDidNotLetGoOfAreNotReused)
{
    start_session();
    map(0, kWindow / 2, memory(kWindow / 2));
    const auto offset = port.window.begin()->first;
    send_unmap(0, kWindow / 2);
    advance(config.unmap_timeout);
    take_sent();
    const auto del = take_request(control::Type::memory_info);
    EXPECT_EQ(0, map(0, kWindow / 2, memory(kWindow / 2)));
    ASSERT_EQ(1u, port.window.size());
    EXPECT_FALSE(port.window.contains(offset));
    EXPECT_EQ(0, map(kWindow, kMiB, memory(kMiB)));
    EXPECT_EQ(1u, core->state().message_ranges);  // no room that would be safe
    EXPECT_TRUE(port.logged("has not let go"));
    EXPECT_FALSE(port.logged("window-size"));
    answer(del, {}, control::Status::busy);  // it still may access it
    EXPECT_EQ(0, map(2 * kWindow, kMiB, memory(kMiB)));
    EXPECT_EQ(2u, core->state().message_ranges);
}

//= VVFU-WINDOW-11
//= type=test
TEST_F(PeerMemoryTest, ALateAnswerToARemovalGivesTheOffsetBack)
{
    start_session();
    map(0, kWindow, memory(kWindow));
    send_unmap(0, kWindow);
    advance(config.unmap_timeout);
    take_sent();
    const auto del = take_request(control::Type::memory_info);
    EXPECT_EQ(0, map(0, kMiB, memory(kMiB)));
    EXPECT_EQ(1u, core->state().message_ranges);
    answer(del);
    EXPECT_EQ(0u, core->state().unknown_replies);
    EXPECT_EQ(0, map(kWindow, kWindow, memory(kWindow)));
    EXPECT_EQ(1u, core->state().mapped_ranges);
    answer(del);  // once more: nothing of that kind is awaited
    EXPECT_EQ(1u, core->state().unknown_replies);
    EXPECT_EQ(1u, port.window.size());
}

//= VVFU-ERROR-8
//= type=test
TEST_F(PeerMemoryTest, ALateAnswerIsCheckedLikeOneInTime)
{
    start_session();
    map(0, kMiB, memory(kMiB));
    send_unmap(0, kMiB);
    advance(config.unmap_timeout);
    auto del = take_request(control::Type::memory_info);
    ++del.header.epoch;
    answer(del);
    EXPECT_TRUE(port.broken.has_value());
}

//= VVFU-WINDOW-11
//= type=test
TEST_F(PeerMemoryTest, WindowOffsetsComeBackWhenTheGuestResetsTheDevice)
{
    start_session();
    map(0, kWindow, memory(kWindow));
    send_unmap(0, kWindow);
    advance(config.unmap_timeout);
    core->driver_reset(now);
    port.sent.clear();
    port.requests.clear();
    core->driver_ok(now);
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    begin_session();
    map(0, kWindow, memory(kWindow));
    EXPECT_EQ(1u, core->state().mapped_ranges);
}

//= VVFU-WINDOW-11
//= type=test
TEST_F(PeerMemoryTest, WindowOffsetsComeBackWhenTheGuestHasAnsweredTheEndOfASession)
{
    start_session();
    map(0, kWindow, memory(kWindow));
    core->peer_closed(now, 0);
    advance(config.access_timeout);  // PEER(DOWN) is not answered
    answer_all();
    begin_session();
    map(0, kWindow, memory(kWindow));
    EXPECT_EQ(1u, core->state().message_ranges);
    core->peer_closed(now, 0);
    answer_all();
    begin_session();
    map(0, kWindow, memory(kWindow));
    EXPECT_EQ(1u, core->state().mapped_ranges);
}

//= VVFU-OP-7
//= type=test
TEST_F(PeerMemoryTest, AMapIsAnsweredBeforeTheUnmapWhateverTheGuestAnswersFirst)
{
    start_session();
    send_map(0, kMiB, memory(kMiB));
    const auto map_id = message_id;
    send_unmap(0, kMiB);
    EXPECT_EQ(map_id, take_sent().header.message_id);
    const auto add = take_request(control::Type::memory_info);
    const auto del = take_request(control::Type::memory_info);
    answer(del);
    EXPECT_TRUE(port.window.empty());
    EXPECT_EQ(message_id, take_sent().header.message_id);
    answer(add);
    EXPECT_FALSE(has_reply());
    EXPECT_FALSE(port.broken);
}

TEST_F(PeerMemoryTest, ABurstOfUnmapsAndMapsIsPipelined)
{
    start_session();
    map(0, 8 * kMiB, memory(8 * kMiB));
    send_unmap(0, 8 * kMiB);
    send_map(0, 4 * kMiB, memory(8 * kMiB));
    send_map(4 * kMiB, 4 * kMiB, memory(8 * kMiB), 4 * kMiB);
    ASSERT_EQ(3u, port.requests.size());
    EXPECT_EQ(control::MemoryOp::del, control::decode_memory_info(take_request().payload)->op);
    EXPECT_EQ(control::MemoryOp::add, control::decode_memory_info(take_request().payload)->op);
    EXPECT_EQ(3u, port.window.size());  // the old one until the guest answers, without overlap
}

TEST_F(PeerMemoryTest, AMapWaitsForWindowSpaceThatAnUnmapInProgressWillFree)
{
    start_session();
    map(0, kWindow, memory(kWindow));
    send_unmap(0, kWindow);
    send_map(0, kWindow, memory(kWindow));
    feed(command(vu::Command::device_get_info, concat(vu::DeviceInfo{16, 0, 0, 0})));  // stays behind it
    ASSERT_EQ(1u, port.requests.size());
    EXPECT_FALSE(has_reply());
    answer(take_request());
    const auto info = take_memory_info();
    EXPECT_EQ(0u, info.flags & control::kMemoryMessageOnly);
    EXPECT_EQ(1u, port.window.size());
    EXPECT_TRUE(core->wants_peer_data());
}

//= VVFU-DEADLINE-2
//= type=test
TEST_F(PeerMemoryTest, WhatWaitsForWindowSpaceIsAnsweredInTimeAllTheSame)
{
    config.unmap_timeout = config.access_timeout = core::kPeerPatience;
    start_session();
    map(0, kWindow, memory(kWindow));
    send_unmap(0, kWindow);
    GuestRequest del;
    take_memory_info(del);
    send_map(0, kWindow, memory(kWindow));  // waits for the unmap
    ASSERT_TRUE(core->wants_peer_data());   // or nobody would know how long the next one waits
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    advance(core::kPeerPatience - 500ms);
    EXPECT_TRUE(port.requests.empty());
    answer(del);  // room at last
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_EQ(now + 500ms, core->next_deadline());
    advance(500ms);
    EXPECT_EQ(static_cast<std::uint16_t>(vu::Command::dma_map), take_sent().header.command);
    EXPECT_EQ(static_cast<std::uint16_t>(vu::Command::region_read), take_sent().header.command);
}

TEST_F(PeerMemoryTest, WhatWaitsAsLongAsAPeerWaitsIsAnsweredAtOnce)
{
    config.unmap_timeout = config.access_timeout = core::kPeerPatience;
    start_session();
    map(0, kWindow, memory(kWindow));
    send_unmap(0, kWindow);
    send_map(0, kWindow, memory(kWindow));
    advance(core::kPeerPatience);
    EXPECT_EQ(static_cast<std::uint16_t>(vu::Command::dma_unmap), take_sent().header.command);
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_EQ(1u, core->state().message_ranges);
}

TEST_F(PeerMemoryTest, OverlapIsEexist)
{
    start_session();
    EXPECT_EQ(0, map(0x10000, 0x10000));
    EXPECT_EQ(EEXIST, map(0x10000, 0x10000));
    EXPECT_EQ(EEXIST, map(0x0, 0x10001));
    EXPECT_EQ(EEXIST, map(0x1f000, 0x10000));
    EXPECT_EQ(EEXIST, map(0x11000, 0x1000));
    EXPECT_EQ(EEXIST, map(0x0, 0x100000));
    EXPECT_EQ(0, map(0x0, 0x10000));
    EXPECT_EQ(0, map(0x20000, 0x10000));
}

TEST_F(PeerMemoryTest, BadMapsAreRefused)
{
    start_session();
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_map, filled(31, 0)));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_map, concat(vu::DmaMap{31, 3, 0, 0, 4096})));
    EXPECT_EQ(EINVAL, map(0, 4096, {}, 0, 4));
    EXPECT_EQ(EINVAL, map(0, 0));
    EXPECT_EQ(EINVAL, map(~std::uint64_t{0} - 4095, 4097));
    EXPECT_EQ(EINVAL, map(0, 8192, {}, ~std::uint64_t{0} - 4095));
    EXPECT_EQ(ENOSPC, map(0, core::PeerMemory::kMaxRangeSize + 4096));
    EXPECT_EQ(0, map(~std::uint64_t{0} - 4095, 4096));  // the last page of the address space
}

TEST_F(PeerMemoryTest, MoreThan65535RangesAreRefused)
{
    start_session();
    for (std::uint64_t i = 0; i < 65535; ++i) {
        send_map(i * 4096, 4096);
        answer_all();
    }
    for (const auto &sent : port.sent) {
        ASSERT_EQ(16u, sent.bytes.size());
    }
    port.sent.clear();
    EXPECT_EQ(65535u, core->state().message_ranges);
    EXPECT_EQ(EINVAL, map(std::uint64_t{65535} * 4096, 4096));
    EXPECT_EQ(0, call_errno(vu::Command::dma_unmap, dma_unmap_payload(0, 0, vu::kUnmapAll)));
    EXPECT_EQ(0u, core->state().message_ranges);
}

TEST_F(PeerMemoryTest, BadUnmapsAreRefused)
{
    start_session();
    map(0x10000, 0x10000);
    const auto unmap = [&](std::uint64_t address, std::uint64_t size, std::uint32_t flags = 0) {
        return call_errno(vu::Command::dma_unmap, dma_unmap_payload(address, size, flags));
    };
    EXPECT_EQ(EINVAL, unmap(0x10000, 0x1000));
    EXPECT_EQ(EINVAL, unmap(0x11000, 0x1000));
    EXPECT_EQ(EINVAL, unmap(0x18000, 0x10000));
    EXPECT_EQ(EINVAL, unmap(0, 0x18000));
    EXPECT_EQ(EINVAL, unmap(0x10000, ~std::uint64_t{0}));  // wraps
    EXPECT_EQ(ENOENT, unmap(0x20000, 0x10000));
    EXPECT_EQ(ENOENT, unmap(0, 0x10000));
    EXPECT_EQ(ENOENT, unmap(0x10000, 0));
    EXPECT_EQ(1u, core->state().message_ranges);
    EXPECT_EQ(EINVAL, unmap(0x10000, 0x10000, 4));
    EXPECT_EQ(EINVAL, unmap(0x10000, 0x10000, vu::kUnmapGetDirtyBitmap));
    EXPECT_EQ(EINVAL, unmap(0, 0, vu::kUnmapAll | vu::kUnmapGetDirtyBitmap));
    EXPECT_EQ(EINVAL, unmap(0x10000, 0, vu::kUnmapAll));
    EXPECT_EQ(EINVAL, unmap(0, 0x10000, vu::kUnmapAll));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_unmap, filled(23, 0)));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_unmap, concat(vu::DmaUnmap{23, 0, 0x10000, 0x10000})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_unmap, concat(vu::DmaUnmap{(1u << 20) + 1, 0, 0x10000, 0x10000})));
    EXPECT_EQ(0, unmap(0x10000, 0x10000));
    EXPECT_EQ(0, unmap(0, 0, vu::kUnmapAll));  // nothing left to unmap
}

//= VVFU-OP-9
//= type=test
TEST_F(PeerMemoryTest, AnUnmapRemovesAllRangesInsideItsSpan)
{
    start_session();
    const auto unmap = [&](std::uint64_t address, std::uint64_t size) {
        return call_errno(vu::Command::dma_unmap, dma_unmap_payload(address, size));
    };
    constexpr auto kTop = std::uint64_t{1} << 63;
    EXPECT_EQ(0, map(0x1000, 0x1000, memory(0x1000)));
    EXPECT_EQ(0, map(0x2000, 0x2000, memory(0x2000)));
    EXPECT_EQ(0, map(kMiB, 0x1000));
    EXPECT_EQ(0, map(~std::uint64_t{0} - 0xfff, 0x1000));
    send_unmap(0, 0x10000);
    ASSERT_EQ(2u, port.requests.size()) << "one MEMORY_INFO(DEL) per range";
    answer(take_request());
    EXPECT_FALSE(has_reply());
    answer(take_request());
    EXPECT_EQ(dma_unmap_payload(0, 0x10000), take_sent().payload);
    EXPECT_EQ(0u, core->state().mapped_ranges);
    EXPECT_EQ(2u, core->state().message_ranges);
    // As QEMU's vIOMMUs do, power-of-two spans of the whole address space.
    EXPECT_EQ(0, unmap(0, kTop));
    EXPECT_EQ(0, unmap(kTop, kTop));
    EXPECT_EQ(0u, core->state().message_ranges);
    EXPECT_EQ(ENOENT, unmap(0, kTop));
}

TEST_F(PeerMemoryTest, ASpanWithEveryRangeDoesNotOverrunAGuestThatTakesNothing)
{
    start_session();
    for (std::uint64_t i = 0; i < vu::kMaxDmaMaps; ++i) {
        send_map(i * 4096, 4096);
        answer_all();
    }
    port.sent.clear();
    port.request_buffers = 0;
    send_unmap(0, std::uint64_t{1} << 40);
    EXPECT_STREQ("connected", core->state().state);
    advance(config.unmap_timeout);
    EXPECT_EQ(dma_unmap_payload(0, std::uint64_t{1} << 40), take_sent().payload);
    EXPECT_EQ(0u, core->state().message_ranges);
    EXPECT_STREQ("connected", core->state().state);
}

TEST_F(PeerMemoryTest, UnmapAllRepliesWhenEveryRangeIsGone)
{
    start_session();
    map(0, kMiB, memory(kMiB));
    map(kMiB, kMiB, memory(kMiB));
    send_unmap(0, 0, vu::kUnmapAll);
    ASSERT_EQ(2u, port.requests.size());
    answer(take_request());
    EXPECT_FALSE(has_reply());
    answer(take_request());
    EXPECT_EQ(dma_unmap_payload(0, 0, vu::kUnmapAll), take_sent().payload);
    EXPECT_TRUE(port.window.empty());
}

TEST_F(PeerMemoryTest, FdOfAnUnmapIsClosedAndIgnored)  // SPDK attaches one
{
    start_session();
    map(0, kMiB);
    const auto before = open_fds();
    EXPECT_EQ(0, call_errno(vu::Command::dma_unmap, dma_unmap_payload(0, kMiB), memory(4096)));
    EXPECT_EQ(before, open_fds());
}

//= VVFU-WINDOW-6
//= type=test
TEST_F(PeerMemoryTest, WhatCannotBeMappedIsMessageOnly)
{
    start_session();
    const auto flags_of = [&](std::uint64_t address, std::uint64_t size, std::vector<Fd> fds,
                              std::uint64_t offset = 0) {
        send_map(address, size, std::move(fds), offset);
        GuestRequest request;
        const auto info = take_memory_info(request);
        answer(request);
        EXPECT_EQ(0u, take_sent().header.error);
        EXPECT_EQ(0u, info.window_offset);
        EXPECT_EQ(size, info.size);
        return info.flags;
    };
    constexpr auto kExpected = control::kMemoryRead | control::kMemoryWrite | control::kMemoryMessageOnly;
    EXPECT_EQ(kExpected, flags_of(0, 4 * kMiB, {}));
    EXPECT_TRUE(port.logged("share=on"));
    EXPECT_EQ(kExpected, flags_of(0x10000800, kMiB, memory(kMiB)));
    EXPECT_EQ(kExpected, flags_of(0x20000000, 4095, memory(kMiB)));
    EXPECT_EQ(kExpected, flags_of(0x30000000, 4096, memory(kMiB), 512));
    EXPECT_EQ(kExpected, flags_of(0x40000000, kMiB, memory(kMiB - 4096)));
    EXPECT_EQ(kExpected, flags_of(0x50000000, 2 * kWindow, memory(2 * kWindow)));
    EXPECT_TRUE(port.logged("window"));
    std::vector<Fd> eventfd;
    eventfd.push_back(make_eventfd());
    EXPECT_EQ(kExpected, flags_of(0x60000000, 4096, std::move(eventfd)));
    port.map_result = -ENOMEM;
    EXPECT_EQ(kExpected, flags_of(0x70000000, 4096, memory(4096)));
    EXPECT_TRUE(port.window.empty());
    EXPECT_EQ(8u, core->state().message_ranges);
}

//= VVFU-WINDOW-7
//= type=test
TEST_F(PeerMemoryTest, MemoryThatCouldShrinkIsMessageOnlyUnlessTrusted)
{
    start_session();
    EXPECT_EQ(0, map(0, kMiB, memory(kMiB, false)));
    EXPECT_EQ(0u, core->state().mapped_ranges);
    EXPECT_TRUE(port.logged("F_SEAL_SHRINK"));
    core.reset();
    config.trust_peer_memory = true;
    start_session();
    EXPECT_EQ(0, map(0, kMiB, memory(kMiB, false)));
    EXPECT_EQ(1u, core->state().mapped_ranges);
}

TEST_F(PeerMemoryTest, SmallRangesWithoutFdCauseNoWarning)  // QEMU maps ROMs and the device's own BARs like that
{
    start_session();
    port.lines.clear();
    EXPECT_EQ(0, map(0xfe000000, 0x4000));
    EXPECT_EQ(0, map(0xf0000000, 4 * kMiB, {}, 0, vu::kDmaRead));
    EXPECT_TRUE(port.lines.empty());
}

//= VVFU-WINDOW-8
//= type=test
//= VVFU-WINDOW-10
//= type=test
TEST_F(PeerMemoryTest, WindowOffsetsNeverOverlapAndKeepHugePageAlignment)
{
    start_session();
    EXPECT_EQ(0, map(0, 0xa0000, memory(kMiB)));
    EXPECT_EQ(0, map(0x100000, 7 * kMiB, memory(16 * kMiB), kMiB));
    EXPECT_EQ(0, map(0x10000000, 4 * kMiB, memory(16 * kMiB), 6 * kMiB));
    for (const auto &[offset, mapping] : port.window) {
        if (mapping.size >= 2 * kMiB) {
            EXPECT_EQ(mapping.fd_offset % (2 * kMiB), offset % (2 * kMiB));
        }
    }
    EXPECT_EQ(3u, port.window.size());  // FakePort records a violation on overlap
}

TEST_F(PeerMemoryTest, OneFdIsKeptOfEachFileWhileRangesOfItAreInTheWindow)
{
    start_session();
    const auto before = open_fds();
    const auto backing = make_memfd(4 * kMiB);
    for (std::uint64_t i = 0; i < 4; ++i) {
        std::vector<Fd> fds;
        fds.emplace_back(::dup(backing.get()));
        EXPECT_EQ(0, map(i * kMiB, kMiB, std::move(fds), i * kMiB));
    }
    EXPECT_EQ(before + 2, open_fds()) << "that of this test is one";
    EXPECT_EQ(0, call_errno(vu::Command::dma_unmap, dma_unmap_payload(0, 4 * kMiB)));
    EXPECT_EQ(before + 1, open_fds());
}

//= VVFU-WINDOW-13
//= type=test
TEST_F(PeerMemoryTest, RangesOfMoreFilesThanAreKeptAreMessageOnly)
{
    start_session();
    for (std::uint64_t i = 0; i < core::MemoryFiles::kMaxFiles + 1; ++i) {
        EXPECT_EQ(0, map(i * kMiB, 4096, memory(4096)));
    }
    EXPECT_EQ(core::MemoryFiles::kMaxFiles, core->state().mapped_ranges);
    EXPECT_EQ(1u, core->state().message_ranges);
    EXPECT_TRUE(port.logged("too many files"));
}

//= VVFU-WINDOW-12
//= type=test
TEST_F(PeerMemoryTest, AWriteOnlyRangeIsNotReadableInTheWindow)
{
    start_session();
    send_map(0, kMiB, memory(kMiB), 0, vu::kDmaWrite);
    EXPECT_EQ(control::kMemoryWrite | control::kMemoryMessageOnly, take_memory_info().flags);
    EXPECT_TRUE(port.window.empty());
}

TEST_F(PeerMemoryTest, MessagesAboutARangeThatCameAndWentUnseenAreTakenBack)
{
    start_session();
    port.request_buffers = 0;
    send_map(0, kMiB, memory(kMiB));
    send_unmap(0, kMiB);
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_TRUE(port.window.empty());
    port.request_buffers = 100;
    core->request_buffers(now, 1);
    EXPECT_TRUE(port.requests.empty());
}

/// The table against a naive model: a list of ranges.
TEST_F(PeerMemoryTest, RandomMapsAndUnmapsAgreeWithANaiveModel)
{
    start_session();
    struct Range {
        std::uint64_t address, size;
    };
    std::vector<Range> model;
    std::uint32_t seed = 12345;
    const auto random = [&seed](std::uint32_t below) {
        seed = seed * 1664525u + 1013904223u;
        return (seed >> 8) % below;
    };
    const auto backing = make_memfd(64 * 4096);
    for (int step = 0; step < 3000; ++step) {
        const Range range{random(64) * std::uint64_t{4096}, (1 + random(8)) * std::uint64_t{4096}};
        if (random(2) == 0) {
            const bool overlap = std::any_of(model.begin(), model.end(), [&](const Range &other) {
                return other.address < range.address + range.size && range.address < other.address + other.size;
            });
            std::vector<Fd> fds;
            if (random(3) != 0) {
                fds.emplace_back(::dup(backing.get()));
            }
            ASSERT_EQ(overlap ? EEXIST : 0, map(range.address, range.size, std::move(fds)));
            if (!overlap) {
                model.push_back(range);
            }
        } else {
            const auto end = range.address + range.size;
            const auto touched = [&](const Range &other) {
                return other.address < end && range.address < other.address + other.size;
            };
            const auto inside = [&](const Range &other) {
                return range.address <= other.address && other.address + other.size <= end;
            };
            const auto touches = std::count_if(model.begin(), model.end(), touched);
            const bool cuts = touches != std::count_if(model.begin(), model.end(), inside);
            ASSERT_EQ(cuts ? EINVAL : (touches == 0 ? ENOENT : 0),
                      call_errno(vu::Command::dma_unmap, dma_unmap_payload(range.address, range.size)));
            if (!cuts) {
                std::erase_if(model, inside);
            }
        }
        const auto state = core->state();
        ASSERT_EQ(model.size(), state.mapped_ranges + state.message_ranges);
        ASSERT_EQ(port.window.size(), state.mapped_ranges);
    }
}

}  // namespace
}  // namespace vvfu::test
