// SPDX-License-Identifier: BSD-3-Clause
#include "sandbox.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>

namespace vvfu::cli {
namespace {

using testing::HasSubstr;

constexpr int kSurvived = 0;
constexpr int kNoFilter = 99;

/// The exit status of a child that sets the filter of a program without sanitizer, then makes one call and exits with
/// its errno (0: success); 128 + SIGSYS if the filter ended it.
int under_filter(Needs needs, const std::function<long()> &call)
{
    const pid_t child = ::fork();
    if (child == 0) {
        auto filter = make_filter(needs, static_cast<std::uint32_t>(::getpid()), false);
        const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
        ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
            ::_exit(kNoFilter);
        }
        ::_exit(call() < 0 ? errno : kSurvived);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Calls are made without the C library, which a sanitizer would intercept.
template <typename... Arguments>
auto make_call(long number, Arguments... arguments)
{
    return [=] { return ::syscall(number, arguments...); };
}

constexpr int kKilled = 128 + SIGSYS;

TEST(SandboxFilter, LetsThroughWhatTheProgramsDo)
{
    std::array<char, 8> buffer{};
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_getpid)), kSurvived);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_eventfd2, 0, 0)), kSurvived);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_memfd_create, "x", 0)), kSurvived);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_read, -1, buffer.data(), buffer.size())), EBADF);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_fdatasync, -1)), EBADF);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_ioctl, -1, VFIO_DEVICE_SET_IRQS, nullptr)), EBADF);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_mmap, nullptr, 4096, PROT_READ | PROT_WRITE,
                                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
              kSurvived);
}

TEST(SandboxFilter, RefusesNewFilesSocketsAndCode)
{
    for (const auto needs : {Needs::nothing, Needs::local_sockets}) {
        EXPECT_EQ(under_filter(needs, make_call(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY)), EACCES);
        EXPECT_EQ(under_filter(needs, make_call(SYS_open, "/dev/null", O_RDONLY)), EACCES);
    }
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_socket, AF_UNIX, SOCK_STREAM, 0)), ENOSYS);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_unlink, "/nonexistent")), ENOSYS);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_mmap, nullptr, 4096, PROT_READ | PROT_EXEC,
                                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
              EPERM);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_ioctl, STDERR_FILENO, TIOCSTI, "x")), ENOTTY);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_io_uring_setup, 1, nullptr)), ENOSYS);
    EXPECT_EQ(under_filter(Needs::nothing, make_call(SYS_clone3, nullptr, 0)), ENOSYS);
}

TEST(SandboxFilter, GrantsWhatAProgramNeeds)
{
    EXPECT_EQ(under_filter(Needs::local_sockets, make_call(SYS_socket, AF_UNIX, SOCK_STREAM, 0)), kSurvived);
    EXPECT_EQ(under_filter(Needs::local_sockets, make_call(SYS_socket, AF_INET, SOCK_STREAM, 0)), EACCES);
    EXPECT_EQ(under_filter(Needs::local_sockets, make_call(SYS_unlink, "/nonexistent")), ENOENT);
    EXPECT_EQ(under_filter(Needs::functions, make_call(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR)), kSurvived);
    EXPECT_EQ(under_filter(Needs::functions, make_call(SYS_openat, AT_FDCWD, "/nonexistent", O_RDWR | O_CREAT, 0600)),
              EACCES);
}

TEST(SandboxFilter, EndsWhatOnlyAnIntruderDoes)
{
    char *const none[] = {nullptr};
    for (const auto needs : {Needs::nothing, Needs::local_sockets, Needs::functions}) {
        EXPECT_EQ(under_filter(needs, make_call(SYS_execve, "/bin/true", none, none)), kKilled);
        EXPECT_EQ(under_filter(needs, make_call(SYS_fork)), kKilled);
        EXPECT_EQ(under_filter(needs, make_call(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0)), kKilled);
        EXPECT_EQ(under_filter(needs, make_call(SYS_ptrace, 16, 1, nullptr, nullptr)), kKilled);
        EXPECT_EQ(under_filter(needs, make_call(SYS_setresuid, 0, 0, 0)), kKilled);
        EXPECT_EQ(under_filter(needs, make_call(SYS_tgkill, 1, 1, SIGTERM)), kKilled) << "another process";
        EXPECT_EQ(under_filter(needs, make_call(0x40000000 + SYS_getpid)), kKilled) << "x32";
    }
}

TEST(SandboxUser, IsANameOrNumbers)
{
    EXPECT_EQ(find_user("root").value().uid, 0u);
    EXPECT_EQ(find_user("12:34").value().uid, 12u);
    EXPECT_EQ(find_user("12:34").value().gid, 34u);
    EXPECT_EQ(find_user("12").value().gid, 12u);
    for (const auto *user : {"", "no-such-user", "12:", ":12", "12:x", "-1", "4294967295", "12:4294967295", "1 2"}) {
        const auto found = find_user(user);
        ASSERT_FALSE(found) << user;
        EXPECT_THAT(found.error().message, HasSubstr("there is no user '" + std::string{user} + "'"));
    }
}

}  // namespace
}  // namespace vvfu::cli
