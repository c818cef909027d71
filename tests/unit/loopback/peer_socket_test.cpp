// SPDX-License-Identifier: BSD-3-Clause
#include "peer_socket.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "event_fd.hpp"
#include "process.hpp"

namespace vvfu::loopback {
namespace {

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed = 0)
{
    std::vector<std::byte> out(bytes);
    for (std::size_t i = 0; i < bytes; ++i) {
        out[i] = static_cast<std::byte>(seed + i * 13 + i / 251);
    }
    return out;
}

class PeerSocketTest : public ::testing::Test {
protected:
    PeerSocketTest()
    {
        std::array<int, 2> ends{};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()), 0);
        socket = std::make_unique<PeerSocket>(Fd{ends[0]});
        peer.reset(ends[1]);
    }
    std::vector<std::byte> read_all()
    {
        std::vector<std::byte> out;
        std::vector<std::byte> part(65536);
        for (;;) {
            const auto bytes = ::recv(peer.get(), part.data(), part.size(), 0);
            if (bytes <= 0) {
                return out;
            }
            out.insert(out.end(), part.begin(), part.begin() + bytes);
        }
    }
    void send_fds(std::span<const int> fds, std::size_t control_bytes)
    {
        char byte = 'x';
        iovec part{&byte, 1};
        std::vector<char> control(CMSG_SPACE(control_bytes));
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(control_bytes);
        std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
        ASSERT_EQ(::sendmsg(peer.get(), &message, 0), 1);
    }

    std::unique_ptr<PeerSocket> socket;
    Fd peer;
};

TEST_F(PeerSocketTest, ReceivesBytesAndSaysWhenThereAreNone)
{
    EXPECT_TRUE(socket->receive().would_block);
    const auto data = pattern(1000);
    ASSERT_EQ(::send(peer.get(), data.data(), data.size(), 0), 1000);
    const auto received = socket->receive();
    EXPECT_TRUE(std::equal(data.begin(), data.end(), received.data.begin(), received.data.end()));
    EXPECT_TRUE(received.fds.empty());
    EXPECT_FALSE(received.closed);
}

TEST_F(PeerSocketTest, ReceivesFdsCloseOnExecAndClosesThemWhenNobodyTakesThem)
{
    const auto before = test::count_open_fds();
    const test::EventFd event;
    const std::array<int, 3> fds{event.fd(), event.fd(), event.fd()};
    send_fds(fds, sizeof fds);
    {
        const auto received = socket->receive();
        ASSERT_EQ(received.fds.size(), 3u);
        for (const auto &fd : received.fds) {
            EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
        }
    }
    EXPECT_EQ(test::count_open_fds(), before + 1);
}

TEST_F(PeerSocketTest, TakesAsManyFdsAsAMessageCanCarry)
{
    const test::EventFd event;
    const std::vector<int> fds(253, event.fd());
    send_fds(fds, fds.size() * sizeof(int));
    const auto received = socket->receive();
    EXPECT_EQ(received.fds.size(), 253u);
    EXPECT_EQ(received.error, 0);
}

TEST_F(PeerSocketTest, ReportsTheEndOfTheStreamAfterItsLastBytes)
{
    ASSERT_EQ(::send(peer.get(), "abc", 3, 0), 3);
    peer.reset();
    const auto last = socket->receive();
    EXPECT_EQ(last.data.size(), 3u);
    EXPECT_FALSE(last.closed);
    const auto end = socket->receive();
    EXPECT_TRUE(end.closed);
    EXPECT_EQ(end.error, 0);
}

TEST_F(PeerSocketTest, CollectsSmallMessagesAndKeepsTheirOrderAmongLargeOnes)
{
    std::vector<std::byte> expected;
    for (unsigned i = 0; i < 50; ++i) {
        const auto message = pattern(i % 7 == 0 ? 20000 : 40, i);
        expected.insert(expected.end(), message.begin(), message.end());
        socket->send(message, {});
    }
    socket->flush();
    std::vector<std::byte> got;
    for (int round = 0; round < 100 && got.size() < expected.size(); ++round) {
        const auto part = read_all();
        got.insert(got.end(), part.begin(), part.end());
        socket->flush();
    }
    EXPECT_EQ(got, expected);
}

TEST_F(PeerSocketTest, NothingIsSentBeforeFlushUnlessThereIsEnough)
{
    socket->send(pattern(40), {});
    EXPECT_TRUE(read_all().empty());
    socket->flush();
    EXPECT_EQ(read_all().size(), 40u);
}

TEST_F(PeerSocketTest, QueuesWhatThePeerDoesNotTakeWithoutBlocking)
{
    const auto message = pattern(10000);
    std::size_t sent = 0;
    while (socket->backlog() == 0) {
        socket->send(message, {});
        socket->flush();
        sent += message.size();
        ASSERT_LT(sent, 100u * 1024 * 1024);
    }
    const test::EventFd event;
    const std::array<int, 1> fds{event.fd()};
    socket->send(message, fds);  // with an fd, behind the others
    sent += message.size();
    std::size_t got = 0;
    while (got < sent) {
        const auto part = read_all().size();
        got += part;
        socket->flush();
        ASSERT_TRUE(part > 0 || socket->backlog() > 0);
    }
    EXPECT_EQ(got, sent);
    EXPECT_EQ(socket->backlog(), 0u);
    EXPECT_EQ(socket->send_error(), 0);
}

TEST_F(PeerSocketTest, ABacklogThatIsGoneByTheNextFlushIsReportedOnce)
{
    const auto message = pattern(20000);
    socket->send(message, {});
    EXPECT_FALSE(socket->take_drained());
    while (socket->backlog() == 0) {
        socket->send(message, {});
    }
    EXPECT_FALSE(socket->take_drained());
    static_cast<void>(read_all());
    socket->flush();
    ASSERT_EQ(socket->backlog(), 0u);
    EXPECT_TRUE(socket->take_drained());
    EXPECT_FALSE(socket->take_drained());
}

TEST_F(PeerSocketTest, SendsFdsWithTheFirstByteOfTheirMessage)
{
    const test::EventFd event;
    const std::array<int, 1> fds{event.fd()};
    socket->send(pattern(10), {});
    socket->send(pattern(20), fds);
    PeerSocket other{std::move(peer)};
    // The kernel may join bytes without fds to a message with some, but never goes past that.
    std::size_t bytes = 0;
    std::vector<Fd> got;
    while (bytes < 30) {
        auto received = other.receive();
        ASSERT_FALSE(received.would_block || received.closed);
        bytes += received.data.size();
        std::move(received.fds.begin(), received.fds.end(), std::back_inserter(got));
        EXPECT_EQ(got.empty(), bytes <= 10);
    }
    ASSERT_EQ(got.size(), 1u);
    ASSERT_EQ(::eventfd_write(got[0].get(), 1), 0);
    EXPECT_EQ(event.take(), 1u) << "the same eventfd";
}

TEST_F(PeerSocketTest, AClosedPeerIsAnErrorAndNoSignal)
{
    peer.reset();
    socket->send(pattern(10), {});
    socket->flush();
    EXPECT_EQ(socket->send_error(), EPIPE);
}

}  // namespace
}  // namespace vvfu::loopback
