// SPDX-License-Identifier: BSD-3-Clause
#include "program.hpp"

#include <gmock/gmock.h>
#include <unistd.h>

#include <new>
#include <stdexcept>
#include <thread>

namespace vvfu::cli {
namespace {

using testing::ExitedWithCode;

const ProgramInfo kInfo{"prog", "vfio-user", {}};

TEST(RunProgram, ExceptionIsOneLineAndAFailure)
{
    EXPECT_EXIT(::_exit(run_program(kInfo, []() -> int { throw std::runtime_error("it broke"); })),
                ExitedWithCode(kExitRuntime), "^prog: error: it broke\n$");
    EXPECT_EXIT(::_exit(run_program(kInfo, []() -> int { throw std::bad_alloc(); })), ExitedWithCode(kExitRuntime),
                "^prog: error: std::bad_alloc\n$");
}

TEST(RunProgram, ExceptionThatCannotBeCaughtIsOneLineToo)
{
    const auto run = [] {
        return run_program(kInfo, [] {
            std::thread{[] { throw std::runtime_error("in a thread"); }}.join();
            return 0;
        });
    };
    EXPECT_EXIT(::_exit(run()), ExitedWithCode(kExitRuntime), "^prog: error: in a thread\n$");
}

TEST(RunProgram, StandardFdsThatAreClosedAreOpened)
{
    const auto run = [] {
        ::close(STDIN_FILENO);
        ::close(STDOUT_FILENO);
        return run_program(kInfo, [] { return ::dup(STDERR_FILENO) > STDERR_FILENO ? 0 : 1; });
    };
    EXPECT_EXIT(::_exit(run()), ExitedWithCode(0), "");
}

}  // namespace
}  // namespace vvfu::cli
