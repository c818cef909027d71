// SPDX-License-Identifier: BSD-3-Clause
//
// What a file descriptor from a peer really is. A peer is trusted with nothing: each fd is looked at before use.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "vvfu/base/expected.hpp"
#include "vvfu/base/fd.hpp"

namespace vvfu::core {

/// VVFU-OP-6: an interrupt target is an eventfd. Anything else could block the thread that signals it.
///
/// Only /proc tells the type of an anonymous inode, so it has to be there when this is made. Afterwards it may be out
/// of sight (chroot).
class EventfdCheck {
public:
    /// Fails with one line that says what is missing. `directory`: links named by fd number, for tests.
    static Expected<EventfdCheck, std::string> create(const char *directory = "/proc/self/fd");
    [[nodiscard]] bool operator()(int fd) const;

private:
    explicit EventfdCheck(Fd directory) : directory_(std::move(directory)) {}
    Fd directory_;
};

enum class MemoryFd {
    mappable,
    no_file,     ///< not a regular file or memfd
    too_short,   ///< the file ends before offset + size
    may_shrink,  ///< no F_SEAL_SHRINK: truncating it would kill the device VMM with SIGBUS (VVFU-WINDOW-7)
    misaligned,  ///< offset or size is no multiple of the file's page size
};
struct MemoryFdInfo {
    MemoryFd verdict = MemoryFd::no_file;
    std::uint64_t page_size = 4096;  ///< of the file: larger on hugetlbfs
};
/// `trusted`: accept files that could shrink.
[[nodiscard]] MemoryFdInfo check_memory_fd(int fd, std::uint64_t offset, std::uint64_t size, bool trusted);

/// For logs: why a range is message-only.
[[nodiscard]] const char *describe(MemoryFd verdict) noexcept;

}  // namespace vvfu::core
