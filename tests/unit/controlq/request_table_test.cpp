// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/controlq/request_table.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace vvfu::controlq {
namespace {

using namespace std::chrono_literals;
using control::Type;
using Table = RequestTable<std::unique_ptr<std::string>>;

auto context(const char *text)
{
    return std::make_unique<std::string>(text);
}

constexpr std::uint32_t kEpoch = 3;

control::Header reply(std::uint64_t id, Type type, std::uint32_t epoch = kEpoch)
{
    return {type, control::kFlagReply, 0, id, epoch, control::Status::ok};
}

//= VVFU-MSG-2
//= type=test
TEST(RequestTable, IdsStartAtOneAndAreNeverReused)
{
    Table table;
    const auto first = table.add(Type::region_read, kEpoch, 10ns, context("a"));
    EXPECT_EQ(first, 1u);
    EXPECT_EQ(table.take(reply(first, Type::region_read)).first, Table::Match::found);
    EXPECT_EQ(table.add(Type::region_read, kEpoch, 10ns, context("b")), 2u);
}

TEST(RequestTable, TakeHandsTheContextBackOnce)
{
    Table table;
    const auto id = table.add(Type::memory_info, kEpoch, 10ns, context("map"));
    auto [match, entry] = table.take(reply(id, Type::memory_info));
    ASSERT_EQ(match, Table::Match::found);
    EXPECT_EQ(*entry->context, "map");
    EXPECT_EQ(entry->deadline, 10ns);
    EXPECT_EQ(table.take(reply(id, Type::memory_info)).first, Table::Match::unknown);
    EXPECT_TRUE(table.empty());
}

TEST(RequestTable, AReplyOfAnotherTypeLeavesTheRequestOutstanding)
{
    Table table;
    const auto id = table.add(Type::memory_info, kEpoch, 10ns, context("map"));
    EXPECT_EQ(table.take(reply(id, Type::region_read)).first, Table::Match::type_mismatch);
    EXPECT_EQ(table.size(), 1u);
    EXPECT_EQ(table.take(reply(id, Type::memory_info)).first, Table::Match::found);
}

TEST(RequestTable, AReplyOfAnotherEpochLeavesTheRequestOutstanding)
{
    Table table;
    const auto id = table.add(Type::memory_info, kEpoch, 10ns, context("map"));
    EXPECT_EQ(table.take(reply(id, Type::memory_info, kEpoch - 1)).first, Table::Match::epoch_mismatch);
    EXPECT_EQ(table.take(reply(id, Type::memory_info, 0)).first, Table::Match::epoch_mismatch);
    EXPECT_EQ(table.take(reply(id, Type::memory_info)).first, Table::Match::found);
}

TEST(RequestTable, CancelTakesOutARequestOfThatType)
{
    Table table;
    const auto id = table.add(Type::memory_info, kEpoch, 10ns, context("map"));
    EXPECT_FALSE(table.cancel(id, Type::region_read));
    EXPECT_FALSE(table.cancel(id + 1, Type::memory_info));
    EXPECT_TRUE(table.cancel(id, Type::memory_info));
    EXPECT_TRUE(table.empty());
}

TEST(RequestTable, UnknownIdsAreUnknown)
{
    Table table;
    table.add(Type::memory_info, kEpoch, 10ns, context("map"));
    EXPECT_EQ(table.take(reply(0, Type::memory_info)).first, Table::Match::unknown);
    EXPECT_EQ(table.take(reply(2, Type::memory_info)).first, Table::Match::unknown);
}

TEST(RequestTable, ExpiresEarliestFirstAndOnlyWhenDue)
{
    Table table;
    table.add(Type::region_read, kEpoch, 30ns, context("late"));
    const auto early = table.add(Type::region_read, kEpoch, 10ns, context("early"));
    table.add(Type::region_read, kEpoch, kNever, context("never"));
    EXPECT_EQ(table.next_deadline(), 10ns);
    EXPECT_FALSE(table.take_expired(9ns));
    EXPECT_EQ(*table.take_expired(10ns)->context, "early");
    EXPECT_EQ(table.take(reply(early, Type::region_read)).first, Table::Match::unknown);
    EXPECT_EQ(*table.take_expired(100ns)->context, "late");
    EXPECT_FALSE(table.take_expired(100ns));
    EXPECT_EQ(table.next_deadline(), kNever);
}

TEST(RequestTable, TwoRequestsWithTheSameDeadlineBothExpire)
{
    Table table;
    table.add(Type::region_read, kEpoch, 10ns, context("a"));
    table.add(Type::region_read, kEpoch, 10ns, context("b"));
    EXPECT_EQ(*table.take_expired(10ns)->context, "a");
    EXPECT_EQ(*table.take_expired(10ns)->context, "b");
    EXPECT_EQ(table.next_deadline(), kNever);
}

TEST(RequestTable, TakeAnyEmptiesTheTableOldestFirst)
{
    Table table;
    table.add(Type::region_read, kEpoch, 30ns, context("a"));
    table.add(Type::region_write, kEpoch, 10ns, context("b"));
    EXPECT_EQ(*table.take_any()->context, "a");
    EXPECT_EQ(*table.take_any()->context, "b");
    EXPECT_FALSE(table.take_any());
    EXPECT_EQ(table.next_deadline(), kNever);
}

}  // namespace
}  // namespace vvfu::controlq
