// SPDX-License-Identifier: BSD-3-Clause
#include "listener.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "temporary_directory.hpp"

namespace vvfu::loopback {
namespace {

class ListenerTest : public ::testing::Test {
protected:
    [[nodiscard]] bool exists() const
    {
        struct stat status {};
        return ::lstat(path_.c_str(), &status) == 0;
    }
    [[nodiscard]] bool connects() const
    {
        const Fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strcpy(address.sun_path, path_.c_str());
        return ::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0;
    }
    /// The socket of a server that knows no PathLock.
    [[nodiscard]] Fd bind_socket() const
    {
        Fd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strcpy(address.sun_path, path_.c_str());
        EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address), 0);
        return fd;
    }
    /// A socket file that nobody listens on, as a killed server leaves it.
    void leave_stale_socket() const { const Fd fd = bind_socket(); }

    const test::TemporaryDirectory directory_;
    const std::string path_ = directory_.path("sock");
};

TEST_F(ListenerTest, TheSocketExistsWhileItIsOpenOnly)
{
    auto listener = Listener::at_path(path_);
    ASSERT_TRUE(listener);
    EXPECT_FALSE(exists());
    EXPECT_EQ(listener->fd(), -1);
    ASSERT_EQ(listener->open(), 0);
    EXPECT_TRUE(connects());
    listener->close();
    EXPECT_FALSE(exists());
    ASSERT_EQ(listener->open(), 0) << "can be opened again";
    EXPECT_TRUE(connects());
}

TEST_F(ListenerTest, WhatCannotBeLookedAtIsToldWithItsReason)
{
    const auto listener = Listener::at_path("/dev/null/sock");
    ASSERT_FALSE(listener);
    EXPECT_EQ(listener.error().message, "cannot use the socket /dev/null/sock: Not a directory");
}

TEST_F(ListenerTest, AnFdThatIsRefusedStaysOpen)
{
    const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_FALSE(Listener::from_fd(Fd{fd}));
    EXPECT_EQ(::close(fd), 0);
}

TEST_F(ListenerTest, ReplacesAStaleSocket)
{
    leave_stale_socket();
    ASSERT_TRUE(exists());
    auto listener = Listener::at_path(path_);
    ASSERT_TRUE(listener);
    ASSERT_EQ(listener->open(), 0);
    EXPECT_TRUE(connects());
}

TEST_F(ListenerTest, DoesNotStealALiveSocket)
{
    auto first = Listener::at_path(path_);
    ASSERT_EQ(first->open(), 0);
    const auto second = Listener::at_path(path_);
    ASSERT_FALSE(second);
    EXPECT_NE(second.error().message.find(path_), std::string::npos);
    EXPECT_TRUE(connects());
}

// Of two starters the second is refused from the start, not when both have found the path free, or the socket stale.
TEST_F(ListenerTest, ThePathIsTakenBeforeTheSocketIsMade)
{
    leave_stale_socket();
    {
        auto first = Listener::at_path(path_);
        ASSERT_TRUE(first);
        const auto second = Listener::at_path(path_);
        ASSERT_FALSE(second);
        EXPECT_EQ(second.error().message,
                  "another server uses " + path_ + " (choose another --socket-path or stop it)");
        ASSERT_EQ(first->open(), 0);
        first->close();
        EXPECT_FALSE(Listener::at_path(path_)) << "it may open again";
    }
    EXPECT_TRUE(Listener::at_path(path_));
}

TEST_F(ListenerTest, RefusesASocketThatBecameLiveAfterTheCheck)
{
    auto late = Listener::at_path(path_);
    ASSERT_TRUE(late);
    const Fd foreign = bind_socket();
    ASSERT_EQ(::listen(foreign.get(), 1), 0);
    EXPECT_EQ(late->open(), -EADDRINUSE);
    late->close();
    EXPECT_TRUE(connects()) << "the other server's socket stays";
}

TEST_F(ListenerTest, DoesNotTouchAFileThatIsNoSocket)
{
    const Fd file{::open(path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)};
    EXPECT_FALSE(Listener::at_path(path_));
    EXPECT_TRUE(exists());
}

TEST_F(ListenerTest, DoesNotUnlinkAnotherServersSocketAtTheEnd)
{
    auto first = Listener::at_path(path_);
    ASSERT_EQ(first->open(), 0);
    ::unlink(path_.c_str());
    const Fd foreign = bind_socket();
    ASSERT_EQ(::listen(foreign.get(), 1), 0);
    first->close();
    EXPECT_TRUE(connects());
}

TEST_F(ListenerTest, APathThatIsTooLongIsNamedWithBothNumbers)
{
    const auto result = Listener::at_path("/tmp/" + std::string(200, 'x'));
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("205"), std::string::npos) << result.error().message;
    EXPECT_NE(result.error().message.find("107"), std::string::npos) << result.error().message;
    EXPECT_FALSE(Listener::at_path(""));
}

TEST_F(ListenerTest, AMissingDirectoryIsNamed)
{
    const auto listener = Listener::at_path(directory_.path("missing/sock"));
    ASSERT_FALSE(listener);
    EXPECT_NE(listener.error().message.find("/missing/"), std::string::npos) << listener.error().message;
}

TEST_F(ListenerTest, ADirectoryThatVanishedFailsWhenItOpens)
{
    const auto inner = directory_.path("inner");
    ASSERT_EQ(::mkdir(inner.c_str(), 0700), 0);
    auto listener = Listener::at_path(inner + "/sock");
    ASSERT_TRUE(listener);
    ASSERT_EQ(::unlink((inner + "/sock.lock").c_str()), 0);
    ASSERT_EQ(::rmdir(inner.c_str()), 0);
    EXPECT_EQ(listener->open(), -ENOENT);
}

TEST_F(ListenerTest, APassedSocketIsUsedAndItsFileStays)
{
    Fd socket{::socket(AF_UNIX, SOCK_STREAM, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(socket.get(), 1), 0);
    {
        auto listener = Listener::from_fd(std::move(socket));
        ASSERT_TRUE(listener);
        EXPECT_EQ(listener->fd(), -1);
        ASSERT_EQ(listener->open(), 0);
        EXPECT_GE(listener->fd(), 0);
        listener->close();
        EXPECT_EQ(listener->fd(), -1);
        ASSERT_EQ(listener->open(), 0) << "it was not closed";
        EXPECT_TRUE(connects());
    }
    EXPECT_TRUE(exists());
}

TEST_F(ListenerTest, RefusesAPassedFdThatIsNoListeningUnixSocket)
{
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    const Fd other{pair[1]};
    EXPECT_FALSE(Listener::from_fd(Fd{pair[0]}));
    EXPECT_FALSE(Listener::from_fd(Fd{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)}));
    EXPECT_FALSE(Listener::from_fd(Fd{}));
}

}  // namespace
}  // namespace vvfu::loopback
