// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <chrono>
#include <functional>
#include <stdexcept>

namespace vvfu::guest {

/// The one thread that runs device models: every callback of a model, of DmaSpace and of the session is
/// made on it. Implemented by Reactor, and by tests.
class Executor {
public:
    using Task = std::function<void()>;
    virtual ~Executor() = default;

    /// Runs `task` later on the executor's thread, after what was posted before. Any thread may call it.
    virtual void post(Task task) = 0;
    /// Runs `task` once, not before `delay` has passed. Executor's thread only. Cannot be cancelled: the task checks
    /// whether it is still wanted.
    virtual void after(std::chrono::nanoseconds delay, Task task) = 0;
    /// The caller is on the executor's thread, or that does not run yet. Any thread.
    [[nodiscard]] virtual bool current() const noexcept = 0;
    /// For what would be a race elsewhere: throws std::logic_error unless current().
    void require_current() const
    {
        if (!current()) {
            throw std::logic_error("called from another thread than the executor's");
        }
    }
};

/// Threads for work that may block (file I/O). Implemented by ThreadPool, and inline by tests.
class Workers {
public:
    virtual ~Workers() = default;

    /// What may hang by itself: work waits for other work of its own lane only. The address of something that is its
    /// own; there are as many as the configuration asks for, as each may have threads.
    using Lane = const void *;
    /// Runs `work` on some worker thread, then `done` on the executor's thread. Executor's thread only.
    virtual void submit(Lane lane, std::function<void()> work, std::function<void()> done) = 0;
};

}  // namespace vvfu::guest
