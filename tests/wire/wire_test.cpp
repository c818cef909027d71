// SPDX-License-Identifier: BSD-3-Clause
#include "wire_test.hpp"

#include <fcntl.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace vvfu::test {

std::string loopback_program()
{
    return VVFU_LOOPBACK;
}

Server::Server(ServerKind kind)
{
    if (kind == ServerKind::core) {
        core_ = std::make_unique<CoreServer>();
    } else {
        loopback_ = std::make_unique<LoopbackProcess>(loopback_program(), std::vector<std::string>{"testdev"});
    }
}

Fd Server::connect()
{
    return core_ ? core_->connect() : loopback_->connect_socket();
}

std::size_t Server::open_fds()
{
    return core_ ? count_open_fds() : loopback_->process().open_fds();
}

std::size_t Server::mappings()
{
    return core_ ? core_->window_mappings() : loopback_->process().mappings("guest-ram");
}

bool Server::alive()
{
    return core_ ? true : loopback_->process().running();
}

VfioUserClient WireTest::session()
{
    auto client = connect();
    client.version();
    return client;
}

std::size_t WireTest::idle_fds()
{
    const auto client = session();  // the server has everything open by now
    // The connection's own: the server's end, and with the core this process's end, too.
    return server_.open_fds() - (server_.core() != nullptr ? 2 : 1);
}

bool WireTest::open_fds_become(std::size_t count)
{
    return eventually([&] { return server_.open_fds() == count; });
}

bool eventually(const std::function<bool()> &condition)
{
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds{10};
    while (!condition()) {
        if (std::chrono::steady_clock::now() > give_up) {
            return false;
        }
        ::poll(nullptr, 0, 1);
    }
    return true;
}

void HeldDma::begin()
{
    client_.on_dma([this](Message message) { held_.push_back(std::move(message)); });
}

bool HeldDma::wait_for(std::size_t count)
{
    return client_.serve_until([&] { return held_.size() >= count; });
}

void HeldDma::answer(const GuestRam &memory)
{
    client_.serve_memory(memory);
    client_.on_dma(nullptr);
    for (const auto &message : std::exchange(held_, {})) {
        client_.answer_dma(message);
    }
}

void expect_no_deadline(LoopbackProcess &loopback)
{
    EXPECT_EQ(loopback.process().errors().find("in time"), std::string::npos) << loopback.process().errors();
}

FdProbe::FdProbe()
{
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
        throw std::system_error(errno, std::generic_category(), "pipe");
    }
    read_end_.reset(ends[0]);
    write_end_.reset(ends[1]);
}

bool FdProbe::closed_everywhere(std::chrono::milliseconds timeout)
{
    pollfd poll_fd{read_end_.get(), POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(timeout.count())) == 1 && (poll_fd.revents & POLLHUP) != 0;
}

std::string server_name(const ::testing::TestParamInfo<ServerKind> &info)
{
    return info.param == ServerKind::core ? "core" : "loopback";
}

}  // namespace vvfu::test
