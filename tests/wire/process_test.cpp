// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-loopback as a process: how it ends while its storage hangs, what it gives up, what it says of itself, and what
// it does when it starts under bad conditions.
#include <sys/stat.h>

#include <algorithm>
#include <boost/json.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "nvme_host.hpp"
#include "stalling_storage.hpp"
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr int kAbandoned = 3;
constexpr unsigned kWorkers = 8;

class ProcessTest : public ::testing::Test {
protected:
    ProcessTest()
    {
        std::ofstream(image).close();
        std::filesystem::resize_file(image, 64 * kMiB);
    }
    [[nodiscard]] std::vector<std::string> nvme() const { return {"nvme", "--backing=" + image}; }

    TemporaryDirectory directory;
    std::string image = directory.path("disk.img");
};

std::size_t lines(const std::string &text)
{
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

bool says(const Process &process, const std::string &text)
{
    return process.errors().find(text) != std::string::npos;
}

// ---- the end ------------------------------------------------------------------------------------

/// A session whose sixteen commands of one kind hang in the backing. The flush at the end is one request more.
class HangingSession {
public:
    HangingSession(const std::vector<std::string> &arguments, const std::string &calls, unsigned stalled, bool write)
        : storage(calls), loopback(loopback_program(), arguments, storage.fds(), storage.environment())
    {
        client.version();
        EXPECT_EQ(client.dma_map(ram), 0);
        host.start();
        EXPECT_EQ(host.create_io_queue(1, 64).status, 0);
        const auto buffer = host.allocate(16 * 4096);
        for (unsigned i = 0; i < 16; ++i) {
            auto command = write ? host.write_command(1, i * 8, 8) : host.read_command(1, i * 8, 8);
            host.submit(1, command.prps(buffer + i * 4096, 0));
        }
        host.ring(1);
        EXPECT_TRUE(storage.wait_for(stalled));
    }
    [[nodiscard]] Process &process() { return loopback.process(); }

    StallingStorage storage;
    LoopbackProcess loopback;
    VfioUserClient client{loopback.connect()};
    GuestRam ram{0x100000, 32 * kMiB};
    NvmeHost host{client, ram};
};

TEST_F(ProcessTest, TerminationWhileReadsHangSaysWhatIsAbandoned)
{
    HangingSession session(nvme(), "preadv", kWorkers, false);
    session.process().signal(SIGTERM);
    EXPECT_EQ(session.process().wait(), kAbandoned) << session.process().errors();
    EXPECT_TRUE(says(session.process(), "abandoned 17 requests to backing \"" + image + "\"; data"))
        << session.process().errors();
    const auto text = session.process().errors();
    EXPECT_EQ(text.find("abandoned"), text.rfind("abandoned")) << "one line: " << text;
}

TEST_F(ProcessTest, TerminationWhileWritesHangSaysWhatIsAbandoned)
{
    HangingSession session(nvme(), "pwritev", kWorkers, true);
    session.process().signal(SIGTERM);
    EXPECT_EQ(session.process().wait(), kAbandoned) << session.process().errors();
    EXPECT_TRUE(says(session.process(), "abandoned 17 requests")) << session.process().errors();
}

TEST_F(ProcessTest, TerminationEndsInGoodOrderWhenTheStorageRecovers)
{
    HangingSession session(nvme(), "preadv", kWorkers, false);
    session.process().signal(SIGTERM);
    session.storage.release(16);
    EXPECT_EQ(session.process().wait(), 0) << session.process().errors();
    EXPECT_FALSE(says(session.process(), "abandoned")) << session.process().errors();
}

TEST_F(ProcessTest, TerminationWaitsForWhatWasWrittenToBeDurable)
{
    StallingStorage storage("fdatasync");
    LoopbackProcess loopback(loopback_program(), nvme(), storage.fds(), storage.environment());
    {
        auto client = loopback.connect();
        client.version();
    }
    loopback.process().signal(SIGTERM);
    EXPECT_TRUE(storage.wait_for(1)) << loopback.process().errors();
    storage.release(1);
    EXPECT_EQ(loopback.process().wait(), 0) << loopback.process().errors();
}

TEST_F(ProcessTest, TerminationSaysThatDataCouldNotBeMadeDurable)
{
    StallingStorage storage("fdatasync");
    LoopbackProcess loopback(loopback_program(), nvme(), storage.fds(), storage.environment());
    {
        auto client = loopback.connect();
        client.version();
    }
    loopback.process().signal(SIGTERM);
    EXPECT_EQ(loopback.process().wait(), kAbandoned);
    EXPECT_TRUE(says(loopback.process(), "abandoned 1 request to backing \"" + image + "\"; data that was written"))
        << loopback.process().errors();
}

TEST_F(ProcessTest, SecondTerminationEndsAtOnce)
{
    HangingSession session(nvme(), "preadv", kWorkers, false);
    session.process().signal(SIGTERM);
    ASSERT_TRUE(eventually([&] { return says(session.process(), "stopping"); }));
    session.process().signal(SIGTERM);
    EXPECT_EQ(session.process().wait(), kAbandoned);
    EXPECT_TRUE(says(session.process(), "told to end twice: abandoned 1")) << session.process().errors();
}

TEST_F(ProcessTest, TerminationDuringAStartThatHangsEndsAtOnce)
{
    StallingStorage storage("open");
    LoopbackProcess loopback(loopback_program(), nvme(), storage.fds(), storage.environment());
    ASSERT_TRUE(storage.wait_for(1));
    loopback.process().signal(SIGTERM);
    EXPECT_EQ(loopback.process().wait(), 0);
    EXPECT_TRUE(says(loopback.process(), "Terminated: ended at once")) << loopback.process().errors();
}

TEST_F(ProcessTest, StandardErrorThatNobodyReadsDoesNotKeepItAlive)
{
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const Fd read_end{ends[0]}, write_end{ends[1]};
    // A full pipe: the next line hangs.
    ::fcntl(write_end.get(), F_SETFL, O_NONBLOCK);
    const std::string rubbish(4096, 'x');
    while (::write(write_end.get(), rubbish.data(), rubbish.size()) > 0) {
    }
    ::fcntl(write_end.get(), F_SETFL, 0);
    Process process({"/bin/sh", "-c",
                     "exec 2>&" + std::to_string(write_end.get()) + "; exec " + loopback_program() +
                         " --socket-path=" + directory.path("s") + " testdev"},
                    {write_end.get()});
    ASSERT_TRUE(eventually([&] { return !process.thread_status("Seccomp:").empty(); }));
    ASSERT_TRUE(eventually([&] { return std::filesystem::exists(directory.path("s")); }));
    process.signal(SIGTERM);
    EXPECT_TRUE(process.wait().has_value());
}

// ---- what it gives up ---------------------------------------------------------------------------

TEST_F(ProcessTest, EveryThreadIsConfinedWhileItServes)
{
    LoopbackProcess loopback(loopback_program(), {"testdev"});
    auto client = loopback.connect();
    client.version();
    const auto filters = loopback.process().thread_status("Seccomp:");
    EXPECT_EQ(filters, std::vector<std::string>(filters.size(), "2"));
    EXPECT_GE(filters.size(), 3u);
    const auto no_new_privileges = loopback.process().thread_status("NoNewPrivs:");
    EXPECT_EQ(no_new_privileges, std::vector<std::string>(filters.size(), "1"));
    for (const auto &capabilities : loopback.process().thread_status("CapPrm:")) {
        // The thread that makes the socket may do so in a directory of another user, as root.
        EXPECT_EQ(std::stoull(capabilities, nullptr, 16) & ~std::uint64_t{6}, 0u) << capabilities;
    }
}

TEST_F(ProcessTest, SandboxCanBeTurnedOff)
{
    LoopbackProcess loopback(loopback_program(), {"--sandbox=off", "testdev"});
    auto client = loopback.connect();
    client.version();
    const auto filters = loopback.process().thread_status("Seccomp:");
    const auto own = Process({"/bin/sleep", "1000"}).thread_status("Seccomp:");
    EXPECT_EQ(filters, std::vector<std::string>(filters.size(), own.at(0)));
}

TEST_F(ProcessTest, AnotherUserServesAndTidiesUp)
{
    if (::geteuid() != 0) {
        // Without privilege the only user to become is oneself.
        const auto self = std::to_string(::getuid()) + ":" + std::to_string(::getgid());
        Process process({loopback_program(), "--user=" + self, "--socket-path=" + directory.path("s"), "testdev"});
        EXPECT_EQ(process.wait(), 1);
        return;
    }
    constexpr unsigned kUser = 12345;
    const auto folder = directory.path("run");
    std::filesystem::create_directory(folder);
    ASSERT_EQ(::chown(folder.c_str(), kUser, kUser), 0);
    std::filesystem::permissions(directory.path(""), std::filesystem::perms::others_exec,
                                 std::filesystem::perm_options::add);
    const auto socket = folder + "/vfu.sock";
    // The leak check at the exit needs a process that may be traced, which another user is not.
    Process process({loopback_program(), "--user=12345:12345", "--socket-path=" + socket, "testdev"}, {},
                    {"ASAN_OPTIONS=detect_leaks=0"});
    VfioUserClient::connect(socket).version();
    for (const auto &user : process.thread_status("Uid:")) {
        EXPECT_EQ(user, "12345\t12345\t12345\t12345");
    }
    for (const auto &capabilities : process.thread_status("CapPrm:")) {
        EXPECT_EQ(std::stoull(capabilities, nullptr, 16), 0u);
    }
    struct stat status {};
    ASSERT_EQ(::stat(socket.c_str(), &status), 0);
    EXPECT_EQ(status.st_uid, kUser);
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait(), 0) << process.errors();
    EXPECT_FALSE(std::filesystem::exists(socket));
}

