// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

constexpr std::uint32_t kIntx = 0, kMsi = 1, kMsix = 2, kErr = 3, kReq = 4;
constexpr std::uint32_t kNone = vu::kIrqDataNone, kBool = vu::kIrqDataBool, kEventfd = vu::kIrqDataEventfd;
constexpr std::uint32_t kMask = vu::kIrqActionMask, kUnmask = vu::kIrqActionUnmask, kTrigger = vu::kIrqActionTrigger;

std::vector<Fd> dup_all(const std::vector<const Fd *> &fds)
{
    std::vector<Fd> out;
    for (const auto *fd : fds) {
        out.emplace_back(::dup(fd->get()));
    }
    return out;
}

class SessionIrqsTest : public CoreTest {
protected:
    int set_irqs(vu::IrqSet set, std::vector<Fd> fds = {}, const ByteVector &bools = {})
    {
        return call_errno(vu::Command::device_set_irqs, concat(set, bools), std::move(fds));
    }
    int assign(std::uint32_t index, std::uint32_t vector, const Fd &eventfd)
    {
        return set_irqs({20, kEventfd | kTrigger, index, vector, 1}, dup_all({&eventfd}));
    }
    bool is_connected(unsigned doorbell) { return port.doorbells.contains(doorbell); }
    /// The port's view of a doorbell write: the connected eventfd, or the core.
    void ring(unsigned doorbell)
    {
        const auto it = port.doorbells.find(doorbell);
        if (it == port.doorbells.end()) {
            core->doorbell_written(doorbell);
        } else {
            port.signal_eventfd(it->second);
        }
    }
};

TEST_F(SessionIrqsTest, RefusalsOfLibvfioUser)
{
    start_session();
    const auto before = open_fds();
    const auto fd = make_eventfd();
    const auto refused = [&](vu::IrqSet set, const ByteVector &bools = {}, unsigned fds = 0) {
        return set_irqs(set, fds == 0 ? std::vector<Fd>{} : dup_all(std::vector<const Fd *>(fds, &fd)), bools) ==
               EINVAL;
    };
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_set_irqs, {}));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_set_irqs, filled(8, 0)));
    EXPECT_TRUE(refused({3, kTrigger | kNone, kReq, 0, 0}));
    EXPECT_TRUE(refused({20, kTrigger | kNone, 5, 0, 0}));
    EXPECT_TRUE(refused({20, kMask | kUnmask, kMsix, 0, 0}));
    EXPECT_TRUE(refused({20, kMask | kUnmask | kNone, kMsix, 0, 1}));
    EXPECT_TRUE(refused({20, kMask | kNone | kBool, kMsix, 0, 0}));
    EXPECT_TRUE(refused({20, kTrigger, kMsix, 0, 1}));
    EXPECT_TRUE(refused({20, kNone, kMsix, 0, 1}));
    EXPECT_TRUE(refused({20, kTrigger | kNone | 1u << 6, kMsix, 0, 1}));
    EXPECT_TRUE(refused({20, kMask | kNone, kMsix, 7, 2}));
    EXPECT_TRUE(refused({20, kMask | kNone, kMsix, 9, 1}));
    EXPECT_TRUE(refused({20, kMask | kNone, kMsix, 8, 0}));
    EXPECT_TRUE(refused({20, kMask | kNone, kMsix, 2, 0xffffffff}));
    EXPECT_TRUE(refused({20, kMask | kNone, kErr, 0, 1}));
    EXPECT_TRUE(refused({20, kMask | kNone, kReq, 0, 1}));
    EXPECT_TRUE(refused({20, kUnmask | kNone, kReq, 0, 1}));
    EXPECT_TRUE(refused({20, kTrigger | kNone, kErr, 0, 2}));
    EXPECT_TRUE(refused({20, kTrigger | kNone, kReq, 0, 2}));
    EXPECT_TRUE(refused({20, kTrigger | kNone, kMsix, 1, 0}));
    EXPECT_TRUE(refused({20, kMask | kNone, kMsix, 0, 0}));
    EXPECT_TRUE(refused({20, kTrigger | kBool, kMsix, 0, 0}));
    EXPECT_TRUE(refused({20, kTrigger | kEventfd, kMsix, 0, 0}));
    EXPECT_TRUE(refused({20, kTrigger | kBool, kMsix, 0, 1}, filled(1, 0), 1));
    EXPECT_TRUE(refused({20, kTrigger | kNone, kMsix, 0, 1}, {}, 1));
    EXPECT_TRUE(refused({20, kTrigger | kEventfd, kMsix, 0, 2}, {}, 1));
    EXPECT_TRUE(refused({20, kTrigger | kEventfd, kMsix, 0, 1}, {}, 2));
    EXPECT_TRUE(refused({21, kTrigger | kBool, kMsix, 0, 2}, filled(1, 0)));
    EXPECT_TRUE(refused({23, kTrigger | kBool, kMsix, 0, 2}, filled(3, 0)));
    EXPECT_TRUE(port.doorbells.empty());
    EXPECT_EQ(before + 1, open_fds());
}

