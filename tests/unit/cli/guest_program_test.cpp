// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-guest as a program, as far as it goes without a virtio-vfio-user function.
#include <gmock/gmock.h>
#include <stdio.h>
#include <sys/wait.h>

#include <array>
#include <string>

namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Outcome {
    int code = -1;
    std::string text;  // stdout and stderr
};

Outcome run(const std::string &arguments)
{
    Outcome outcome;
    FILE *pipe = ::popen((std::string(VVFU_GUEST_PROGRAM) + " " + arguments + " 2>&1").c_str(), "r");
    std::array<char, 4096> buffer{};
    while (const auto size = ::fread(buffer.data(), 1, buffer.size(), pipe)) {
        outcome.text.append(buffer.data(), size);
    }
    outcome.code = WEXITSTATUS(::pclose(pipe));
    return outcome;
}

TEST(GuestProgram, UsageErrorsExitWithTwo)
{
    for (const char *arguments :
         {"", "testdev", "--device=00:04.0", "--device=00:04.0 --uuid=1 testdev", "--uuid=nonsense testdev",
          "--device=zebra testdev", "--device=00:04.0 --poll=x testdev", "list --device=00:04.0", "--poll=5 list",
          "--uuid=12345678-9abc-def0-1234-56789abcdef0 list"}) {
        const auto outcome = run(arguments);
        EXPECT_EQ(outcome.code, 2) << arguments;
        EXPECT_THAT(outcome.text, StartsWith("vvfu-guest: "));
        EXPECT_EQ(std::count(outcome.text.begin(), outcome.text.end(), '\n'), 1) << outcome.text;
    }
}

TEST(GuestProgram, RuntimeErrorsExitWithOne)
{
    const auto absent = run("--device=ffff:ff:1f.7 testdev");
    EXPECT_EQ(absent.code, 1);
    EXPECT_THAT(absent.text, HasSubstr("there is no such PCI function"));
    const auto json = run("--log-format=json --device=ffff:ff:1f.7 testdev");
    EXPECT_EQ(json.code, 1);
    EXPECT_THAT(json.text, StartsWith("{\"ts\":\""));
}

TEST(GuestProgram, InformationExitsWithZero)
{
    EXPECT_THAT(run("--help").text, testing::AllOf(HasSubstr("--device"), HasSubstr("--uuid"), HasSubstr("list")));
    for (const char *arguments : {"--help", "--version", "--print-capabilities", "list", "nvme --help"}) {
        EXPECT_EQ(run(arguments).code, 0) << arguments;
    }
    EXPECT_THAT(run("list").text, StartsWith("ADDRESS"));
}

}  // namespace