TEST_F(ProcessTest, UnknownUserIsOneLine)
{
    Process process({loopback_program(), "--user=no-such-user", "--socket-path=" + directory.path("s"), "testdev"});
    EXPECT_EQ(process.wait(), 2);
    EXPECT_TRUE(says(process, "there is no user 'no-such-user'")) << process.errors();
    EXPECT_EQ(lines(process.errors()), 1u);
}

// ---- what it says -------------------------------------------------------------------------------

TEST_F(ProcessTest, UserSignalLogsCountersAsOneLineOfJson)
{
    LoopbackProcess loopback(loopback_program(), {"testdev"});
    auto client = loopback.connect();
    client.version();
    EXPECT_EQ(client.device_info().num_regions, 9u);
    loopback.process().signal(SIGUSR1);
    const std::string before = "counters: ";
    ASSERT_TRUE(eventually([&] { return says(loopback.process(), "}}\n"); })) << loopback.process().errors();
    const auto text = loopback.process().errors();
    const auto start = text.find(before) + before.size();
    const auto counters = boost::json::parse(text.substr(start, text.find('\n', start) - start)).as_object();
    EXPECT_EQ(counters.at("core").at("sessions"), 1);
    EXPECT_GE(counters.at("core").at("requests").as_int64(), 1);
    EXPECT_GE(counters.at("session").at("requests").as_int64(), 1);
    EXPECT_TRUE(counters.contains("dma"));
    EXPECT_TRUE(counters.contains("testdev"));
    EXPECT_EQ(client.device_info().num_regions, 9u) << "it goes on";
}

// ---- bad conditions -----------------------------------------------------------------------------

TEST_F(ProcessTest, ClosedStandardFdsAreNotTakenByFiles)
{
    const auto socket = directory.path("s");
    Process process({loopback_program(), "--socket-path=" + socket, "nvme", "--backing=" + image}, {}, {}, {0, 1, 2});
    VfioUserClient::connect(socket).version();
    for (const int fd : {0, 1, 2}) {
        EXPECT_EQ(std::filesystem::read_symlink("/proc/" + std::to_string(process.pid()) + "/fd/" + std::to_string(fd)),
                  "/dev/null");
    }
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait(), 0);
}

}  // namespace
}  // namespace vvfu::test
