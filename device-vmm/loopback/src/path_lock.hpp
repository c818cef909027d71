// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>
#include <tl/expected.hpp>

#include "vvfu/base/fd.hpp"

namespace vvfu::loopback {

/// The right to a socket path, from start to end of a server: an flock() of the file PATH.lock beside it, as libwayland
/// and others have it. Whoever holds it may replace a socket that nobody answers on, while no other starter looks.
class PathLock {
public:
    /// The error is a positive errno; EADDRINUSE: another server has the path.
    static tl::expected<PathLock, int> take(const std::string &socket_path);
    PathLock(PathLock &&) noexcept = default;
    PathLock &operator=(PathLock &&) = delete;
    /// Removes the file.
    ~PathLock();

private:
    PathLock(std::string file, Fd fd);

    std::string file_;
    Fd fd_;
};

}  // namespace vvfu::loopback
