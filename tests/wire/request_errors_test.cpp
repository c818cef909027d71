// SPDX-License-Identifier: BSD-3-Clause
//
// Framing and malformed requests: libvfio-user's test_request_errors, fds included.
#include <array>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(RequestErrors);

constexpr std::uint32_t kMaxMessage = 1024 * 1024 + 4096;  // nothing above may be accepted

TEST_P(RequestErrors, TooSmallSizeGetsEinvalAndEndsTheSession)
{
    for (const std::uint32_t size : {0u, 1u, 15u}) {
        auto client = session();
        client.send_raw(header(77, kGetInfo, size));
        const auto reply = client.receive();
        ASSERT_TRUE(reply) << size;
        EXPECT_EQ(reply->id, 77);
        EXPECT_EQ(reply->result(), EINVAL);
        EXPECT_TRUE(client.closed_by_server());
    }
}

TEST_P(RequestErrors, TooLargeSizeGetsEinvalAndEndsTheSession)
{
    for (const std::uint32_t size : {kMaxMessage + 1, 0x7fffffffu, 0xffffffffu}) {
        auto client = session();
        client.send_raw(header(78, kRegionWrite, size));
        const auto reply = client.receive();
        ASSERT_TRUE(reply) << size;
        EXPECT_EQ(reply->result(), EINVAL);
        EXPECT_TRUE(client.closed_by_server());
    }
}

TEST_P(RequestErrors, UnsolicitedReplyGetsEinval)
{
    auto client = session();
    client.send_raw(header(79, kGetInfo, kHeaderBytes, kTypeReply));
    const auto reply = client.wait_reply(79);
    EXPECT_EQ(reply.result(), EINVAL);
    expect_alive(client);
}

TEST_P(RequestErrors, UnknownCommandsGetEinval)
{
    auto client = session();
    for (const auto command : std::to_array<std::uint16_t>({0, 14, 19, 20, 255, 0xffff})) {
        EXPECT_EQ(result(client, command, Bytes(32)), EINVAL) << command;
    }
    expect_alive(client);
}

TEST_P(RequestErrors, ServerCommandsFromTheClientGetEinval)
{
    auto client = session();
    EXPECT_EQ(result(client, kDmaRead, Packer().u64(0).u64(16).take()), EINVAL);
    EXPECT_EQ(result(client, kDmaWrite, Packer().u64(0).u64(16).zeros(16).take()), EINVAL);
    expect_alive(client);
}

TEST_P(RequestErrors, MissingPayloadGetsEinval)
{
    auto client = session();
    for (const std::uint16_t command :
         {kDmaMap, kDmaUnmap, kGetInfo, kGetRegionInfo, kGetRegionIoFds, kGetIrqInfo, kSetIrqs, kRegionRead,
          kRegionWrite, kRegionWriteMulti, kDeviceFeature, kMigDataRead, kMigDataWrite}) {
        EXPECT_EQ(result(client, command, {}), EINVAL) << command;
        EXPECT_EQ(result(client, command, Bytes(4)), EINVAL) << command;
    }
    expect_alive(client);
}

TEST_P(RequestErrors, ReservedMessageTypesGetEinval)
{
    auto client = session();
    client.send_raw(Packer().bytes(header(90, kGetInfo, 32, 7)).u32(16).zeros(12).take());
    EXPECT_EQ(client.wait_reply(90).result(), EINVAL);
    expect_alive(client);
}

TEST_P(RequestErrors, FdsOfFailedRequestsAreClosed)
{
    auto client = session();
    const std::vector<std::pair<std::uint16_t, Bytes>> requests{
        {kSetIrqs, {}},
        {kSetIrqs, Packer().u32(20).u32(kDataEventfd | kActionTrigger).u32(99).u32(0).u32(3).take()},
        {kDmaMap, Bytes(31)},
        {kDmaMap, Packer().u32(32).u32(0xff00).u64(0).u64(0x1000).u64(0x1000).take()},
        {kDmaUnmap, Bytes(4)},
        {kGetInfo, Bytes(1)},
        {kRegionRead, Packer().u64(0).u32(99).u32(4).take()},
        {kRegionWrite, Packer().u64(0).u32(kScratchRegion).u32(8).zeros(4).take()},
        {255, Bytes(8)},
    };
    const auto baseline = server_.open_fds();
    for (const auto &[command, payload] : requests) {
        FdProbe probes[3];
        const auto id = client.send(command, payload, std::array{probes[0].fd(), probes[1].fd(), probes[2].fd()});
        EXPECT_NE(client.wait_reply(id).result(), 0) << command;
        for (auto &probe : probes) {
            probe.given_away();
            EXPECT_TRUE(probe.closed_everywhere()) << command;
        }
    }
    EXPECT_TRUE(open_fds_become(baseline));
    expect_alive(client);
}

