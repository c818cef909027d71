// SPDX-License-Identifier: BSD-3-Clause
#include "fd_checks.hpp"

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using core::check_memory_fd;
using core::is_eventfd;
using core::MemoryFd;

TEST(FdChecks, OnlyEventfdsAreEventfds)
{
    EXPECT_TRUE(is_eventfd(make_eventfd().get()));
    EXPECT_FALSE(is_eventfd(make_memfd(4096).get()));
    EXPECT_FALSE(is_eventfd(Fd{::open("/dev/null", O_RDWR | O_CLOEXEC)}.get()));
    int ends[2];
    ASSERT_EQ(0, ::pipe(ends));
    const Fd reader{ends[0]}, writer{ends[1]};
    EXPECT_FALSE(is_eventfd(writer.get()));
    EXPECT_FALSE(is_eventfd(-1));
}

TEST(FdChecks, MemoryMustBeASealedFileThatIsLongEnough)
{
    const auto verdict = [](const Fd &fd, std::uint64_t offset, std::uint64_t size, bool trusted = false) {
        return check_memory_fd(fd.get(), offset, size, trusted).verdict;
    };
    const auto sealed = make_memfd(0x4000), unsealed = make_memfd(0x4000, false);
    EXPECT_EQ(MemoryFd::mappable, verdict(sealed, 0, 0x4000));
    EXPECT_EQ(MemoryFd::mappable, verdict(sealed, 0x3000, 0x1000));
    EXPECT_EQ(MemoryFd::too_short, verdict(sealed, 0x3000, 0x2000));
    EXPECT_EQ(MemoryFd::too_short, verdict(sealed, 0x5000, 0x1000));
    EXPECT_EQ(MemoryFd::too_short, verdict(sealed, 0x1000, ~std::uint64_t{0xfff}));
    EXPECT_EQ(MemoryFd::misaligned, verdict(sealed, 1, 0x1000));
    EXPECT_EQ(MemoryFd::misaligned, verdict(sealed, 0, 0x1001));
    EXPECT_EQ(MemoryFd::may_shrink, verdict(unsealed, 0, 0x1000));
    EXPECT_EQ(MemoryFd::mappable, verdict(unsealed, 0, 0x1000, true));
    EXPECT_EQ(MemoryFd::too_short, verdict(unsealed, 0, 0x5000, true));
    EXPECT_EQ(MemoryFd::no_file, verdict(make_eventfd(), 0, 0x1000, true));
    EXPECT_EQ(MemoryFd::no_file, verdict(Fd{}, 0, 0x1000, true));
}

}  // namespace
}  // namespace vvfu::test