TEST_F(SessionIrqsTest, EventfdsThatMaskOrThatUnmaskOtherIndicesAreNotSupported)
{
    start_session();
    const auto fd = make_eventfd();
    EXPECT_EQ(ENOTSUP, set_irqs({20, kEventfd | kMask, kIntx, 0, 1}, dup_all({&fd})));
    EXPECT_EQ(ENOTSUP, set_irqs({20, kEventfd | kUnmask, kMsix, 0, 1}, dup_all({&fd})));
}

//= VVFU-OP-6
//= type=test
TEST_F(SessionIrqsTest, AFdThatIsNoEventfdIsRefused)
{
    start_session();
    const auto before = open_fds();
    EXPECT_EQ(EINVAL, set_irqs({20, kEventfd | kTrigger, kMsix, 0, 1}, memory(4096)));
    std::vector<Fd> mixed;
    mixed.push_back(make_eventfd());
    mixed.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
    EXPECT_EQ(EINVAL, set_irqs({20, kEventfd | kTrigger, kMsix, 0, 2}, std::move(mixed)));
    EXPECT_TRUE(port.doorbells.empty());
    EXPECT_EQ(before, open_fds());
}

//= VVFU-DOORBELL-1
//= type=test
//= VVFU-IRQ-1
//= type=test
TEST_F(SessionIrqsTest, AssignConnectsTheDoorbellAndTellsTheGuest)
{
    start_session();
    const auto fd = make_eventfd();
    feed(command(vu::Command::device_set_irqs, concat(vu::IrqSet{20, kEventfd | kTrigger, kMsix, 3, 1})),
         dup_all({&fd}));
    EXPECT_EQ(0u, take_sent().header.error);
    const auto info = take_request(control::Type::irq_info);
    EXPECT_EQ((control::IrqInfo{kMsix, 3, 1, control::IrqAction::assign}), *control::decode_irq_info(info.payload));
    answer(info);
    ring(kMsixDoorbell + 3);
    EXPECT_EQ(1u, take_signals(fd));
}

TEST_F(SessionIrqsTest, DoorbellsAreNumberedIntxMsiMsix)
{
    start_session();
    const auto fd = make_eventfd();
    EXPECT_EQ(0, assign(kIntx, 0, fd));
    EXPECT_EQ(0, assign(kMsi, 0, fd));
    EXPECT_EQ(0, assign(kMsi, 3, fd));
    EXPECT_EQ(0, assign(kMsix, 0, fd));
    EXPECT_EQ(0, assign(kMsix, 7, fd));
    EXPECT_EQ(5u, port.doorbells.size());
    for (const unsigned doorbell : {0u, 1u, 4u, 5u, 12u}) {
        EXPECT_TRUE(is_connected(doorbell)) << doorbell;
    }
    EXPECT_EQ(0, assign(kErr, 0, fd));  // has no doorbell
    EXPECT_EQ(5u, port.doorbells.size());
}

