// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "vvfu/guest/executor.hpp"

namespace vvfu::guest {

/// Worker threads for blocking calls, started one by one as work finds no idle thread.
class ThreadPool final : public Workers {
public:
    static constexpr unsigned kDefaultThreads = 8;

    /// `executor` (borrowed) runs what submit() calls `done`, and outlives the pool. `max_threads` is at least 1.
    explicit ThreadPool(Executor &executor, unsigned max_threads = kDefaultThreads);
    ~ThreadPool() override;  ///< as stop()
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    /// An exception that leaves `work` is thrown on the executor's thread, instead of calling `done`.
    void submit(std::function<void()> work, std::function<void()> done) override;

    /// Waits for work that has begun. Work that has not is dropped together with its `done`, as is what is submitted
    /// later. Executor's thread only.
    void stop();

    /// Threads started so far.
    [[nodiscard]] unsigned threads() const;

private:
    struct Job {
        std::function<void()> work, done;
    };
    void thread_main();

    Executor &executor_;
    const unsigned max_threads_;
    mutable std::mutex mutex_;
    std::condition_variable wakeup_;
    std::deque<Job> jobs_;
    unsigned idle_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace vvfu::guest
