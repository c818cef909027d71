// SPDX-License-Identifier: BSD-3-Clause
//
// Files that the peer's memory is in, kept so that a range can be shown in the window again.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <map>
#include <memory>
#include <tuple>

#include "vvfu/base/fd.hpp"

namespace vvfu::core {

/// Keeps one fd of each file (and access mode), whatever number of ranges show it and of fds the peer sends for it.
class MemoryFiles {
public:
    /// Open as long as anyone has a copy.
    using File = std::shared_ptr<const Fd>;

    static constexpr std::size_t kMaxFiles = 64;

    /// Takes `fd`, unless there is one of the same file already; nullptr: there are kMaxFiles others, or it is no file.
    File keep(Fd &fd);

private:
    using Key = std::tuple<dev_t, ino_t, int>;  // the last: O_RDONLY, O_RDWR, ...

    std::map<Key, std::weak_ptr<const Fd>> files_;
};

}  // namespace vvfu::core
