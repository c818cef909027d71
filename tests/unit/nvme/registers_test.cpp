// SPDX-License-Identifier: BSD-3-Clause
#include "registers.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace vvfu::nvme::test {
namespace {

std::uint32_t read_dword(const Registers &registers, std::uint64_t offset)
{
    Le32 value;
    registers.read(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
}

TEST(Registers, ConfigurationFieldsAreDecoded)
{
    Registers registers;
    registers.write(reg::kCc, 1u | 3u << 7 | 2u << 14 | 6u << 16 | 4u << 20);
    EXPECT_TRUE(registers.enable());
    EXPECT_EQ(registers.page_shift(), 15u);
    EXPECT_EQ(registers.shutdown_notification(), 2u);
    EXPECT_TRUE(registers.entry_sizes_set());
    registers.write(reg::kCc, 7u << 16 | 4u << 20);
    EXPECT_FALSE(registers.enable());
    EXPECT_FALSE(registers.entry_sizes_set());
}

TEST(Registers, AdminQueueSizesAreZeroBased)
{
    Registers registers;
    registers.write(reg::kAqa, 0x00ff'0007);
    EXPECT_EQ(registers.asq_entries(), 8u);
    EXPECT_EQ(registers.acq_entries(), 256u);
    EXPECT_TRUE(registers.can_enable());
    registers.write(reg::kAqa, 0x0000'0007);
    EXPECT_FALSE(registers.can_enable());
}

TEST(Registers, StatusShowsWhatTheControllerSets)
{
    Registers registers;
    registers.set_ready(true);
    registers.set_fatal();
    registers.set_shutdown_status(ShutdownStatus::complete);
    EXPECT_EQ(read_dword(registers, reg::kCsts), 0xbu);
    registers.controller_reset();
    EXPECT_EQ(read_dword(registers, reg::kCsts), 0u);
}

TEST(Registers, ControllerResetKeepsTheAdminQueue)
{
    Registers registers;
    registers.write(reg::kAqa, 0x000f'000f);
    registers.write(reg::kAsq, 0x1000);
    registers.write(reg::kAcq + 4, 7);
    registers.write(reg::kIntms, 1);
    registers.controller_reset();
    EXPECT_EQ(registers.asq_entries(), 16u);
    EXPECT_EQ(registers.asq(), 0x1000u);
    EXPECT_EQ(registers.acq(), std::uint64_t{7} << 32);
    EXPECT_FALSE(registers.masked(0));
}

TEST(Registers, ReadsAgreeWithTheWholeImage)
{
    Registers registers;
    registers.write(reg::kAsq, 0x1234'5000);
    registers.write(reg::kAcq, 0x89ab'c000);
    registers.write(reg::kAqa, 0x001f'003f);
    std::vector<std::byte> image(0x1100, std::byte{0xff});
    registers.read(0, image);
    EXPECT_EQ(image[0x50], std::byte{0}) << "reserved";
    std::mt19937 random(2);
    for (int i = 0; i < 1000; ++i) {
        const auto offset = random() % 0x1000;
        std::vector<std::byte> part(1 + random() % 64, std::byte{0xff});
        registers.read(offset, part);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), image.begin() + static_cast<std::ptrdiff_t>(offset)));
    }
}

}  // namespace
}  // namespace vvfu::nvme::test