TEST_P(RequestErrors, FdsOfRequestsThatTakeNoneAreClosed)
{
    auto client = session();
    const auto request = Packer().u32(16).zeros(12).take();
    FdProbe probe;
    const int fd = probe.fd();
    const auto id = client.send(kGetInfo, request, {&fd, 1});
    probe.given_away();
    static_cast<void>(client.wait_reply(id));
    EXPECT_TRUE(probe.closed_everywhere());
    expect_alive(client);
}

TEST_P(RequestErrors, FdsOfAnOversizedMessageAreClosed)
{
    auto client = session();
    FdProbe probe;
    client.send_raw(header(1, kDmaMap, 0xffffffff), std::array{probe.fd()});
    probe.given_away();
    EXPECT_TRUE(client.closed_by_server());
    EXPECT_TRUE(probe.closed_everywhere());
}

TEST_P(RequestErrors, FdsOfAnUnfinishedMessageAreClosedWithTheConnection)
{
    auto client = session();
    FdProbe probe;
    client.send_raw(header(1, kDmaMap, 48), std::array{probe.fd()});
    probe.given_away();
    client.close();
    EXPECT_TRUE(probe.closed_everywhere());
    auto next = session();
    expect_alive(next);
}

TEST_P(RequestErrors, NoReplyCommandsNeverGetAReply)
{
    auto client = session();
    client.send(255, Bytes(8), {}, kNoReply);
    client.send(kRegionWrite, Bytes(3), {}, kNoReply);
    client.send(kRegionRead, Packer().u64(0).u32(kConfigRegion).u32(4).take(), {}, kNoReply);
    client.send(kSetIrqs, {}, {}, kNoReply);
    client.send(kGetInfo, Packer().u32(16).zeros(12).take(), {}, kNoReply);
    client.send(kDmaMap, Packer().u32(32).u32(kMapRead).u64(0).u64(0x10000).u64(0x1000).take(), {}, kNoReply);
    client.send(kDmaUnmap, Packer().u32(24).u32(0).u64(0x10000).u64(0x1000).take(), {}, kNoReply);
    client.send(kReset, {}, {}, kNoReply);
    expect_alive(client);
    EXPECT_EQ(client.unclaimed_replies(), 0u);
}

TEST_P(RequestErrors, MessagesInSingleBytesAndManyAtOnceAreFramedAlike)
{
    auto client = session();
    const auto request = Packer().bytes(header(500, kGetIrqInfo, 32)).u32(16).u32(0).u32(kMsixIndex).u32(0).take();
    for (const auto &byte : request) {
        client.send_raw({&byte, 1});
    }
    EXPECT_EQ(client.wait_reply(500).size, 32u);

    Packer burst;
    for (std::uint16_t id = 1000; id < 1500; ++id) {
        burst.bytes(header(id, kGetIrqInfo, 32)).u32(16).u32(0).u32(kMsixIndex).u32(0);
    }
    client.send_raw(burst.view());
    for (std::uint16_t id = 1000; id < 1500; ++id) {
        const auto reply = client.receive();
        ASSERT_TRUE(reply);
        EXPECT_EQ(reply->id, id);
        EXPECT_EQ(reply->result(), 0);
    }
}

TEST_P(RequestErrors, IdsOfThePeerMayRepeat)
{
    auto client = session();
    const auto request = Packer().bytes(header(7, kGetInfo, 32)).u32(16).zeros(12).take();
    client.send_raw(Packer().bytes(request).bytes(request).bytes(request).view());
    for (int i = 0; i < 3; ++i) {
        const auto reply = client.receive();
        ASSERT_TRUE(reply);
        EXPECT_EQ(reply->id, 7);
        EXPECT_EQ(reply->result(), 0);
    }
}

TEST_P(RequestErrors, MoreFdsThanAMessageMayCarryDoNotLeak)
{
    auto client = session();
    FdProbe probe;
    const auto baseline = server_.open_fds();
    std::vector<int> fds(40, probe.fd());
    client.send(kSetIrqs, Packer().u32(20).u32(kDataEventfd | kActionTrigger).u32(kMsixIndex).u32(0).u32(40).take(),
                fds, 0);
    probe.given_away();
    EXPECT_TRUE(probe.closed_everywhere());
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= baseline; }));
    EXPECT_TRUE(server_.alive());
}

}  // namespace
}  // namespace vvfu::test
