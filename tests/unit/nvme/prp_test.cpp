// SPDX-License-Identifier: BSD-3-Clause
#include "prp.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace vvfu::nvme::test {
namespace {

struct Segment {
    std::uint64_t address, size;
    friend bool operator==(const Segment &, const Segment &) = default;
};

std::vector<Segment> segments_of(const PrpWalk &walk)
{
    std::vector<Segment> result;
    for (const auto &segment : walk.segments()) {
        result.push_back({raw(segment.address), segment.size});
    }
    return result;
}

TEST(PrpWalk, OnePageNeedsOneEntry)
{
    const PrpWalk walk(0x1000, 0xdead, 4096, 12);
    EXPECT_EQ(walk.status(), Status::success);
    EXPECT_FALSE(walk.next_list());
    EXPECT_EQ(segments_of(walk), (std::vector<Segment>{{0x1000, 4096}}));
}

TEST(PrpWalk, SecondEntryTakesTheRest)
{
    const PrpWalk walk(0x1ffc, 0x8000, 4096, 12);
    EXPECT_FALSE(walk.next_list());
    EXPECT_EQ(segments_of(walk), (std::vector<Segment>{{0x1ffc, 4}, {0x8000, 4092}}));
}

TEST(PrpWalk, NeighboursAreOneSegment)
{
    const PrpWalk walk(0x1800, 0x2000, 4096, 12);
    EXPECT_EQ(segments_of(walk), (std::vector<Segment>{{0x1800, 4096}}));
}

TEST(PrpWalk, OffsetsThatAreNotAllowedFail)
{
    EXPECT_EQ(PrpWalk(0x1001, 0, 512, 12).status(), Status::invalid_prp_offset);
    EXPECT_EQ(PrpWalk(0x1002, 0, 512, 12).status(), Status::invalid_prp_offset);
    EXPECT_EQ(PrpWalk(0x1004, 0, 512, 12).status(), Status::success);
    EXPECT_EQ(PrpWalk(0x1000, 0x2004, 8192, 12).status(), Status::invalid_prp_offset);
    EXPECT_EQ(PrpWalk(0x1000, 0x2004, 8193, 12).status(), Status::invalid_prp_offset);
    EXPECT_EQ(PrpWalk(0x1000, 0x2008, 8193, 12).status(), Status::success);
    EXPECT_EQ(PrpWalk(0x1000, 0x2000, 8192, 16).status(), Status::success) << "fits the 64 KiB page";
    EXPECT_EQ(PrpWalk(0xf000, 0x21000, 8192, 16).status(), Status::invalid_prp_offset) << "not a 64 KiB page";
}

TEST(PrpWalk, OffsetInListEntryFails)
{
    PrpWalk walk(0x1000, 0x2000, 4 * 4096, 12);
    ASSERT_TRUE(walk.next_list());
    ASSERT_EQ(walk.next_list()->entries, 3u);
    walk.feed(std::vector<Le64>{0x10000, 0x11004, 0x12000});
    EXPECT_EQ(walk.status(), Status::invalid_prp_offset);
    EXPECT_FALSE(walk.next_list());
}

TEST(PrpWalk, ChainPointerWithOffsetFails)
{
    PrpWalk walk(0x1000, 0x2ff0, 4 * 4096, 12);
    ASSERT_EQ(walk.next_list()->entries, 2u);
    walk.feed(std::vector<Le64>{0x10000, 0x11008});
    EXPECT_EQ(walk.status(), Status::invalid_prp_offset);
}

TEST(PrpWalk, LastEntryOfTheListPageIsDataWhenItIsTheLastOne)
{
    PrpWalk walk(0x1000, 0x2ff0, 3 * 4096, 12);
    ASSERT_EQ(walk.next_list()->entries, 2u);
    walk.feed(std::vector<Le64>{0x10000, 0x20000});
    EXPECT_FALSE(walk.next_list());
    EXPECT_EQ(segments_of(walk), (std::vector<Segment>{{0x1000, 4096}, {0x10000, 4096}, {0x20000, 4096}}));
}

TEST(PrpWalk, HostileChainEnds)
{
    // Every list page points to itself: each one still covers data, so the walk is over after three.
    for (const std::uint64_t offset : {0xff8u, 0x800u, 0u}) {
        PrpWalk walk(0x1ffc, 0x2000 + offset, kMaxTransfer, 12);
        int lists = 0;
        while (const auto list = walk.next_list()) {
            ASSERT_LE(++lists, 3);
            walk.feed(std::vector<Le64>(list->entries, Le64{0x2000}));
        }
        EXPECT_EQ(walk.status(), Status::success);
    }
}

/// What a host builds for a transfer: the pages of data, and the memory that holds its lists.
struct Layout {
    std::vector<std::uint64_t> pages;  // of the data, in order
    std::uint64_t offset = 0;          // in the first page
    std::uint64_t bytes = 0;
    std::uint64_t prp1 = 0, prp2 = 0;
    std::map<std::uint64_t, std::uint64_t> lists;  // address of an entry -> entry
};

/// Lists as NVMe 4.3 describes them, the first one at a random offset in its page.
void build_lists(Layout &layout, std::uint64_t page, std::uint64_t list_offset)
{
    std::uint64_t next_list_page = 0x7000'0000'0000;
    auto at = next_list_page + list_offset;
    layout.prp2 = at;
    for (std::size_t i = 1; i < layout.pages.size(); ++i) {
        const bool last_slot = at % page == page - 8;
        if (last_slot && i + 1 < layout.pages.size()) {
            next_list_page += page;
            layout.lists[at] = next_list_page;
            at = next_list_page;
        }
        layout.lists[at] = layout.pages[i];
        at += 8;
    }
}

Layout random_layout(std::mt19937_64 &random, std::uint32_t page_shift)
{
    const auto page = std::uint64_t{1} << page_shift;
    Layout layout;
    layout.offset = random() % (page / 4) * 4;
    layout.bytes = random() % kMaxTransfer + 1;
    const auto count = (layout.offset + layout.bytes + page - 1) / page;
    for (std::uint64_t i = 0; i < count; ++i) {
        const bool neighbour = i > 0 && random() % 3 == 0;
        layout.pages.push_back(neighbour ? layout.pages.back() + page : (random() % (1u << 20) + 1) * page);
    }
    layout.prp1 = layout.pages[0] + layout.offset;
    if (count == 2) {
        layout.prp2 = layout.pages[1];
    } else if (count > 2) {
        build_lists(layout, page, random() % 2 == 0 ? page - 8 * (random() % 4 + 1) : random() % (page / 8) * 8);
    }
    return layout;
}

TEST(PrpWalk, FindsTheSameBytesAsANaiveWalker)
{
    std::mt19937_64 random(1);
    for (int round = 0; round < 3000; ++round) {
        const auto page_shift =
            static_cast<std::uint32_t>(kMinPageShift + random() % (kMaxPageShift - kMinPageShift + 1));
        const auto page = std::uint64_t{1} << page_shift;
        const auto layout = random_layout(random, page_shift);
        PrpWalk walk(layout.prp1, layout.prp2, layout.bytes, page_shift);
        while (const auto list = walk.next_list()) {
            std::vector<Le64> entries;
            for (std::uint32_t i = 0; i < list->entries; ++i) {
                entries.push_back(layout.lists.at(raw(list->address) + 8u * i));
            }
            walk.feed(entries);
        }
        ASSERT_EQ(walk.status(), Status::success);
        // Page by page, the address of each byte range.
        std::vector<Segment> expected;
        auto left = layout.bytes;
        for (std::size_t i = 0; i < layout.pages.size(); ++i) {
            const auto offset = i == 0 ? layout.offset : 0;
            const Segment piece{layout.pages[i] + offset, std::min(left, page - offset)};
            left -= piece.size;
            if (!expected.empty() && expected.back().address + expected.back().size == piece.address) {
                expected.back().size += piece.size;
            } else {
                expected.push_back(piece);
            }
        }
        ASSERT_EQ(segments_of(walk), expected) << "round " << round;
    }
}

}  // namespace
}  // namespace vvfu::nvme::test
