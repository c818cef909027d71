// SPDX-License-Identifier: BSD-3-Clause
//
// What needs a scripted device guest: doorbells rung by hand, and a guest that stops answering.
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

using std::chrono::milliseconds;

constexpr std::uint32_t kAssign = kDataEventfd | kActionTrigger;

class CoreWire : public ::testing::Test {
protected:
    VfioUserClient session()
    {
        VfioUserClient client(server_.connect());
        client.version();
        return client;
    }
    static CoreServer::Options quick()
    {
        CoreServer::Options options;
        options.unmap_timeout = milliseconds{30};
        options.access_timeout = milliseconds{60};
        return options;
    }
    CoreServer server_{quick()};
};

TEST_F(CoreWire, DoorbellReachesTheEventfdAndLatchesWhileMaskedOrUnassigned)
{
    auto client = session();
    EventFd event;
    const int fd = event.fd();
    const auto doorbell = CoreServer::kDoorbellMsix0 + 3;
    server_.ring_doorbell(doorbell);  // pending: nothing is assigned
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 3, 1, {&fd, 1}), 0);
    EXPECT_EQ(event.wait(), 1u);
    server_.ring_doorbell(doorbell);
    EXPECT_EQ(event.wait(), 1u);

    ASSERT_EQ(client.set_irqs(kDataNone | kActionMask, kMsixIndex, 3, 1), 0);
    server_.ring_doorbell(doorbell);
    EXPECT_EQ(event.take(), 0u);
    ASSERT_EQ(client.set_irqs(kDataNone | kActionUnmask, kMsixIndex, 3, 1), 0);
    EXPECT_EQ(event.wait(), 1u);
    ASSERT_EQ(client.set_irqs(kDataNone | kActionUnmask, kMsixIndex, 3, 1), 0);
    EXPECT_EQ(event.take(), 0u);
}

TEST_F(CoreWire, ReadThatTheGuestDoesNotAnswerGetsAllOnesOfFullSize)
{
    auto client = session();
    server_.set_guest_silent(true);
    EXPECT_EQ(client.region_read(0, 0, 8), Bytes(8, std::byte{0xff}));
    EXPECT_EQ(client.region_write(0, 0, Bytes(4)), 0);
    EXPECT_EQ(client.reset(), 0);
    EXPECT_GE(server_.state().deadline_expiries, 2u);
    // The late answers are ignored and the session goes on.
    server_.set_guest_silent(false);
    client.write<std::uint32_t>(0, 16, 0x12345678);
    EXPECT_EQ(client.read<std::uint32_t>(0, 16), 0x12345678u);
    EXPECT_EQ(client.unclaimed_replies(), 0u);
    EXPECT_GE(server_.state().unknown_replies, 1u);
}

TEST_F(CoreWire, UnmapThatTheGuestDoesNotAcknowledgeRevokesTheMappingAnyway)
{
    auto client = session();
    GuestRam ram(0, 1 << 20);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(server_.window_mappings(), 1u);
    server_.set_guest_silent(true);
    EXPECT_EQ(client.dma_unmap(0, ram.size()), 0);
    EXPECT_EQ(server_.window_mappings(), 0u);
}

TEST_F(CoreWire, MappingIsGoneWhenTheUnmapReplyArrives)
{
    auto client = session();
    GuestRam ram(0, 1 << 20);
    for (int round = 0; round < 50; ++round) {
        ASSERT_EQ(client.dma_map(ram), 0);
        ASSERT_EQ(client.dma_unmap(0, ram.size()), 0);
        ASSERT_EQ(server_.window_mappings(), 0u);
    }
}

TEST_F(CoreWire, VersionAndMapsAreAnsweredWithoutTheGuest)
{
    server_.set_guest_silent(true);
    VfioUserClient client(server_.connect());
    EXPECT_EQ(client.version().major, 0);
    GuestRam ram(0, 1 << 20);
    EXPECT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(client.device_info().num_regions, 9u);
}

TEST(CoreBackPressure, PeerIsNotReadWhileTheGuestIsSilentAndNothingIsLost)
{
    CoreServer server;
    VfioUserClient client(server.connect());
    client.version();
    server.set_guest_silent(true);
    client.set_timeout(milliseconds{300});
    std::uint32_t sent = 0;
    bool stopped = false;
    try {
        for (; sent < 200'000; ++sent) {
            client.post<std::uint32_t>(0, 0, sent);
        }
    } catch (const TimedOut &) {
        stopped = true;
    }
    EXPECT_TRUE(stopped) << "200000 posted writes were taken while the guest answered none";
    client.set_timeout(std::chrono::seconds{10});
    server.set_guest_silent(false);
    EXPECT_EQ(client.read<std::uint32_t>(0, 0), sent - 1);
}

TEST_F(CoreWire, SessionsAreNumberedAndThePeerIsRecorded)
{
    {
        auto client = session();
        EXPECT_EQ(server_.state().epoch, 1u);
        EXPECT_EQ(server_.state().state, std::string("connected"));
        EXPECT_EQ(server_.state().peer.pid, 1u);
    }
    EXPECT_TRUE(eventually([&] { return server_.state().state == std::string("listening"); }));
    auto client = session();
    EXPECT_EQ(server_.state().epoch, 2u);
}

TEST_F(CoreWire, WarningNamesShareOnForMemoryWithoutFd)
{
    auto client = session();
    ASSERT_EQ(client.dma_map(0, 256 << 20, 0, kMapRead | kMapWrite, -1), 0);
    EXPECT_NE(server_.log_text().find("share=on"), std::string::npos);
}

}  // namespace
}  // namespace vvfu::test
