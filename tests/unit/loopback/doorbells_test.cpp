// SPDX-License-Identifier: BSD-3-Clause
#include "doorbells.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

#include "event_fd.hpp"

namespace vvfu::loopback {
namespace {

TEST(Doorbells, RingSignalsTheTarget)
{
    std::vector<unsigned> unconnected;
    Doorbells doorbells{4, [&](unsigned index) { unconnected.push_back(index); }};
    const test::EventFd event;
    doorbells.set(2, event.fd());
    doorbells.ring(2);
    doorbells.ring(2);
    EXPECT_EQ(event.take(), 2u);
    EXPECT_TRUE(unconnected.empty());
}

//= VVFU-DOORBELL-2
//= type=test
TEST(Doorbells, RingWithoutTargetIsHandedOver)
{
    std::vector<unsigned> unconnected;
    Doorbells doorbells{4, [&](unsigned index) { unconnected.push_back(index); }};
    const test::EventFd event;
    doorbells.ring(1);
    doorbells.set(1, event.fd());
    doorbells.set(1, -1);
    doorbells.ring(1);
    EXPECT_EQ(unconnected, (std::vector<unsigned>{1, 1}));
    EXPECT_EQ(event.take(), 0u);
}

//= VVFU-DOORBELL-7
//= type=test
TEST(Doorbells, NumbersBeyondTheLastAreIgnored)
{
    unsigned calls = 0;
    Doorbells doorbells{4, [&](unsigned) { ++calls; }};
    doorbells.set(4, 1);
    doorbells.ring(4);
    doorbells.ring(~0u);
    EXPECT_EQ(calls, 0u);
}

TEST(Doorbells, AFullBlockingCounterDoesNotBlockTheRinger)
{
    const Fd blocking{::eventfd(0, EFD_CLOEXEC)};
    ASSERT_EQ(::eventfd_write(blocking.get(), 0xfffffffffffffffeu), 0);
    Doorbells doorbells{1, [](unsigned) {}};
    doorbells.set(0, blocking.get());
    doorbells.ring(0);
    eventfd_t value = 0;
    ASSERT_EQ(::eventfd_read(blocking.get(), &value), 0);
    EXPECT_GE(value, 0xfffffffffffffffeu);
    doorbells.ring(0);
    ASSERT_EQ(::eventfd_read(blocking.get(), &value), 0);
    EXPECT_EQ(value, 1u);
}

TEST(Doorbells, ATargetThatBecomesBlockingAndFullDoesNotBlockTheRinger)
{
    // File status flags are the peer's to change at any time.
    const Fd target{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    Doorbells doorbells{1, [](unsigned) {}};
    doorbells.set(0, target.get());
    ASSERT_EQ(::eventfd_write(target.get(), 0xfffffffffffffffeu), 0);
    ASSERT_EQ(::fcntl(target.get(), F_SETFL, 0), 0);
    std::promise<void> rung;
    auto done = rung.get_future();
    std::thread ringer{[&] {
        doorbells.ring(0);
        rung.set_value();
    }};
    EXPECT_EQ(done.wait_for(std::chrono::seconds{5}), std::future_status::ready);
    eventfd_t value = 0;
    EXPECT_EQ(::eventfd_read(target.get(), &value), 0);  // lets a ringer that waits go on
    ringer.join();
}

//= VVFU-DOORBELL-8
//= type=test
TEST(Doorbells, NoTargetIsUsedAfterItWasDisconnected)
{
    std::atomic<unsigned> unconnected{0};
    Doorbells doorbells{1, [&](unsigned) { ++unconnected; }};
    std::atomic<bool> stop{false};
    std::thread ringer{[&] {
        while (!stop) {
            doorbells.ring(0);
        }
    }};
    for (int i = 0; i < 300; ++i) {
        const test::EventFd event;
        doorbells.set(0, event.fd());
        while (event.take() == 0) {
            std::this_thread::yield();
        }
        doorbells.set(0, -1);
        static_cast<void>(event.take());
        const auto before = unconnected.load();
        while (unconnected < before + 2) {
            std::this_thread::yield();
        }
        ASSERT_EQ(event.take(), 0u);
    }
    stop = true;
    ringer.join();
}

}  // namespace
}  // namespace vvfu::loopback
