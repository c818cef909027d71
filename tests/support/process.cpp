// SPDX-License-Identifier: BSD-3-Clause
#include "process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>

namespace vvfu::test {

namespace {

[[noreturn]] void throw_errno(const char *what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

Fd capture_file(const char *name)
{
    Fd fd(::memfd_create(name, MFD_CLOEXEC));
    if (!fd) {
        throw_errno("memfd_create");
    }
    return fd;
}

std::string read_file(const std::string &path)
{
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// In the child: async-signal-safe calls only.
[[noreturn]] void run_child(char *const *argv, char *const *environment, int out, int err,
                            const std::vector<int> &inherit, const std::vector<int> &closed)
{
    // Under nohup, or behind a shell's "&", they are ignored.
    ::signal(SIGHUP, SIG_DFL);
    ::signal(SIGINT, SIG_DFL);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    for (const int fd : inherit) {
        ::fcntl(fd, F_SETFD, 0);
    }
    for (const int fd : closed) {
        ::close(fd);
    }
    ::execve(argv[0], argv, environment);
    ::_exit(127);
}

}  // namespace

Process::Process(const std::vector<std::string> &argv, const std::vector<int> &inherit,
                 const std::vector<std::string> &environment, const std::vector<int> &closed)
    : output_(capture_file("stdout")), errors_(capture_file("stderr"))
{
    const auto pointers = [](const std::vector<std::string> &texts) {
        std::vector<char *> result;
        for (const auto &text : texts) {
            result.push_back(const_cast<char *>(text.c_str()));
        }
        return result;
    };
    auto args = pointers(argv);
    args.push_back(nullptr);
    auto variables = pointers(environment);  // the first of two values counts
    for (char **variable = environ; *variable != nullptr; ++variable) {
        variables.push_back(*variable);
    }
    variables.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) {
        throw_errno("fork");
    }
    if (pid_ == 0) {
        run_child(args.data(), variables.data(), output_.get(), errors_.get(), inherit, closed);
    }
    pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    if (!pidfd_) {
        throw_errno("pidfd_open");
    }
}

Process::~Process()
{
    if (!status_) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
}

void Process::signal(int number) const
{
    if (!status_) {
        ::kill(pid_, number);
    }
}

std::optional<int> Process::wait(std::chrono::milliseconds timeout)
{
    if (status_) {
        return status_;
    }
    pollfd poll_fd{pidfd_.get(), POLLIN, 0};
    if (::poll(&poll_fd, 1, static_cast<int>(timeout.count())) != 1) {
        return std::nullopt;
    }
    int status = 0;
    if (::waitpid(pid_, &status, 0) == pid_) {
        status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return status_;
}

std::string Process::contents(int fd)
{
    std::string text;
    std::array<char, 4096> buffer;
    for (;;) {
        const auto got = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(text.size()));
        if (got <= 0) {
            return text;
        }
        text.append(buffer.data(), static_cast<std::size_t>(got));
    }
}

std::string Process::proc(const char *name) const
{
    return "/proc/" + std::to_string(pid_) + "/" + name;
}

std::size_t Process::open_fds() const
{
    return count_open_fds(std::to_string(pid_));
}

std::vector<std::string> Process::thread_status(const std::string &key) const
{
    std::vector<std::string> found;
    std::error_code error;
    for (const auto &task : std::filesystem::directory_iterator(proc("task"), error)) {
        std::ifstream status(task.path().string() + "/status");
        for (std::string line; std::getline(status, line);) {
            if (line.starts_with(key)) {
                const auto value = line.find_first_not_of(" \t", key.size());
                found.push_back(value == std::string::npos ? std::string{} : line.substr(value));
            }
        }
    }
    return found;
}

std::size_t Process::mappings(const std::string &name) const
{
    std::ifstream maps(proc("maps"));
    std::size_t count = 0;
    for (std::string line; std::getline(maps, line);) {
        count += line.find(name) != std::string::npos ? 1 : 0;
    }
    return count;
}

std::uint64_t Process::status_kib(const char *key) const
{
    std::istringstream status(read_file(proc("status")));
    for (std::string word; status >> word;) {
        std::uint64_t value = 0;
        if (word == key && status >> value) {
            return value;
        }
    }
    return 0;
}

std::uint64_t Process::rss_bytes() const
{
    return status_kib("VmRSS:") * 1024;
}

std::uint64_t Process::rss_anon_bytes() const
{
    return status_kib("RssAnon:") * 1024;
}

std::chrono::nanoseconds Process::cpu_time() const
{
    std::uint64_t sum = 0;
    std::error_code error;
    for (const auto &task : std::filesystem::directory_iterator(proc("task"), error)) {
        std::ifstream schedstat(task.path().string() + "/schedstat");
        std::uint64_t running = 0;
        if (schedstat >> running) {
            sum += running;
        }
    }
    return std::chrono::nanoseconds(sum);
}

std::uint64_t Process::context_switches() const
{
    std::uint64_t sum = 0;
    std::error_code error;
    for (const auto &task : std::filesystem::directory_iterator(proc("task"), error)) {
        std::istringstream status(read_file(task.path().string() + "/status"));
        for (std::string word; status >> word;) {
            std::uint64_t value = 0;
            if ((word == "voluntary_ctxt_switches:" || word == "nonvoluntary_ctxt_switches:") && status >> value) {
                sum += value;
            }
        }
    }
    return sum;
}

std::size_t count_open_fds(const std::string &pid)
{
    std::error_code error;
    std::size_t count = 0;
    for (const auto &entry : std::filesystem::directory_iterator("/proc/" + pid + "/fd", error)) {
        static_cast<void>(entry);
        ++count;
    }
    return count;
}

}  // namespace vvfu::test
