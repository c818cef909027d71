// SPDX-License-Identifier: BSD-3-Clause
//
// NVMe end to end through vvfu-loopback: mapped and message-only memory, file and memory backing, sessions one after
// the other.
#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "nvme_host.hpp"
#include "stalling_storage.hpp"
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

constexpr std::uint64_t kMiB = 1024 * 1024;

/// vvfu-loopback with nvme and a client whose memory is mapped, or reachable by messages only.
class NvmeSession {
public:
    enum class Memory { mapped, message_only };

    NvmeSession(const LoopbackProcess &loopback, Memory memory = Memory::mapped,
                NvmeHost::Interrupts interrupts = NvmeHost::Interrupts::msix)
        : client(loopback.connect()), ram(0x100000, 32 * kMiB), host(client, ram, interrupts)
    {
        client.version();
        if (memory == Memory::mapped) {
            EXPECT_EQ(client.dma_map(ram), 0);
        } else {
            EXPECT_EQ(client.dma_map(ram.address(), ram.size(), 0, kMapRead | kMapWrite, -1), 0);
            client.serve_memory(ram);
        }
        host.start();
    }

    VfioUserClient client;
    GuestRam ram;
    NvmeHost host;
};

LoopbackProcess with_memory_backing()
{
    return LoopbackProcess(loopback_program(), {"nvme", "--backing=mem:64M"});
}

/// Writes and reads back with the sizes that need no, one and a list of further PRPs.
void write_and_verify(NvmeHost &host, std::uint16_t qid)
{
    std::uint64_t lba = 8;
    std::uint32_t seed = 1;
    for (const std::size_t size : {512u, 4096u, 8192u, 65536u, 262144u}) {
        const auto data = pattern(size, seed++);
        ASSERT_EQ(host.write(qid, 1, lba, data).status, 0) << size;
        Bytes back(size);
        ASSERT_EQ(host.read(qid, 1, lba, back).status, 0) << size;
        EXPECT_EQ(back, data) << size;
        lba += size / 512;
    }
}

TEST(NvmeWire, IdentifiesAController)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    const auto controller = session.host.identify(1, 0);
    const std::string model(reinterpret_cast<const char *>(controller.data()) + 24, 40);
    EXPECT_EQ(model, "virtio-vfio-user NVMe" + std::string(19, ' '));
    EXPECT_EQ(session.host.namespace_blocks(1), 64 * kMiB / 512);
    EXPECT_EQ(session.client.read<std::uint32_t>(0, 8), 0x00010400u);  // VS: 1.4
}

TEST(NvmeWire, WritesAndReadsBackThroughTheWindow)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    ASSERT_EQ(session.host.create_io_queue(1, 64).status, 0);
    write_and_verify(session.host, 1);
    EXPECT_EQ(session.client.dma_counters().reads, 0u);
}

TEST(NvmeWire, WritesAndReadsBackThroughMessages)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback, NvmeSession::Memory::message_only);
    ASSERT_EQ(session.host.create_io_queue(1, 64).status, 0);
    write_and_verify(session.host, 1);
    EXPECT_GT(session.client.dma_counters().reads, 0u);
    EXPECT_GT(session.client.dma_counters().writes, 0u);
}

TEST(NvmeWire, WorksWithoutInterrupts)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback, NvmeSession::Memory::mapped, NvmeHost::Interrupts::none);
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    write_and_verify(session.host, 1);
}

TEST(NvmeWire, QueuesWrapManyTimesWithManyCommandsOutstanding)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    auto &host = session.host;
    constexpr std::uint16_t kDepth = 32, kOutstanding = 16;
    ASSERT_EQ(host.create_io_queue(1, kDepth).status, 0);
    const auto buffer = host.allocate(std::size_t{kOutstanding} * 4096);
    std::uint64_t completed = 0, submitted = 0;
    const auto submit = [&] {
        host.submit(1,
                    host.read_command(1, submitted * 8 % 65536, 8).prps(buffer + submitted % kOutstanding * 4096, 0));
        ++submitted;
    };
    for (int i = 0; i < kOutstanding; ++i) {
        submit();
    }
    host.ring(1);
    while (completed < 1000) {
        ASSERT_EQ(host.wait(1).status, 0);
        ++completed;
        submit();
        host.ring(1);
    }
}

