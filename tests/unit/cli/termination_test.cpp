// SPDX-License-Identifier: BSD-3-Clause
#include "termination.hpp"

#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

#include "program.hpp"

namespace vvfu::cli {
namespace {

using testing::ExitedWithCode;

/// Everything happens in children, which end by it.
class TerminationTest : public ::testing::Test {
protected:
    TerminationTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

    [[noreturn]] static void wait_for_ever()
    {
        for (;;) {
            ::pause();
        }
    }
};

TEST_F(TerminationTest, SignalBeforeTheDeviceEndsAtOnce)
{
    const auto run = [] {
        Termination termination;
        ::kill(::getpid(), SIGTERM);
        wait_for_ever();
    };
    EXPECT_EXIT(run(), ExitedWithCode(kExitOk), "");
}

TEST_F(TerminationTest, SignalAfterTheDeviceEndsAtOnceWithItsStatus)
{
    const auto run = [] {
        Termination termination;
        termination.attach({[](int) {}, {}, {}});
        termination.begin();
        termination.detach(kExitGone);
        ::kill(::getpid(), SIGTERM);
        wait_for_ever();
    };
    EXPECT_EXIT(run(), ExitedWithCode(kExitGone), "");
}

TEST_F(TerminationTest, WhatDoesNotEndIsAbandoned)
{
    const auto run = [] {
        Termination termination;
        termination.attach({[](int) {}, {}, [] { return std::string{"two requests"}; }});
        ::kill(::getpid(), SIGTERM);
        wait_for_ever();
    };
    EXPECT_EXIT(run(), ExitedWithCode(kExitAbandoned), "");
}

TEST_F(TerminationTest, SecondSignalAbandonsAtOnce)
{
    const auto run = [] {
        Termination termination;
        termination.attach({[](int signal) {
                                if (signal == SIGTERM) {
                                    ::kill(::getpid(), SIGINT);
                                }
                            },
                            {},
                            {}});
        ::kill(::getpid(), SIGTERM);
        wait_for_ever();
    };
    EXPECT_EXIT(run(), ExitedWithCode(kExitAbandoned), "");
}

TEST_F(TerminationTest, ReleaseThatHangsEndsWithTheDevicesStatus)
{
    const auto run = [](int status) {
        Termination termination;
        termination.attach({[](int) {}, {}, {}});
        termination.begin();
        termination.detach(status);
        wait_for_ever();
    };
    EXPECT_EXIT(run(kExitGone), ExitedWithCode(kExitGone), "");
    EXPECT_EXIT(run(kExitOk), ExitedWithCode(kExitRuntime), "");
}

}  // namespace
}  // namespace vvfu::cli
