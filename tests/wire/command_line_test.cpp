// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-loopback as a program: the conventions of back-end programs (QEMU docs/interop/vhost-user.rst, "Backend program
// conventions", which vfio-user servers follow), exit codes, one clear line per mistake.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "vvfu/base/rate_limit.hpp"
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

struct Outcome {
    int status = -1;
    std::string output, errors;
};

Outcome run(std::vector<std::string> arguments)
{
    arguments.insert(arguments.begin(), loopback_program());
    Process process(arguments);
    Outcome outcome;
    outcome.status = process.wait().value_or(-1);
    outcome.output = process.output();
    outcome.errors = process.errors();
    return outcome;
}

/// Exit status `status`, nothing on standard output, and one line that starts with the program's name.
void expect_one_line(const Outcome &outcome, int status, const std::string &mentions)
{
    EXPECT_EQ(outcome.status, status) << outcome.errors;
    EXPECT_EQ(outcome.output, "");
    EXPECT_EQ(std::count(outcome.errors.begin(), outcome.errors.end(), '\n'), 1) << outcome.errors;
    EXPECT_EQ(outcome.errors.rfind("vvfu-loopback: ", 0), 0u) << outcome.errors;
    EXPECT_NE(outcome.errors.find(mentions), std::string::npos) << outcome.errors;
}

class CommandLine : public ::testing::Test {
protected:
    [[nodiscard]] std::string socket_option() const { return "--socket-path=" + socket; }
    [[nodiscard]] bool socket_exists() const { return std::filesystem::exists(socket); }

    TemporaryDirectory directory;
    std::string socket = directory.path("vfu.sock");
};

TEST_F(CommandLine, HelpAndVersion)
{
    for (const auto &arguments : std::vector<std::vector<std::string>>{{"--help"}, {"nvme", "--help"}}) {
        const auto help = run(arguments);
        EXPECT_EQ(help.status, 0);
        EXPECT_EQ(help.errors, "");
        EXPECT_FALSE(help.output.empty());
    }
    const auto help = run({"--help"}).output;
    for (const auto *word : {"--socket-path", "--fd", "--log-level", "--log-format", "--print-capabilities",
                             "--version", "nvme", "testdev"}) {
        EXPECT_NE(help.find(word), std::string::npos) << word;
    }
    EXPECT_NE(run({"nvme", "--help"}).output.find("--backing"), std::string::npos);
    const auto version = run({"--version"});
    EXPECT_EQ(version.status, 0);
    EXPECT_NE(version.output.find("vvfu-loopback"), std::string::npos);
}

TEST_F(CommandLine, CapabilitiesAreJson)
{
    const auto outcome = run({"--print-capabilities"});
    EXPECT_EQ(outcome.status, 0);
    const auto capabilities = boost::json::parse(outcome.output);
    EXPECT_TRUE(capabilities.is_object());
    EXPECT_TRUE(capabilities.as_object().contains("type"));
}

TEST_F(CommandLine, ExactlyOneOfSocketPathAndFd)
{
    expect_one_line(run({"testdev"}), 2, "--socket-path");
    expect_one_line(run({socket_option(), "--fd=3", "testdev"}), 2, "--fd");
}

TEST_F(CommandLine, BadArgumentsExitWithTwo)
{
    expect_one_line(run({"--no-such-option", socket_option(), "testdev"}), 2, "--no-such-option");
    expect_one_line(run({socket_option()}), 2, "subcommand");
    expect_one_line(run({socket_option(), "no-such-model"}), 2, "no-such-model");
    expect_one_line(run({socket_option(), "nvme"}), 2, "--backing");
    expect_one_line(run({socket_option(), "--log-level=loud", "testdev"}), 2, "--log-level");
    expect_one_line(run({socket_option(), "--unmap-timeout=0", "testdev"}), 2, "--unmap-timeout");
    for (const auto *size : {"12345", "0", "-4096", "2E"}) {
        expect_one_line(run({socket_option(), std::string("--window-size=") + size, "testdev"}), 2, "--window-size");
    }
    expect_one_line(run({"--fd=-1", "testdev"}), 2, "--fd");
    EXPECT_FALSE(socket_exists());
}

TEST_F(CommandLine, OptionWithoutValueDoesNotTakeTheNextArgument)
{
    std::ofstream(directory.path("disk.img")) << std::string(4096, 'x');
    expect_one_line(
        run({socket_option(), "nvme", "--backing=" + directory.path("disk.img"), "--serial=", "--read-only"}), 2,
        "--serial= has no value");
    expect_one_line(run({"--socket-path=", "testdev"}), 2, "--socket-path= has no value");
    EXPECT_FALSE(socket_exists());
}

TEST_F(CommandLine, BadFdIsOneLine)
{
    expect_one_line(run({"--fd=2", "testdev"}), 1, "fd 2 is not a listening UNIX stream socket");
    expect_one_line(run({"--fd=987", "testdev"}), 1, "987");
    // An fd that is no listening socket.
    EventFd event;
    Process process({loopback_program(), "--fd=" + std::to_string(event.fd()), "testdev"}, {event.fd()});
    EXPECT_EQ(process.wait(), 1);
    EXPECT_EQ(process.errors().rfind("vvfu-loopback: ", 0), 0u);
}

