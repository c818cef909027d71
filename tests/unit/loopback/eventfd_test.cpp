// SPDX-License-Identifier: BSD-3-Clause
#include "eventfd.hpp"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include "event_fd.hpp"

namespace vvfu::loopback {
namespace {

TEST(SignalEventfd, AddsOne)
{
    const test::EventFd event;
    signal_eventfd(event.fd());
    signal_nonblocking_eventfd(event.fd());
    EXPECT_EQ(event.take(), 2u);
}

TEST(SignalEventfd, LeavesAFullCounterFullWithoutBlocking)
{
    for (const int mode : {0, int{EFD_NONBLOCK}}) {
        const Fd fd{::eventfd(0, EFD_CLOEXEC | mode)};
        EXPECT_EQ(is_nonblocking(fd.get()), mode != 0);
        ASSERT_EQ(::eventfd_write(fd.get(), 0xfffffffffffffffeu), 0);
        signal_eventfd(fd.get());
        eventfd_t value = 0;
        ASSERT_EQ(::eventfd_read(fd.get(), &value), 0);
        EXPECT_EQ(value, 0xfffffffffffffffeu);
    }
}

TEST(SignalEventfd, IgnoresWhatIsNoFd)
{
    signal_eventfd(-1);
    EXPECT_FALSE(is_nonblocking(-1));
}

}  // namespace
}  // namespace vvfu::loopback
