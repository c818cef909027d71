// SPDX-License-Identifier: BSD-3-Clause
//
// What the specification demands of the device, clause by clause, with the core as the device: queues, doorbells,
// the window, sessions, messages.
#include <set>

#include "device_bench.hpp"
#include "vvfu/core/vvfu_core.h"

namespace vvfu::spec {
namespace {

//= VVFU-FEAT-3
//= VVFU-EXT-1
//= type=test
TEST(Device, OffersNoFeatureThatIsReservedOrUndefined)
{
    DeviceBench bench;
    EXPECT_EQ(bench.core().device_features(), 0u);
    EXPECT_EQ(bench.core().device_config().access_queue_pairs, 0u);
}

//= VVFU-CONF-2
//= type=test
TEST(Device, RequestBufferHoldsTheLargestRequest)
{
    DeviceBench bench;
    EXPECT_GE(bench.core().device_config().request_buffer_size, 6184u);
}

//= VVFU-PCI-2
//= type=test
TEST(Device, DoorbellCapabilityCoversEveryDoorbell)
{
    std::uint8_t bytes[24] = {};
    ASSERT_EQ(vvfu_core_doorbell_cap(bytes, 0, 0x1000, 33), kPciCapDoorbellSize);
    const auto cap = decode_pci_cap(std::as_bytes(std::span{bytes}));
    ASSERT_TRUE(cap.has_value());
    EXPECT_EQ(cap->cfg_type, kCapDoorbell);
    EXPECT_EQ(cap->multiplier % 4, 0u);
    EXPECT_NE(cap->multiplier, 0u);
    EXPECT_GE(cap->length, std::uint64_t{33} * cap->multiplier);
}

// ---- queues -------------------------------------------------------------------------------------

//= VVFU-QUEUE-3
//= type=test
TEST(Device, AnswersEachControlMessageOnce)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x10000);
    bench.map(0, memory.size(), memory.fd());
    bench.answer_all();
    const auto before = bench.replies.size();
    const auto header = Header{Type::dma_read, 0, 0, 5, 1, Status::ok};
    const auto waiting = bench.send_control(message(header, payload(control::DmaAccess{0, 8})));
    EXPECT_FALSE(bench.replies.contains(waiting)) << "the peer has not answered";
    bench.control(Type::irq_trigger, payload(control::IrqTrigger{control::kIrqMsix, 0}), 1);
    auto data = payload(vu::DmaAccess{0, 8});
    data.resize(data.size() + 8, std::byte{7});
    bench.peer_reply(bench.commands().back().header, data);
    ASSERT_TRUE(bench.replies.contains(waiting));
    EXPECT_EQ(parse(bench.replies[waiting]).header.status, Status::ok);
    EXPECT_EQ(bench.replies.size(), before + 2);
    // After a reset of the device nothing is returned any more.
    const auto lost = bench.send_control(message(header, payload(control::DmaAccess{0, 8})));
    bench.core().driver_reset(bench.now);
    bench.advance(std::chrono::seconds{10});
    EXPECT_FALSE(bench.replies.contains(lost));
}

//= VVFU-QUEUE-6
//= VVFU-ACCESS-1
//= type=test
TEST(Device, SplitsLongAccessesToTheRequestBuffer)
{
    DeviceBench bench;
    bench.start_session();
    const auto id = bench.write(control::kRegionBar0, 0x100, 0xf000);
    std::uint64_t at = 0x100;
    std::vector<Message> parts;
    while (!bench.requests.empty()) {
        EXPECT_LE(bench.requests.front().size(), bench.core().device_config().request_buffer_size);
        const auto request = bench.next(Type::region_write);
        const auto write = control::decode_region_data(request.payload);
        ASSERT_TRUE(write.has_value());
        EXPECT_EQ(write->access.offset, at);
        EXPECT_GT(write->access.count, 0u);
        at += write->access.count;
        parts.push_back(request);
    }
    EXPECT_EQ(at, 0xf100u);
    EXPECT_GT(parts.size(), 1u);
    for (const auto &part : parts) {
        EXPECT_EQ(bench.result(id), -1);
        bench.answer(part);
    }
    EXPECT_EQ(bench.result(id), 0);
}

