// SPDX-License-Identifier: BSD-3-Clause
#include "eventfd.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include "event_fd.hpp"

namespace vvfu::loopback {
namespace {

TEST(SignalEventfd, AddsOne)
{
    const test::EventFd event;
    signal_eventfd(event.fd());
    signal_eventfd(event.fd());
    EXPECT_EQ(event.take(), 2u);
}

TEST(SignalEventfd, LeavesAFullCounterFullWithoutBlocking)
{
    for (const int mode : {0, int{EFD_NONBLOCK}}) {
        const Fd fd{::eventfd(0, EFD_CLOEXEC | mode)};
        ASSERT_EQ(::eventfd_write(fd.get(), 0xfffffffffffffffeu), 0);
        signal_eventfd(fd.get());
        eventfd_t value = 0;
        ASSERT_EQ(::eventfd_read(fd.get(), &value), 0);
        EXPECT_GE(value, 0xfffffffffffffffeu);
        EXPECT_EQ(::fcntl(fd.get(), F_GETFL) & O_NONBLOCK, mode != 0 ? O_NONBLOCK : 0)
            << "its mode belongs to the peer";
    }
}

TEST(SignalEventfd, ManyInARowAllCount)
{
    const test::EventFd event;
    for (int i = 0; i < 1000; ++i) {
        signal_eventfd(event.fd());
    }
    EXPECT_EQ(event.take(), 1000u);
}

TEST(SignalEventfd, IgnoresWhatIsNoFd)
{
    signal_eventfd(-1);
}

}  // namespace
}  // namespace vvfu::loopback
