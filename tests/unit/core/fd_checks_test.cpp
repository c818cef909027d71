// SPDX-License-Identifier: BSD-3-Clause
#include "fd_checks.hpp"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using core::check_memory_fd;
using core::EventfdCheck;
using core::MemoryFd;

TEST(FdChecks, OnlyEventfdsAreEventfds)
{
    const auto created = EventfdCheck::create();
    ASSERT_TRUE(created.has_value()) << created.error();
    const auto &is_eventfd = *created;
    EXPECT_TRUE(is_eventfd(make_eventfd().get()));
    EXPECT_FALSE(is_eventfd(make_memfd(4096).get()));
    EXPECT_FALSE(is_eventfd(Fd{::open("/dev/null", O_RDWR | O_CLOEXEC)}.get()));
    int ends[2];
    ASSERT_EQ(0, ::pipe(ends));
    const Fd reader{ends[0]}, writer{ends[1]};
    EXPECT_FALSE(is_eventfd(writer.get()));
    EXPECT_FALSE(is_eventfd(-1));
}

TEST(FdChecks, WithoutProcTheReasonIsGiven)
{
    const auto error = [](const char *directory) {
        const auto created = EventfdCheck::create(directory);
        return created ? "created" : created.error();
    };
    EXPECT_EQ(
        "cannot look at file descriptors in /nonexistent/fd: No such file or directory (a sandbox has to show /proc)",
        error("/nonexistent/fd"));
    EXPECT_EQ("/dev does not tell what a file descriptor is (is it procfs?)", error("/dev"));
}

TEST(FdChecks, AProcThatGoesOutOfSightIsStillOfUse)
{
    constexpr int kNotPermitted = 77;
    const auto is_eventfd = EventfdCheck::create();
    ASSERT_TRUE(is_eventfd.has_value()) << is_eventfd.error();
    const auto eventfd = make_eventfd(), memory = make_memfd(4096);
    const auto child = ::fork();
    if (child == 0) {
        if (::chroot("/dev") != 0 && (::unshare(CLONE_NEWUSER) != 0 || ::chroot("/dev") != 0)) {
            ::_exit(kNotPermitted);
        }
        const bool works = !EventfdCheck::create() && (*is_eventfd)(eventfd.get()) && !(*is_eventfd)(memory.get());
        ::_exit(works ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(child, ::waitpid(child, &status, 0));
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNotPermitted) {
        GTEST_SKIP() << "chroot() is not permitted";
    }
    EXPECT_EQ(0, status);
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