//= VVFU-QUEUE-7
//= type=test
TEST(Device, SendsRequestsInTheOrderOfThePeersCommands)
{
    DeviceBench bench;
    bench.start_session();
    bench.map(0x1000, 0x1000, -1);
    bench.write(control::kRegionBar0, 0, 4, vu::kFlagNoReply);
    bench.unmap(0x1000, 0x1000);
    bench.command(vu::Command::device_reset);
    bench.read(control::kRegionBar0, 0, 4);
    bench.map(0x1000, 0x1000, -1);
    bench.next(Type::memory_info);
    bench.next(Type::region_write);
    bench.next(Type::memory_info);
    bench.next(Type::device_reset);
    bench.next(Type::region_read);
    bench.next(Type::memory_info);
}

//= VVFU-QUEUE-11
//= type=test
TEST(Device, StopsReadingThePeerWhileTheDriverPostsNoBuffers)
{
    DeviceBench bench;
    bench.start_session();
    bench.buffers = 0;
    unsigned commands = 0;
    while (bench.core().wants_peer_data() && commands < 100'000) {
        bench.write(control::kRegionBar0, 0, 4096, vu::kFlagNoReply);
        ++commands;
    }
    EXPECT_LT(commands, 100'000u);
    bench.buffers = 1'000'000;
    bench.core().request_buffers(bench.now, kRequestQueue);
    EXPECT_TRUE(bench.core().wants_peer_data());
    EXPECT_EQ(bench.requests.size(), commands) << "none is lost";
}

// ---- doorbells ----------------------------------------------------------------------------------

//= VVFU-DOORBELL-1
//= VVFU-DOORBELL-2
//= VVFU-DOORBELL-3
//= VVFU-DOORBELL-4
//= type=test
TEST(Device, DoorbellSignalsItsTargetOrStaysPendingUntilItHasOne)
{
    DeviceBench bench;
    bench.start_session();
    Event event;
    const auto doorbell = kDoorbellMsix0 + 2;
    bench.ring(doorbell);
    EXPECT_TRUE(bench.core().doorbell_pending(doorbell));
    bench.set_irqs(kAssign, control::kIrqMsix, 2, 1, {event.fd()});
    EXPECT_EQ(event.take(), 1u);
    EXPECT_FALSE(bench.core().doorbell_pending(doorbell));
    bench.ring(doorbell);
    bench.ring(doorbell);
    EXPECT_EQ(event.take(), 2u);
    EXPECT_FALSE(bench.core().doorbell_pending(doorbell));
}

//= VVFU-DOORBELL-8
//= VVFU-DOORBELL-4
//= type=test
TEST(Device, MaskedOrDeassignedVectorIsNotSignalled)
{
    DeviceBench bench;
    bench.start_session();
    Event event;
    bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionMask, control::kIrqMsix, 0, 1);
    bench.ring(kDoorbellMsix0);
    bench.ring(kDoorbellMsix0);
    EXPECT_EQ(event.take(), 0u);
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionUnmask, control::kIrqMsix, 0, 1);
    EXPECT_EQ(event.take(), 1u) << "once, however often it was rung";
    bench.set_irqs(kAssign, control::kIrqMsix, 0, 1);  // no fd: de-assign
    bench.ring(kDoorbellMsix0);
    EXPECT_EQ(event.take(), 0u);
}

