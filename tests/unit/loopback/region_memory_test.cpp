// SPDX-License-Identifier: BSD-3-Clause
#include "region_memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "guest_ram.hpp"

namespace vvfu::loopback {
namespace {

constexpr std::uint64_t kSize = 0x8000;

class LoopbackRegionMemoryTest : public ::testing::Test {
protected:
    RegionMemory memory = std::move(*RegionMemory::create(kSize));
    test::GuestRam file{0, 0x4000};
};

TEST_F(LoopbackRegionMemoryTest, ShowsTheFileAndLeavesTheRestAlone)
{
    std::fill(memory.bytes().begin(), memory.bytes().end(), std::byte{7});
    ASSERT_EQ(memory.map(0x2000, 0x1000, file.fd(), 0x1000), 0);
    EXPECT_EQ(memory.bytes()[0x1fff], std::byte{7});
    EXPECT_EQ(memory.bytes()[0x2000], std::byte{0});
    EXPECT_EQ(memory.bytes()[0x3000], std::byte{7});
    file.bytes()[0x1000] = std::byte{1};
    EXPECT_EQ(memory.bytes()[0x2000], std::byte{1});
    memory.bytes()[0x2fff] = std::byte{2};
    EXPECT_EQ(file.bytes()[0x1fff], std::byte{2});
}

//= VVFU-REGION-3
//= type=test
TEST_F(LoopbackRegionMemoryTest, ZeroedPrivateMemoryIsThereAfterUnmap)
{
    ASSERT_EQ(memory.map(0, 0x2000, file.fd(), 0), 0);
    memory.bytes()[5] = std::byte{1};
    memory.unmap(0, 0x2000);
    EXPECT_EQ(memory.bytes()[5], std::byte{0});
    memory.bytes()[6] = std::byte{2};
    EXPECT_EQ(file.bytes()[6], std::byte{0});
    file.bytes()[7] = std::byte{3};
    EXPECT_EQ(memory.bytes()[7], std::byte{0});
}

TEST_F(LoopbackRegionMemoryTest, NothingOutsideIsMapped)
{
    EXPECT_EQ(memory.map(kSize, 0x1000, file.fd(), 0), -EINVAL);
    EXPECT_EQ(memory.map(kSize - 0x1000, 0x2000, file.fd(), 0), -EINVAL);
    EXPECT_EQ(memory.map(0, 0, file.fd(), 0), -EINVAL);
    EXPECT_EQ(memory.map(0, 0x1000, -1, 0), -EBADF);
    memory.unmap(kSize, 0x1000);
}

TEST_F(LoopbackRegionMemoryTest, MayBeAbsent)
{
    const auto none = std::move(*RegionMemory::create(0));
    EXPECT_TRUE(none.bytes().empty());
}

}  // namespace
}  // namespace vvfu::loopback
