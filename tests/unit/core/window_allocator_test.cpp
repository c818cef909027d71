// SPDX-License-Identifier: BSD-3-Clause
#include "window_allocator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "no_memory.hpp"

namespace vvfu::core {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t k2M = std::uint64_t{2} << 20;
constexpr std::uint64_t k1G = std::uint64_t{1} << 30;

TEST(WindowAllocator, LargeRangesAreCongruentToTheFileOffset)
{
    WindowAllocator window{8 * k1G};
    ASSERT_TRUE(window.allocate(kPage, 0));
    for (const auto &[size, file_offset] : {std::pair{3 * k2M, kPage}, std::pair{k2M, 5 * k2M + 17 * kPage},
                                            std::pair{k1G, k1G / 2}, std::pair{2 * k1G, 3 * k1G + kPage}}) {
        const auto offset = window.allocate(size, file_offset);
        ASSERT_TRUE(offset);
        const auto alignment = size >= k1G ? k1G : k2M;
        EXPECT_EQ(file_offset % alignment, *offset % alignment);
    }
}

TEST(WindowAllocator, AlignmentIsGivenUpBeforeTheRange)
{
    WindowAllocator window{k2M + kPage};
    EXPECT_EQ(0u, window.allocate(k2M + kPage, kPage));
    EXPECT_EQ(0u, window.free_bytes());
}

TEST(WindowAllocator, MandatoryAlignmentIsNotGivenUp)
{
    WindowAllocator window{2 * k2M};
    ASSERT_EQ(0u, window.allocate(kPage, 0));
    EXPECT_EQ(k2M, window.allocate(k2M, 4 * k2M, k2M));
    EXPECT_EQ(std::nullopt, window.allocate(k2M, 0, k2M));
}

TEST(WindowAllocator, ReleasedRangesMerge)
{
    WindowAllocator window{4 * kPage};
    std::vector<std::uint64_t> offsets;
    for (int i = 0; i < 4; ++i) {
        offsets.push_back(*window.allocate(kPage, 0));
    }
    EXPECT_EQ(std::nullopt, window.allocate(kPage, 0));
    for (const auto i : {1u, 3u, 0u, 2u}) {
        window.release(offsets[i]);
    }
    EXPECT_EQ(0u, window.allocate(4 * kPage, 0));
}

TEST(WindowAllocator, SmallRangesUseTheSmallestHole)
{
    WindowAllocator window{16 * kPage};
    const auto a = *window.allocate(2 * kPage, 0);
    ASSERT_TRUE(window.allocate(kPage, 0));
    window.release(a);
    EXPECT_EQ(a, window.allocate(2 * kPage, 0));
}

TEST(WindowAllocator, RetiredRangesComeBackTogether)
{
    WindowAllocator window{4 * kPage};
    const auto a = *window.allocate(kPage, 0), b = *window.allocate(2 * kPage, 0);
    window.retire(a);
    window.retire(b);
    EXPECT_EQ(kPage, window.free_bytes());
    EXPECT_EQ(std::nullopt, window.allocate(2 * kPage, 0));
    window.release_retired();
    EXPECT_EQ(0u, window.allocate(4 * kPage, 0));
}

TEST(WindowAllocator, WithoutMemoryEverythingCanBeGivenBackAndNothingIsLost)
{
    WindowAllocator window{16 * kPage};
    std::vector<std::uint64_t> offsets;
    for (int i = 0; i < 8; ++i) {
        offsets.push_back(*window.allocate(kPage, 0));
    }
    {
        const test::NoMemory no_memory;
        EXPECT_THROW(window.allocate(kPage, 0), std::bad_alloc);
        for (const auto i : {1u, 3u, 5u}) {
            window.release(offsets[i]);
        }
        for (const auto i : {7u, 6u, 4u, 2u, 0u}) {
            window.retire(offsets[i]);
        }
        window.release_retired();
    }
    EXPECT_EQ(0u, window.allocate(16 * kPage, 0));
}

/// Against a naive model: one flag per page.
TEST(WindowAllocator, RandomUseAgreesWithANaiveModel)
{
    constexpr std::uint64_t kPages = 2048;  // 8 MiB: several 2 MiB slots
    std::mt19937 random{42};
    WindowAllocator window{kPages * kPage};
    std::vector<bool> used(kPages);
    struct Range {
        std::uint64_t offset, size;
    };
    std::vector<Range> live;
    const auto longest_hole = [&] {
        std::uint64_t best = 0, run = 0;
        for (const bool page : used) {
            run = page ? 0 : run + 1;
            best = std::max(best, run);
        }
        return best;
    };
    for (int step = 0; step < 4000; ++step) {
        if (random() % 2 == 0 || live.empty()) {
            const auto pages = 1 + random() % (random() % 8 == 0 ? 700 : 20);
            const auto file_offset = (random() % 4096) * kPage;
            const auto offset = window.allocate(pages * kPage, file_offset);
            ASSERT_EQ(longest_hole() >= pages, offset.has_value());
            if (!offset) {
                continue;
            }
            ASSERT_EQ(0u, *offset % kPage);
            ASSERT_LE(*offset / kPage + pages, kPages);
            for (std::uint64_t page = *offset / kPage; page < *offset / kPage + pages; ++page) {
                ASSERT_FALSE(used[page]);
                used[page] = true;
            }
            live.push_back({*offset, pages * kPage});
        } else {
            const auto pick = random() % live.size();
            const auto range = live[pick];
            live[pick] = live.back();
            live.pop_back();
            window.release(range.offset);
            for (std::uint64_t page = range.offset / kPage; page < (range.offset + range.size) / kPage; ++page) {
                used[page] = false;
            }
        }
        ASSERT_EQ(static_cast<std::uint64_t>(std::count(used.begin(), used.end(), false)) * kPage, window.free_bytes());
    }
}

}  // namespace
}  // namespace vvfu::core