//= VVFU-DOORBELL-5
//= type=test
TEST(Device, PendingDoorbellsAreClearedByDisableResetAndEndOfSession)
{
    DeviceBench bench;
    bench.start_session();
    bench.ring(kDoorbellMsix0);
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionTrigger, control::kIrqMsix, 0, 0);
    EXPECT_FALSE(bench.core().doorbell_pending(kDoorbellMsix0));
    bench.ring(kDoorbellMsix0);
    bench.command(vu::Command::device_reset);
    EXPECT_FALSE(bench.core().doorbell_pending(kDoorbellMsix0));
    bench.ring(kDoorbellMsix0);
    bench.core().peer_closed(bench.now, 0);
    EXPECT_FALSE(bench.core().doorbell_pending(kDoorbellMsix0));
}

//= VVFU-DOORBELL-7
//= type=test
TEST(Device, IgnoresDoorbellsBeyondTheirNumber)
{
    DeviceBench bench;
    bench.start_session();
    bench.core().doorbell_written(bench.config.doorbells);
    bench.core().doorbell_written(~0u);
    EXPECT_FALSE(bench.core().doorbell_pending(bench.config.doorbells));
    EXPECT_FALSE(bench.core().doorbell_pending(~0u));
}

//= VVFU-NOTIFY-3
//= type=test
TEST(Device, ReportsTheIntxUnmaskByMessageWhenItHasNoVector)
{
    DeviceBench bench;
    bench.start_session();
    Event event;
    EXPECT_EQ(
        bench.result(bench.set_irqs(vu::kIrqDataEventfd | vu::kIrqActionUnmask, control::kIrqIntx, 0, 1, {event.fd()})),
        0);
    ASSERT_GE(bench.notifications[kNotificationIntxUnmask], 0);
    EXPECT_EQ(file_of(bench.notifications[kNotificationIntxUnmask]), file_of(event.fd()));
    bench.answer_all();
    bench.core().notification_fired(bench.now, kNotificationIntxUnmask);
    const auto info = control::decode_irq_info(bench.next(Type::irq_info).payload);
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(*info, (control::IrqInfo{control::kIrqIntx, 0, 1, control::IrqAction::unmask}));
}

//= VVFU-IRQ-1
//= type=test
TEST(Device, TellsTheDriverOfEachChangeOfAVector)
{
    DeviceBench bench;
    bench.start_session();
    Event a, b;
    using control::IrqAction;
    const auto expect = [&](control::IrqInfo expected) {
        EXPECT_EQ(control::decode_irq_info(bench.next(Type::irq_info).payload), expected);
        EXPECT_TRUE(bench.requests.empty());
    };
    bench.set_irqs(kAssign, control::kIrqMsix, 1, 2, {a.fd(), b.fd()});
    expect({control::kIrqMsix, 1, 2, IrqAction::assign});
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionMask, control::kIrqMsix, 1, 1);
    expect({control::kIrqMsix, 1, 1, IrqAction::mask});
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionUnmask, control::kIrqMsix, 1, 1);
    expect({control::kIrqMsix, 1, 1, IrqAction::unmask});
    bench.set_irqs(kAssign, control::kIrqMsix, 2, 1);
    expect({control::kIrqMsix, 2, 1, IrqAction::deassign});
    bench.set_irqs(vu::kIrqDataNone | vu::kIrqActionTrigger, control::kIrqMsix, 0, 0);
    expect({control::kIrqMsix, 0, 0, IrqAction::disable});
}

//= VVFU-TRIGGER-1
//= type=test
TEST(Device, IrqTriggerActsLikeTheDoorbell)
{
    DeviceBench bench;
    bench.start_session();
    Event event;
    const auto trigger = [&](std::uint32_t index, std::uint32_t vector) {
        return bench.control(Type::irq_trigger, payload(control::IrqTrigger{index, vector}), 1).header.status;
    };
    EXPECT_EQ(trigger(control::kIrqMsix, 1), Status::ok);
    EXPECT_TRUE(bench.core().doorbell_pending(kDoorbellMsix0 + 1));
    bench.set_irqs(kAssign, control::kIrqMsix, 1, 1, {event.fd()});
    EXPECT_EQ(trigger(control::kIrqMsix, 1), Status::ok);
    EXPECT_EQ(event.take(), 2u);
    EXPECT_EQ(trigger(control::kIrqMsix, 4), Status::not_found);
    EXPECT_EQ(trigger(5, 0), Status::not_found);
}

