// SPDX-License-Identifier: BSD-3-Clause
//
// The event loop: fd watchers, timers and tasks posted from other threads, on one thread that sleeps in epoll_wait()
// when there is nothing to do.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>
#include <unordered_map>
#include <vector>

#include "vvfu/base/fd.hpp"
#include "vvfu/base/time.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/executor.hpp"

namespace vvfu::guest {

class Reactor final : public Executor {
public:
    /// Receives the epoll events (EPOLLIN, ...) that are ready.
    using Ready = std::function<void(std::uint32_t events)>;

    /// Fails when the process is out of file descriptors.
    static Result<std::unique_ptr<Reactor>> create();
    ~Reactor() override;
    Reactor(const Reactor &) = delete;
    Reactor &operator=(const Reactor &) = delete;

    /// CLOCK_MONOTONIC.
    [[nodiscard]] static Nanoseconds now() noexcept;

    void post(Task task) override;
    void after(std::chrono::nanoseconds delay, Task task) override;
    [[nodiscard]] bool current() const noexcept override;

    // Loop's thread only, or before it runs:

    /// Calls `ready` whenever one of `events` is ready on `fd` (borrowed; unwatch before closing it). With EPOLLET in
    /// `events` an eventfd needs no read: every write to it is one more edge. One watcher per fd.
    Result<void> watch(int fd, std::uint32_t events, Ready ready);
    /// Changes the events of a watched fd. EPOLLERR and EPOLLHUP are reported even with none.
    void modify(int fd, std::uint32_t events);
    /// No effect on an fd that is not watched. Its callback is not called again, not even for an event already fetched.
    void unwatch(int fd);

    /// Runs until stop(). What stop() ended can be run again.
    void run();
    /// One round: waits until something is ready, but not after `until`, and runs all that is. Timers are as
    /// exact as the kernel's (before Linux 5.11: 1 ms); a posted task or an event ends the wait at once.
    void run_once(Nanoseconds until = kNever);

    /// Ends run() after the current callback round. Any thread, and async-signal-safe.
    void stop() noexcept;

private:
    struct Watcher {
        int fd = -1;
        bool active = true;
        Ready ready;
    };
    struct Timer {
        Nanoseconds when{};
        std::uint64_t order = 0;
        std::shared_ptr<Task> task;
        bool operator<(const Timer &other) const noexcept  // for a queue that has the earliest on top
        {
            return when != other.when ? when > other.when : order > other.order;
        }
    };

    Reactor(Fd epoll, Fd wakeup);
    /// How long a round may wait; kNever: for ever.
    [[nodiscard]] Nanoseconds wait_limit(Nanoseconds until);
    void run_timers();
    void run_posted();

    Fd epoll_, wakeup_;
    std::unordered_map<int, std::unique_ptr<Watcher>> watchers_;
    std::vector<std::unique_ptr<Watcher>> retired_;  // unwatched, but perhaps in the events just fetched
    std::priority_queue<Timer> timers_;
    std::uint64_t timer_order_ = 0;

    std::mutex mutex_;
    std::vector<Task> posted_;  // guarded by mutex_
    std::vector<Task> running_;
    std::atomic<bool> has_posted_{false};
    std::atomic<bool> stopped_{false};
    std::atomic<std::thread::id> thread_{};  // of the loop, while it runs
};

}  // namespace vvfu::guest
