// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/thread_pool.hpp"

#include <algorithm>
#include <exception>
#include <system_error>
#include <utility>

namespace vvfu::guest {

ThreadPool::ThreadPool(Executor &executor, unsigned max_threads)
    : executor_(executor), max_threads_(std::max(1u, max_threads))
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

void ThreadPool::submit(std::function<void()> work, std::function<void()> done)
{
    const std::lock_guard lock{mutex_};
    if (stopping_) {
        return;
    }
    jobs_.push_back({std::move(work), std::move(done)});
    if (jobs_.size() > idle_ && threads_.size() < max_threads_) {
        try {
            threads_.emplace_back([this] { thread_main(); });
        } catch (const std::system_error &) {
            // Out of threads: those that run will get to it. Without any, only the caller is left to do it.
            if (threads_.empty()) {
                auto job = std::move(jobs_.back());
                jobs_.pop_back();
                job.work();
                executor_.post(std::move(job.done));
            }
            return;
        }
    }
    wakeup_.notify_one();
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
        ++idle_;
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
    }
}

}  // namespace vvfu::guest