TEST_F(SessionIrqsTest, SixteenFdsInOneMessage)  // cloud-hypervisor
{
    create();
    auto device = sample_device();
    device.irqs = {{kMsix, 20}};
    device_add(device);
    begin_session();
    std::vector<Fd> fds;
    for (int i = 0; i < 16; ++i) {
        fds.push_back(make_eventfd());
    }
    EXPECT_EQ(0, set_irqs({20, kEventfd | kTrigger, kMsix, 4, 16}, std::move(fds)));
    EXPECT_EQ(16u, port.doorbells.size());
}

TEST_F(SessionIrqsTest, QemusWayOfEnablingMsix)
{
    start_session();
    const auto fd = make_eventfd();
    EXPECT_EQ(0, set_irqs({20, kNone | kTrigger, kIntx, 0, 0}));
    EXPECT_EQ(0, set_irqs({20, kEventfd | kTrigger, kMsix, 0, 1}));  // no fd
    for (std::uint32_t vector = 0; vector < 8; ++vector) {
        EXPECT_EQ(0, assign(kMsix, vector, fd));
    }
    EXPECT_EQ(8u, port.doorbells.size());
}

TEST_F(SessionIrqsTest, DeassignOfOneVectorLeavesTheOthers)
{
    start_session();
    const auto fd = make_eventfd();
    const auto before = open_fds();
    assign(kMsix, 0, fd);
    assign(kMsix, 1, fd);
    EXPECT_EQ(before + 2, open_fds());
    EXPECT_EQ(0, set_irqs({20, kEventfd | kTrigger, kMsix, 1, 1}));
    EXPECT_TRUE(is_connected(kMsixDoorbell));
    EXPECT_FALSE(is_connected(kMsixDoorbell + 1));
    EXPECT_EQ(before + 1, open_fds());
}

TEST_F(SessionIrqsTest, ReassignReplacesTheTarget)
{
    start_session();
    const auto first = make_eventfd(), second = make_eventfd();
    const auto before = open_fds();
    assign(kMsix, 0, first);
    assign(kMsix, 0, second);
    EXPECT_EQ(before + 1, open_fds());
    ring(kMsixDoorbell);
    EXPECT_EQ(0u, take_signals(first));
    EXPECT_EQ(1u, take_signals(second));
}

//= VVFU-DOORBELL-2
//= type=test
//= VVFU-DOORBELL-4
//= type=test
TEST_F(SessionIrqsTest, AWriteWithoutTargetIsLatchedAndSignalledOnceWhenThereIsOne)
{
    start_session();
    const auto fd = make_eventfd();
    ring(kMsixDoorbell);
    ring(kMsixDoorbell);
    EXPECT_TRUE(core->doorbell_pending(kMsixDoorbell));
    assign(kMsix, 0, fd);
    EXPECT_EQ(1u, take_signals(fd));
    EXPECT_FALSE(core->doorbell_pending(kMsixDoorbell));
}

//= VVFU-DOORBELL-8
//= type=test
TEST_F(SessionIrqsTest, AMaskedVectorLatchesAndUnmaskSignals)
{
    start_session();
    const auto fd = make_eventfd();
    assign(kMsix, 0, fd);
    EXPECT_EQ(0, set_irqs({20, kNone | kMask, kMsix, 0, 1}));
    EXPECT_FALSE(is_connected(kMsixDoorbell));
    ring(kMsixDoorbell);
    EXPECT_EQ(0u, take_signals(fd));
    EXPECT_EQ(0, set_irqs({20, kNone | kUnmask, kMsix, 0, 1}));
    EXPECT_EQ(1u, take_signals(fd));
    EXPECT_TRUE(is_connected(kMsixDoorbell));
}