// ---- window -------------------------------------------------------------------------------------

//= VVFU-WINDOW-1
//= type=test
TEST(Device, ShowsARangeBeforeItAnnouncesIt)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x10000);
    bench.events.clear();
    const auto id = bench.map(0x100000, 0x8000, memory.fd(), 0x4000);
    EXPECT_EQ(bench.events, (std::vector<std::string>{"window_map", "push_request", "send"}));
    const auto add = bench.next(Type::memory_info);
    const auto info = control::decode_memory_info(add.payload);
    ASSERT_TRUE(info && bench.window.contains(info->window_offset));
    EXPECT_EQ(info->op, control::MemoryOp::add);
    EXPECT_EQ(info->flags, control::kMemoryRead | control::kMemoryWrite);
    EXPECT_EQ(info->address, 0x100000u);
    EXPECT_EQ(info->size, 0x8000u);
    const auto &mapping = bench.window[info->window_offset];
    EXPECT_EQ(mapping.file, file_of(memory.fd()));
    EXPECT_EQ(mapping.file_offset, 0x4000u);
    EXPECT_EQ(mapping.size, 0x8000u);
    EXPECT_EQ(bench.result(id), 0) << "without the driver's answer";
    bench.answer(add);
}

//= VVFU-WINDOW-2
//= type=test
TEST(Device, ReadOnlyRangeIsMappedWithoutWritePermission)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x1000);
    bench.map(0, 0x1000, memory.fd(), 0, vu::kDmaRead);
    ASSERT_EQ(bench.window.size(), 1u);
    EXPECT_EQ(bench.window.begin()->second.protection, core::kProtRead);
    EXPECT_EQ(control::decode_memory_info(bench.next(Type::memory_info).payload)->flags, control::kMemoryRead);
}

//= VVFU-WINDOW-3
//= type=test
TEST(Device, RemovesARangeBeforeItAnswersDmaUnmap)
{
    for (const bool answers : {true, false}) {
        DeviceBench bench;
        bench.start_session();
        Memory memory(0x1000);
        bench.map(0, 0x1000, memory.fd());
        bench.answer_all();
        const auto id = bench.unmap(0, 0x1000);
        EXPECT_EQ(bench.result(id), -1);
        EXPECT_EQ(bench.window.size(), 1u) << "the driver may still use it";
        bench.events.clear();
        const auto del = bench.next(Type::memory_info);
        if (answers) {
            bench.answer(del);
        } else {
            bench.advance(DeviceBench::kUnmapTimeout);
        }
        EXPECT_EQ(bench.events, (std::vector<std::string>{"window_unmap", "send"})) << answers;
        EXPECT_EQ(bench.result(id), 0);
        EXPECT_TRUE(bench.window.empty());
    }
}

//= VVFU-WINDOW-6
//= type=test
TEST(Device, RangesThatCannotBeShownAreMessageOnly)
{
    DeviceBench bench(false, 0x100000);
    bench.start_session();
    Memory memory(0x400000);
    const auto flags = [&] {
        const auto info = control::decode_memory_info(bench.next(Type::memory_info).payload);
        EXPECT_EQ(info->window_offset, 0u);
        return info->flags;
    };
    bench.map(0x1000000, 0x1000, -1);
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "no fd";
    bench.map(0x2000800, 0x1000, memory.fd());
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "address not aligned";
    bench.map(0x3000000, 0x1000, memory.fd(), 0x800);
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "file offset not aligned";
    bench.map(0x4000000, 0x800, memory.fd());
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "size not aligned";
    bench.map(0x5000000, 0x200000, memory.fd());
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "larger than the window";
    bench.map_result = -ENOMEM;
    bench.map(0x6000000, 0x1000, memory.fd());
    EXPECT_TRUE(flags() & control::kMemoryMessageOnly) << "the mapping failed";
    EXPECT_TRUE(bench.window.empty());
}

