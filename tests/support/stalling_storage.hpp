// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>
#include <vector>

#include "vvfu/base/fd.hpp"

namespace vvfu::test {

/// Makes system calls of a child hang (stall_shim.c): start it with the environment and the fds given here.
class StallingStorage {
public:
    /// `calls`: "preadv", "pwritev", "fdatasync", "open" (of *.img), separated by commas.
    explicit StallingStorage(std::string calls) : calls_(std::move(calls))
    {
        std::array<int, 2> stalled{}, release{};
        if (::pipe2(stalled.data(), O_CLOEXEC) != 0 || ::pipe2(release.data(), O_CLOEXEC) != 0) {
            throw std::system_error(errno, std::generic_category(), "pipe");
        }
        stalled_.reset(stalled[0]);
        stalled_write_.reset(stalled[1]);
        release_read_.reset(release[0]);
        release_.reset(release[1]);
    }

    [[nodiscard]] std::vector<std::string> environment() const
    {
        return {"LD_PRELOAD=" VVFU_STALL_SHIM, "VVFU_STALL=" + calls_,
                "VVFU_STALLED=" + std::to_string(stalled_write_.get()),
                "VVFU_RELEASE=" + std::to_string(release_read_.get()),
                // The sanitizers' run-time wants to be the first library.
                "ASAN_OPTIONS=verify_asan_link_order=0"};
    }
    [[nodiscard]] std::vector<int> fds() const { return {stalled_write_.get(), release_read_.get()}; }

    /// Waits until that many calls more have stalled; false after 10 s.
    [[nodiscard]] bool wait_for(unsigned calls) const
    {
        for (; calls > 0; --calls) {
            pollfd ready{stalled_.get(), POLLIN, 0};
            char byte = 0;
            if (::poll(&ready, 1, 10'000) != 1 || ::read(stalled_.get(), &byte, 1) != 1) {
                return false;
            }
        }
        return true;
    }
    /// Lets that many calls go on.
    void release(unsigned calls) const
    {
        const std::string bytes(calls, '\0');
        if (::write(release_.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(calls)) {
            throw std::system_error(errno, std::generic_category(), "release");
        }
    }

private:
    std::string calls_;
    Fd stalled_, stalled_write_, release_read_, release_;
};

}  // namespace vvfu::test
