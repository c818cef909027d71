// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/dma_space.hpp"

#include <gmock/gmock.h>

#include <optional>
#include <random>

#include "fakes.hpp"

namespace vvfu::guest {
namespace {

using testing::ElementsAre;
using testing::Pair;

constexpr auto kFromPeer = DmaDirection::from_peer;
constexpr auto kToPeer = DmaDirection::to_peer;

std::vector<std::byte> pattern(std::size_t size, unsigned seed = 1)
{
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = static_cast<std::byte>(i * 7 + seed);
    }
    return bytes;
}

struct DmaSpaceTest : testing::Test {
    DmaSpaceTest() { space.open(); }

    test::FakeMessageDma message_dma;
    DmaSpace space{&message_dma};
    std::vector<std::byte> window = std::vector<std::byte>(0x10000);

    DmaRange mapped(std::uint64_t address, std::uint64_t size, std::size_t window_offset) const
    {
        return {DmaAddress{address}, size, true, true, const_cast<std::byte *>(window.data()) + window_offset};
    }
    static DmaRange message_only(std::uint64_t address, std::uint64_t size)
    {
        return {DmaAddress{address}, size, true, true, nullptr};
    }
    Expected<DmaMapping, DmaError> map_now(std::vector<DmaSegment> segments, DmaDirection direction)
    {
        std::optional<Expected<DmaMapping, DmaError>> result;
        space.map(segments, direction, [&](auto mapping) { result = std::move(mapping); });
        EXPECT_TRUE(result.has_value()) << "map() did not complete inside the call";
        return std::move(*result);
    }
};

TEST_F(DmaSpaceTest, AddRefusesEmptyWrappingAndOverlappingRanges)
{
    EXPECT_FALSE(space.add(mapped(0x1000, 0, 0)));
    EXPECT_FALSE(space.add(mapped(~0ull - 0xffe, 0x1000, 0)));
    EXPECT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    EXPECT_FALSE(space.add(mapped(0x1000, 0x1000, 0)));
    EXPECT_FALSE(space.add(mapped(0x1fff, 1, 0)));
    EXPECT_FALSE(space.add(mapped(0x0, 0x1001, 0)));
    EXPECT_FALSE(space.add(mapped(0x0, 0x8000, 0)));
    EXPECT_TRUE(space.add(mapped(0x0, 0x1000, 0)));
    EXPECT_TRUE(space.add(mapped(0x2000, 1, 0)));
    EXPECT_EQ(space.ranges(), 3u);
}

TEST_F(DmaSpaceTest, RangeMayEndAtTheTopOfTheAddressSpace)
{
    ASSERT_TRUE(space.add(mapped(~0ull - 0xfff, 0x1000, 0)));
    EXPECT_FALSE(space.add(mapped(~0ull, 1, 0)));
    EXPECT_TRUE(map_now({{DmaAddress{~0ull - 0xfff}, 0x1000}}, kFromPeer));
    const auto wrapped = map_now({{DmaAddress{~0ull - 0xfff}, 0x1001}}, kFromPeer);
    ASSERT_FALSE(wrapped);
    EXPECT_EQ(wrapped.error(), DmaError::fault);
}

TEST_F(DmaSpaceTest, AddAgreesWithANaiveModel)
{
    std::mt19937 random(1);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> model;
    for (int step = 0; step < 3000; ++step) {
        const std::uint64_t address = random() % 64, size = 1 + random() % 6;
        const auto overlaps = [&](const auto &r) { return r.first < address + size && address < r.first + r.second; };
        const auto exact = std::find(model.begin(), model.end(), std::pair{address, size});
        if (random() % 2 == 0) {
            const bool expected = std::none_of(model.begin(), model.end(), overlaps);
            ASSERT_EQ(space.add(mapped(address, size, 0)), expected);
            if (expected) {
                model.emplace_back(address, size);
            }
        } else {
            ASSERT_EQ(space.remove(DmaAddress{address}, size, [] {}), exact != model.end());
            if (exact != model.end()) {
                model.erase(exact);
            }
        }
    }
    EXPECT_EQ(space.ranges(), model.size());
}

TEST_F(DmaSpaceTest, MappedSegmentsPointIntoTheWindowInOrder)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0x4000)));
    auto mapping =
        map_now({{DmaAddress{0x1800}, 0x10}, {DmaAddress{0x1000}, 0x20}, {DmaAddress{0x1900}, 0}}, kFromPeer);
    ASSERT_TRUE(mapping);
    EXPECT_FALSE(mapping->bounced());
    EXPECT_EQ(mapping->size(), 0x30u);
    ASSERT_EQ(mapping->readable().size(), 2u);
    EXPECT_EQ(mapping->readable()[0].iov_base, window.data() + 0x4800);
    EXPECT_EQ(mapping->readable()[0].iov_len, 0x10u);
    EXPECT_EQ(mapping->readable()[1].iov_base, window.data() + 0x4000);
}