TEST(NvmeWire, ThirtyTwoQueuePairsEachWithTheirVector)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        ASSERT_EQ(session.host.create_io_queue(qid, 8).status, 0) << qid;
    }
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        const auto data = pattern(4096, qid);
        ASSERT_EQ(session.host.write(qid, 1, std::uint64_t{qid} * 8, data).status, 0);
        Bytes back(4096);
        ASSERT_EQ(session.host.read(static_cast<std::uint16_t>(33 - qid), 1, std::uint64_t{qid} * 8, back).status, 0);
        EXPECT_EQ(back, data);
    }
}

TEST(NvmeWire, EveryVectorOfMsi)
{
    LoopbackProcess loopback(loopback_program(), {"nvme", "--backing=mem:64M", "--interrupts=msi"});
    NvmeSession session(loopback, NvmeSession::Memory::mapped, NvmeHost::Interrupts::msi);
    EXPECT_EQ(session.client.irq_info(kMsixIndex).count, 0u);
    EXPECT_EQ(session.client.irq_info(kMsiIndex).count, 32u);
    for (std::uint16_t qid = 1; qid < 32; ++qid) {
        ASSERT_EQ(session.host.create_io_queue(qid, 8).status, 0) << qid;
        write_and_verify(session.host, qid);
    }
    // Vectors are compared with those that there are (NVMe 5.3).
    EXPECT_EQ(session.host.execute(0, NvmeCommand(0x05, 0).dword(10, 32 | 7u << 16).dword(11, 3u | 32u << 16)).status,
              0x108);
    EXPECT_TRUE(session.host.shut_down());
}

TEST(NvmeWire, BadCommandsGetTheStatusOfTheSpecification)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    auto &host = session.host;
    ASSERT_EQ(host.create_io_queue(1, 16).status, 0);
    const auto buffer = host.allocate(8192);
    const auto blocks = host.namespace_blocks(1);
    EXPECT_EQ(host.execute(1, NvmeCommand(0x7e, 1)).status, 0x01);  // Invalid Opcode
    EXPECT_EQ(host.execute(0, NvmeCommand(0x7e, 0)).status, 0x01);
    EXPECT_EQ(host.execute(1, host.read_command(1, blocks, 1).prps(buffer, 0)).status, 0x80);  // LBA Out of Range
    EXPECT_EQ(host.execute(1, host.read_command(1, ~std::uint64_t{0}, 2).prps(buffer, 0)).status, 0x80);
    EXPECT_EQ(host.execute(1, host.read_command(9, 0, 1).prps(buffer, 0)).status, 0x0b);  // Invalid Namespace
    EXPECT_EQ(host.execute(1, host.read_command(1, 0, 16).prps(buffer, buffer + 4)).status,
              0x13);  // Invalid PRP Offset
    // Data outside the peer's memory.
    EXPECT_EQ(host.execute(1, host.read_command(1, 0, 1).prps(0x7000000000, 0)).status, 0x04);  // Data Transfer Error
    write_and_verify(host, 1);
}

TEST(NvmeWire, ControllerResetAndFunctionResetStartAfresh)
{
    auto loopback = with_memory_backing();
    NvmeSession session(loopback);
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    const auto data = pattern(4096, 3);
    ASSERT_EQ(session.host.write(1, 1, 0, data).status, 0);
    session.host.disable();
    session.host.start();
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    EXPECT_EQ(session.client.reset(), 0);
    EXPECT_FALSE(session.host.ready());
    session.host.start();
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    Bytes back(4096);
    ASSERT_EQ(session.host.read(1, 1, 0, back).status, 0);
    EXPECT_EQ(back, data);
    EXPECT_TRUE(session.host.shut_down());
}

/// Two commands whose data only messages reach, and a peer that does not answer these. The queues are mapped.
class NvmeUnansweredDma : public ::testing::Test {
protected:
    void SetUp() override
    {
        ASSERT_EQ(host.create_io_queue(1, 16).status, 0);
        ASSERT_EQ(session.client.dma_map(data.address(), data.size(), 0, kMapRead | kMapWrite, -1), 0);
        dma.begin();
        host.submit(1, host.read_command(1, 0, 8).prps(data.address(), 0));
        host.submit(1, host.write_command(1, 8, 8).prps(data.address() + 4096, 0));
        host.ring(1);
        ASSERT_TRUE(dma.wait_for(2));
    }

