// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/reactor.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <span>
#include <system_error>
#include <utility>

namespace vvfu::guest {
namespace {

std::string error_text(const char *what, int error)
{
    return std::string{what} + ": " + std::generic_category().message(error);
}

/// epoll_wait() for at most `limit`, to the nanosecond where the kernel can (Linux 5.11).
int wait_for_events(int epoll, std::span<epoll_event> events, Nanoseconds limit)
{
    const auto size = static_cast<int>(events.size());
    if (limit == kNever || limit == Nanoseconds::zero()) {
        return ::epoll_wait(epoll, events.data(), size, limit == kNever ? -1 : 0);
    }
    const auto seconds = std::chrono::floor<std::chrono::seconds>(limit);
    const timespec timeout{static_cast<time_t>(seconds.count()), static_cast<long>((limit - seconds).count())};
    const int count = ::epoll_pwait2(epoll, events.data(), size, &timeout, nullptr);
    if (count >= 0 || errno != ENOSYS) {
        return count;
    }
    // Rounded up: waking early would only mean another round.
    const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(limit).count();
    return ::epoll_wait(epoll, events.data(), size,
                        static_cast<int>(std::min<std::int64_t>(milliseconds, std::numeric_limits<int>::max())));
}

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::create()
{
    Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
    Fd wakeup{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!epoll || !wakeup) {
        return failure(error_text("cannot create the event loop", errno));
    }
    // Edge-triggered: a write is a wake-up, and nobody ever has to read the counter.
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    event.data.ptr = nullptr;
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wakeup.get(), &event) != 0) {
        return failure(error_text("cannot create the event loop", errno));
    }
    return std::unique_ptr<Reactor>{new Reactor{std::move(epoll), std::move(wakeup)}};
}

Reactor::Reactor(Fd epoll, Fd wakeup) : epoll_(std::move(epoll)), wakeup_(std::move(wakeup)) {}

Reactor::~Reactor() = default;

Nanoseconds Reactor::now() noexcept
{
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return std::chrono::seconds{time.tv_sec} + Nanoseconds{time.tv_nsec};
}

void Reactor::post(Task task)
{
    bool wake = false;
    {
        const std::lock_guard lock{mutex_};
        wake = posted_.empty();
        posted_.push_back(std::move(task));
        has_posted_.store(true, std::memory_order_release);
    }
    // The loop's own thread looks at has_posted_ before it sleeps.
    if (wake && thread_.load(std::memory_order_relaxed) != std::this_thread::get_id()) {
        static_cast<void>(::eventfd_write(wakeup_.get(), 1));
    }
}

void Reactor::after(std::chrono::nanoseconds delay, Task task)
{
    timers_.push({now() + delay, timer_order_++, std::make_shared<Task>(std::move(task))});
}

bool Reactor::current() const noexcept
{
    const auto loop = thread_.load(std::memory_order_relaxed);
    return loop == std::this_thread::get_id() || loop == std::thread::id{};
}

Result<void> Reactor::watch(int fd, std::uint32_t events, Ready ready)
{
    auto watcher = std::make_unique<Watcher>();
    watcher->fd = fd;
    watcher->ready = std::move(ready);
    epoll_event event{};
    event.events = events;
    event.data.ptr = watcher.get();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        return failure(error_text("cannot watch a file descriptor", errno));
    }
    watchers_[fd] = std::move(watcher);
    return {};
}

void Reactor::modify(int fd, std::uint32_t events)
{
    const auto it = watchers_.find(fd);
    if (it == watchers_.end()) {
        return;
    }
    epoll_event event{};
    event.events = events;
    event.data.ptr = it->second.get();
    static_cast<void>(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event));
}

void Reactor::unwatch(int fd)
{
    const auto it = watchers_.find(fd);
    if (it == watchers_.end()) {
        return;
    }
    static_cast<void>(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr));
    it->second->active = false;
    retired_.push_back(std::move(it->second));
    watchers_.erase(it);
}

void Reactor::run()
{
    while (!stopped_.load(std::memory_order_acquire)) {
        run_once();
    }
    stopped_.store(false, std::memory_order_release);
}

void Reactor::run_once(Nanoseconds until)
{
    thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    std::array<epoll_event, 16> events;
    const int count = wait_for_events(epoll_.get(), events, wait_limit(until));
    for (int i = 0; i < count; ++i) {
        const auto &event = events[static_cast<std::size_t>(i)];
        auto *watcher = static_cast<Watcher *>(event.data.ptr);
        if (watcher != nullptr && watcher->active) {
            watcher->ready(event.events);
        }
    }
    retired_.clear();
    run_timers();
    run_posted();
    thread_.store(std::thread::id{}, std::memory_order_relaxed);
}

Nanoseconds Reactor::wait_limit(Nanoseconds until)
{
    if (has_posted_.load(std::memory_order_acquire) || stopped_.load(std::memory_order_acquire)) {
        return Nanoseconds::zero();
    }
    if (!timers_.empty()) {
        until = std::min(until, timers_.top().when);
    }
    return until == kNever ? kNever : std::max(until - now(), Nanoseconds::zero());
}

void Reactor::run_timers()
{
    if (timers_.empty()) {
        return;
    }
    // A task that starts a timer of no delay must not keep this loop busy.
    for (const auto due = now(); !timers_.empty() && timers_.top().when <= due;) {
        const auto task = timers_.top().task;
        timers_.pop();
        (*task)();
    }
}

void Reactor::run_posted()
{
    if (!has_posted_.load(std::memory_order_acquire)) {
        return;
    }
    {
        const std::lock_guard lock{mutex_};
        running_.swap(posted_);
        has_posted_.store(false, std::memory_order_release);
    }
    for (auto &task : running_) {
        task();
    }
    running_.clear();
}

void Reactor::stop() noexcept
{
    stopped_.store(true, std::memory_order_release);
    static_cast<void>(::eventfd_write(wakeup_.get(), 1));
}

}  // namespace vvfu::guest