TEST_F(DmaSpaceTest, NeighboursInMemoryBecomeOneIovec)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0x4000)));
    ASSERT_TRUE(space.add(mapped(0x2000, 0x1000, 0x5000)));
    ASSERT_TRUE(space.add(mapped(0x3000, 0x1000, 0x8000)));
    auto mapping = map_now({{DmaAddress{0x1000}, 0x800}, {DmaAddress{0x1800}, 0x2000}}, kFromPeer);
    ASSERT_TRUE(mapping);
    ASSERT_EQ(mapping->readable().size(), 2u);
    EXPECT_EQ(mapping->readable()[0].iov_len, 0x2000u);
    EXPECT_EQ(mapping->readable()[1].iov_base, window.data() + 0x8000);
    EXPECT_EQ(mapping->readable()[1].iov_len, 0x800u);
}

TEST_F(DmaSpaceTest, EmptyListGivesAnEmptyMapping)
{
    auto mapping = map_now({}, kToPeer);
    ASSERT_TRUE(mapping);
    EXPECT_EQ(mapping->size(), 0u);
    EXPECT_TRUE(mapping->readable().empty());
}

//= VVFU-WINDOW-9
//= type=test
TEST_F(DmaSpaceTest, BytesOutsideEveryRangeFault)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(mapped(0x3000, 0x1000, 0x1000)));
    for (const auto &[address, size] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
             {0x0, 4}, {0xfff, 2}, {0x1fff, 2}, {0x2000, 1}, {0x1800, 0x2000}, {0x4000, 1}, {0x1000, ~0ull}}) {
        const auto mapping = map_now({{DmaAddress{address}, size}}, kFromPeer);
        ASSERT_FALSE(mapping) << address;
        EXPECT_EQ(mapping.error(), DmaError::fault);
    }
}

//= VVFU-WINDOW-9
//= type=test
TEST_F(DmaSpaceTest, DirectionMustBeAllowed)
{
    ASSERT_TRUE(space.add({DmaAddress{0x1000}, 0x1000, true, false, window.data()}));
    ASSERT_TRUE(space.add({DmaAddress{0x2000}, 0x1000, false, true, window.data() + 0x1000}));
    EXPECT_TRUE(map_now({{DmaAddress{0x1000}, 4}}, kFromPeer));
    EXPECT_TRUE(map_now({{DmaAddress{0x2000}, 4}}, kToPeer));
    EXPECT_EQ(map_now({{DmaAddress{0x1000}, 4}}, kToPeer).error(), DmaError::permission);
    EXPECT_EQ(map_now({{DmaAddress{0x2000}, 4}}, kFromPeer).error(), DmaError::permission);
    std::optional<DmaError> error;
    std::byte data[4]{};
    space.write(DmaAddress{0x1000}, data, [&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::permission);
}

TEST_F(DmaSpaceTest, BouncedReadIsFilledBeforeTheCallback)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    window[0xfff] = std::byte{0xaa};
    message_dma.memory[0x2000] = std::byte{0xbb};
    std::optional<DmaMapping> mapping;
    const DmaSegment segment{DmaAddress{0x1fff}, 2};
    space.map({&segment, 1}, kFromPeer, [&](auto m) { mapping = std::move(m.value()); });
    EXPECT_FALSE(mapping);
    message_dma.answer_all();
    ASSERT_TRUE(mapping);
    EXPECT_TRUE(mapping->bounced());
    ASSERT_EQ(mapping->readable().size(), 2u);
    EXPECT_EQ(*static_cast<std::byte *>(mapping->readable()[0].iov_base), std::byte{0xaa});
    EXPECT_EQ(*static_cast<std::byte *>(mapping->readable()[1].iov_base), std::byte{0xbb});
    EXPECT_THAT(message_dma.reads, ElementsAre(Pair(0x2000, 1)));
    bool finished = false;
    std::move(*mapping).finish([&](auto r) { finished = r.has_value(); });
    EXPECT_TRUE(finished) << "nothing to write back";
    EXPECT_TRUE(message_dma.writes.empty());
}

