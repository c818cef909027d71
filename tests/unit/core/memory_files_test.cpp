// SPDX-License-Identifier: BSD-3-Clause
#include "memory_files.hpp"

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using core::MemoryFiles;

TEST(MemoryFilesTest, FdsOfOneFileAreOne)
{
    MemoryFiles files;
    auto first = make_memfd(4096);
    Fd second{::dup(first.get())};
    const int number = first.get();
    const auto a = files.keep(first), b = files.keep(second);
    EXPECT_EQ(number, a->get());
    EXPECT_EQ(a, b);
    EXPECT_TRUE(second) << "not taken";
}

TEST(MemoryFilesTest, AnotherAccessModeIsAnotherFile)
{
    MemoryFiles files;
    auto both = make_memfd(4096);
    Fd read_only{::open(("/proc/self/fd/" + std::to_string(both.get())).c_str(), O_RDONLY | O_CLOEXEC)};
    ASSERT_TRUE(read_only);
    const auto a = files.keep(read_only), b = files.keep(both);
    EXPECT_NE(a, b);
}

TEST(MemoryFilesTest, TheNumberIsLimitedAndOnesThatNobodyUsesDoNotCount)
{
    MemoryFiles files;
    std::vector<MemoryFiles::File> kept;
    for (std::size_t i = 0; i < MemoryFiles::kMaxFiles; ++i) {
        auto fd = make_memfd(4096);
        kept.push_back(files.keep(fd));
        ASSERT_TRUE(kept.back());
    }
    auto more = make_memfd(4096);
    EXPECT_FALSE(files.keep(more));
    EXPECT_TRUE(more);
    kept.pop_back();
    EXPECT_TRUE(files.keep(more));
}

TEST(MemoryFilesTest, WhatIsNoFdIsNoFile)
{
    MemoryFiles files;
    Fd none;
    EXPECT_FALSE(files.keep(none));
}

}  // namespace
}  // namespace vvfu::test
