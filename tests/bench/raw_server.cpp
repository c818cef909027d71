// SPDX-License-Identifier: BSD-3-Clause
#include "raw_server.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>

namespace vvfu::bench {

namespace {

[[noreturn]] void throw_errno(const char *what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

void add_reader(int epoll, int fd)
{
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        throw_errno("epoll_ctl");
    }
}

void signal_event(int fd)
{
    const std::uint64_t one = 1;
    if (::write(fd, &one, sizeof one) != sizeof one) {
        throw_errno("eventfd");
    }
}

void take_event(int fd)
{
    std::uint64_t count = 0;
    static_cast<void>(!::read(fd, &count, sizeof count));
}

/// Waits for one of the fds as an event loop does.
int wait_one(int epoll)
{
    epoll_event event{};
    while (::epoll_wait(epoll, &event, 1, -1) < 0) {
        if (errno != EINTR) {
            throw_errno("epoll_wait");
        }
    }
    return event.data.fd;
}

/// The second thread: passes bytes on, as the guest driver's thread takes requests from the queue.
class Worker {
public:
    Worker(int request, int reply) : request_(request), reply_(reply), thread_([this] { run(); }) { thread_.detach(); }

private:
    void run()
    {
        Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
        add_reader(epoll.get(), request_);
        for (;;) {
            wait_one(epoll.get());
            take_event(request_);
            signal_event(reply_);
        }
    }
    int request_, reply_;
    std::thread thread_;
};

[[noreturn]] void serve(int socket, RawServer::Mode mode)
{
    const Fd request(::eventfd(0, EFD_NONBLOCK)), reply(::eventfd(0, EFD_NONBLOCK));
    const Fd epoll(::epoll_create1(0));
    add_reader(epoll.get(), socket);
    add_reader(epoll.get(), reply.get());
    Worker worker(request.get(), reply.get());
    // A whole number of messages, so that only a flush, which is shorter, leaves a remainder.
    std::vector<char> buffer(RawServer::kPostedBytes * 1820);
    std::uint64_t received = 0;
    bool flush = false;
    const std::array<char, RawServer::kReplyBytes> answer{};
    for (;;) {
        if (wait_one(epoll.get()) == socket) {
            const auto got = ::recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN)) {
                ::_exit(0);
            }
            received += got > 0 ? static_cast<std::uint64_t>(got) : 0;
            flush = mode == RawServer::Mode::ping_pong || received % RawServer::kPostedBytes != 0;
            signal_event(request.get());
        } else {
            take_event(reply.get());
            if (flush) {
                flush = false;
                received = 0;
                static_cast<void>(::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL));
            }
        }
    }
}

void send_all(int socket, const char *data, std::size_t size)
{
    while (size != 0) {
        const auto sent = ::send(socket, data, size, MSG_NOSIGNAL);
        if (sent < 0) {
            throw_errno("send");
        }
        data += sent;
        size -= static_cast<std::size_t>(sent);
    }
}

void receive_reply(int socket)
{
    // Header first, then the rest, as vfio-user clients read.
    std::array<char, RawServer::kReplyBytes> reply;
    if (::recv(socket, reply.data(), 16, MSG_WAITALL) != 16 ||
        ::recv(socket, reply.data(), reply.size() - 16, MSG_WAITALL) != static_cast<ssize_t>(reply.size() - 16)) {
        throw_errno("recv");
    }
}

}  // namespace

RawServer::RawServer(Mode mode)
{
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw_errno("socketpair");
    }
    socket_.reset(ends[0]);
    child_ = ::fork();
    if (child_ < 0) {
        throw_errno("fork");
    }
    if (child_ == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        socket_.reset();
        serve(ends[1], mode);
    }
    ::close(ends[1]);
}

RawServer::~RawServer()
{
    socket_.reset();
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
}

void RawServer::round_trip()
{
    const std::array<char, kRequestBytes> request{};
    send_all(socket_.get(), request.data(), request.size());
    receive_reply(socket_.get());
}

void RawServer::post(unsigned count, unsigned batch)
{
    const std::vector<char> messages(kPostedBytes * batch);
    for (unsigned sent = 0; sent < count; sent += batch) {
        send_all(socket_.get(), messages.data(), messages.size());
    }
    const std::array<char, kRequestBytes> request{};
    send_all(socket_.get(), request.data(), request.size());
    receive_reply(socket_.get());
}

}  // namespace vvfu::bench