TEST_F(DmaSpaceTest, BouncedWriteIsWrittenBackByFinish)
{
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    auto mapping = map_now({{DmaAddress{0x2010}, 8}, {DmaAddress{0x2100}, 8}}, kToPeer);
    ASSERT_TRUE(mapping);
    EXPECT_TRUE(message_dma.reads.empty());
    ASSERT_EQ(mapping->writable().size(), 1u) << "bounced pieces are neighbours in the bounce buffer";
    const auto data = pattern(16);
    mapping->store(0, data);
    std::optional<bool> ok;
    std::move(*mapping).finish([&](auto r) { ok = r.has_value(); });
    EXPECT_FALSE(ok.has_value());
    message_dma.answer_all();
    EXPECT_EQ(ok, true);
    EXPECT_THAT(message_dma.writes, ElementsAre(Pair(0x2010, 8), Pair(0x2100, 8)));
    EXPECT_EQ(message_dma.memory[0x2010], data[0]);
    EXPECT_EQ(message_dma.memory[0x2107], data[15]);
}

TEST_F(DmaSpaceTest, DroppedMappingWritesNothingBack)
{
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    {
        auto mapping = map_now({{DmaAddress{0x2000}, 8}}, kToPeer);
        ASSERT_TRUE(mapping);
    }
    EXPECT_TRUE(message_dma.writes.empty());
}

TEST_F(DmaSpaceTest, FirstErrorOfSeveralTransfersIsReportedOnce)
{
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    message_dma.result = make_unexpected(DmaError::timeout);
    int calls = 0;
    DmaError error{};
    const DmaSegment segments[] = {{DmaAddress{0x2000}, 4}, {DmaAddress{0x2800}, 4}};
    space.map(segments, kFromPeer, [&](auto m) {
        ++calls;
        error = m.error();
    });
    message_dma.answer_all();
    EXPECT_EQ(calls, 1);
    EXPECT_EQ(error, DmaError::timeout);
}

TEST_F(DmaSpaceTest, MoreThanTheBounceLimitIsTooLarge)
{
    ASSERT_TRUE(space.add(message_only(0, 1ull << 40)));
    EXPECT_EQ(map_now({{DmaAddress{0}, DmaSpace::kMaxBounce + 1}}, kToPeer).error(), DmaError::too_large);
    EXPECT_EQ(map_now({{DmaAddress{0}, DmaSpace::kMaxBounce}, {DmaAddress{0}, 1}}, kToPeer).error(),
              DmaError::too_large);
    EXPECT_EQ(map_now({{DmaAddress{0}, 1ull << 40}, {DmaAddress{0}, 1ull << 40}}, kToPeer).error(),
              DmaError::too_large);
    EXPECT_TRUE(map_now({{DmaAddress{0}, DmaSpace::kMaxBounce}}, kToPeer));
}

TEST_F(DmaSpaceTest, MessageOnlyWithoutMessageDmaFailsWithIo)
{
    DmaSpace alone;
    alone.open();
    ASSERT_TRUE(alone.add(message_only(0, 0x1000)));
    std::optional<DmaError> map_error, read_error;
    const DmaSegment segment{DmaAddress{0}, 4};
    alone.map({&segment, 1}, kToPeer, [&](auto m) { map_error = m.error(); });
    std::byte out[4];
    alone.read(DmaAddress{0}, out, [&](auto r) { read_error = r.error(); });
    EXPECT_EQ(map_error, DmaError::io);
    EXPECT_EQ(read_error, DmaError::io);
}

TEST_F(DmaSpaceTest, RemoveNeedsTheExactRange)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x2000, 0)));
    bool idle = false;
    EXPECT_FALSE(space.remove(DmaAddress{0x1000}, 0x1000, [&] { idle = true; }));
    EXPECT_FALSE(space.remove(DmaAddress{0x2000}, 0x1000, [&] { idle = true; }));
    EXPECT_FALSE(idle);
    EXPECT_TRUE(space.remove(DmaAddress{0x1000}, 0x2000, [&] { idle = true; }));
    EXPECT_TRUE(idle) << "nobody used it";
    EXPECT_EQ(map_now({{DmaAddress{0x1000}, 4}}, kFromPeer).error(), DmaError::fault);
}

