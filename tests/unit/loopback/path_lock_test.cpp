// SPDX-License-Identifier: BSD-3-Clause
#include "path_lock.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "temporary_directory.hpp"

namespace vvfu::loopback {
namespace {

class PathLockTest : public ::testing::Test {
protected:
    [[nodiscard]] bool exists() const { return ::access(file_.c_str(), F_OK) == 0; }

    const test::TemporaryDirectory directory_;
    const std::string path_ = directory_.path("sock"), file_ = path_ + ".lock";
};

TEST_F(PathLockTest, OneHoldsItUntilItsEnd)
{
    {
        const auto first = PathLock::take(path_);
        ASSERT_TRUE(first);
        const auto second = PathLock::take(path_);
        ASSERT_FALSE(second);
        EXPECT_EQ(second.error(), EADDRINUSE);
        EXPECT_TRUE(exists()) << "the second one left it alone";
    }
    EXPECT_FALSE(exists());
    EXPECT_TRUE(PathLock::take(path_));
}

TEST_F(PathLockTest, AFileThatAKilledServerLeftIsTaken)
{
    const Fd left{::open(file_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0400)};
    ASSERT_TRUE(left);
    EXPECT_TRUE(PathLock::take(path_));
}

TEST_F(PathLockTest, NoLinkIsFollowed)
{
    ASSERT_EQ(::symlink("elsewhere", file_.c_str()), 0);
    const auto lock = PathLock::take(path_);
    ASSERT_FALSE(lock);
    EXPECT_EQ(lock.error(), ELOOP);
    EXPECT_NE(::access(directory_.path("elsewhere").c_str(), F_OK), 0);
}

TEST_F(PathLockTest, AFolderThatIsMissingIsTold)
{
    const auto lock = PathLock::take(directory_.path("missing/sock"));
    ASSERT_FALSE(lock);
    EXPECT_EQ(lock.error(), ENOENT);
}

// Each holder removes the file, so that the others lock files that are gone: still one at a time.
TEST_F(PathLockTest, ManyStartersNeverHoldItTogether)
{
    std::atomic<int> holders = 0;
    std::atomic<int> taken = 0;
    std::atomic<bool> together = false;
    std::vector<std::thread> starters;
    for (int i = 0; i < 4; ++i) {
        starters.emplace_back([&] {
            for (int tries = 0; tries < 2000; ++tries) {
                if (const auto lock = PathLock::take(path_)) {
                    together = holders.fetch_add(1) != 0 || together;
                    ++taken;
                    holders.fetch_sub(1);
                }
            }
        });
    }
    for (auto &starter : starters) {
        starter.join();
    }
    EXPECT_FALSE(together);
    EXPECT_GT(taken, 0);
    EXPECT_FALSE(exists());
}

}  // namespace
}  // namespace vvfu::loopback
