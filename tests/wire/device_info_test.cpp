// SPDX-License-Identifier: BSD-3-Clause
//
// GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS and GET_IRQ_INFO.
#include <sys/stat.h>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(DeviceInfo);

Bytes region_request(std::uint32_t argsz, std::uint32_t index)
{
    return Packer().u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0).take();
}

Bytes io_fds_request(std::uint32_t argsz, std::uint32_t flags, std::uint32_t index, std::uint32_t count)
{
    return Packer().u32(argsz).u32(flags).u32(index).u32(count).take();
}

TEST_P(DeviceInfo, IsAResettablePciDeviceWithNineRegionsAndFiveInterruptIndices)
{
    auto client = session();
    const auto info = client.device_info();
    EXPECT_EQ(info.argsz, 16u);
    EXPECT_EQ(info.flags, 3u);  // RESET | PCI
    EXPECT_EQ(info.num_regions, 9u);
    EXPECT_EQ(info.num_irqs, 5u);
}

TEST_P(DeviceInfo, GetInfoChecksItsSizes)
{
    auto client = session();
    EXPECT_EQ(result(client, kGetInfo, Bytes(15)), EINVAL);
    EXPECT_EQ(result(client, kGetInfo, Packer().u32(15).zeros(12).take()), EINVAL);
    EXPECT_EQ(result(client, kGetInfo, Packer().u32(0).zeros(12).take()), EINVAL);
    // A longer payload, and cloud-hypervisor's argsz that counts the header, are fine.
    EXPECT_EQ(result(client, kGetInfo, Packer().u32(32).zeros(28).take()), 0);
    const auto reply = client.transact(kGetInfo, Packer().u32(32).zeros(12).view());
    EXPECT_EQ(reply.size, 32u);
    EXPECT_EQ(field<std::uint32_t>(reply.payload, 8), 9u);
}

TEST_P(DeviceInfo, RegionInfoChecksItsSizesAndIndex)
{
    auto client = session();
    EXPECT_EQ(result(client, kGetRegionInfo, Bytes(31)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionInfo, region_request(31, 0)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionInfo, region_request(32, 9)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionInfo, region_request(32, 0xffffffff)), EINVAL);
    for (std::uint32_t index = 0; index < 9; ++index) {
        EXPECT_EQ(result(client, kGetRegionInfo, region_request(32, index)), 0) << index;
    }
}

TEST_P(DeviceInfo, ConfigurationSpaceIs4096Bytes)
{
    auto client = session();
    const auto info = client.region_info(kConfigRegion);
    EXPECT_EQ(info.size, 4096u);
    EXPECT_EQ(info.flags, RegionInfoReply::kRead | RegionInfoReply::kWrite);
    EXPECT_EQ(info.argsz, 32u);
    EXPECT_TRUE(info.fds.empty());
}

TEST_P(DeviceInfo, LargerArgszIsTrimmed)
{
    auto client = session();
    const auto reply = client.transact(kGetRegionInfo, region_request(0x1000, kConfigRegion));
    EXPECT_EQ(reply.size, 48u);
    EXPECT_EQ(field<std::uint32_t>(reply.payload, 0), 32u);
}

TEST_P(DeviceInfo, MappableRegionTakesTwoPasses)
{
    auto client = session();
    const auto first = client.transact(kGetRegionInfo, region_request(32, 2));
    EXPECT_EQ(first.size, 48u);
    const auto argsz = field<std::uint32_t>(first.payload, 0);
    const auto flags = field<std::uint32_t>(first.payload, 4);
    EXPECT_GT(argsz, 32u);
    EXPECT_NE(flags & RegionInfoReply::kMmap, 0u);
    EXPECT_EQ(flags & RegionInfoReply::kCaps, 0u);
    EXPECT_EQ(field<std::uint32_t>(first.payload, 12), 0u);
    EXPECT_TRUE(first.fds.empty());

    const auto second = client.transact(kGetRegionInfo, region_request(argsz, 2));
    EXPECT_EQ(second.payload.size(), argsz);  // cloud-hypervisor: message size - 48 == argsz - 32
    EXPECT_EQ(field<std::uint32_t>(second.payload, 0), argsz);
    EXPECT_NE(field<std::uint32_t>(second.payload, 4) & RegionInfoReply::kCaps, 0u);
    EXPECT_EQ(field<std::uint32_t>(second.payload, 12), 32u);
    EXPECT_EQ(field<std::uint16_t>(second.payload, 32), 1u);  // sparse mmap
    EXPECT_EQ(field<std::uint16_t>(second.payload, 34), 1u);  // version
    EXPECT_EQ(second.fds.size(), 1u);
}

