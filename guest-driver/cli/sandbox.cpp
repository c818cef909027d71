// SPDX-License-Identifier: BSD-3-Clause
#include "sandbox.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <pwd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#ifndef __x86_64__
#error "the system call filter knows x86_64 only"
#endif

namespace vvfu::cli {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitizer = true;
#else
constexpr bool kSanitizer = false;
#endif

std::string error_text(const char *what)
{
    return fmt::format("{}: {}", what, std::strerror(errno));
}

// ---- capabilities and users ---------------------------------------------------------------------

using Capabilities = std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3>;

void restrict_capabilities(const std::vector<unsigned> &kept)
{
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    Capabilities sets{};
    if (::syscall(SYS_capget, &header, sets.data()) != 0) {
        return;
    }
    Capabilities allowed{};
    for (const auto capability : kept) {
        allowed[CAP_TO_INDEX(capability)].permitted |= CAP_TO_MASK(capability);
    }
    for (std::size_t i = 0; i < sets.size(); ++i) {
        sets[i].permitted &= allowed[i].permitted;
        sets[i].effective &= allowed[i].permitted;
        sets[i].inheritable = 0;
    }
    ::syscall(SYS_capset, &header, sets.data());
}

guest::Result<void> become(const std::string &user)
{
    const auto ids = find_user(user);
    if (!ids) {
        return make_unexpected(ids.error());
    }
    // The C library does each of them in all threads.
    if (::setgroups(0, nullptr) != 0 || ::setresgid(ids->gid, ids->gid, ids->gid) != 0 ||
        ::setresuid(ids->uid, ids->uid, ids->uid) != 0) {
        return guest::failure(error_text(("cannot become user " + user).c_str()));
    }
    return {};
}

std::optional<std::uint32_t> parse_id(std::string_view text)
{
    std::uint32_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    // All-ones means "leave as it is" to the kernel.
    const bool valid = !text.empty() && error == std::errc{} && end == text.data() + text.size() && id != ~0u;
    return valid ? std::optional{id} : std::nullopt;
}

/// Without the name service switch, which a static program does not have.
std::optional<UserIds> look_up(const std::string &name)
{
    const std::unique_ptr<FILE, int (*)(FILE *)> file{std::fopen("/etc/passwd", "re"), std::fclose};
    while (const auto *entry = file ? ::fgetpwent(file.get()) : nullptr) {
        if (name == entry->pw_name) {
            return UserIds{entry->pw_uid, entry->pw_gid};
        }
    }
    return std::nullopt;
}

// ---- the filter ---------------------------------------------------------------------------------

/// Calls that are allowed with any arguments. Files of the program, memory, waiting, threads.
constexpr int kAlways[] = {
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_close,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fstatfs,
    SYS_lseek,
    SYS_fcntl,
    SYS_dup,
    SYS_dup3,
    SYS_fsync,
    SYS_fdatasync,
    SYS_syncfs,
    SYS_sync_file_range,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_fadvise64,
    // memory
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_memfd_create,
    SYS_msync,
    SYS_mincore,
    SYS_membarrier,
    // waiting
    SYS_futex,
    SYS_poll,
    SYS_ppoll,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_time,
    SYS_sched_yield,
    SYS_restart_syscall,
    // threads and signals
    SYS_exit,
    SYS_exit_group,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_gettid,
    SYS_getpid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_rt_sigpending,
    SYS_sigaltstack,
    SYS_setitimer,
    SYS_getrandom,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_uname,
    // Linux AIO: how vvfu-loopback signals eventfds that are not its own
    SYS_io_setup,
    SYS_io_destroy,
    SYS_io_submit,
    SYS_io_getevents,
    SYS_io_pgetevents,
    // sockets that are there already
    SYS_accept4,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_getsockname,
    // what /proc says about an fd of this process, through a directory that is open already
    SYS_readlinkat,
};

constexpr int kLocalSockets[] = {SYS_bind, SYS_listen, SYS_connect, SYS_setsockopt, SYS_unlink, SYS_lstat};

constexpr int kFunctions[] = {SYS_readlink, SYS_getdents64, SYS_access, SYS_faccessat, SYS_faccessat2,
                              SYS_stat,     SYS_lstat,      SYS_statfs, SYS_getcwd};

constexpr int kSanitizers[] = {
    SYS_getdents,    SYS_open,      SYS_openat,    SYS_readlink,   SYS_getdents64, SYS_stat,
    SYS_lstat,       SYS_access,    SYS_mmap,      SYS_mprotect,   SYS_clone,      SYS_prctl,
    SYS_ptrace,      SYS_wait4,     SYS_kill,      SYS_tgkill,     SYS_pipe2,      SYS_process_vm_readv,
    SYS_personality, SYS_prlimit64, SYS_getrlimit, SYS_arch_prctl, SYS_ioctl};

/// Calls that no path of the programs leads to.
constexpr int kNever[] = {SYS_execve,
                          SYS_execveat,
                          SYS_fork,
                          SYS_vfork,
                          SYS_ptrace,
                          SYS_process_vm_readv,
                          SYS_process_vm_writev,
                          SYS_bpf,
                          SYS_mount,
                          SYS_umount2,
                          SYS_pivot_root,
                          SYS_chroot,
                          SYS_unshare,
                          SYS_setns,
                          SYS_init_module,
                          SYS_finit_module,
                          SYS_delete_module,
                          SYS_kexec_load,
                          SYS_reboot,
                          SYS_setuid,
                          SYS_setgid,
                          SYS_setreuid,
                          SYS_setregid,
                          SYS_setresuid,
                          SYS_setresgid,
                          SYS_setgroups,
                          SYS_capset,
                          SYS_keyctl,
                          SYS_add_key,
                          SYS_open_by_handle_at,
                          SYS_userfaultfd,
                          SYS_perf_event_open,
                          SYS_iopl,
                          SYS_ioperm};

class Program {
public:
    void statement(std::uint16_t code, std::uint32_t value) { program_.push_back(BPF_STMT(code, value)); }
    void load(std::size_t offset) { statement(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)); }
    void jump(std::uint16_t code, std::uint32_t value, std::uint8_t if_true, std::uint8_t if_false)
    {
        program_.push_back(BPF_JUMP(static_cast<std::uint16_t>(BPF_JMP | BPF_K | code), value, if_true, if_false));
    }
    void result(std::uint32_t action) { statement(BPF_RET | BPF_K, action); }
    static std::uint32_t error(int number)
    {
        return SECCOMP_RET_ERRNO | (static_cast<std::uint32_t>(number) & SECCOMP_RET_DATA);
    }