//= VVFU-WINDOW-7
//= type=test
TEST(Device, FileThatCouldShrinkIsShownOnlyIfThePeerIsTrusted)
{
    for (const bool trusted : {false, true}) {
        DeviceBench bench(trusted);
        bench.start_session();
        Memory memory(0x1000, /*sealed=*/false);
        bench.map(0, 0x1000, memory.fd());
        const auto info = control::decode_memory_info(bench.next(Type::memory_info).payload);
        EXPECT_EQ((info->flags & control::kMemoryMessageOnly) == 0, trusted);
        EXPECT_EQ(bench.window.size(), trusted ? 1u : 0u);
    }
}

//= VVFU-WINDOW-8
//= type=test
TEST(Device, RangesNeverOverlapInTheWindow)
{
    DeviceBench bench(false, 0x40000);
    bench.start_session();
    Memory memory(0x100000);
    std::uint32_t state = 12345;
    std::set<std::uint64_t> mapped;
    for (unsigned i = 0; i < 2000; ++i) {
        state = state * 1664525u + 1013904223u;
        const std::uint64_t address = std::uint64_t{(state >> 8) % 64} * 0x10000;
        const std::uint64_t size = std::uint64_t{1 + (state >> 20) % 15} * 0x1000;
        if (mapped.erase(address) != 0) {
            bench.unmap(address, 0);  // a wrong size is refused
            for (std::uint64_t pages = 1; pages < 16; ++pages) {
                bench.unmap(address, pages * 0x1000);
            }
        } else {
            bench.map(address, size, memory.fd());  // window_map() of the bench checks
            mapped.insert(address);
        }
        bench.answer_all();
    }
    EXPECT_FALSE(bench.window.empty());
}

//= VVFU-REGION-1
//= type=test
TEST(Device, PeerMapsRegisteredAreasOfRegionMemory)
{
    DeviceBench bench;
    bench.start_session();
    const vu::RegionInfo request{4096, 0, 2, 0, 0, 0};
    auto id = bench.command(vu::Command::device_get_region_info, payload(request));
    const auto *reply = bench.reply_to(id);
    ASSERT_NE(reply, nullptr);
    ASSERT_EQ(bench.region_memory.size(), 1u);
    const auto &[offset, shown] = *bench.region_memory.begin();
    EXPECT_EQ(offset, 0x3000u);
    EXPECT_EQ(shown.size, 0x3000u);
    EXPECT_EQ(reply->files, std::vector{shown.file});
    const auto info = vu::decode_region_info_reply(reply->payload);
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->info.offset + 0x1000, shown.file_offset);
    EXPECT_EQ(info->areas, (std::vector<vu::SparseArea>{{0x1000, 0x3000}}));
    id = bench.command(vu::Command::device_get_region_info, payload(vu::RegionInfo{4096, 0, 0, 0, 0, 0}));
    EXPECT_TRUE(bench.reply_to(id)->files.empty()) << "BAR 0 has no area";
}

// ---- initialisation and sessions ----------------------------------------------------------------

//= VVFU-INIT-2
//= type=test
TEST(Device, AcceptsNoPeerWithoutARegisteredDevice)
{
    DeviceBench bench;
    EXPECT_FALSE(bench.listening);
    EXPECT_LT(bench.connect(), 0);
    bench.add();
    EXPECT_TRUE(bench.listening);
    EXPECT_EQ(bench.connect(), 0);
    bench.del();
    EXPECT_FALSE(bench.listening);
    EXPECT_LT(bench.connect(), 0);
}

