// SPDX-License-Identifier: BSD-3-Clause
//
// How the programs are told to end, and end, whatever their other threads are doing.
#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "vvfu/base/time.hpp"

namespace vvfu::cli {

/// A thread that takes the program's signals and keeps its last deadline. SIGTERM, SIGINT and, unless it is ignored as
/// under nohup, SIGHUP begin the end: Handlers::stop is asked for an orderly one. What has not ended kEndLimit later,
/// or at the second of these signals, is abandoned: one line says what, and the process exits. Before attach() and
/// after detach() there is nothing to lose, and a signal ends the program at once. SIGUSR1 asks for a report.
///
/// Construct it before any other thread starts: the signals are blocked from then on, so that all threads inherit the
/// mask. SIGPIPE is ignored: a peer may go at any time. Any thread may call the functions.
class Termination {
public:
    /// Short of 2 s, so that the process is gone by then.
    static constexpr std::chrono::milliseconds kEndLimit{1700};

    struct Handlers {
        std::function<void(int signal)> stop;     ///< must return at once, as report()
        std::function<void()> report;             ///< may be empty
        std::function<std::string()> unfinished;  ///< what would be abandoned; may be empty, and say nothing
    };

    /// `prepare` is what the thread does first; it is done when the constructor returns. Throws std::system_error when
    /// no thread can be started.
    explicit Termination(const std::function<void()> &prepare = {});
    ~Termination();
    Termination(const Termination &) = delete;
    Termination &operator=(const Termination &) = delete;

    /// From here on an orderly end is asked for. Stops the clock of an earlier begin().
    void attach(Handlers handlers);
    /// Handlers are not called after its return; there is nothing to lose any more. A clock that runs goes on. A signal
    /// ends the program at once with `status`.
    void detach(int status);
    /// The end begins without a signal.
    void begin();

private:
    void thread_main();
    void wake();
    void take(int signal);
    [[noreturn]] void abandon(const char *why);

    std::mutex mutex_;  // of all below
    std::optional<Handlers> handlers_;
    std::optional<Nanoseconds> deadline_;
    int status_ = 0;  // without handlers
    bool signalled_ = false;
    bool over_ = false;
    std::thread thread_;
};

}  // namespace vvfu::cli