TEST_F(SessionIrqsTest, AssignWhileMaskedConnectsAtUnmask)  // the order of QEMU's INTx set-up
{
    start_session();
    const auto fd = make_eventfd(), resample = make_eventfd();
    EXPECT_EQ(0, set_irqs({20, kNone | kMask, kIntx, 0, 1}));
    EXPECT_EQ(0, assign(kIntx, 0, fd));
    EXPECT_FALSE(is_connected(0));
    EXPECT_EQ(0, set_irqs({20, kEventfd | kUnmask, kIntx, 0, 1}, dup_all({&resample})));
    EXPECT_TRUE(port.notifications.contains(0));
    EXPECT_EQ(0, set_irqs({20, kNone | kUnmask, kIntx, 0, 1}));
    EXPECT_TRUE(is_connected(0));
    EXPECT_EQ(0, set_irqs({20, kEventfd | kUnmask, kIntx, 0, 1}));
    EXPECT_TRUE(port.notifications.empty());
}

TEST_F(SessionIrqsTest, BoolSelectsVectors)
{
    start_session();
    const ByteVector bools{std::byte{0}, std::byte{1}, std::byte{1}, std::byte{0}, std::byte{1}};
    feed(command(vu::Command::device_set_irqs, concat(vu::IrqSet{25, kBool | kMask, kMsix, 1, 5}, bools)));
    EXPECT_EQ((control::IrqInfo{kMsix, 2, 2, control::IrqAction::mask}),
              *control::decode_irq_info(take_request().payload));
    EXPECT_EQ((control::IrqInfo{kMsix, 5, 1, control::IrqAction::mask}),
              *control::decode_irq_info(take_request().payload));
    EXPECT_TRUE(port.requests.empty());
    const auto fd = make_eventfd();
    take_sent();
    for (std::uint32_t vector = 0; vector < 8; ++vector) {
        assign(kMsix, vector, fd);
        EXPECT_EQ(vector != 2 && vector != 3 && vector != 5, is_connected(kMsixDoorbell + vector)) << vector;
    }
}

TEST_F(SessionIrqsTest, ThePeerCanTriggerAVector)
{
    start_session();
    const auto first = make_eventfd(4), second = make_eventfd(8);
    EXPECT_EQ(0, set_irqs({20, kEventfd | kTrigger, kMsix, 0, 2}, dup_all({&first, &second})));
    EXPECT_EQ(0, set_irqs({20, kNone | kTrigger, kMsix, 1, 1}));
    EXPECT_EQ(4u, take_signals(first));
    EXPECT_EQ(9u, take_signals(second));
    EXPECT_EQ(0, set_irqs({22, kBool | kTrigger, kMsix, 0, 2}, {}, ByteVector{std::byte{1}, std::byte{0}}));
    EXPECT_EQ(1u, take_signals(first));
    EXPECT_EQ(0u, take_signals(second));
    EXPECT_TRUE(port.requests.empty());
}

//= VVFU-DOORBELL-5
//= type=test
//= VVFU-DOORBELL-10
//= type=test
TEST_F(SessionIrqsTest, WhatIsRungWhileAResetIsOverdueReachesNoTarget)
{
    start_session();
    const auto msix = make_eventfd(), err = make_eventfd(), masked = make_eventfd(), late = make_eventfd();
    assign(kMsix, 0, msix);
    assign(kMsix, 1, masked);
    assign(kErr, 0, err);
    const auto trigger = [&](std::uint32_t index, std::uint32_t vector) {
        control(control::Type::irq_trigger, 1, [&](control::Buffer &out) {
            control::append(out, control::IrqTrigger{index, vector});
        });
    };
    const auto ring_all = [&] {
        ring(kMsixDoorbell);
        ring(kMsixDoorbell + 1);
        ring(kMsixDoorbell + 2);
        trigger(kMsix, 0);
        trigger(kErr, 0);
    };
    feed(command(vu::Command::device_reset, {}));
    const auto reset = take_request(control::Type::device_reset);
    port.events.clear();
    advance(config.access_timeout);
    EXPECT_EQ(0u, take_sent().header.error);
    ring_all();
    // The peer's changes go on.
    EXPECT_EQ(0, assign(kMsix, 2, late));
    EXPECT_EQ(0, set_irqs({20, kNone | kMask, kMsix, 1, 1}));
    ring_all();
    EXPECT_TRUE(port.doorbells.empty());
    EXPECT_EQ(0u, take_signals(msix) + take_signals(err) + take_signals(masked) + take_signals(late));

    answer(reset);
    EXPECT_EQ(0u, take_signals(msix) + take_signals(err) + take_signals(masked) + take_signals(late))
        << "of the time before";
    EXPECT_FALSE(core->doorbell_pending(kMsixDoorbell + 1));
    ring_all();
    EXPECT_EQ(2u, take_signals(msix));
    EXPECT_EQ(1u, take_signals(err));
    EXPECT_EQ(1u, take_signals(late));
    EXPECT_EQ(0u, take_signals(masked));
}