//= VVFU-MEMORY-1
//= VVFU-MEMORY-2
//= type=test
TEST_F(DmaSpaceTest, RemoveWaitsForEveryMappingOfTheRange)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(mapped(0x2000, 0x1000, 0x1000)));
    auto across = map_now({{DmaAddress{0x1800}, 0x1000}}, kToPeer);
    auto second = map_now({{DmaAddress{0x1000}, 4}, {DmaAddress{0x1000}, 4}}, kToPeer);
    bool idle1 = false, idle2 = false;
    ASSERT_TRUE(space.remove(DmaAddress{0x1000}, 0x1000, [&] { idle1 = true; }));
    ASSERT_TRUE(space.remove(DmaAddress{0x2000}, 0x1000, [&] { idle2 = true; }));
    EXPECT_EQ(map_now({{DmaAddress{0x1000}, 4}}, kToPeer).error(), DmaError::fault) << "no new access";
    EXPECT_TRUE(space.add(mapped(0x1000, 0x1000, 0x2000))) << "the address is free again";
    std::move(*across).finish([](auto) {});
    EXPECT_FALSE(idle1);
    EXPECT_TRUE(idle2);
    *second = DmaMapping{};
    EXPECT_TRUE(idle1);
}

TEST_F(DmaSpaceTest, RemoveWaitsForWriteBackAndForCopiesByMessage)
{
    ASSERT_TRUE(space.add(message_only(0x1000, 0x1000)));
    auto mapping = map_now({{DmaAddress{0x1000}, 4}}, kToPeer);
    std::byte out[4];
    space.read(DmaAddress{0x1000}, out, [](auto) {});
    bool idle = false;
    bool written = false;
    std::move(*mapping).finish([&](auto r) { written = r.has_value(); });
    ASSERT_TRUE(space.remove(DmaAddress{0x1000}, 0x1000, [&] { idle = true; }));
    EXPECT_FALSE(idle);
    message_dma.answer_all();
    EXPECT_TRUE(written);
    EXPECT_TRUE(idle);
}

//= VVFU-MEMORY-2
//= type=test
TEST_F(DmaSpaceTest, NothingIsWrittenBackToARangeThatWasRemoved)
{
    ASSERT_TRUE(space.add(message_only(0x1000, 0x1000)));
    auto mapping = map_now({{DmaAddress{0x1000}, 4}}, kToPeer);
    bool idle = false;
    ASSERT_TRUE(space.remove(DmaAddress{0x1000}, 0x1000, [&] { idle = true; }));
    ASSERT_TRUE(space.add(message_only(0x1000, 0x1000))) << "another one at the same address";
    EXPECT_FALSE(idle);
    std::optional<DmaError> error;
    std::move(*mapping).finish([&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::fault);
    EXPECT_TRUE(idle);
    EXPECT_TRUE(message_dma.writes.empty());
}

TEST_F(DmaSpaceTest, WhatWasBegunBeforeTheGateWasClosedWritesNothing)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0x4000)));
    ASSERT_TRUE(space.add(mapped(0x2000, 0x1000, 0x8000)));
    auto mapping = map_now({{DmaAddress{0x1ffc}, 8}}, kToPeer);
    ASSERT_TRUE(mapping);
    const auto data = pattern(8);
    mapping->store(2, std::span{data}.first(4));
    EXPECT_EQ(window[0x4ffe], data[0]);
    EXPECT_EQ(window[0x8001], data[3]);
    space.close();
    EXPECT_TRUE(mapping->writable().empty());
    mapping->store(0, data);
    EXPECT_EQ(window[0x4ffe], data[0]);
    EXPECT_EQ(window[0x4ffd], std::byte{0}) << "written after the gate was closed";
    space.open();
    mapping->store(0, data);
    EXPECT_EQ(window[0x4ffd], std::byte{0}) << "what was begun before the gate was closed stays dead";
    std::optional<DmaError> error;
    std::move(*mapping).finish([&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::disabled);
}

