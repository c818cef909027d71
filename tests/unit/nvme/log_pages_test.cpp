// SPDX-License-Identifier: BSD-3-Clause
#include "log_pages.hpp"

#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

TEST(LogRequest, FieldsAreDecoded)
{
    auto entry = admin(AdminOpcode::get_log_page, 0x03ff'8002, 0);
    entry.cdw12 = 0x20;
    const auto request = parse_log_request(entry);
    ASSERT_TRUE(request);
    EXPECT_EQ(request->id, LogId::smart);
    EXPECT_TRUE(request->retain_event);
    EXPECT_EQ(request->size, 4096u) << "0's based dwords";
    EXPECT_EQ(request->offset, 0x20u);
}

TEST(LogRequest, LengthHasAnUpperHalf)
{
    const auto fits = parse_log_request(admin(AdminOpcode::get_log_page, 0xffff'0001, 1));
    ASSERT_TRUE(fits);
    EXPECT_EQ(fits->size, kMaxTransfer);
    EXPECT_EQ(parse_log_request(admin(AdminOpcode::get_log_page, 0x0000'0001, 2)).error(), Status::invalid_field);
    EXPECT_EQ(parse_log_request(admin(AdminOpcode::get_log_page, 0xffff'0001, 0xffff)).error(), Status::invalid_field);
}

TEST(LogSlice, IsPaddedWithZeroes)
{
    const auto page = pattern(16, 1);
    LogRequest request;
    request.offset = 12;
    request.size = 8;
    const auto slice = slice_log(page, request).value();
    EXPECT_TRUE(std::equal(slice.begin(), slice.begin() + 4, page.begin() + 12));
    EXPECT_EQ(slice[4], std::byte{0});
    request.offset = 16;
    EXPECT_EQ(slice_log(page, request).value(), std::vector<std::byte>(8));
    request.offset = 20;
    EXPECT_EQ(slice_log(page, request).error(), Status::invalid_field);
}

TEST(SmartPage, CountersAreInTheirPlaces)
{
    HealthCounters counters;
    counters.blocks_read = 1001;
    counters.blocks_written = 1000;
    counters.reads = 3;
    counters.writes = 4;
    counters.power_cycles = 8;
    counters.unsafe_shutdowns = 5;
    counters.media_errors = 6;
    const auto page = smart_page(counters, 6, 7);
    EXPECT_EQ(field<std::uint8_t>(page, 0), 6u);
    EXPECT_EQ(field<Le64>(page, 32), 2u);
    EXPECT_EQ(field<Le64>(page, 48), 1u);
    EXPECT_EQ(field<Le64>(page, 64), 3u);
    EXPECT_EQ(field<Le64>(page, 80), 4u);
    EXPECT_EQ(field<Le64>(page, 112), 8u);
    EXPECT_EQ(field<Le64>(page, 144), 5u);
    EXPECT_EQ(field<Le64>(page, 160), 6u);
    EXPECT_EQ(field<Le64>(page, 176), 7u);
}

}  // namespace
}  // namespace vvfu::nvme::test
