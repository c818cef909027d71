// SPDX-License-Identifier: BSD-3-Clause
#include "path_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace vvfu::loopback {
namespace {

constexpr int kTries = 16;

/// errno is EAGAIN when the file was there and is gone. Without O_CREAT for a file that exists: in a sticky folder
/// Linux refuses that to all but its owner.
Fd open_lock(const std::string &file)
{
    constexpr int kFlags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    Fd fd{::open(file.c_str(), kFlags | O_CREAT | O_EXCL, 0644)};
    if (!fd && errno == EEXIST) {
        fd = Fd{::open(file.c_str(), kFlags)};
        errno = !fd && errno == ENOENT ? EAGAIN : errno;
    }
    return fd;
}

bool is_at(const Fd &fd, const std::string &file)
{
    struct stat open {};
    struct stat now {};
    return ::fstat(fd.get(), &open) == 0 && ::lstat(file.c_str(), &now) == 0 && open.st_dev == now.st_dev &&
           open.st_ino == now.st_ino;
}

}  // namespace

PathLock::PathLock(std::string file, Fd fd) : file_(std::move(file)), fd_(std::move(fd)) {}

PathLock::~PathLock()
{
    if (fd_) {
        ::unlink(file_.c_str());
    }
}

tl::expected<PathLock, int> PathLock::take(const std::string &socket_path)
{
    const std::string file = socket_path + ".lock";
    for (int i = 0; i < kTries; ++i) {
        Fd fd = open_lock(file);
        if (!fd && errno != EAGAIN) {
            return tl::unexpected(errno);
        }
        if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            return tl::unexpected(errno == EWOULDBLOCK ? EADDRINUSE : errno);
        }
        // Its former holder may have removed it in between.
        if (fd && is_at(fd, file)) {
            return PathLock{file, std::move(fd)};
        }
    }
    return tl::unexpected(EADDRINUSE);
}

}  // namespace vvfu::loopback