    LoopbackProcess loopback{loopback_program(), {"nvme", "--backing=mem:64M"}};
    NvmeSession session{loopback};
    NvmeHost &host = session.host;
    GuestRam data{0x10000000, kMiB};
    HeldDma dma{session.client};
};

TEST_F(NvmeUnansweredDma, DoesNotHoldUpAResetWhichCompletesNoCommand)
{
    EXPECT_EQ(session.client.reset(), 0);
    EXPECT_FALSE(host.poll(1));
    EXPECT_EQ(host.vector(1).take(), 0u);
    EXPECT_FALSE(host.ready());
    dma.answer(data);
    host.start();
    ASSERT_EQ(host.create_io_queue(1, 16).status, 0);
    write_and_verify(host, 1);
    expect_no_deadline(loopback);
}

TEST_F(NvmeUnansweredDma, EndsWithDataTransferErrorWhenItsMemoryIsUnmapped)
{
    EXPECT_EQ(session.client.dma_unmap(data.address(), data.size()), 0);
    EXPECT_EQ(host.wait(1).status, 0x04);
    EXPECT_EQ(host.wait(1).status, 0x04);
    dma.answer(data);
    write_and_verify(host, 1);
    expect_no_deadline(loopback);
}

/// Sixteen commands that hang in the backing when the function is told to stop, and go on afterwards.
class NvmeStopped : public ::testing::Test {
protected:
    static constexpr unsigned kCommands = 16, kWorkers = 8;
    static constexpr std::size_t kBytes = 4096;
    static constexpr std::uint32_t kConfig = 7;
    static constexpr std::uint64_t kCommand = 0x04, kPmControl = 0x44, kDeviceControl = 0x58;

    explicit NvmeStopped(const std::string &call) : storage(call) {}

    void start(bool write)
    {
        ASSERT_EQ(host.create_io_queue(1, 64).status, 0);
        for (unsigned i = 0; i < kCommands; ++i) {
            const auto command = write ? host.write_command(1, i * 8, 8) : host.read_command(1, i * 8, 8);
            host.submit(1, NvmeCommand{command}.prps(data.address() + i * kBytes, 0));
        }
        map_data();
        host.ring(1);
        ASSERT_TRUE(storage.wait_for(kWorkers));
    }
    /// In the window.
    virtual void map_data() { ASSERT_EQ(session.client.dma_map(data), 0); }
    static std::string image_of(const TemporaryDirectory &directory)
    {
        auto path = directory.path("disk.img");
        std::ofstream(path) << std::string(kMiB, 'x');
        return path;
    }
    /// Lets the storage go on, until nothing of the time before is left to do, but what waits for the function.
    void release()
    {
        storage.release(kCommands);
        ASSERT_TRUE(eventually([&] { return counter("read_commands") + counter("write_commands") == kCommands; }));
        counter("read_commands");  // and what the last of them posted has run, too
    }
    /// Of a line of counters that is asked for now.
    std::int64_t counter(const std::string &name)
    {
        auto &process = loopback.process();
        const auto seen = process.errors().size();
        process.signal(SIGUSR1);
        std::string line;
        EXPECT_TRUE(eventually([&] {
            line = process.errors().substr(seen);
            return line.find("}}\n") != std::string::npos;
        }));
        const auto object = boost::json::parse(line.substr(line.find('{'), line.find('\n') - line.find('{')));
        return object.at("nvme").at(name).as_int64();
    }

    TemporaryDirectory directory;
    std::string image = image_of(directory);
    StallingStorage storage;
    LoopbackProcess loopback{loopback_program(), {"nvme", "--backing=" + image}, storage.fds(), storage.environment()};
    NvmeSession session{loopback};
    NvmeHost &host = session.host;
    GuestRam data{0x10000000, kMiB};
};

class NvmeStoppedReads : public NvmeStopped {
protected:
    NvmeStoppedReads() : NvmeStopped("preadv") {}
    void SetUp() override { start(false); }

    void expect_untouched() const
    {
        EXPECT_TRUE(std::all_of(data.bytes().begin(), data.bytes().end(), [](auto b) { return b == std::byte{0}; }));
    }
    void expect_ended_without_data()
    {
        for (unsigned i = 0; i < kCommands; ++i) {
            EXPECT_EQ(host.wait(1).status, 0x04) << "Data Transfer Error";
        }
        expect_untouched();
    }
};

