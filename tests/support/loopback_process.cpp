// SPDX-License-Identifier: BSD-3-Clause
#include "loopback_process.hpp"

#include <sys/socket.h>
#include <sys/un.h>

namespace vvfu::test {

namespace {

sockaddr_un unix_address(const std::string &path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
}

Fd stream_socket()
{
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) {
        throw std::system_error(errno, std::generic_category(), "socket");
    }
    return fd;
}

}  // namespace

LoopbackProcess::LoopbackProcess(const std::string &program, const std::vector<std::string> &arguments,
                                 std::vector<int> inherit, const std::vector<std::string> &environment)
    : socket_path_(directory_.path("vfu.sock"))
{
    const auto listener = stream_socket();
    const auto address = unix_address(socket_path_);
    if (::bind(listener.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0 ||
        ::listen(listener.get(), 8) != 0) {
        throw std::system_error(errno, std::generic_category(), "listening socket");
    }
    // The longest deadlines there are: the machine's load must not end what a test waits for.
    std::vector<std::string> argv{program, "--fd=" + std::to_string(listener.get()), "--unmap-timeout=4000",
                                  "--access-timeout=4000"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    inherit.push_back(listener.get());
    process_ = std::make_unique<Process>(argv, inherit, environment);
}

Fd LoopbackProcess::connect_socket() const
{
    auto fd = stream_socket();
    const auto address = unix_address(socket_path_);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0) {
        throw std::system_error(errno, std::generic_category(), "connect");
    }
    return fd;
}

}  // namespace vvfu::test