    /// The number of the call is loaded before and after each of these, unless they return.
    void when(int call, std::uint32_t action)
    {
        jump(BPF_JEQ, static_cast<std::uint32_t>(call), 0, 1);
        result(action);
    }
    void when(std::span<const int> calls, std::uint32_t action)
    {
        for (const int call : calls) {
            when(call, action);
        }
    }
    /// By the low word of an argument: `code` is BPF_JEQ (one of `values`) or BPF_JSET (any bit of one of them).
    void when(int call, unsigned argument, std::uint16_t code, std::initializer_list<std::uint32_t> values,
              std::uint32_t if_true, std::uint32_t if_false)
    {
        const auto length = static_cast<std::uint8_t>(2 + 2 * values.size());
        jump(BPF_JEQ, static_cast<std::uint32_t>(call), 0, length);
        load(offsetof(seccomp_data, args) + argument * sizeof(std::uint64_t));  // little-endian
        for (const auto value : values) {
            jump(code, value, 0, 1);
            result(if_true);
        }
        result(if_false);
    }

    std::vector<sock_filter> take() { return std::move(program_); }

private:
    std::vector<sock_filter> program_;
};

guest::Result<void> set_filter(Needs needs)
{
    auto filter = make_filter(needs, static_cast<std::uint32_t>(::getpid()), kSanitizer);
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0) {
        return guest::failure(error_text("cannot set the system call filter") + ": use --sandbox=off to go without");
    }
    return {};
}

}  // namespace

