// SPDX-License-Identifier: BSD-3-Clause
#include "iova_allocator.hpp"

#include <gtest/gtest.h>

namespace vvfu::guest {
namespace {

TEST(IovaAllocator, StaysInsideTheRangesAndNeverRepeats)
{
    IovaAllocator allocator({{0, 0x102fff}, {0x200800, 0x203fff}}, 0x1000);
    EXPECT_EQ(allocator.allocate(0x2000), 0x100000u) << "not at 0";
    EXPECT_EQ(allocator.allocate(0x1000), 0x102000u);
    EXPECT_EQ(allocator.allocate(0x2000), 0x201000u) << "the next range, page-aligned";
    EXPECT_EQ(allocator.allocate(0x2000), std::nullopt);
    EXPECT_EQ(allocator.allocate(0x1000), 0x203000u);
    EXPECT_EQ(allocator.allocate(0x1000), std::nullopt);
}

TEST(IovaAllocator, SkipsARangeThatIsTooSmall)
{
    IovaAllocator allocator({{0x100000, 0x100fff}, {0xfef00000, ~0ull}}, 0x1000);
    EXPECT_EQ(allocator.allocate(0x2000), 0xfef00000u);
}

TEST(IovaAllocator, TopOfTheAddressSpaceIsUsedOnce)
{
    IovaAllocator allocator({{~0ull - 0xfff, ~0ull}}, 0x1000);
    EXPECT_EQ(allocator.allocate(0x1000), ~0ull - 0xfff);
    EXPECT_EQ(allocator.allocate(0x1000), std::nullopt);
    EXPECT_EQ(IovaAllocator({}, 0x1000).allocate(0x1000), std::nullopt);
}

}  // namespace
}  // namespace vvfu::guest
