// SPDX-License-Identifier: BSD-3-Clause
//
// Beginning and end of sessions: a second peer, reconnects, peers that die in the middle of something.
#include <array>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(Session);

TEST_P(Session, SecondPeerIsRefusedWhileOneIsServed)
{
    auto first = session();
    auto second = connect();
    EXPECT_TRUE(second.closed_by_server());
    expect_alive(first);
    auto third = connect();
    EXPECT_TRUE(third.closed_by_server());
    expect_alive(first);
}

TEST_P(Session, NextPeerIsServedAfterTheFirstOneLeft)
{
    const auto fds = idle_fds();
    for (int round = 0; round < 20; ++round) {
        auto client = session();
        expect_alive(client);
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

TEST_P(Session, PeerThatConnectsAndLeavesWithoutAWordCostsNothing)
{
    const auto fds = idle_fds();
    for (int round = 0; round < 20; ++round) {
        auto client = connect();
        client.close();
    }
    auto client = session();
    expect_alive(client);
    client.close();
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

TEST_P(Session, PeerThatDiesInTheMiddleOfAnyMessageCostsNothing)
{
    const auto fds = idle_fds();
    const auto mappings = server_.mappings();
    const auto map = Packer().bytes(header(1, kDmaMap, 48)).u32(32).u32(3).u64(0).u64(0).u64(65536).take();
    for (std::size_t cut = 1; cut < map.size(); cut += 5) {
        auto client = session();
        GuestRam ram(0, 65536);
        client.send_raw(std::span(map).first(cut), std::array{ram.fd()});
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds && server_.mappings() == mappings; }));
    auto client = session();
    expect_alive(client);
}

TEST_P(Session, PeerThatLeavesWithoutReadingItsRepliesCostsNothing)
{
    const auto fds = idle_fds();
    for (int round = 0; round < 5; ++round) {
        auto client = session();
        GuestRam ram(0, 1 << 20);
        ASSERT_EQ(client.dma_map(ram), 0);
        for (int i = 0; i < 200; ++i) {
            client.send(kRegionRead, Packer().u64(0).u32(kConfigRegion).u32(4096).view());
        }
        client.send(kReset, {});
    }
    auto client = session();
    expect_alive(client);
    EXPECT_TRUE(server_.alive());
    client.close();
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

TEST_P(Session, PeerThatDoesNotReadStopsBeingReadAndGetsEveryReplyOnceItReads)
{
    auto client = session();
    client.set_timeout(std::chrono::milliseconds{300});
    const auto request = Packer().u64(0).u32(kConfigRegion).u32(4096).take();
    std::size_t sent = 0;
    bool stopped = false;
    try {
        for (; sent < 200'000; ++sent) {
            client.send(kRegionRead, request);
        }
    } catch (const TimedOut &) {
        stopped = true;  // back-pressure: the server no longer reads
    }
    EXPECT_TRUE(stopped) << "the server took " << sent << " requests without sending a reply";
    client.set_timeout(std::chrono::seconds{10});
    for (std::size_t i = 0; i < sent; ++i) {
        const auto reply = client.receive();
        ASSERT_TRUE(reply) << i;
        ASSERT_EQ(reply->size, 32u + 4096u) << i;
    }
    EXPECT_TRUE(server_.alive());
}

}  // namespace
}  // namespace vvfu::test
