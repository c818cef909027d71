// SPDX-License-Identifier: BSD-3-Clause
//
// What the programs give up once they have what they need, so that input that takes one of them over gains little.
// Linux only; no library, so that the static program can do it, too.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <string>
#include <vector>

#include "vvfu/guest/error.hpp"

namespace vvfu::cli {

struct SandboxOptions {
    bool enabled = true;
    std::string user;  ///< NAME, UID or UID:GID to become; empty: as started
};

/// What a program still does after its set-up, beyond files, memory and threads it has.
enum class Needs {
    nothing,
    local_sockets,  ///< binds and unlinks an AF_UNIX socket, and accepts
    functions,      ///< opens files, VFIO functions included
};

/// For a thread that starts before enter_sandbox(), or for the one that starts it: gives up the capabilities that it
/// will not need, which enter_sandbox() cannot do for other threads. `files`: those to get at files of other users
/// stay.
void limit_capabilities(const SandboxOptions &options, bool files);

/// Lets a process without capabilities lock the memory that a function needs for DMA, if it may.
void raise_locked_memory_limit();

/// Becomes another user (all threads), drops all capabilities of the calling thread, sets no_new_privs and a system
/// call filter for all threads. Without `enabled`, only the user changes. Call it when the set-up is complete.
[[nodiscard]] guest::Result<void> enter_sandbox(const SandboxOptions &options, Needs needs);

/// The filter. A call that is not in it fails with ENOSYS, as on an old kernel, so that libraries fall back; opening a
/// file with EACCES; executable memory with EPERM. Calls that only an intruder makes (execve, fork, ptrace, ...) end
/// the process. `sanitizer`: also what the run-time of a sanitizer does behind the program's back.
[[nodiscard]] std::vector<sock_filter> make_filter(Needs needs, std::uint32_t pid, bool sanitizer);

/// Who `user` is: NAME of /etc/passwd, UID, or UID:GID.
struct UserIds {
    std::uint32_t uid = 0, gid = 0;
};
[[nodiscard]] guest::Result<UserIds> find_user(const std::string &user);

}  // namespace vvfu::cli
