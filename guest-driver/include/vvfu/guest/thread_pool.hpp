// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "vvfu/guest/executor.hpp"

namespace vvfu::guest {

/// Worker threads for blocking calls, started one by one as work finds no idle thread. Work of one lane has so many
/// threads at a time and no more: when all of it hangs, the other lanes go on.
class ThreadPool final : public Workers {
public:
    static constexpr unsigned kThreadsPerLane = 8;

    /// `executor` (borrowed) runs what submit() calls `done`, and outlives the pool. `threads_per_lane` is at least 1.
    explicit ThreadPool(Executor &executor, unsigned threads_per_lane = kThreadsPerLane);
    ~ThreadPool() override;  ///< as stop()
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    /// An exception that leaves `work` is thrown on the executor's thread, instead of calling `done`.
    void submit(Lane lane, std::function<void()> work, std::function<void()> done) override;

    /// Waits for work that has begun. Work that has not is dropped together with its `done`, as is what is submitted
    /// later. Executor's thread only.
    void stop();

    /// Threads started so far.
    [[nodiscard]] unsigned threads() const;

private:
    struct Job {
        Lane lane;
        std::function<void()> work, done;
    };
    struct LaneState {
        unsigned admitted = 0;    ///< in jobs_, or running
        std::deque<Job> waiting;  ///< until one of them has ended
    };
    void thread_main();
    void ended(Lane lane);

    Executor &executor_;
    const unsigned threads_per_lane_;
    mutable std::mutex mutex_;
    std::condition_variable wakeup_;
    std::deque<Job> jobs_;             // for the next thread that has nothing to do
    std::map<Lane, LaneState> lanes_;  // that have work
    unsigned idle_ = 0;                // threads without a job, those included that have just been started
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace vvfu::guest
