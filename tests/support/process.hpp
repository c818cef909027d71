// SPDX-License-Identifier: BSD-3-Clause
//
// A child process under test: its output, its end, and what /proc says about it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vvfu/base/fd.hpp"

namespace vvfu::test {

class Process {
public:
    /// Runs argv[0] (a path). `inherit` are fds that the child gets under the same numbers. Standard output and error
    /// are captured. Throws std::system_error.
    /// `environment`: "NAME=VALUE" beyond this process's own. `closed`: standard fds that the child does not get.
    explicit Process(const std::vector<std::string> &argv, const std::vector<int> &inherit = {},
                     const std::vector<std::string> &environment = {}, const std::vector<int> &closed = {});
    Process(const Process &) = delete;
    Process &operator=(const Process &) = delete;
    ~Process();  ///< SIGKILL, if it still runs

    [[nodiscard]] pid_t pid() const { return pid_; }
    void signal(int number) const;
    /// Exit status, or 128 + the signal that ended it; nullopt while it still runs after `timeout`.
    std::optional<int> wait(std::chrono::milliseconds timeout = std::chrono::seconds{20});
    /// False once it has ended.
    [[nodiscard]] bool running() { return !wait(std::chrono::milliseconds{0}); }

    [[nodiscard]] std::string output() const { return contents(output_.get()); }
    [[nodiscard]] std::string errors() const { return contents(errors_.get()); }

    [[nodiscard]] std::size_t open_fds() const;
    /// The words behind `key` ("Seccomp:") in the status of every thread; of threads that ended meanwhile, none.
    [[nodiscard]] std::vector<std::string> thread_status(const std::string &key) const;
    /// Lines of /proc/PID/maps that contain `name`.
    [[nodiscard]] std::size_t mappings(const std::string &name = "") const;
    [[nodiscard]] std::uint64_t rss_bytes() const;  ///< VmRSS
    [[nodiscard]] std::uint64_t rss_anon_bytes() const;
    /// Time on a CPU, all living threads (/proc/PID/task/*/schedstat).
    [[nodiscard]] std::chrono::nanoseconds cpu_time() const;
    [[nodiscard]] std::uint64_t context_switches() const;  ///< voluntary and not, all threads

private:
    static std::string contents(int fd);
    [[nodiscard]] std::string proc(const char *name) const;
    [[nodiscard]] std::uint64_t status_kib(const char *key) const;

    Fd output_, errors_;
    Fd pidfd_;
    pid_t pid_ = -1;
    std::optional<int> status_;
};

/// Open fds of `pid` ("self" by default).
std::size_t count_open_fds(const std::string &pid = "self");

}  // namespace vvfu::test
