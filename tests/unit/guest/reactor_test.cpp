// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/reactor.hpp"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace {

timespec longest_wait{};
bool old_kernel = false;

}  // namespace

/// The reactor's own calls come here.
extern "C" int epoll_pwait2(int epoll, epoll_event *events, int size, const timespec *timeout, const sigset_t *mask)
{
    longest_wait = *timeout;
    if (old_kernel) {
        errno = ENOSYS;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_epoll_pwait2, epoll, events, size, timeout, mask, sizeof(long)));
}

namespace vvfu::guest {
namespace {

using namespace std::chrono_literals;

class ReactorTest : public ::testing::Test {
protected:
    std::unique_ptr<Reactor> reactor = std::move(*Reactor::create());
    Fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

TEST_F(ReactorTest, RunsPostedTasksInOrderAndNotInsidePost)
{
    std::string order;
    reactor->post([&] {
        order += 'a';
        reactor->post([&] { order += 'c'; });
    });
    reactor->post([&] { order += 'b'; });
    EXPECT_EQ(order, "");
    reactor->run_once();
    EXPECT_EQ(order, "ab");
    reactor->run_once();
    EXPECT_EQ(order, "abc");
}

TEST_F(ReactorTest, TimersAreNotRoundedToMilliseconds)
{
    bool fired = false;
    reactor->after(200us, [&] { fired = true; });
    longest_wait = {};
    while (!fired) {
        reactor->run_once();
        EXPECT_EQ(longest_wait.tv_sec, 0);
        EXPECT_LE(longest_wait.tv_nsec, 200'000) << "what is asked of the kernel";
    }
}

TEST_F(ReactorTest, OldKernelsHaveTimersToo)
{
    old_kernel = true;
    bool fired = false;
    reactor->after(1ms, [&] { fired = true; });
    while (!fired) {
        reactor->run_once();
    }
    old_kernel = false;
}

TEST_F(ReactorTest, PostFromAnotherThreadWakesTheLoop)
{
    std::thread other;
    reactor->post([&] { other = std::thread{[&] { reactor->post([&] { reactor->stop(); }); }}; });
    reactor->run();
    other.join();
}

TEST_F(ReactorTest, StopFromAnotherThreadEndsRunAndItCanRunAgain)
{
    for (int i = 0; i < 2; ++i) {
        std::thread other{[&] { reactor->stop(); }};
        reactor->run();
        other.join();
    }
}

TEST_F(ReactorTest, CallsAWatcherForEveryEdge)
{
    int calls = 0;
    ASSERT_TRUE(reactor->watch(event.get(), EPOLLIN | EPOLLET, [&](std::uint32_t) { ++calls; }));
    for (int i = 1; i <= 3; ++i) {
        ASSERT_EQ(::eventfd_write(event.get(), 1), 0);
        reactor->run_once();
        EXPECT_EQ(calls, i);
    }
    reactor->run_once(Nanoseconds::zero());
    EXPECT_EQ(calls, 3) << "an edge is reported once, although nobody read the eventfd";
}

TEST_F(ReactorTest, AnUnwatchedFdIsNotReportedAgain)
{
    Fd second{::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
    int calls = 0;
    const auto once = [&](std::uint32_t) {
        ++calls;
        reactor->unwatch(event.get());
        reactor->unwatch(second.get());
    };
    ASSERT_TRUE(reactor->watch(event.get(), EPOLLIN, once));
    ASSERT_TRUE(reactor->watch(second.get(), EPOLLIN, once));
    ASSERT_EQ(::eventfd_write(event.get(), 1), 0);
    reactor->run_once();  // both are ready in the same round
    EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, ModifySilencesAndRevivesAWatcher)
{
    int calls = 0;
    ASSERT_TRUE(reactor->watch(event.get(), EPOLLIN, [&](std::uint32_t) { ++calls; }));
    ASSERT_EQ(::eventfd_write(event.get(), 1), 0);
    reactor->modify(event.get(), 0);
    reactor->run_once(Nanoseconds::zero());
    EXPECT_EQ(calls, 0);
    reactor->modify(event.get(), EPOLLIN);
    reactor->run_once();
    EXPECT_EQ(calls, 1);
}

TEST_F(ReactorTest, RefusesToWatchWhatCannotBeWatched)
{
    EXPECT_FALSE(reactor->watch(-1, EPOLLIN, [](std::uint32_t) {}));
    ASSERT_TRUE(reactor->watch(event.get(), EPOLLIN, [](std::uint32_t) {}));
    EXPECT_FALSE(reactor->watch(event.get(), EPOLLIN, [](std::uint32_t) {})) << "one watcher per fd";
}

TEST_F(ReactorTest, TimersRunInOrderOfTheirTimeAndNotEarly)
{
    std::string order;
    const auto start = Reactor::now();
    reactor->after(3ms, [&] {
        order += 'c';
        reactor->stop();
    });
    reactor->after(1ms, [&] { order += 'a'; });
    reactor->after(1ms, [&] { order += 'b'; });
    reactor->run();
    EXPECT_EQ(order, "abc");
    EXPECT_GE(Reactor::now() - start, 3ms);
}

TEST_F(ReactorTest, ATimerWithoutDelayThatRearmsItselfDoesNotStarveTheLoop)
{
    int rounds = 0;
    std::function<void()> again = [&] {
        if (++rounds < 1000) {
            reactor->after(0ns, again);
        }
    };
    again();
    bool posted = false;
    reactor->post([&] { posted = true; });
    reactor->run_once();
    EXPECT_TRUE(posted);
    EXPECT_LT(rounds, 1000);
}

TEST_F(ReactorTest, RunOnceReturnsAtItsLimit)
{
    const auto start = Reactor::now();
    reactor->run_once(start + 2ms);
    EXPECT_GE(Reactor::now() - start, 2ms);
}

TEST_F(ReactorTest, AnEdgeTriggeredFdThatStaysReadableIsReportedOnce)
{
    int reports = 0;
    ASSERT_TRUE(reactor->watch(event.get(), EPOLLIN | EPOLLET, [&](std::uint32_t) { ++reports; }));
    ASSERT_EQ(::eventfd_write(event.get(), 1), 0);
    reactor->after(20ms, [&] { reactor->stop(); });
    reactor->run();
    EXPECT_EQ(reports, 1);
}

}  // namespace
}  // namespace vvfu::guest