TEST_P(DeviceInfo, MappableAreasLieInsideTheRegionAndTheFile)
{
    auto client = session();
    const auto info = client.region_info(2);
    ASSERT_EQ(info.fds.size(), 1u);
    ASSERT_FALSE(info.areas.empty());
    struct stat file {};
    ASSERT_EQ(::fstat(info.fds[0].get(), &file), 0);
    for (const auto &area : info.areas) {
        EXPECT_EQ(area.offset % 4096, 0u);
        EXPECT_EQ(area.size % 4096, 0u);
        EXPECT_LE(area.offset + area.size, info.size);
        EXPECT_LE(info.offset + area.offset + area.size, static_cast<std::uint64_t>(file.st_size));
    }
}

TEST_P(DeviceInfo, RegionIoFdsAreValidatedAndThenNotSupported)
{
    auto client = session();
    EXPECT_EQ(result(client, kGetRegionIoFds, Bytes(15)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(16, 1, kScratchRegion, 0)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(16, 0, kScratchRegion, 1)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(15, 0, kScratchRegion, 0)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(1024 * 1024 + 1, 0, kScratchRegion, 0)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(16, 0, 9, 0)), EINVAL);
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(16, 0, 6, 0)), EINVAL);  // no ROM
    EXPECT_EQ(result(client, kGetRegionIoFds, io_fds_request(16, 0, kScratchRegion, 0)), ENOTSUP);
    expect_alive(client);
}

TEST_P(DeviceInfo, IrqInfoReportsEventfdVectors)
{
    auto client = session();
    const auto msix = client.irq_info(kMsixIndex);
    EXPECT_EQ(msix.argsz, 16u);
    EXPECT_EQ(msix.index, kMsixIndex);
    EXPECT_GE(msix.count, 8u);
    EXPECT_NE(msix.flags & 1u, 0u);  // EVENTFD
    EXPECT_EQ(client.irq_info(kIntxIndex).count, 1u);
    EXPECT_EQ(client.irq_info(kErrIndex).count, 0u);  // QEMU stops the VM on ERR
    EXPECT_EQ(client.irq_info(kReqIndex).count, 0u);
}

TEST_P(DeviceInfo, IrqInfoChecksItsSizesAndIndex)
{
    auto client = session();
    EXPECT_EQ(result(client, kGetIrqInfo, Bytes(15)), EINVAL);
    EXPECT_EQ(result(client, kGetIrqInfo, Packer().u32(15).zeros(12).take()), EINVAL);
    EXPECT_EQ(result(client, kGetIrqInfo, Packer().u32(16).u32(0).u32(5).u32(0).take()), EINVAL);
    EXPECT_EQ(result(client, kGetIrqInfo, Packer().u32(16).u32(0).u32(0xffffffff).u32(0).take()), EINVAL);
}

TEST_P(DeviceInfo, MigrationCommandsAreValidatedAndThenNotSupported)
{
    auto client = session();
    EXPECT_EQ(result(client, kDeviceFeature, Packer().u32(7).u32(1u << 16 | 1).take()), EINVAL);
    EXPECT_EQ(result(client, kDeviceFeature, Packer().u32(24).u32(1u << 16 | 1).zeros(16).take()), ENOTSUP);
    EXPECT_EQ(result(client, kMigDataRead, Packer().u32(8 + 4096).u32(4096).take()), ENOTSUP);
    EXPECT_EQ(result(client, kMigDataWrite, Packer().u32(8 + 16).u32(16).zeros(16).take()), ENOTSUP);
    EXPECT_EQ(result(client, kMigDataWrite, Packer().u32(8 + 16).u32(16).zeros(15).take()), EINVAL);
    expect_alive(client);
}

}  // namespace
}  // namespace vvfu::test