//= VVFU-INIT-3
//= type=test
TEST(Device, ResetEndsTheSessionAndWithdrawsTheDevice)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x1000);
    Event event;
    bench.map(0, 0x1000, memory.fd());
    bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
    const auto pending = bench.read(control::kRegionBar0, 0, 4);
    bench.core().driver_reset(bench.now);
    EXPECT_TRUE(bench.window.empty());
    EXPECT_EQ(bench.doorbells, std::vector<int>(bench.config.doorbells, -1));
    EXPECT_FALSE(bench.connected);
    EXPECT_FALSE(bench.listening);
    EXPECT_EQ(bench.core().next_deadline(), kNever) << "no request is outstanding";
    EXPECT_EQ(bench.result(pending), -1);
}

//= VVFU-SESSION-1
//= VVFU-SESSION-3
//= VVFU-SESSION-4
//= type=test
TEST(Device, SessionsAreNumberedAndFramedByPeerMessages)
{
    DeviceBench bench;
    bench.add();
    for (std::uint32_t epoch = 1; epoch <= 3; ++epoch) {
        bench.connect();
        bench.version();
        const auto up = bench.next(Type::peer);
        EXPECT_EQ(up.header.epoch, epoch);
        const auto peer = control::decode_peer(up.payload);
        ASSERT_TRUE(peer.has_value());
        EXPECT_EQ(peer->op, control::PeerOp::up);
        EXPECT_EQ(peer->pid, 11u);
        EXPECT_EQ(peer->uid, 22u);
        EXPECT_EQ(peer->gid, 33u);
        bench.answer(up);
        bench.answer_all();
        Memory memory(0x1000);
        Event event;
        bench.map(0, 0x1000, memory.fd());
        bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
        bench.answer_all();
        bench.core().peer_closed(bench.now, 0);
        const auto down = bench.next(Type::peer);
        EXPECT_TRUE(bench.requests.empty());
        EXPECT_EQ(control::decode_peer(down.payload)->op, control::PeerOp::down);
        EXPECT_EQ(control::decode_peer(down.payload)->reason, control::DownReason::peer_closed);
        EXPECT_EQ(down.header.epoch, epoch);
        EXPECT_TRUE(bench.window.empty());
        EXPECT_EQ(bench.doorbells, std::vector<int>(bench.config.doorbells, -1));
        bench.answer(down);
    }
}

//= VVFU-SESSION-1
//= type=test
TEST(Device, NumberingGoesOnOverRegistrationsAndResets)
{
    DeviceBench bench;
    bench.start_session();
    EXPECT_EQ(bench.del().header.status, Status::ok);
    bench.answer_all();
    bench.start_session();
    EXPECT_EQ(bench.core().state().epoch, 2u);
    bench.core().driver_reset(bench.now);
    bench.core().driver_ok(bench.now);
    bench.start_session();
    EXPECT_EQ(bench.core().state().epoch, 3u);
}

//= VVFU-SESSION-3
//= type=test
TEST(Device, DriverThatBrokeOrResetItHearsNothingOfTheEnd)
{
    DeviceBench broken;
    broken.start_session();
    broken.send_control(Buffer(3));
    EXPECT_TRUE(broken.broken);
    EXPECT_TRUE(broken.requests.empty());
    DeviceBench reset;
    reset.start_session();
    reset.core().driver_reset(reset.now);
    reset.core().driver_ok(reset.now);
    EXPECT_FALSE(reset.connected);
    EXPECT_TRUE(reset.requests.empty());
}

//= VVFU-SESSION-2
//= type=test
TEST(Device, RefusesASecondPeer)
{
    DeviceBench bench;
    bench.start_session();
    EXPECT_EQ(bench.connect(), -EBUSY);
    EXPECT_EQ(bench.core().state().epoch, 1u);
}

