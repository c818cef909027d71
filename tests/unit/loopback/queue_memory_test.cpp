// SPDX-License-Identifier: BSD-3-Clause
#include "queue_memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>

namespace vvfu::loopback {
namespace {

TEST(QueueMemory, AllocationsAreZeroedPageAlignedAndApart)
{
    auto memory = std::move(*QueueMemory::create());
    const auto first = memory.allocate(100);
    const auto second = memory.allocate(5000);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->host.size(), 100u);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first->host.data()) % 4096, 0u);
    EXPECT_EQ(second->device_address - first->device_address, 4096u);
    EXPECT_TRUE(std::all_of(second->host.begin(), second->host.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(QueueMemory, DeviceAddressesTranslateToTheSameBytes)
{
    auto memory = std::move(*QueueMemory::create());
    const auto buffer = memory.allocate(64);
    const auto span = memory.translate(buffer->device_address + 8, 16);
    EXPECT_EQ(span.data(), buffer->host.data() + 8);
    EXPECT_EQ(span.size(), 16u);
}

TEST(QueueMemory, RangesOutsideTranslateToNothing)
{
    auto memory = std::move(*QueueMemory::create());
    constexpr auto kEnd = QueueMemory::kBase + QueueMemory::kSize;
    EXPECT_EQ(memory.translate(kEnd - 8, 8).size(), 8u);
    EXPECT_TRUE(memory.translate(kEnd - 8, 9).empty());
    EXPECT_TRUE(memory.translate(kEnd, 1).empty());
    EXPECT_TRUE(memory.translate(0, 8).empty());
    EXPECT_TRUE(memory.translate(QueueMemory::kBase - 1, 8).empty());
    EXPECT_TRUE(memory.translate(QueueMemory::kBase, ~std::uint64_t{0}).empty());
    EXPECT_TRUE(memory.translate(~std::uint64_t{0}, 8).empty());
}

TEST(QueueMemory, RunsOutWithAnError)
{
    auto memory = std::move(*QueueMemory::create());
    EXPECT_TRUE(memory.allocate(QueueMemory::kSize - 4096));
    EXPECT_FALSE(memory.allocate(4097));
    EXPECT_TRUE(memory.allocate(4096));
    EXPECT_FALSE(memory.allocate(1));
}

}  // namespace
}  // namespace vvfu::loopback