std::vector<sock_filter> make_filter(Needs needs, std::uint32_t pid, bool sanitizer)
{
    constexpr auto kAllow = static_cast<std::uint32_t>(SECCOMP_RET_ALLOW);
    constexpr auto kEnd = static_cast<std::uint32_t>(SECCOMP_RET_KILL_PROCESS);
    constexpr std::uint32_t kX32 = 0x40000000;  // its calls have this bit
    Program program;
    program.load(offsetof(seccomp_data, arch));
    program.jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
    program.result(kEnd);
    program.load(offsetof(seccomp_data, nr));
    program.jump(BPF_JGE, kX32, 0, 1);
    program.result(kEnd);
    program.when(kAlways, kAllow);
    if (sanitizer) {
        program.when(kSanitizers, kAllow);
    }
    if (needs == Needs::local_sockets) {
        program.when(kLocalSockets, kAllow);
        program.when(SYS_socket, 0, BPF_JEQ, {AF_UNIX}, kAllow, Program::error(EACCES));
    }
    if (needs == Needs::functions) {
        program.when(kFunctions, kAllow);
        program.when(SYS_openat, 2, BPF_JSET, {O_CREAT | O_TRUNC}, Program::error(EACCES), kAllow);
    }
    for (const int call : {SYS_open, SYS_openat}) {
        program.when(call, Program::error(EACCES));
    }
    for (const int call : {SYS_mmap, SYS_mprotect}) {
        program.when(call, 2, BPF_JSET, {PROT_EXEC}, Program::error(EPERM), kAllow);
    }
    // Threads yes, processes no. The flags of clone3() are out of a filter's reach; the C library then takes clone().
    program.when(SYS_clone, 0, BPF_JSET, {CLONE_THREAD}, kAllow, kEnd);
    program.when(SYS_clone3, Program::error(ENOSYS));
    program.when(SYS_tgkill, 0, BPF_JEQ, {pid}, kAllow, kEnd);
    program.when(SYS_prlimit64, 0, BPF_JEQ, {0, pid}, kAllow, Program::error(EPERM));
    program.when(
        SYS_ioctl, 1, BPF_JEQ,
        {BLKDISCARD, BLKZEROOUT, BLKGETSIZE64, BLKSSZGET, BLKPBSZGET, VFIO_GET_API_VERSION, VFIO_CHECK_EXTENSION,
         VFIO_SET_IOMMU, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD,
         VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_SET_IRQS,
         VFIO_DEVICE_RESET, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA},
        kAllow, Program::error(ENOTTY));
    program.when(kNever, kEnd);
    program.result(Program::error(ENOSYS));
    return program.take();
}

guest::Result<UserIds> find_user(const std::string &user)
{
    const auto colon = user.find(':');
    const auto uid = parse_id(std::string_view{user}.substr(0, colon));
    if (colon != std::string::npos) {
        const auto gid = parse_id(std::string_view{user}.substr(colon + 1));
        if (uid && gid) {
            return UserIds{*uid, *gid};
        }
    } else if (uid) {
        return UserIds{*uid, *uid};
    } else if (const auto found = look_up(user)) {
        return *found;
    }
    return guest::failure("there is no user '" + user + "': give a NAME of /etc/passwd, a UID or UID:GID");
}

void limit_capabilities(const SandboxOptions &options, bool files)
{
    if (!options.enabled) {
        return;
    }
    std::vector<unsigned> kept;
    if (files) {
        kept = {CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH};
    }
    if (!options.user.empty()) {
        // The C library changes the user of every thread, and the kernel then takes these away.
        kept.insert(kept.end(), {CAP_SETUID, CAP_SETGID});
    }
    restrict_capabilities(kept);
}

void raise_locked_memory_limit()
{
    constexpr rlim_t kEnough = 256u << 20;  // queues and message buffers of a function: some 20 MiB
    rlimit limit{};
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur < kEnough) {
        limit.rlim_cur = kEnough;
        limit.rlim_max = std::max(limit.rlim_max, kEnough);
        ::setrlimit(RLIMIT_MEMLOCK, &limit);
    }
}

guest::Result<void> enter_sandbox(const SandboxOptions &options, Needs needs)
{
    if (!options.user.empty()) {
        if (auto result = become(options.user); !result) {
            return result;
        }
    }
    if (!options.enabled) {
        return {};
    }
    restrict_capabilities({});
    return set_filter(needs);
}

}  // namespace vvfu::cli