//= VVFU-SESSION-5
//= type=test
TEST(Device, NextSessionWaitsForTheAnswerToPeerDown)
{
    for (const bool answers : {true, false}) {
        DeviceBench bench;
        bench.start_session();
        bench.core().peer_closed(bench.now, 0);
        const auto down = bench.next(Type::peer);
        bench.connect();
        EXPECT_FALSE(bench.core().wants_peer_data());
        const auto id = bench.version();
        EXPECT_TRUE(bench.requests.empty());
        if (answers) {
            bench.answer(down);
        } else {
            bench.advance(DeviceBench::kAccessTimeout);
        }
        EXPECT_EQ(bench.next(Type::peer).header.epoch, 2u);
        bench.answer_all();
        bench.advance(DeviceBench::kAccessTimeout);
        EXPECT_EQ(bench.result(id), 0);
    }
}

//= VVFU-SESSION-6
//= type=test
TEST(Device, RequestOfAnEndedSessionIsStaleAndHasNoEffect)
{
    DeviceBench bench;
    bench.start_session();
    bench.core().peer_closed(bench.now, 0);
    bench.answer_all();
    bench.connect();
    bench.version();
    bench.answer_all();
    Event event;
    bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
    bench.map(0, 0x1000, -1);
    bench.answer_all();
    const auto status = [&](Type type, Bytes payload) { return bench.control(type, payload, 1).header.status; };
    EXPECT_EQ(status(Type::irq_trigger, payload(control::IrqTrigger{control::kIrqMsix, 0})), Status::stale);
    EXPECT_EQ(status(Type::dma_read, payload(control::DmaAccess{0, 4})), Status::stale);
    auto write = payload(control::DmaAccess{0, 4});
    write.resize(write.size() + 4);
    EXPECT_EQ(status(Type::dma_write, write), Status::stale);
    EXPECT_EQ(status(Type::peer_close, {}), Status::stale);
    EXPECT_EQ(event.take(), 0u);
    EXPECT_TRUE(bench.commands().empty());
    EXPECT_TRUE(bench.connected);
}

// ---- messages -----------------------------------------------------------------------------------

//= VVFU-MSG-3
//= VVFU-MSG-8
//= type=test
TEST(Device, ReplyCopiesTheRequestsHeaderAndEndsWithAShortText)
{
    DeviceBench bench;
    const auto token = bench.send_control(message({Type::peer_close, 0, 0, 0xabcdef0123, 77, Status::ok}));
    ASSERT_TRUE(bench.replies.contains(token));
    const auto reply = parse(bench.replies[token]);
    EXPECT_EQ(reply.header.type, Type::peer_close);
    EXPECT_EQ(reply.header.flags, control::kFlagReply);
    EXPECT_EQ(reply.header.request_id, 0xabcdef0123u);
    EXPECT_EQ(reply.header.epoch, 77u);
    EXPECT_NE(reply.header.status, Status::ok);
    EXPECT_LE(reply.payload.size(), control::kTextMax);
}

//= VVFU-MSG-4
//= VVFU-ACCESS-4
//= type=test
TEST(Device, OnlyWritesThatNobodyWaitsForArePosted)
{
    DeviceBench bench;
    bench.start_session();
    Event event;
    vu::Buffer multi;
    vu::append(multi, std::uint64_t{1});
    vu::append(multi, vu::MultiWrite{0, control::kRegionBar0, 4, {}});
    bench.write(control::kRegionBar0, 0, 4, vu::kFlagNoReply);
    bench.command(vu::Command::region_write_multi, multi, {}, vu::kFlagNoReply);
    bench.write(control::kRegionBar0, 0, 4);
    bench.command(vu::Command::region_write_multi, multi);
    bench.read(control::kRegionBar0, 0, 4);
    bench.map(0, 0x1000, -1);
    bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
    bench.command(vu::Command::device_reset);
    std::vector<bool> posted;
    for (const auto &request : bench.requests) {
        posted.push_back(parse(request).header.is_posted());
    }
    ASSERT_GE(posted.size(), 8u);
    EXPECT_TRUE(posted[0]);
    EXPECT_TRUE(posted[1]);
    EXPECT_EQ(std::count(posted.begin(), posted.end(), true), 2);
}