TEST_F(DmaSpaceTest, NothingIsReadOnceTheGateWasClosedOrTheRangeIsGone)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0x4000)));
    ASSERT_TRUE(space.add(mapped(0x2000, 0x1000, 0x8000)));
    const auto error_of = [](DmaMapping mapping) {
        std::optional<DmaError> error;
        std::move(mapping).finish([&](auto result) { error = result.error(); });
        return error;
    };
    auto stopped = map_now({{DmaAddress{0x1000}, 8}}, kFromPeer);
    ASSERT_TRUE(stopped);
    EXPECT_EQ(stopped->readable().size(), 1u);
    space.close();
    EXPECT_TRUE(stopped->readable().empty());
    space.open();
    EXPECT_TRUE(stopped->readable().empty()) << "the memory may hold something else by now";
    EXPECT_EQ(error_of(std::move(*stopped)), DmaError::disabled);
    auto removed = map_now({{DmaAddress{0x2000}, 8}}, kFromPeer);
    ASSERT_TRUE(removed);
    ASSERT_TRUE(space.remove(DmaAddress{0x2000}, 0x1000, [] {}));
    EXPECT_TRUE(removed->readable().empty());
    EXPECT_EQ(error_of(std::move(*removed)), DmaError::fault);
}

TEST_F(DmaSpaceTest, ABouncedMappingIsAliveWhenItIsHandedOut)
{
    ASSERT_TRUE(space.add(message_only(0x1000, 0x1000)));
    const DmaSegment segment{DmaAddress{0x1000}, 8};
    std::optional<DmaError> error;
    space.map({&segment, 1}, kFromPeer, [&](auto mapping) { error = mapping.error(); });
    ASSERT_TRUE(space.remove(DmaAddress{0x1000}, 0x1000, [] {}));
    message_dma.answer_all();
    EXPECT_EQ(error, DmaError::fault);
}

TEST_F(DmaSpaceTest, NothingIsReadOrWrittenWhileTheGateIsClosed)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    std::vector<DmaError> errors;
    const auto expect_error = [&](const auto &result) { errors.push_back(result.error()); };
    std::array<std::byte, 8> buffer{};
    space.read(DmaAddress{0x2000}, buffer, expect_error);  // under way
    auto bounced = map_now({{DmaAddress{0x2000}, 8}}, kToPeer);
    space.close();
    message_dma.answer_all();
    std::move(*bounced).finish(expect_error);
    space.read(DmaAddress{0x1000}, buffer, expect_error);
    space.write(DmaAddress{0x1000}, pattern(8), expect_error);
    const auto mapping = map_now({{DmaAddress{0x1000}, 8}}, kFromPeer);
    ASSERT_FALSE(mapping);
    expect_error(mapping);
    EXPECT_EQ(errors, std::vector<DmaError>(5, DmaError::disabled));
    EXPECT_TRUE(message_dma.writes.empty());
    EXPECT_EQ(window[0], std::byte{0});
    space.open();
    EXPECT_TRUE(map_now({{DmaAddress{0x1000}, 8}}, kFromPeer));
}

TEST_F(DmaSpaceTest, TheGateIsClosedUntilSomebodyOpensItAndAtTheEndOfASession)
{
    DmaSpace fresh{&message_dma};
    EXPECT_FALSE(fresh.is_open());
    ASSERT_TRUE(fresh.add(mapped(0x1000, 0x1000, 0)));
    std::optional<DmaError> error;
    fresh.write(DmaAddress{0x1000}, pattern(8), [&](auto result) { error = result.error(); });
    EXPECT_EQ(error, DmaError::disabled);
    fresh.open();
    EXPECT_EQ(fresh.closings(), 0u);
    fresh.clear();
    EXPECT_FALSE(fresh.is_open());
    EXPECT_EQ(fresh.closings(), 1u);
}

TEST_F(DmaSpaceTest, ClearFailsWriteBackOfWindowAndMessages)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    auto mapping = map_now({{DmaAddress{0x1ffc}, 8}}, kToPeer);
    space.clear();
    EXPECT_EQ(space.ranges(), 0u);
    mapping->store(0, pattern(8));
    EXPECT_EQ(window[0xfff], std::byte{0});
    std::optional<DmaError> error;
    std::move(*mapping).finish([&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::io);
    EXPECT_TRUE(message_dma.writes.empty()) << "a later session's memory must not be written";
}

TEST_F(DmaSpaceTest, ClearDuringFillAndDuringWriteBackFailsThem)
{
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    auto written = map_now({{DmaAddress{0x2000}, 8}}, kToPeer);
    std::optional<DmaError> fill_error, write_error;
    const DmaSegment segment{DmaAddress{0x2000}, 8};
    space.map({&segment, 1}, kFromPeer, [&](auto m) { fill_error = m.error(); });
    std::move(*written).finish([&](auto r) { write_error = r.error(); });
    space.clear();
    message_dma.answer_all();
    EXPECT_EQ(fill_error, DmaError::io);
    EXPECT_EQ(write_error, DmaError::io);
}