//= VVFU-DOORBELL-10
//= type=test
TEST_F(SessionIrqsTest, TheNextSessionHasItsInterruptsWhateverTheOneBeforeLeftOverdue)
{
    start_session();
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    take_sent();
    core->peer_closed(now, 0);
    answer_all();
    begin_session();
    const auto fd = make_eventfd();
    assign(kMsix, 0, fd);
    ring(kMsixDoorbell);
    EXPECT_EQ(1u, take_signals(fd));
}

//= VVFU-DOORBELL-5
//= type=test
TEST_F(SessionIrqsTest, DisableForgetsTargetsMasksAndPendingState)
{
    start_session();
    const auto fd = make_eventfd(), resample = make_eventfd();
    const auto before = open_fds();
    assign(kIntx, 0, fd);
    set_irqs({20, kEventfd | kUnmask, kIntx, 0, 1}, dup_all({&resample}));
    set_irqs({20, kNone | kMask, kIntx, 0, 1});
    ring(0);
    feed(command(vu::Command::device_set_irqs, concat(vu::IrqSet{20, kNone | kTrigger, kIntx, 0, 0})));
    EXPECT_EQ((control::IrqInfo{kIntx, 0, 0, control::IrqAction::disable}),
              *control::decode_irq_info(take_request().payload));
    take_sent();
    EXPECT_EQ(before, open_fds());
    EXPECT_TRUE(port.notifications.empty());
    EXPECT_FALSE(core->doorbell_pending(0));
    assign(kIntx, 0, fd);
    EXPECT_TRUE(is_connected(0));  // not masked any more
    EXPECT_EQ(0u, take_signals(fd));
}

//= VVFU-NOTIFY-3
//= type=test
TEST_F(SessionIrqsTest, NotificationWithoutAVectorBecomesAMessage)
{
    start_session();
    core->notification_fired(now, 0);
    EXPECT_EQ((control::IrqInfo{kIntx, 0, 1, control::IrqAction::unmask}),
              *control::decode_irq_info(take_request(control::Type::irq_info).payload));
    core->notification_fired(now, 1);
    EXPECT_TRUE(port.requests.empty());
}

TEST_F(SessionIrqsTest, NotificationsThatTheGuestDoesNotAnswerDoNotPileUp)
{
    start_session();
    for (int i = 0; i < 1000; ++i) {
        core->notification_fired(now, 0);
    }
    EXPECT_EQ(1u, port.requests.size());
    answer(take_request(control::Type::irq_info));
    // One more for the 999 others.
    EXPECT_EQ((control::IrqInfo{kIntx, 0, 1, control::IrqAction::unmask}),
              *control::decode_irq_info(take_request(control::Type::irq_info).payload));
    core->notification_fired(now, 0);
    EXPECT_TRUE(port.requests.empty());
    advance(config.access_timeout);  // no answer
    answer(take_request(control::Type::irq_info));
    EXPECT_TRUE(port.requests.empty());
    core->notification_fired(now, 0);
    EXPECT_EQ(1u, port.requests.size());
}

