// SPDX-License-Identifier: BSD-3-Clause
#include "termination.hpp"

#include <sys/signalfd.h>

#include <csignal>

namespace vvfu::cli {
namespace {

bool is_ignored(int number)
{
    struct sigaction action {};
    return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

Fd termination_signals()
{
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    ::sigaddset(&signals, SIGINT);
    if (!is_ignored(SIGHUP)) {
        ::sigaddset(&signals, SIGHUP);
    }
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    return Fd{::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)};
}

}  // namespace vvfu::cli