TEST_F(NvmeStoppedReads, ReachNothingOnceBusMasterEnableIsCleared)
{
    session.client.write<std::uint16_t>(kConfig, kCommand, 0x0002);
    release();
    EXPECT_FALSE(host.poll(1));
    session.client.write<std::uint16_t>(kConfig, kCommand, 0x0006);
    expect_ended_without_data();
}

TEST_F(NvmeStoppedReads, ReachNothingInD3hot)
{
    session.client.write<std::uint16_t>(kConfig, kPmControl, 3);
    EXPECT_EQ(session.client.read<std::uint32_t>(0, 0x1c), 0xffffffffu);
    release();
    EXPECT_FALSE(host.poll(1));
    session.client.write<std::uint16_t>(kConfig, kPmControl, 0);
    EXPECT_EQ(session.client.read<std::uint32_t>(0, 0x1c), 1u) << "CSTS.RDY: no soft reset";
    expect_ended_without_data();
}

TEST_F(NvmeStoppedReads, ReachNothingAfterAFunctionLevelReset)
{
    session.client.write<std::uint16_t>(kConfig, kDeviceControl, 0x8000);
    EXPECT_EQ(session.client.read<std::uint32_t>(0, 0x1c), 0xffffffffu) << "the reset waits for the storage";
    release();
    ASSERT_TRUE(eventually([&] { return session.client.read<std::uint32_t>(0, 0x1c) == 0; }));
    EXPECT_FALSE(host.poll(1));
    expect_untouched();
}

/// The peer resets the device, has its reply at the deadline, and uses its memory for something else.
class NvmeOverdueReset : public NvmeStoppedReads, public ::testing::WithParamInterface<NvmeSession::Memory> {
protected:
    void map_data() override
    {
        if (GetParam() == NvmeSession::Memory::mapped) {
            return NvmeStoppedReads::map_data();
        }
        ASSERT_EQ(session.client.dma_map(data.address(), data.size(), 0, kMapRead | kMapWrite, -1), 0);
        session.client.serve_memory(data);
    }
};

INSTANTIATE_TEST_SUITE_P(Memory, NvmeOverdueReset,
                         ::testing::Values(NvmeSession::Memory::mapped, NvmeSession::Memory::message_only),
                         [](const auto &test) {
                             return test.param == NvmeSession::Memory::mapped ? "mapped" : "message_only";
                         });

//= VVFU-RESET-1
//= VVFU-RESET-4
//= type=test
TEST_P(NvmeOverdueReset, IsAnsweredWhileTheStorageHangsAndNothingOfTheTimeBeforeArrives)
{
    EXPECT_EQ(session.client.reset(), 0);
    EXPECT_EQ(loopback.process().mappings("guest-ram"), 0u) << "out of the window before the reply";
    EXPECT_EQ(session.client.read<std::uint32_t>(0, 0x1c), 0xffffffffu) << "the guest has not answered";
    const std::vector<std::byte> other(data.size(), std::byte{0x5a});
    std::copy(other.begin(), other.end(), data.bytes().begin());
    const auto writes = session.client.dma_counters().writes;

    release();
    ASSERT_TRUE(eventually([&] { return session.client.read<std::uint32_t>(0, 0x1c) == 0; }));
    EXPECT_FALSE(host.poll(1));
    EXPECT_EQ(host.vector(1).take(), 0u);
    EXPECT_EQ(session.client.dma_counters().writes, writes);
    EXPECT_TRUE(std::equal(other.begin(), other.end(), data.bytes().begin()));

    host.start();
    ASSERT_EQ(host.create_io_queue(1, 16).status, 0);
    storage.release(1);
    ASSERT_EQ(host.execute(1, host.read_command(1, 0, 8).prps(data.address(), 0)).status, 0);
    EXPECT_EQ(data.bytes()[0], std::byte{'x'}) << "the ranges are back";
}

class NvmeStoppedWrites : public NvmeStopped {
protected:
    NvmeStoppedWrites() : NvmeStopped("pwritev") {}
    void SetUp() override
    {
        const auto bytes = pattern(kCommands * kBytes, 21);
        std::copy(bytes.begin(), bytes.end(), data.bytes().begin());
        start(true);
    }
    /// The peer uses its memory for something that is nobody's business.
    void reuse_memory() { std::fill(data.bytes().begin(), data.bytes().end(), std::byte{'S'}); }

