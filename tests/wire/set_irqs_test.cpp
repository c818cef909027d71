// SPDX-License-Identifier: BSD-3-Clause
//
// SET_IRQS: the bad input that libvfio-user's test_device_set_irqs pins, and what each combination does.
#include <array>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(SetIrqs);

constexpr std::uint32_t kAssign = kDataEventfd | kActionTrigger;
constexpr std::uint32_t kVectors = 8;  // both servers have at least this many MSI-X vectors

Bytes request(std::uint32_t argsz, std::uint32_t flags, std::uint32_t index, std::uint32_t start, std::uint32_t count)
{
    return Packer().u32(argsz).u32(flags).u32(index).u32(start).u32(count).take();
}

struct BadCase {
    const char *name;
    Bytes payload;
    unsigned fds = 0;
};

std::vector<BadCase> bad_cases()
{
    const auto with_bools = [](Bytes fixed, std::size_t count) {
        fixed.resize(fixed.size() + count);
        return fixed;
    };
    return {
        {"short payload", Bytes(19)},
        {"argsz below the fixed part", request(19, kAssign, kMsixIndex, 0, 1), 1},
        {"argsz beyond the payload", request(24, kDataBool | kActionTrigger, kMsixIndex, 0, 4)},
        {"index 5", request(20, kAssign, 5, 0, 1), 1},
        {"index 2^32-1", request(20, kAssign, 0xffffffff, 0, 1), 1},
        {"MASK and UNMASK", request(20, kDataNone | kActionMask | kActionUnmask, kMsixIndex, 0, 1)},
        {"MASK and TRIGGER", request(20, kDataNone | kActionMask | kActionTrigger, kMsixIndex, 0, 1)},
        {"no action", request(20, kDataNone, kMsixIndex, 0, 1)},
        {"NONE and BOOL", request(20, kDataNone | kDataBool | kActionTrigger, kMsixIndex, 0, 1)},
        {"no data type", request(20, kActionTrigger, kMsixIndex, 0, 1)},
        {"unknown flag", request(20, kDataNone | kActionTrigger | 0x40, kMsixIndex, 0, 1)},
        {"start beyond the vectors", request(20, kDataNone | kActionTrigger, kMsixIndex, 0x10000, 1)},
        {"count beyond the vectors", request(20, kDataNone | kActionTrigger, kMsixIndex, 0, 0x10000)},
        {"start + count overflow", request(20, kDataNone | kActionTrigger, kMsixIndex, 1, 0xffffffff)},
        {"MASK of ERR", request(20, kDataNone | kActionMask, kErrIndex, 0, 1)},
        {"MASK of REQ", request(20, kDataNone | kActionMask, kReqIndex, 0, 1)},
        {"count 2 of ERR", request(20, kAssign, kErrIndex, 0, 2), 2},
        {"count 2 of REQ", request(20, kAssign, kReqIndex, 0, 2), 2},
        {"count 0 with start", request(20, kDataNone | kActionTrigger, kMsixIndex, 1, 0)},
        {"count 0 not TRIGGER", request(20, kDataNone | kActionMask, kMsixIndex, 0, 0)},
        {"count 0 not NONE", request(20, kDataBool | kActionTrigger, kMsixIndex, 0, 0)},
        {"fds with BOOL", with_bools(request(21, kDataBool | kActionTrigger, kMsixIndex, 0, 1), 1), 1},
        {"fds with NONE", request(20, kDataNone | kActionTrigger, kMsixIndex, 0, 1), 1},
        {"fewer fds than count", request(20, kAssign, kMsixIndex, 0, 3), 2},
        {"more fds than count", request(20, kAssign, kMsixIndex, 0, 2), 3},
        {"too few bools", with_bools(request(22, kDataBool | kActionTrigger, kMsixIndex, 0, 3), 2)},
        {"INTx vector 1", request(20, kAssign, kIntxIndex, 1, 1), 1},
    };
}

TEST_P(SetIrqs, RejectsBadInputWithEinvalAndClosesItsFds)
{
    auto client = session();
    const auto baseline = server_.open_fds();
    for (const auto &bad : bad_cases()) {
        std::vector<EventFd> events(bad.fds);
        std::vector<int> fds;
        for (const auto &event : events) {
            fds.push_back(event.fd());
        }
        EXPECT_EQ(result(client, kSetIrqs, bad.payload, fds), EINVAL) << bad.name;
        events.clear();
        EXPECT_TRUE(open_fds_become(baseline)) << bad.name;
    }
    expect_alive(client);
}

