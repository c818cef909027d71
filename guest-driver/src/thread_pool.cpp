// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/thread_pool.hpp"

#include <algorithm>
#include <exception>
#include <system_error>
#include <utility>

namespace vvfu::guest {

ThreadPool::ThreadPool(Executor &executor, unsigned threads_per_lane)
    : executor_(executor), threads_per_lane_(std::max(1u, threads_per_lane))
{
}

ThreadPool::~ThreadPool()
{
    stop();
}

void ThreadPool::stop()
{
    {
        const std::lock_guard lock{mutex_};
        stopping_ = true;
    }
    wakeup_.notify_all();
    for (auto &thread : threads_) {
        if (thread.joinable()) {
            thread.join();
        }
    }
}

void ThreadPool::submit(Lane lane, std::function<void()> work, std::function<void()> done)
{
    const std::lock_guard lock{mutex_};
    if (stopping_) {
        return;
    }
    auto &state = lanes_[lane];
    if (state.admitted == threads_per_lane_) {
        state.waiting.push_back({lane, std::move(work), std::move(done)});
        return;
    }
    ++state.admitted;
    jobs_.push_back({lane, std::move(work), std::move(done)});
    if (jobs_.size() > idle_) {
        try {
            threads_.emplace_back([this] { thread_main(); });
            ++idle_;
        } catch (const std::system_error &) {
            // Out of threads: those that run will get to it. Without any, only the caller is left to do it.
            if (threads_.empty()) {
                auto job = std::move(jobs_.back());
                jobs_.pop_back();
                job.work();
                ended(lane);
                executor_.post(std::move(job.done));
            }
            return;
        }
    }
    wakeup_.notify_one();
}

/// A place in the lane is free. mutex_ is held.
void ThreadPool::ended(Lane lane)
{
    const auto it = lanes_.find(lane);
    if (auto &waiting = it->second.waiting; !waiting.empty()) {
        jobs_.push_back(std::move(waiting.front()));
        waiting.pop_front();
    } else if (--it->second.admitted == 0) {
        lanes_.erase(it);
    }
}

unsigned ThreadPool::threads() const
{
    const std::lock_guard lock{mutex_};
    return static_cast<unsigned>(threads_.size());
}

void ThreadPool::thread_main()
{
    std::unique_lock lock{mutex_};
    for (;;) {
        wakeup_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
        --idle_;
        if (stopping_) {
            return;
        }
        auto job = std::move(jobs_.front());
        jobs_.pop_front();
        lock.unlock();
        try {
            job.work();
        } catch (...) {
            job.done = [error = std::current_exception()] { std::rethrow_exception(error); };
        }
        job.work = nullptr;  // what it captured is gone before `done` runs
        executor_.post(std::move(job.done));
        lock.lock();
        ended(job.lane);
        ++idle_;
    }
}

}  // namespace vvfu::guest
