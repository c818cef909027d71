// SPDX-License-Identifier: BSD-3-Clause
#include "window.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>

#include "guest_ram.hpp"
#include "vvfu/core/port.hpp"

namespace vvfu::loopback {
namespace {

constexpr std::uint64_t kSize = 64u << 20;
constexpr int kReadWrite = core::kProtRead | core::kProtWrite;

class WindowTest : public ::testing::Test {
protected:
    Window window = std::move(*Window::create(kSize));
    test::GuestRam ram{0, 16384};
};

TEST_F(WindowTest, ShowsExactlyTheMappedPartOfAFile)
{
    ASSERT_EQ(window.map(0x10000, 0x2000, kReadWrite, ram.fd(), 0x1000), 0);
    ram.bytes()[0x1000] = std::byte{1};
    ram.bytes()[0x2fff] = std::byte{2};
    EXPECT_EQ(window.bytes()[0x10000], std::byte{1});
    EXPECT_EQ(window.bytes()[0x11fff], std::byte{2});
    window.bytes()[0x10001] = std::byte{3};
    EXPECT_EQ(ram.bytes()[0x1001], std::byte{3});
}

//= VVFU-WINDOW-5
//= type=test
TEST_F(WindowTest, WhatShowsNoRangeIsScratchMemory)
{
    window.bytes()[0x30000] = std::byte{7};
    EXPECT_EQ(window.map(0x30000, 0x1000, kReadWrite, ram.fd(), 0), 0);
    EXPECT_EQ(window.bytes()[0x30000], std::byte{0});
}

//= VVFU-WINDOW-4
//= type=test
TEST_F(WindowTest, AccessesAfterUnmapHitNeitherThePeerNorAnUnmappedPage)
{
    ASSERT_EQ(window.map(0, 0x4000, kReadWrite, ram.fd(), 0), 0);
    window.bytes()[5] = std::byte{7};
    window.unmap(0, 0x4000);
    window.bytes()[5] = std::byte{9};
    EXPECT_EQ(ram.bytes()[5], std::byte{7});
    EXPECT_EQ(window.bytes()[0x3fff], std::byte{0}) << "nothing of the peer's memory is left to read";
    ASSERT_EQ(window.map(0, 0x4000, kReadWrite, ram.fd(), 0), 0);
    EXPECT_EQ(window.bytes()[5], std::byte{7});
}

//= VVFU-WINDOW-2
//= type=test
TEST_F(WindowTest, AReadOnlyRangeCannotBeWritten)
{
    ASSERT_EQ(window.map(0, 0x1000, core::kProtRead, ram.fd(), 0), 0);
    // The kernel checks the protection for us: a read() into the page fails instead of killing the test.
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const Fd read_end{ends[0]}, write_end{ends[1]};
    ASSERT_EQ(::write(write_end.get(), "x", 1), 1);
    EXPECT_EQ(::read(read_end.get(), window.bytes().data(), 1), -1);
    EXPECT_EQ(errno, EFAULT);
}

TEST_F(WindowTest, RangesOutsideAreRefused)
{
    EXPECT_EQ(window.map(kSize - 0x1000, 0x2000, kReadWrite, ram.fd(), 0), -EINVAL);
    EXPECT_EQ(window.map(~std::uint64_t{0} - 0xfff, 0x1000, kReadWrite, ram.fd(), 0), -EINVAL);
    EXPECT_EQ(window.map(0, 0, kReadWrite, ram.fd(), 0), -EINVAL);
    window.unmap(kSize, 0x1000);  // must not touch what lies behind the window
}

TEST_F(WindowTest, AFailedMappingReportsItsErrno)
{
    EXPECT_EQ(window.map(0, 0x1000, kReadWrite, -1, 0), -EBADF);
}

TEST(Window, ManyRangesLeaveMappingsToTheRestOfTheProcess)
{
    constexpr std::uint64_t kStride = 0x2000;  // so that no two of them become one
    const auto most = Window::create(kStride)->max_ranges();
    auto window = std::move(*Window::create((most + 1) * kStride));
    const test::GuestRam ram{0, 0x1000};
    for (std::uint64_t i = 0; i < most; ++i) {
        ASSERT_EQ(window.map(i * kStride, 0x1000, kReadWrite, ram.fd(), 0), 0);
    }
    EXPECT_EQ(window.map(most * kStride, 0x1000, kReadWrite, ram.fd(), 0), -ENOSPC);
    window.unmap(0, 0x1000);
    EXPECT_EQ(window.map(most * kStride, 0x1000, kReadWrite, ram.fd(), 0), 0);
}

TEST(Window, TheHostsLimitOfMappingsLimitsRanges)
{
    EXPECT_EQ(ranges_within(65530), 24573u);
    EXPECT_EQ(ranges_within(1000), 375u);
    EXPECT_EQ(ranges_within(1), 1u);
    EXPECT_EQ(ranges_within(~std::uint64_t{0}), ~0u);
}

//= VVFU-WINDOW-10
//= type=test
TEST_F(WindowTest, ItsStartKeepsTheCongruenceOfOffsets)
{
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(window.bytes().data()) % (1u << 30), 0u);
}

TEST(Window, ASizeThatCannotBeReservedIsAnErrorThatNamesTheOption)
{
    const auto window = Window::create(std::uint64_t{1} << 60);
    ASSERT_FALSE(window);
    EXPECT_NE(window.error().message.find("--window-size"), std::string::npos);
}

}  // namespace
}  // namespace vvfu::loopback