TEST_P(SetIrqs, RejectsFdsThatAreNoEventfds)
{
    auto client = session();
    FdProbe probe;
    const int fd = probe.fd();
    EXPECT_NE(client.set_irqs(kAssign, kMsixIndex, 0, 1, {&fd, 1}), 0);
    probe.given_away();
    EXPECT_TRUE(probe.closed_everywhere());
    expect_alive(client);
}

TEST_P(SetIrqs, TriggerWithNoneOrBoolAddsOneToTheEventfd)
{
    auto client = session();
    std::array<EventFd, 3> events;
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 1, 3, std::array{events[0].fd(), events[1].fd(), events[2].fd()}),
              0);
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 2, 1), 0);
    EXPECT_EQ(events[0].take(), 0u);
    EXPECT_EQ(events[1].wait(), 1u);
    EXPECT_EQ(events[2].take(), 0u);

    const std::array bools{std::byte{1}, std::byte{0}, std::byte{1}};
    EXPECT_EQ(client.set_irqs(kDataBool | kActionTrigger, kMsixIndex, 1, 3, {}, bools), 0);
    EXPECT_EQ(events[0].wait(), 1u);
    EXPECT_EQ(events[1].take(), 0u);
    EXPECT_EQ(events[2].wait(), 1u);
}

TEST_P(SetIrqs, EventfdWithoutFdsDeassignsExactlyThatRange)
{
    auto client = session();
    std::array<EventFd, 4> events;
    for (std::uint32_t i = 0; i < 4; ++i) {
        const int fd = events[i].fd();
        ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, i, 1, {&fd, 1}), 0);
    }
    const auto assigned = server_.open_fds();
    EXPECT_EQ(client.set_irqs(kAssign, kMsixIndex, 1, 2), 0);
    EXPECT_TRUE(open_fds_become(assigned - 2));
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, 4), 0);
    EXPECT_EQ(events[0].wait(), 1u);
    EXPECT_EQ(events[3].wait(), 1u);
    EXPECT_EQ(events[1].take(), 0u);
    EXPECT_EQ(events[2].take(), 0u);
}

TEST_P(SetIrqs, NoneTriggerCountZeroDisablesTheIndexAndClosesItsFds)
{
    auto client = session();
    const auto baseline = server_.open_fds();
    std::vector<EventFd> events(kVectors);
    std::vector<int> fds;
    for (const auto &event : events) {
        fds.push_back(event.fd());
    }
    const auto with_mine = server_.open_fds();
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, kVectors, fds), 0);
    EXPECT_TRUE(open_fds_become(with_mine + kVectors));
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, 0), 0);
    events.clear();
    EXPECT_TRUE(open_fds_become(baseline));
    // Again, with nothing assigned.
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, 0), 0);
}

TEST_P(SetIrqs, ReassigningAVectorClosesTheOldEventfd)
{
    auto client = session();
    EventFd first, second;
    const int first_fd = first.fd(), second_fd = second.fd();
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, 1, {&first_fd, 1}), 0);
    const auto assigned = server_.open_fds();
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, 1, {&second_fd, 1}), 0);
    EXPECT_TRUE(open_fds_become(assigned));
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, 1), 0);
    EXPECT_EQ(second.wait(), 1u);
    EXPECT_EQ(first.take(), 0u);
}

TEST_P(SetIrqs, SixteenFdsInOneMessageAreTakenEvenIfTheLimitSaidLess)
{
    auto client = connect();
    client.version(1, R"({"capabilities":{"max_msg_fds":1}})");
    const auto count = std::min(client.irq_info(kMsixIndex).count, 16u);
    std::vector<EventFd> events(count);
    std::vector<int> fds;
    for (const auto &event : events) {
        fds.push_back(event.fd());
    }
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, count, fds), 0);
    EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, count), 0);
    for (const auto &event : events) {
        EXPECT_EQ(event.wait(), 1u);
    }
}

TEST_P(SetIrqs, FdsAreReleasedAtTheEndOfTheSession)
{
    const auto baseline = idle_fds();
    {
        auto client = session();
        std::vector<EventFd> events(kVectors);
        for (std::uint32_t i = 0; i < kVectors; ++i) {
            const int fd = events[i].fd();
            ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, i, 1, {&fd, 1}), 0);
        }
        const int intx = events[0].fd(), resample = events[1].fd();
        ASSERT_EQ(client.set_irqs(kAssign, kIntxIndex, 0, 1, {&intx, 1}), 0);
        ASSERT_EQ(client.set_irqs(kDataEventfd | kActionUnmask, kIntxIndex, 0, 1, {&resample, 1}), 0);
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= baseline; }));
}

}  // namespace
}  // namespace vvfu::test