    void expect_old_data_on_disk() const
    {
        std::ifstream file(image, std::ios::binary);
        std::string content(kCommands * kBytes, '\0');
        file.read(content.data(), static_cast<std::streamsize>(content.size()));
        const auto bytes = pattern(kCommands * kBytes, 21);
        EXPECT_EQ(std::memcmp(content.data(), bytes.data(), bytes.size()), 0);
    }
    void expect_success()
    {
        for (unsigned i = 0; i < kCommands; ++i) {
            EXPECT_EQ(host.wait(1).status, 0);
        }
        expect_old_data_on_disk();
    }
    /// The storage goes on while a register of configuration space has the value that stops DMA.
    void expect_nothing_taken_while(std::uint64_t offset, std::uint16_t stopped, std::uint16_t running)
    {
        session.client.write(kConfig, offset, stopped);
        reuse_memory();
        release();
        EXPECT_FALSE(host.poll(1));
        session.client.write(kConfig, offset, running);
        expect_success();
    }
};

TEST_F(NvmeStoppedWrites, TakeNothingOnceBusMasterEnableIsCleared)
{
    expect_nothing_taken_while(kCommand, 0x0002, 0x0006);
}

TEST_F(NvmeStoppedWrites, TakeNothingInD3hot)
{
    expect_nothing_taken_while(kPmControl, 3, 0);
}

TEST_F(NvmeStoppedWrites, TakeNothingAfterAFunctionLevelReset)
{
    session.client.write<std::uint16_t>(kConfig, kDeviceControl, 0x8000);
    reuse_memory();
    release();
    ASSERT_TRUE(eventually([&] { return session.client.read<std::uint32_t>(0, 0x1c) == 0; }));
    EXPECT_FALSE(host.poll(1));
    expect_old_data_on_disk();
}

TEST_F(NvmeStoppedWrites, KeepNoMemoryOfThePeer)
{
    ASSERT_EQ(session.client.dma_unmap(data.address(), data.size()), 0);
    reuse_memory();
    release();
    expect_success();
    expect_no_deadline(loopback);
}

TEST(NvmeWire, ABackingThatHangsDoesNotHoldUpAnother)
{
    TemporaryDirectory directory;
    std::vector<std::string> arguments{"nvme"};
    for (const auto *name : {"one.img", "two.img"}) {
        std::ofstream(directory.path(name)) << std::string(kMiB, 'x');
        arguments.push_back("--backing=" + directory.path(name));
    }
    StallingStorage storage{"pwritev"};
    LoopbackProcess loopback(loopback_program(), arguments, storage.fds(), storage.environment());
    NvmeSession session(loopback);
    auto &host = session.host;
    ASSERT_EQ(host.create_io_queue(1, 64).status, 0);
    ASSERT_EQ(host.create_io_queue(2, 64).status, 0);
    const auto buffer = host.allocate(4096);
    for (unsigned i = 0; i < 20; ++i) {
        host.submit(1, host.write_command(1, i * 8, 8).prps(buffer, 0));
    }
    host.ring(1);
    ASSERT_TRUE(storage.wait_for(8)) << "all the threads that one backing can have";
    ASSERT_EQ(host.execute(2, host.read_command(2, 0, 8).prps(buffer, 0)).status, 0);
    EXPECT_FALSE(host.poll(1));
    storage.release(20);
    for (unsigned i = 0; i < 20; ++i) {
        EXPECT_EQ(host.wait(1).status, 0);
    }
}

TEST(NvmeWire, DataInAFileSurvivesPeersAndServers)
{
    TemporaryDirectory directory;
    const auto image = directory.path("disk.img");
    std::ofstream(image).close();
    std::filesystem::resize_file(image, 16 * kMiB);
    const auto data = pattern(262144, 11);
    {
        LoopbackProcess loopback(loopback_program(), {"nvme", "--backing=" + image});
        {
            NvmeSession session(loopback);
            ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
            ASSERT_EQ(session.host.write(1, 1, 64, data).status, 0);
            ASSERT_EQ(session.host.execute(1, NvmeCommand(0x00, 1)).status, 0);  // Flush
        }  // end of file without shutdown, as QEMU quits
        NvmeSession second(loopback);
        ASSERT_EQ(second.host.create_io_queue(1, 16).status, 0);
        Bytes back(data.size());
        ASSERT_EQ(second.host.read(1, 1, 64, back).status, 0);
        EXPECT_EQ(back, data);
        loopback.process().signal(SIGTERM);
        EXPECT_EQ(loopback.process().wait(), 0);
    }
    std::ifstream file(image, std::ios::binary);
    file.seekg(64 * 512);
    std::vector<char> content(data.size());
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    EXPECT_EQ(std::memcmp(content.data(), data.data(), data.size()), 0);
}