TEST_F(DmaSpaceTest, MappingOutlivesTheSpaceAndItsIdleCallbackIsDropped)
{
    bool idle = false;
    std::optional<DmaMapping> mapping;
    {
        DmaSpace brief{&message_dma};
        brief.open();
        ASSERT_TRUE(brief.add(mapped(0x1000, 0x1000, 0)));
        ASSERT_TRUE(brief.add(message_only(0x2000, 0x1000)));
        const DmaSegment segment{DmaAddress{0x1ff0}, 0x20};
        brief.map({&segment, 1}, kToPeer, [&](auto m) { mapping = std::move(m.value()); });
        ASSERT_TRUE(brief.remove(DmaAddress{0x1000}, 0x1000, [&] { idle = true; }));
    }
    std::optional<DmaError> error;
    std::move(*mapping).finish([&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::io);
    EXPECT_FALSE(idle);
}

TEST_F(DmaSpaceTest, MessageAnswersAfterTheSpaceIsGoneAreSafe)
{
    std::optional<DmaError> error;
    {
        DmaSpace brief{&message_dma};
        brief.open();
        ASSERT_TRUE(brief.add(message_only(0x2000, 0x1000)));
        const DmaSegment segment{DmaAddress{0x2000}, 0x20};
        brief.map({&segment, 1}, kFromPeer, [&](auto m) { error = m.error(); });
    }
    message_dma.answer_all();
    EXPECT_EQ(error, DmaError::io);
}

TEST_F(DmaSpaceTest, IdleCallbackMayAddTheSameRangeAgain)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    auto mapping = map_now({{DmaAddress{0x1000}, 4}}, kToPeer);
    bool added = false;
    ASSERT_TRUE(space.remove(DmaAddress{0x1000}, 0x1000, [&] { added = space.add(mapped(0x1000, 0x1000, 0)); }));
    std::move(*mapping).finish([](auto) {});
    EXPECT_TRUE(added);
}

TEST_F(DmaSpaceTest, ReadAndWriteCopyAcrossRangesInsideTheCall)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0x4000)));
    ASSERT_TRUE(space.add(mapped(0x2000, 0x1000, 0x8000)));
    const auto data = pattern(0x800);
    bool done = false;
    space.write(DmaAddress{0x1c00}, data, [&](auto r) { done = r.has_value(); });
    ASSERT_TRUE(done);
    EXPECT_TRUE(std::equal(data.begin(), data.begin() + 0x400, window.begin() + 0x4c00));
    EXPECT_TRUE(std::equal(data.begin() + 0x400, data.end(), window.begin() + 0x8000));
    std::vector<std::byte> back(0x800);
    done = false;
    space.read(DmaAddress{0x1c00}, back, [&](auto r) { done = r.has_value(); });
    EXPECT_TRUE(done);
    EXPECT_EQ(back, data);
}

TEST_F(DmaSpaceTest, ReadMixesWindowAndMessages)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    ASSERT_TRUE(space.add(message_only(0x2000, 0x1000)));
    window[0xffe] = std::byte{1};
    window[0xfff] = std::byte{2};
    message_dma.memory[0x2000] = std::byte{3};
    std::array<std::byte, 4> out{};
    std::optional<bool> ok;
    space.read(DmaAddress{0x1ffe}, out, [&](auto r) { ok = r.has_value(); });
    EXPECT_FALSE(ok.has_value());
    message_dma.answer_all();
    EXPECT_EQ(ok, true);
    EXPECT_THAT(out, ElementsAre(std::byte{1}, std::byte{2}, std::byte{3}, std::byte{0}));
}

TEST_F(DmaSpaceTest, FaultingCopyTouchesNothing)
{
    ASSERT_TRUE(space.add(mapped(0x1000, 0x1000, 0)));
    const auto data = pattern(0x20, 9);
    std::optional<DmaError> error;
    space.write(DmaAddress{0x1ff0}, data, [&](auto r) { error = r.error(); });
    EXPECT_EQ(error, DmaError::fault);
    EXPECT_EQ(window[0xff0], std::byte{0});
}

}  // namespace
}  // namespace vvfu::guest
