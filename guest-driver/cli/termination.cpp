// SPDX-License-Identifier: BSD-3-Clause
#include "termination.hpp"

#include <spdlog/spdlog.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <future>
#include <utility>

#include "program.hpp"
#include "vvfu/guest/reactor.hpp"

namespace vvfu::cli {
namespace {

bool is_ignored(int number)
{
    struct sigaction action {};
    return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

sigset_t taken_signals()
{
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    ::sigaddset(&signals, SIGINT);
    if (!is_ignored(SIGHUP)) {
        ::sigaddset(&signals, SIGHUP);
    }
    ::sigaddset(&signals, SIGUSR1);
    return signals;
}

volatile std::sig_atomic_t last_status = 0;

void last_words_hang(int)
{
    ::_exit(last_status);
}

/// Exits with `status` soon, even if what is said before hangs: a standard error that nobody reads.
void begin_last_words(int status)
{
    last_status = status;
    sigset_t alarm;
    ::sigemptyset(&alarm);
    ::sigaddset(&alarm, SIGALRM);
    ::signal(SIGALRM, last_words_hang);
    ::pthread_sigmask(SIG_UNBLOCK, &alarm, nullptr);
    constexpr itimerval kSoon{{0, 0}, {0, 250'000}};
    ::setitimer(ITIMER_REAL, &kSoon, nullptr);
}

[[noreturn]] void end_last_words()
{
    constexpr itimerval kNever{};
    ::setitimer(ITIMER_REAL, &kNever, nullptr);
    ::_exit(last_status);
}

}  // namespace

Termination::Termination(const std::function<void()> &prepare)
{
    ::signal(SIGPIPE, SIG_IGN);
    const auto signals = taken_signals();
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::promise<void> prepared;
    const auto ready = prepared.get_future();
    thread_ = std::thread{[this, &prepare, prepared = std::move(prepared)]() mutable {
        if (prepare) {
            prepare();
        }
        prepared.set_value();
        thread_main();
    }};
    ready.wait();
}

Termination::~Termination()
{
    {
        const std::lock_guard lock{mutex_};
        over_ = true;
    }
    wake();
    thread_.join();
}

void Termination::attach(Handlers handlers)
{
    const std::lock_guard lock{mutex_};
    handlers_ = std::move(handlers);
    deadline_.reset();
    signalled_ = false;
}

void Termination::detach(int status)
{
    const std::lock_guard lock{mutex_};
    handlers_.reset();
    status_ = status;
}

void Termination::begin()
{
    {
        const std::lock_guard lock{mutex_};
        if (deadline_) {
            return;
        }
        deadline_ = guest::Reactor::now() + kEndLimit;
    }
    wake();
}

/// The thread looks at the state again.
void Termination::wake()
{
    ::pthread_kill(thread_.native_handle(), SIGUSR1);
}

void Termination::thread_main()
{
    const auto signals = taken_signals();
    for (;;) {
        timespec wait{};
        bool limited = false;
        {
            const std::lock_guard lock{mutex_};
            if (over_) {
                return;
            }
            if (deadline_) {
                const auto left = std::max(*deadline_ - guest::Reactor::now(), Nanoseconds::zero());
                const auto whole = std::chrono::duration_cast<std::chrono::seconds>(left);
                wait = {whole.count(), (left - whole).count()};
                limited = true;
            }
        }
        siginfo_t info{};
        const int signal = limited ? ::sigtimedwait(&signals, &info, &wait) : ::sigwaitinfo(&signals, &info);
        const std::lock_guard lock{mutex_};
        if (over_) {
            return;
        }
        if (deadline_ && guest::Reactor::now() >= *deadline_) {
            abandon("did not end in time");
        }
        const bool own = signal == SIGUSR1 && info.si_pid == ::getpid();  // from wake()
        if (signal > 0 && !own) {
            take(signal);
        }
    }
}

void Termination::take(int signal)
{
    if (signal == SIGUSR1) {
        if (handlers_ && handlers_->report) {
            handlers_->report();
        }
        return;
    }
    if (!handlers_) {
        begin_last_words(status_);
        spdlog::info("{}: ended at once", ::strsignal(signal));
        end_last_words();
    }
    if (std::exchange(signalled_, true)) {
        abandon("told to end twice");
    }
    if (!deadline_) {
        deadline_ = guest::Reactor::now() + kEndLimit;
    }
    handlers_->stop(signal);
}

void Termination::abandon(const char *why)
{
    if (handlers_) {
        begin_last_words(kExitAbandoned);
        const auto unfinished = handlers_->unfinished ? handlers_->unfinished() : std::string{};
        spdlog::error("{}: abandoned {}; data that was written last may be lost", why,
                      unfinished.empty() ? "the device as it is" : unfinished);
    } else {
        begin_last_words(status_ == kExitOk ? kExitRuntime : status_);
        spdlog::error("{}: the function was not released in good order", why);
    }
    end_last_words();
}

}  // namespace vvfu::cli