TEST(NvmeWire, ReadOnlyBackingRefusesWrites)
{
    LoopbackProcess loopback(loopback_program(), {"nvme", "--backing=mem:1M", "--read-only"});
    NvmeSession session(loopback);
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    EXPECT_NE(session.host.write(1, 1, 0, pattern(4096, 1)).status, 0);
    Bytes back(4096);
    EXPECT_EQ(session.host.read(1, 1, 0, back).status, 0);
}

TEST(NvmeWire, PeerKilledDuringIoCostsOnlyItsSession)
{
    auto loopback = with_memory_backing();
    const auto kill_one = [&] {
        NvmeSession session(loopback);
        ASSERT_EQ(session.host.create_io_queue(1, 64).status, 0);
        const auto buffer = session.host.allocate(65536 * 16);
        for (std::uint64_t i = 0; i < 16; ++i) {
            auto command = session.host.read_command(1, i * 128, 128);
            session.host.set_data(command, buffer + i * 65536, 65536);
            session.host.submit(1, command);
        }
        session.host.ring(1);
    };
    kill_one();
    EXPECT_TRUE(eventually([&] { return loopback.process().mappings("guest-ram") == 0; }));
    const auto fds = loopback.process().open_fds();
    for (int round = 0; round < 5; ++round) {
        kill_one();
    }
    EXPECT_TRUE(eventually(
        [&] { return loopback.process().mappings("guest-ram") == 0 && loopback.process().open_fds() <= fds; }));
    NvmeSession next(loopback);
    ASSERT_EQ(next.host.create_io_queue(1, 16).status, 0);
    write_and_verify(next.host, 1);
}

/// fdatasync fails once and then succeeds, as Linux does it after a write-back that failed.
TEST(NvmeWire, AFlushThatFailedOnceIsReportedUntilTheProgramIsStartedAgain)
{
    TemporaryDirectory directory;
    const auto image = directory.path("disk.img");
    std::ofstream(image).put('\0');
    std::filesystem::resize_file(image, 16 * kMiB);
    const std::vector<std::string> nvme{"nvme", "--serial=LOSS", "--backing=" + image};
    const auto flush = NvmeCommand(0x00, 1);
    constexpr std::uint16_t kWriteFault = 0x280;
    const Bytes block(512, std::byte{1});
    {
        LoopbackProcess loopback(loopback_program(), nvme, {},
                                 {"LD_PRELOAD=" VVFU_STALL_SHIM, "VVFU_FAIL_SYNC=" + std::to_string(EIO),
                                  "ASAN_OPTIONS=verify_asan_link_order=0"});
        {
            NvmeSession session(loopback);
            ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
            ASSERT_EQ(session.host.write(1, 1, 0, block).status, 0);
            for (int retry = 0; retry < 3; ++retry) {
                EXPECT_EQ(session.host.execute(1, flush).status, kWriteFault) << retry;
            }
        }
        NvmeSession session(loopback);
        ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
        EXPECT_EQ(session.host.execute(1, flush).status, kWriteFault) << "to the next peer, too";
        const auto errors = loopback.process().errors();
        const auto line = errors.find("has lost data that was written");
        EXPECT_NE(line, std::string::npos) << errors;
        EXPECT_EQ(errors.find("has lost data", line + 1), std::string::npos) << "once: " << errors;
    }
    LoopbackProcess again(loopback_program(), nvme);
    NvmeSession session(again);
    ASSERT_EQ(session.host.create_io_queue(1, 16).status, 0);
    EXPECT_EQ(session.host.execute(1, flush).status, 0);
    EXPECT_TRUE(session.host.shut_down());
}

}  // namespace
}  // namespace vvfu::test
