// SPDX-License-Identifier: BSD-3-Clause
//
// REGION_READ, REGION_WRITE, REGION_WRITE_MULTI and DEVICE_RESET.
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(RegionAccess);

Bytes access(std::uint64_t offset, std::uint32_t region, std::uint32_t count)
{
    return Packer().u64(offset).u32(region).u32(count).take();
}

TEST_P(RegionAccess, AllOfConfigurationSpaceComesInOneReply)
{
    auto client = session();
    const auto config = client.region_read(kConfigRegion, 0, 4096);
    EXPECT_EQ(config.size(), 4096u);
    for (std::uint64_t at = 0; at < 4096; at += 512) {
        const auto part = client.region_read(kConfigRegion, at, 512);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), config.begin() + static_cast<std::ptrdiff_t>(at))) << at;
    }
}

TEST_P(RegionAccess, CountZeroSucceeds)
{
    auto client = session();
    EXPECT_EQ(client.region_read(kConfigRegion, 0, 0).size(), 0u);
    EXPECT_EQ(client.region_write(kConfigRegion, 0, {}), 0);
}

TEST_P(RegionAccess, OutsideTheRegionIsEinval)
{
    auto client = session();
    const auto size = client.region_info(kScratchRegion).size;
    const auto read = [&](std::uint64_t offset, std::uint32_t region, std::uint32_t count) {
        return result(client, kRegionRead, access(offset, region, count));
    };
    EXPECT_EQ(read(size, kScratchRegion, 4), EINVAL);
    EXPECT_EQ(read(size - 2, kScratchRegion, 4), EINVAL);
    EXPECT_EQ(read(~std::uint64_t{0}, kScratchRegion, 4), EINVAL);
    EXPECT_EQ(read(~std::uint64_t{0} - 1, kScratchRegion, 0xffff), EINVAL);
    EXPECT_EQ(read(0, 9, 4), EINVAL);
    EXPECT_EQ(read(0, 0xffffffff, 4), EINVAL);
    EXPECT_EQ(read(0, 6, 4), EINVAL);  // no ROM
    EXPECT_EQ(read(4094, kConfigRegion, 4), EINVAL);
    EXPECT_EQ(read(0, kScratchRegion, 0xffffffff), EINVAL);
    EXPECT_EQ(client.region_write(kScratchRegion, size - 2, Bytes(4)), EINVAL);
    EXPECT_EQ(client.region_write(9, 0, Bytes(4)), EINVAL);
    expect_alive(client);
}

TEST_P(RegionAccess, CountMustMatchTheDataOfAWrite)
{
    auto client = session();
    EXPECT_EQ(result(client, kRegionWrite, Packer().bytes(access(0, kScratchRegion, 8)).zeros(4).take()), EINVAL);
    EXPECT_EQ(result(client, kRegionWrite, access(0, kScratchRegion, 8)), EINVAL);
    EXPECT_EQ(result(client, kRegionRead, Bytes(15)), EINVAL);
    expect_alive(client);
}

TEST_P(RegionAccess, PostedWritesTakeEffectInOrderBeforeALaterRead)
{
    auto client = session();
    // PCI Interrupt Line: plain storage in every device.
    for (unsigned round = 0; round < 500; ++round) {
        client.post<std::uint8_t>(kConfigRegion, 0x3c, static_cast<std::uint8_t>(round));
        if (round % 50 == 0) {
            EXPECT_EQ(client.read<std::uint8_t>(kConfigRegion, 0x3c), static_cast<std::uint8_t>(round));
        }
    }
    EXPECT_EQ(client.read<std::uint8_t>(kConfigRegion, 0x3c), static_cast<std::uint8_t>(499));
    EXPECT_EQ(client.unclaimed_replies(), 0u);
}

TEST_P(RegionAccess, WriteMultiWritesEveryEntryInOrder)
{
    auto client = session();
    const std::vector<MultiWriteEntry> entries{
        {0x3c, kConfigRegion, 1, 0x11}, {0x3c, kConfigRegion, 1, 0x22}, {0x3c, kConfigRegion, 1, 0x33}};
    EXPECT_EQ(client.write_multi(entries), 0);
    EXPECT_EQ(client.read<std::uint8_t>(kConfigRegion, 0x3c), 0x33);
    client.write_multi(std::vector<MultiWriteEntry>(200, {0x3c, kConfigRegion, 1, 0x44}), true);
    EXPECT_EQ(client.read<std::uint8_t>(kConfigRegion, 0x3c), 0x44);
    EXPECT_EQ(client.unclaimed_replies(), 0u);
}

TEST_P(RegionAccess, WriteMultiWithOneBadEntryActsOnNone)
{
    auto client = session();
    client.write<std::uint8_t>(kConfigRegion, 0x3c, 0x55);
    const std::vector<std::vector<MultiWriteEntry>> bad{
        {{0x3c, kConfigRegion, 1, 0x66}, {0, 9, 4, 0}},
        {{0x3c, kConfigRegion, 1, 0x66}, {4094, kConfigRegion, 4, 0}},
        {{0x3c, kConfigRegion, 1, 0x66}, {0, kConfigRegion, 9, 0}},
    };
    for (const auto &entries : bad) {
        EXPECT_EQ(client.write_multi(entries), EINVAL);
    }
    EXPECT_EQ(result(client, kRegionWriteMulti, Packer().u64(2).zeros(24).take()), EINVAL);
    EXPECT_EQ(result(client, kRegionWriteMulti, Packer().u64(~std::uint64_t{0}).zeros(24).take()), EINVAL);
    EXPECT_EQ(client.read<std::uint8_t>(kConfigRegion, 0x3c), 0x55);
}

TEST_P(RegionAccess, ResetAnswersAndTwoInARowDoToo)
{
    auto client = session();
    const auto first = client.send(kReset, {});
    const auto second = client.send(kReset, {});
    const auto read = client.send(kRegionRead, access(0, kConfigRegion, 4));
    EXPECT_EQ(client.wait_reply(first).result(), 0);
    EXPECT_EQ(client.wait_reply(second).result(), 0);
    EXPECT_EQ(client.wait_reply(read).result(), 0);
    EXPECT_EQ(client.reset(), 0);
}

TEST_P(RegionAccess, RepliesToPipelinedReadsComeInOrder)
{
    auto client = session();
    std::vector<std::uint16_t> ids;
    for (int i = 0; i < 300; ++i) {
        ids.push_back(client.send(kRegionRead, access(0, kConfigRegion, 4)));
    }
    for (const auto id : ids) {
        const auto reply = client.receive();
        ASSERT_TRUE(reply);
        EXPECT_EQ(reply->id, id);
        EXPECT_EQ(reply->payload.size(), 20u);
    }
}

}  // namespace
}  // namespace vvfu::test