//= VVFU-TRIGGER-1
//= type=test
TEST_F(SessionIrqsTest, IrqTriggerActsLikeTheDoorbell)
{
    start_session();
    const auto trigger = [&](std::uint32_t index, std::uint32_t vector, std::uint32_t epoch = 1) {
        return control(control::Type::irq_trigger, epoch,
                       [&](control::Buffer &out) {
                           control::append(out, control::IrqTrigger{index, vector});
                       })
            .header.status;
    };
    const auto fd = make_eventfd(), err = make_eventfd();
    assign(kMsix, 1, fd);
    assign(kErr, 0, err);
    EXPECT_EQ(control::Status::ok, trigger(kMsix, 1));
    EXPECT_EQ(1u, take_signals(fd));
    EXPECT_EQ(control::Status::ok, trigger(kErr, 0));
    EXPECT_EQ(1u, take_signals(err));
    // Latched without a target, as a doorbell is.
    EXPECT_EQ(control::Status::ok, trigger(kReq, 0));
    EXPECT_EQ(control::Status::ok, trigger(kReq, 0));
    const auto req = make_eventfd();
    assign(kReq, 0, req);
    EXPECT_EQ(1u, take_signals(req));
    assign(kReq, 0, req);
    EXPECT_EQ(0u, take_signals(req)) << "once";
    EXPECT_EQ(control::Status::ok, trigger(kMsix, 2));
    EXPECT_TRUE(core->doorbell_pending(kMsixDoorbell + 2));
    EXPECT_EQ(control::Status::not_found, trigger(kMsix, 8));
    EXPECT_EQ(control::Status::not_found, trigger(5, 0));
    EXPECT_EQ(control::Status::invalid, trigger(kMsix, 1, 2));
    EXPECT_EQ(0u, take_signals(fd));
}

//= VVFU-DOORBELL-5
//= type=test
TEST_F(SessionIrqsTest, ALatchedTriggerOfErrEndsWithAResetAndWithTheSession)
{
    start_session();
    const auto trigger = [&](std::uint32_t epoch) {
        const auto reply = control(control::Type::irq_trigger, epoch, [](control::Buffer &out) {
            control::append(out, control::IrqTrigger{kErr, 0});
        });
        EXPECT_EQ(control::Status::ok, reply.header.status);
    };
    const auto err = make_eventfd();
    trigger(1);
    EXPECT_EQ(0, call_errno(vu::Command::device_reset, {}));
    assign(kErr, 0, err);
    EXPECT_EQ(0u, take_signals(err));
    EXPECT_EQ(0, call_errno(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x21, kErr, 0, 0})));
    trigger(1);
    core->peer_closed(now, 0);
    answer_all();
    begin_session();
    assign(kErr, 0, err);
    EXPECT_EQ(0u, take_signals(err));
}

//= VVFU-DOORBELL-9
//= type=test
TEST_F(SessionIrqsTest, ADoorbellRungBetweenSessionsDoesNotInterruptTheNextPeer)
{
    start_session();
    core->peer_closed(now, 0);
    answer_all();
    core->doorbell_written(kMsixDoorbell);
    EXPECT_TRUE(core->doorbell_pending(kMsixDoorbell));
    begin_session();
    EXPECT_FALSE(core->doorbell_pending(kMsixDoorbell));
    const auto fd = make_eventfd();
    assign(kMsix, 0, fd);
    EXPECT_EQ(0u, take_signals(fd));
}

//= VVFU-DOORBELL-7
//= type=test
TEST_F(SessionIrqsTest, DoorbellsBeyondTheLastAreIgnored)
{
    start_session();
    core->doorbell_written(64);
    EXPECT_FALSE(core->doorbell_pending(64));
    core->doorbell_written(0xffffffff);
}

}  // namespace
}  // namespace vvfu::test
