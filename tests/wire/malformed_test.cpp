// SPDX-License-Identifier: BSD-3-Clause
//
// Thousands of almost valid messages with fds of every kind: the stream stays in step, so the session must live, and
// nothing may be left behind.
#include <array>
#include <random>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(Malformed);

class Mutator {
public:
    explicit Mutator(std::uint32_t seed) : random_(seed) {}

    std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(random_() % limit); }

    /// A valid command and its payload, then some bytes of the payload, its length, the command or the flags changed.
    Bytes message(std::uint16_t id)
    {
        auto [command, payload] = valid();
        for (auto changes = below(4); changes > 0 && !payload.empty(); --changes) {
            payload[below(static_cast<std::uint32_t>(payload.size()))] = interesting();
        }
        if (below(4) == 0) {
            payload.resize(below(64));
        }
        if (below(20) == 0) {
            command = static_cast<std::uint16_t>(below(24));
        }
        const std::uint32_t flags = below(10) == 0 ? below(64) & ~kTypeMask : 0;
        return Packer()
            .bytes(header(id, command, static_cast<std::uint32_t>(kHeaderBytes + payload.size()), flags))
            .bytes(payload)
            .take();
    }

private:
    std::byte interesting()
    {
        constexpr std::array<unsigned, 8> kBytes{0, 1, 2, 4, 8, 0x7f, 0x80, 0xff};
        return static_cast<std::byte>(kBytes[below(kBytes.size())]);
    }

    std::pair<std::uint16_t, Bytes> valid()
    {
        switch (below(10)) {
            case 0: return {kDmaMap, Packer().u32(32).u32(3).u64(0).u64(below(64) * 0x10000u).u64(0x10000).take()};
            case 1: return {kDmaUnmap, Packer().u32(24).u32(0).u64(below(64) * 0x10000u).u64(0x10000).take()};
            case 2: return {kGetRegionInfo, Packer().u32(128).u32(0).u32(below(9)).u32(0).u64(0).u64(0).take()};
            case 3: return {kGetIrqInfo, Packer().u32(16).u32(0).u32(below(5)).u32(0).take()};
            case 4: return {kSetIrqs, set_irqs()};
            case 5: return {kRegionRead, Packer().u64(below(64)).u32(kConfigRegion).u32(below(64)).take()};
            case 6: return {kRegionWrite, Packer().u64(0x3c).u32(kConfigRegion).u32(4).zeros(4).take()};
            case 7: return {kRegionWriteMulti, Packer().u64(1).u64(0x3c).u32(kConfigRegion).u32(4).u64(0).take()};
            case 8: return {kVersion, Packer().u16(0).u16(0).text(VfioUserClient::kDefaultJson).u8(0).take()};
            default: return {kReset, {}};
        }
    }

    Bytes set_irqs()
    {
        constexpr std::array<std::uint32_t, 6> kFlags{0x24, 0x21, 0x22, 0x14, 0x09, 0x11};
        const auto index = below(5), count = below(3);
        return Packer().u32(20).u32(kFlags[below(kFlags.size())]).u32(index).u32(below(3)).u32(count).take();
    }

    std::minstd_rand random_;
};

TEST_P(Malformed, NothingLeaksAndTheSessionLives)
{
    const auto fds = idle_fds();
    const auto mappings = server_.mappings();
    for (std::uint32_t seed = 1; seed <= 3; ++seed) {
        auto client = session();
        Mutator mutator(seed);
        EventFd event;
        GuestRam ram(0, 0x10000);
        FdProbe pipe;
        const std::array kinds{event.fd(), ram.fd(), pipe.fd()};
        for (unsigned sent = 1; sent <= 3000; ++sent) {
            std::vector<int> attached;
            for (auto count = mutator.below(4); count > 1; --count) {
                attached.push_back(kinds[mutator.below(kinds.size())]);
            }
            client.send_raw(mutator.message(1), attached);
            if (sent % 20 == 0) {
                client.send_raw(Packer().bytes(header(2, kGetInfo, 32)).u32(16).zeros(12).view());
                std::optional<Message> reply;
                do {
                    reply = client.receive();
                    ASSERT_TRUE(reply) << "seed " << seed << ", before message " << sent;
                } while (reply->id != 2 || !reply->is_reply());
                ASSERT_EQ(reply->result(), 0);
            }
        }
        client.close();
        pipe.given_away();
        EXPECT_TRUE(pipe.closed_everywhere());
        EXPECT_TRUE(eventually([&] { return server_.mappings() == mappings; }));
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
    auto client = session();
    expect_alive(client);
}

TEST_P(Malformed, RandomBytesEndTheSessionAtMost)
{
    const auto fds = idle_fds();
    std::minstd_rand random(7);
    for (int round = 0; round < 20; ++round) {
        auto client = connect();
        if (round % 2 != 0) {
            client.version();
        }
        client.set_timeout(std::chrono::milliseconds{2000});
        try {
            for (int i = 0; i < 20; ++i) {
                client.send_raw(pattern(1 + random() % 500, static_cast<std::uint32_t>(random())));
            }
        } catch (const PeerClosed &) {
        } catch (const TimedOut &) {
        }
    }
    EXPECT_TRUE(server_.alive());
    auto client = session();
    expect_alive(client);
    client.close();
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

}  // namespace
}  // namespace vvfu::test
