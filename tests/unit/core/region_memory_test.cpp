// SPDX-License-Identifier: BSD-3-Clause
#include "region_memory.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

class RegionMemoryTest : public CoreTest {
protected:
    /// The file of region 0, as the peer gets it.
    Fd area_file()
    {
        auto reply = call(vu::Command::device_get_region_info, concat(vu::RegionInfo{4096, 0, 0, 0, 0, 0}));
        if (reply.fds.size() != 1) {
            ADD_FAILURE() << "no file";
            return {};
        }
        return std::move(reply.fds[0]);
    }
    static ino_t inode(const Fd &fd)
    {
        struct stat st {};
        EXPECT_EQ(0, ::fstat(fd.get(), &st));
        return st.st_ino;
    }
};

//= VVFU-REGION-4
//= type=test
TEST_F(RegionMemoryTest, EachRegionHasASealedFileThatEndsWithItsLastArea)
{
    core::Device device;
    device.regions[0] = {0x8000, 7, 0, {{0x1000, 0x1000}, {0x4000, 0x2000}}};
    device.regions[2] = {0x2000, 7, 0x6000, {{0, 0x2000}}};
    device.regions[4] = {0x2000, 3, 0, {}};
    core::RegionMemory memory{port};
    ASSERT_EQ(0, memory.show(device));
    ASSERT_EQ(3u, port.region_memory.size());
    EXPECT_EQ(0x1000u, port.region_memory.at(0x1000).size);
    EXPECT_EQ(0x1000u, port.region_memory.at(0x1000).fd_offset);
    EXPECT_EQ(0x2000u, port.region_memory.at(0x4000).size);
    EXPECT_EQ(0x4000u, port.region_memory.at(0x4000).fd_offset);
    EXPECT_EQ(0u, port.region_memory.at(0x6000).fd_offset);
    EXPECT_NE(port.region_memory.at(0x1000).inode, port.region_memory.at(0x6000).inode);
    EXPECT_EQ(-1, memory.fd(4));
    struct stat st {};
    ASSERT_EQ(0, ::fstat(memory.fd(0), &st));
    EXPECT_EQ(0x6000, st.st_size);
    EXPECT_EQ(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, ::fcntl(memory.fd(0), F_GET_SEALS));
    memory.release();
    EXPECT_TRUE(port.region_memory.empty());
    EXPECT_EQ(-1, memory.fd(0));
}

//= VVFU-REGION-2
//= type=test
TEST_F(RegionMemoryTest, ASessionBeginsWithMemoryThatNoFormerPeerHas)
{
    start_session();
    const auto first = area_file();
    EXPECT_EQ(port.region_memory.at(0x8000).inode, inode(first));
    core->peer_closed(now, 0);
    answer_all();
    begin_session();
    const auto second = area_file();
    EXPECT_NE(inode(first), inode(second));
    EXPECT_EQ(port.region_memory.at(0x8000).inode, inode(second));
    // Nor does one have it that stays while the device goes and comes.
    ASSERT_EQ(control::Status::ok, device_del().header.status);
    answer_all();
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    begin_session();
    const auto third = area_file();
    EXPECT_NE(inode(first), inode(third));
    EXPECT_NE(inode(second), inode(third));
}

//= VVFU-REGION-2
//= VVFU-REGION-3
//= type=test
TEST_F(RegionMemoryTest, IsThereBeforeTheGuestHearsOfTheSessionAndGoneBeforeItHearsOfTheEnd)
{
    create();
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    connect();
    port.events.clear();
    feed(command(vu::Command::version, version_payload("")));
    ASSERT_LE(2u, port.events.size());
    EXPECT_EQ("map areas", port.events[0]);
    EXPECT_EQ("request", port.events[1]);
    answer_all();
    port.events.clear();
    core->peer_closed(now, 0);
    const auto taken = std::find(port.events.begin(), port.events.end(), "unmap areas");
    const auto told = std::find(port.events.begin(), port.events.end(), "request");
    EXPECT_LT(taken, told);
    EXPECT_NE(port.events.end(), told);
    EXPECT_TRUE(port.region_memory.empty());
}

TEST_F(RegionMemoryTest, AResetOfTheDeviceTakesItOut)
{
    start_session();
    EXPECT_FALSE(port.region_memory.empty());
    core->driver_reset(now);
    EXPECT_TRUE(port.region_memory.empty());
}

TEST_F(RegionMemoryTest, WithoutMemoryForTheAreasThereIsNoSession)
{
    create();
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    port.region_memory_result = -ENOMEM;
    const auto before = open_fds();
    connect();
    feed(command(vu::Command::version, version_payload("")));
    EXPECT_EQ(static_cast<std::uint32_t>(ENOMEM), take_sent().header.error);
    EXPECT_TRUE(port.requests.empty());
    EXPECT_EQ(before, open_fds());
    port.region_memory_result = 0;
    begin_session();
}

TEST_F(RegionMemoryTest, APartOfTheAreasIsTakenOutWhenTheRestCannotBeShown)
{
    struct Full : FakePort {
        int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) override
        {
            return region_memory.size() == 2 ? -ENOMEM : FakePort::region_memory_map(offset, size, fd, fd_offset);
        }
    } full;
    core::Device device;
    device.regions[0] = {0x8000, 7, 0, {{0x1000, 0x1000}}};
    device.regions[2] = {0x8000, 7, 0x2000, {{0, 0x1000}, {0x2000, 0x1000}}};
    core::RegionMemory memory{full};
    EXPECT_EQ(-ENOMEM, memory.show(device));
    EXPECT_TRUE(full.region_memory.empty());
    EXPECT_TRUE(full.violations.empty());
    EXPECT_EQ(-1, memory.fd(0));
}

}  // namespace
}  // namespace vvfu::test