//= VVFU-MSG-6
//= type=test
TEST(Device, AnswersUnknownTypesWithUnsupported)
{
    DeviceBench bench;
    for (const auto type : {Type{0}, Type{16}, Type{0xffff}, Type::peer, Type::migration_data}) {
        EXPECT_EQ(bench.control(type, {}).header.status, Status::unsupported);
    }
    EXPECT_FALSE(bench.broken);
}

//= VVFU-MSG-7
//= type=test
TEST(Device, CountsAndIgnoresRepliesToNothing)
{
    DeviceBench bench;
    bench.start_session();
    const auto id = bench.read(control::kRegionBar0, 0, 4);
    const auto request = bench.next(Type::region_read);
    auto stranger = request;
    stranger.header.request_id += 1000;
    bench.answer(stranger);
    EXPECT_EQ(bench.result(id), -1);
    bench.answer(request);
    EXPECT_EQ(bench.result(id), 0);
    bench.answer(request);  // answered already
    EXPECT_EQ(bench.core().state().unknown_replies, 2u);
    EXPECT_FALSE(bench.broken);
    EXPECT_TRUE(bench.connected);
}

//= VVFU-DEADLINE-1
//= type=test
TEST(Device, EveryRequestHasADeadlineWithTheOutcomeOfTheTable)
{
    DeviceBench bench;
    bench.add();
    bench.connect();
    const auto version = bench.version();
    bench.advance(DeviceBench::kAccessTimeout);
    ASSERT_NE(bench.reply_to(version), nullptr) << "FEATURE_BITS";
    const auto accepted = vu::decode_version(bench.reply_to(version)->payload);
    EXPECT_FALSE(accepted->capabilities.write_multiple.value_or(false)) << "the accepted set is empty";

    bench.answer_all();  // late: not silent any more
    Memory memory(0x1000);
    Event event;
    bench.map(0, 0x1000, memory.fd());
    const auto read = bench.read(control::kRegionBar0, 0, 8);
    const auto write = bench.write(control::kRegionBar0, 0, 8);
    const auto irqs = bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
    const auto reset = bench.command(vu::Command::device_reset);
    bench.advance(DeviceBench::kAccessTimeout - milliseconds{1});
    for (const auto id : {read, write, reset}) {
        EXPECT_EQ(bench.result(id), -1);
    }
    EXPECT_EQ(bench.window.size(), 1u);
    bench.advance(milliseconds{1});
    for (const auto id : {read, write, irqs, reset}) {
        EXPECT_EQ(bench.result(id), 0);
    }
    const auto data = vu::decode_region_data(bench.reply_to(read)->payload);
    ASSERT_TRUE(data.has_value());
    EXPECT_EQ(Buffer(data->data.begin(), data->data.end()), Buffer(8, std::byte{0xff}));
    EXPECT_TRUE(bench.window.empty()) << "a reset is overdue";
    bench.answer_all();
    EXPECT_EQ(bench.window.size(), 1u) << "the range stays";

    const auto unmap = bench.unmap(0, 0x1000);
    bench.advance(DeviceBench::kUnmapTimeout);
    EXPECT_EQ(bench.result(unmap), 0);
    EXPECT_TRUE(bench.window.empty());
    bench.answer_all();

    bench.map(0x8000, 0x1000, -1);
    const auto dma =
        bench.send_control(message({Type::dma_read, 0, 0, 9, 1, Status::ok}, payload(control::DmaAccess{0x8000, 4})));
    EXPECT_EQ(bench.commands().size(), 1u);
    bench.advance(DeviceBench::kAccessTimeout);
    ASSERT_TRUE(bench.replies.contains(dma));
    EXPECT_EQ(parse(bench.replies[dma]).header.status, Status::timeout);
}

}  // namespace
}  // namespace vvfu::spec
