// SPDX-License-Identifier: BSD-3-Clause
#include "listener.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace vvfu::loopback {
namespace {

constexpr int kBacklog = 8;

sockaddr_un address_of(const std::string &path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());  // at_path() checked the length
    return address;
}

Fd stream_socket()
{
    return Fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
}

enum class Occupant { none, stale_socket, live_server, other_file, unknown };

/// What is at `path`; unknown: errno tells why.
Occupant look_at(const std::string &path)
{
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) {
        return errno == ENOENT ? Occupant::none : Occupant::unknown;
    }
    if (!S_ISSOCK(status.st_mode)) {
        return Occupant::other_file;
    }
    const Fd probe = stream_socket();
    const auto address = address_of(path);
    if (::connect(probe.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0 || errno == EAGAIN) {
        return Occupant::live_server;  // EAGAIN: its backlog is full
    }
    return errno == ECONNREFUSED ? Occupant::stale_socket : Occupant::unknown;
}

std::string in_use(const std::string &path)
{
    return "another server uses " + path + " (choose another --socket-path or stop it)";
}

int socket_option(int fd, int option)
{
    int value = -1;
    socklen_t length = sizeof value;
    return ::getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

}  // namespace

guest::Result<Listener> Listener::at_path(std::string path)
{
    constexpr std::size_t kMax = sizeof(sockaddr_un::sun_path) - 1;
    if (path.empty()) {
        return guest::failure("the socket path is empty");
    }
    if (path.size() > kMax) {
        return guest::failure("the socket path has " + std::to_string(path.size()) + " bytes, the limit is " +
                              std::to_string(kMax) + ": " + path);
    }
    // Before a look at the socket: that is a connection to whoever serves.
    auto lock = PathLock::take(path);
    if (!lock && lock.error() == EADDRINUSE) {
        return guest::failure(in_use(path));
    }
    switch (look_at(path)) {
        case Occupant::live_server: return guest::failure(in_use(path));
        case Occupant::other_file:
            return guest::failure(path + " exists and is not a socket (choose another --socket-path)");
        case Occupant::unknown: return guest::failure("cannot use the socket " + path + ": " + std::strerror(errno));
        case Occupant::none:
        case Occupant::stale_socket: break;
    }
    const auto slash = path.rfind('/');
    const auto directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    if (::access(directory.c_str(), W_OK | X_OK) != 0) {
        return guest::failure("cannot create a socket in " + directory + ": " + std::strerror(errno));
    }
    if (!lock) {
        return guest::failure("cannot lock " + path + ".lock: " + std::strerror(lock.error()));
    }
    Listener listener;
    listener.path_ = std::move(path);
    listener.lock_.emplace(std::move(*lock));
    return listener;
}

guest::Result<Listener> Listener::from_fd(Fd fd)
{
    if (socket_option(fd.get(), SO_DOMAIN) != AF_UNIX || socket_option(fd.get(), SO_TYPE) != SOCK_STREAM ||
        socket_option(fd.get(), SO_ACCEPTCONN) != 1) {
        // It stays open: a wrong number may be that of stderr.
        return guest::failure("fd " + std::to_string(fd.release()) + " is not a listening UNIX stream socket");
    }
    ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
    ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
    Listener listener;
    listener.fd_ = std::move(fd);
    listener.passed_ = true;
    return listener;
}

int Listener::open()
{
    if (passed_ || listening_) {
        listening_ = true;
        return 0;
    }
    Fd fd = stream_socket();
    const auto address = address_of(path_);
    const auto *generic = reinterpret_cast<const sockaddr *>(&address);
    if (!fd) {
        return -errno;
    }
    if (::bind(fd.get(), generic, sizeof address) != 0) {
        if (errno != EADDRINUSE || look_at(path_) != Occupant::stale_socket) {
            return -errno;
        }
        if (::unlink(path_.c_str()) != 0 || ::bind(fd.get(), generic, sizeof address) != 0) {
            return -errno;
        }
    }
    struct stat status {};
    if (::listen(fd.get(), kBacklog) != 0 || ::lstat(path_.c_str(), &status) != 0) {
        const int error = errno;
        ::unlink(path_.c_str());
        return -error;
    }
    device_ = status.st_dev;
    inode_ = status.st_ino;
    fd_ = std::move(fd);
    listening_ = true;
    return 0;
}

void Listener::close()
{
    if (!std::exchange(listening_, false) || passed_) {
        return;
    }
    struct stat status {};
    // Somebody may have put another socket in its place.
    if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
        ::unlink(path_.c_str());
    }
    fd_.reset();
}

}  // namespace vvfu::loopback
