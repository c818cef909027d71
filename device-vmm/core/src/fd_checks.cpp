// SPDX-License-Identifier: BSD-3-Clause
#include "fd_checks.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

namespace vvfu::core {

Expected<EventfdCheck, std::string> EventfdCheck::create(const char *directory)
{
    const Fd probe{::eventfd(0, EFD_CLOEXEC)};
    EventfdCheck check{Fd{::open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC)}};
    const int error = errno;
    if (!probe || !check.directory_) {
        return make_unexpected(std::string{"cannot look at file descriptors in "} + directory + ": " +
                               std::strerror(error) + " (a sandbox has to show /proc)");
    }
    if (!check(probe.get())) {
        return make_unexpected(std::string{directory} + " does not tell what a file descriptor is (is it procfs?)");
    }
    return check;
}

bool EventfdCheck::operator()(int fd) const
{
    std::array<char, 64> target{};
    const auto length = ::readlinkat(directory_.get(), std::to_string(fd).c_str(), target.data(), target.size());
    return length > 0 && std::string_view{target.data(), static_cast<std::size_t>(length)} == "anon_inode:[eventfd]";
}

namespace {

std::uint64_t file_page_size(int fd)
{
    struct statfs fs {};
    if (::fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC && fs.f_bsize > 4096) {
        return static_cast<std::uint64_t>(fs.f_bsize);
    }
    return 4096;
}

}  // namespace

MemoryFdInfo check_memory_fd(int fd, std::uint64_t offset, std::uint64_t size, bool trusted)
{
    struct stat st {};
    if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return {MemoryFd::no_file, 4096};
    }
    const auto page = file_page_size(fd);
    if (offset % page != 0 || size % page != 0) {
        return {MemoryFd::misaligned, page};
    }
    const auto length = static_cast<std::uint64_t>(st.st_size);
    if (offset > length || size > length - offset) {
        return {MemoryFd::too_short, page};
    }
    if (!trusted) {
        const int seals = ::fcntl(fd, F_GET_SEALS);
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
            return {MemoryFd::may_shrink, page};
        }
    }
    return {MemoryFd::mappable, page};
}

const char *describe(MemoryFd verdict) noexcept
{
    switch (verdict) {
        case MemoryFd::mappable: return "mappable";
        case MemoryFd::no_file: return "its file descriptor is not a regular file or memfd";
        case MemoryFd::too_short: return "its file is too short";
        case MemoryFd::may_shrink:
            return "its file could shrink (no F_SEAL_SHRINK; QEMU: memory-backend-memfd seals, memory-backend-file "
                   "does "
                   "not; the option trust-peer-memory maps it all the same)";
        case MemoryFd::misaligned: return "it is not aligned to the page size of its file";
    }
    return "unknown";
}

}  // namespace vvfu::core