TEST_F(CommandLine, PathTooLongIsOneLine)
{
    const auto outcome = run({"--socket-path=" + directory.path(std::string(120, 'x')), "testdev"});
    EXPECT_NE(outcome.status, 0);
    expect_one_line(outcome, outcome.status, "limit is 107");
}

TEST_F(CommandLine, DirectoryThatDoesNotExistIsOneLine)
{
    expect_one_line(run({"--socket-path=" + directory.path("no/such/vfu.sock"), "testdev"}), 1, "no/such/");
}

TEST_F(CommandLine, TermIntAndHupExitWithZeroAndUnlinkTheSocket)
{
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
        Process process({loopback_program(), socket_option(), "testdev"});
        auto client = VfioUserClient::connect(socket);
        client.version();
        process.signal(number);
        EXPECT_EQ(process.wait(), 0) << process.errors();
        EXPECT_FALSE(socket_exists());
        EXPECT_TRUE(client.closed_by_server());
    }
}

TEST_F(CommandLine, StaleSocketIsReplaced)
{
    {
        Process process({loopback_program(), socket_option(), "testdev"});
        VfioUserClient::connect(socket).version();
        process.signal(SIGKILL);
        ASSERT_EQ(process.wait(), 128 + SIGKILL);
    }
    ASSERT_TRUE(socket_exists());
    Process process({loopback_program(), socket_option(), "testdev"});
    VfioUserClient::connect(socket).version();
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait(), 0);
}

TEST_F(CommandLine, LiveSocketIsRefused)
{
    Process first({loopback_program(), socket_option(), "testdev"});
    auto client = VfioUserClient::connect(socket);
    client.version();
    expect_one_line(run({socket_option(), "testdev"}), 1, "another server uses " + socket);
    // The first one is unharmed.
    EXPECT_TRUE(socket_exists());
    EXPECT_EQ(client.device_info().num_regions, 9u);
    client.close();
    auto next = VfioUserClient::connect(socket);
    next.version();
}

TEST_F(CommandLine, FileThatIsNoSocketIsNotReplaced)
{
    std::ofstream(socket) << "precious";
    expect_one_line(run({socket_option(), "testdev"}), 1, socket);
    std::string content;
    std::ifstream(socket) >> content;
    EXPECT_EQ(content, "precious");
}

TEST_F(CommandLine, SocketIsNotForEverybody)
{
    Process process({loopback_program(), socket_option(), "testdev"});
    VfioUserClient::connect(socket).version();
    struct stat file {};
    ASSERT_EQ(::stat(socket.c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0002u, 0u);
}

TEST_F(CommandLine, BackingErrorsAreOneLine)
{
    expect_one_line(run({socket_option(), "nvme", "--backing=" + directory.path("none.img")}), 1, "none.img");
    const auto odd = directory.path("odd.img");
    std::ofstream(odd) << std::string(1000, 'x');
    expect_one_line(run({socket_option(), "nvme", "--backing=" + odd}), 1, "512");
    const auto empty = directory.path("empty.img");
    std::ofstream(empty).close();
    expect_one_line(run({socket_option(), "nvme", "--backing=" + empty}), 1, "empty.img");
    expect_one_line(run({socket_option(), "nvme", "--backing=/dev/null"}), 1, "/dev/null");
    expect_one_line(run({socket_option(), "nvme", "--backing=" + directory.path("")}), 1, directory.path(""));
    EXPECT_FALSE(socket_exists());
}

TEST_F(CommandLine, ManySessionsDoNotFloodTheLog)
{
    Process process({loopback_program(), socket_option(), "testdev"});
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 100; ++i) {
        VfioUserClient::connect(socket).version();
    }
    process.signal(SIGTERM);
    ASSERT_EQ(process.wait(), 0);
    const auto text = process.errors();
    EXPECT_NE(text.find("session 1 begins"), std::string::npos) << text;
    unsigned lines = 0;
    for (auto at = text.find(" begins"); at != std::string::npos; at = text.find(" begins", at + 1)) {
        ++lines;
    }
    // On a machine that is slow enough these are all of them.
    const auto intervals = 1 + (std::chrono::steady_clock::now() - start) / RateLimit::kInterval;
    EXPECT_LE(lines, RateLimit::kBurst * intervals) << text;
}

TEST_F(CommandLine, JsonLogLinesAreJson)
{
    Process process({loopback_program(), socket_option(), "--log-level=debug", "--log-format=json", "testdev"});
    {
        auto client = VfioUserClient::connect(socket);
        client.version(0, R"({"capabilities":{}})");
        EXPECT_EQ(client.dma_map(0, 256 << 20, 0, kMapRead | kMapWrite, -1), 0);
    }
    process.signal(SIGTERM);
    ASSERT_EQ(process.wait(), 0);
    std::istringstream lines(process.errors());
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
        boost::json::error_code error;
        EXPECT_TRUE(boost::json::parse(line, error).is_object() && !error) << line;
    }
    EXPECT_GT(count, 0);
    EXPECT_NE(process.errors().find("share=on"), std::string::npos);
}

}  // namespace
}  // namespace vvfu::test
