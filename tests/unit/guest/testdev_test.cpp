// SPDX-License-Identifier: BSD-3-Clause
#include "testdev.hpp"

#include <gmock/gmock.h>
#include <linux/pci_regs.h>

#include <random>

#include "fakes.hpp"
#include "testdev_registers.hpp"

namespace vvfu::testdev {
namespace {

using guest::DmaAddress;
using guest::test::FakeHost;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

constexpr std::uint64_t kMemory = FakeHost::kMemoryAddress;

struct TestdevTest : testing::Test {
    FakeHost host{kBar2Size};
    std::unique_ptr<guest::DeviceModel> device = make_testdev({}, host.services()).value();

    std::uint64_t read(std::uint64_t offset, unsigned width, std::uint32_t region = 0)
    {
        std::array<std::byte, 8> out{};
        device->region_read(region, offset, std::span{out}.first(width));
        std::uint64_t value = 0;
        std::memcpy(&value, out.data(), width);
        return value;
    }
    void write(std::uint64_t offset, std::uint64_t value, unsigned width, std::uint32_t region = 0)
    {
        std::byte bytes[8];
        std::memcpy(bytes, &value, sizeof bytes);
        device->region_write(region, offset, std::span{bytes}.first(width));
    }
    void enable(bool bus_master = true)
    {
        write(PCI_COMMAND, bus_master ? PCI_COMMAND_MASTER : 0, 2, control::kRegionConfig);
        device->irq_info({control::kIrqMsix, 0, kVectors, control::IrqAction::assign});
    }
    void command(Command command, std::uint64_t source, std::uint64_t destination, std::uint64_t length,
                 std::uint32_t vector = kVectorNone)
    {
        write(kRegSource, source, 8);
        write(kRegDestination, destination, 8);
        write(kRegLength, length, 8);
        write(kRegVector, vector, 4);
        write(kRegCommand, command, 4);
    }
    std::byte &memory(std::uint64_t address) { return host.memory.at(address - kMemory); }
};

TEST_F(TestdevTest, IdentifiesItself)
{
    EXPECT_EQ(read(kRegId, 4), kId);
    EXPECT_EQ(read(kRegVersion, 4), kVersion);
    EXPECT_EQ(read(kRegVectors, 4), kVectors);
    EXPECT_EQ(read(0x20, 4), 0xffffffffu) << "no register";
    EXPECT_EQ(read(0, 4, control::kRegionConfig), 0x76641234u);
}

TEST_F(TestdevTest, InterruptsAreOfTheKindThatIsAskedFor)
{
    device = make_testdev({.interrupts = guest::InterruptKind::msi}, host.services()).value();
    EXPECT_EQ(read(kRegVectors, 4), kVectors);
    write(PCI_COMMAND, PCI_COMMAND_MASTER, 2, control::kRegionConfig);
    device->irq_info({control::kIrqMsi, 0, kVectors, control::IrqAction::assign});
    write(kRegRaise, 7, 4);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 7)));
    for (const auto &region : device->describe().regions) {
        EXPECT_NE(region.index, 1u) << "there is no table";
    }

    host.irqs.triggered.clear();
    device = make_testdev({.interrupts = guest::InterruptKind::intx}, host.services()).value();
    EXPECT_EQ(read(kRegVectors, 4), 0u);
    write(PCI_COMMAND, PCI_COMMAND_MASTER, 2, control::kRegionConfig);
    write(kRegRaise, 0, 4);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    write(kRegIntx, 1, 4);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0)));
}

TEST_F(TestdevTest, ScratchRegistersOfEveryWidthAreIndependent)
{
    write(kRegScratch8, 0x11, 1);
    write(kRegScratch16, 0x2222, 2);
    write(kRegScratch32, 0x33333333, 4);
    write(kRegScratch64, 0x4444444444444444, 8);
    EXPECT_EQ(read(kRegScratch8, 1), 0x11u);
    EXPECT_EQ(read(kRegScratch8 + 1, 1), 0xffu);
    EXPECT_EQ(read(kRegScratch16, 2), 0x2222u);
    EXPECT_EQ(read(kRegScratch32, 4), 0x33333333u);
    EXPECT_EQ(read(kRegScratch64, 8), 0x4444444444444444u);
    EXPECT_EQ(read(kRegScratch32 + 2, 4), 0x44443333u) << "across two registers";
}

TEST_F(TestdevTest, CountersCountAccesses)
{
    EXPECT_EQ(read(kRegReads, 8), 1u);
    write(kRegScratch8, 0, 1);
    write(kRegReads, 99, 8);
    EXPECT_EQ(read(kRegReads, 8), 2u);
    EXPECT_EQ(read(kRegWrites, 8), 2u);
    read(kTrappedPage, 4, 2);
    write(kTrappedPage, 1, 4, 2);
    write(kTrappedPage, 2, 4, 2);
    EXPECT_EQ(read(kRegTrappedReads, 8), 1u);
    EXPECT_EQ(read(kRegTrappedWrites, 8), 2u);
}

TEST_F(TestdevTest, Bar2ShowsRegionMemoryThroughTrappedAccesses)
{
    const auto info = device->describe();
    EXPECT_THAT(info.regions[2].areas, ElementsAre(control::Area{0, 0x8000}, control::Area{0x9000, 0x7000}));
    host.region_memory[0x9004] = std::byte{0x77};
    EXPECT_EQ(read(0x9004, 1, 2), 0x77u);
    write(0x7ffe, 0x04030201, 4, 2);
    EXPECT_EQ(host.region_memory[0x7fff], std::byte{2});
    EXPECT_EQ(read(kTrappedPage, 2, 2), 0x0403u);
}

TEST_F(TestdevTest, WithoutMmapNoRegionMemoryIsUsed)
{
    FakeHost bare;
    EXPECT_FALSE(make_testdev({}, bare.services()));
    device = make_testdev({.no_mmap = true}, bare.services()).value();
    EXPECT_EQ(region_memory_size({.no_mmap = true}), 0u);
    for (const auto &region : device->describe().regions) {
        EXPECT_EQ(region.flags & control::kRegionMmap, 0u);
    }
    write(0x100, 0xabcd, 2, 2);
    EXPECT_EQ(read(0x100, 2, 2), 0xabcdu);
}

TEST_F(TestdevTest, RaiseSendsTheNamedVector)
{
    enable();
    write(kRegRaise, 5, 4);
    write(kRegRaise, kVectors, 4);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 5)));
    EXPECT_EQ(read(kRegRaise, 4), 0u);
}

TEST_F(TestdevTest, IntxFollowsItsRegister)
{
    write(kRegIntx, 1, 4);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0)));
    EXPECT_NE(read(PCI_STATUS, 2, control::kRegionConfig) & PCI_STATUS_INTERRUPT, 0u);
    write(kRegIntx, 0, 4);
    EXPECT_EQ(read(PCI_STATUS, 2, control::kRegionConfig) & PCI_STATUS_INTERRUPT, 0u);
}

TEST_F(TestdevTest, CopyMovesBytesAndRaisesItsVector)
{
    enable();
    for (unsigned i = 0; i < 0x1000; ++i) {
        memory(kMemory + i) = static_cast<std::byte>(i * 3 + 1);
    }
    command(kCopy, kMemory, kMemory + 0x4001, 0x1000, 2);
    EXPECT_EQ(read(kRegStatus, 4), kBusy) << "the copy runs on a worker";
    host.executor.run();
    EXPECT_EQ(read(kRegStatus, 4), kDone);
    EXPECT_TRUE(std::equal(host.memory.begin(), host.memory.begin() + 0x1000, host.memory.begin() + 0x4001));
    EXPECT_EQ(memory(kMemory + 0x5001), std::byte{0});
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 2)));
    EXPECT_EQ(read(kRegTransfers, 8), 1u);
    EXPECT_EQ(read(kRegBytes, 8), 0x1000u);
}

TEST_F(TestdevTest, FillChecksumAndDeviceTransfers)
{
    enable();
    write(kRegPattern, 0x04030201, 4);
    command(kFill, 0, kMemory + 1, 6);
    host.executor.run();
    EXPECT_EQ(memory(kMemory), std::byte{0});
    EXPECT_EQ(memory(kMemory + 1), std::byte{1});
    EXPECT_EQ(memory(kMemory + 6), std::byte{2});
    EXPECT_EQ(memory(kMemory + 7), std::byte{0});

    std::memcpy(&memory(kMemory + 0x100), "123456789", 9);
    command(kChecksum, kMemory + 0x100, 0, 9);
    host.executor.run();
    EXPECT_EQ(read(kRegChecksum, 4), 0xcbf43926u) << "the check value of CRC-32";

    command(kToDevice, kMemory + 0x100, 0x9000, 9);
    host.executor.run();
    EXPECT_EQ(std::memcmp(&host.region_memory[0x9000], "123456789", 9), 0);
    command(kFromDevice, 0x9001, kMemory + 0x200, 8);
    host.executor.run();
    EXPECT_EQ(std::memcmp(&memory(kMemory + 0x200), "23456789", 8), 0);
    EXPECT_EQ(read(kRegTransfers, 8), 4u);
}

TEST_F(TestdevTest, MessageOnlyMemoryWorksToo)
{
    enable();
    ASSERT_TRUE(host.dma.add({DmaAddress{0x900000}, 0x1000, true, true, nullptr}));
    host.message_dma.memory[0x900003] = std::byte{0x42};
    command(kCopy, 0x900000, kMemory, 8);
    host.message_dma.answer_all();
    host.executor.run();
    EXPECT_EQ(memory(kMemory + 3), std::byte{0x42});
    command(kCopy, kMemory + 3, 0x900800, 1, 0);
    host.executor.run();
    EXPECT_EQ(read(kRegStatus, 4), kBusy) << "the write back is not answered yet";
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    host.message_dma.answer_all();
    EXPECT_EQ(read(kRegStatus, 4), kDone);
    EXPECT_EQ(host.message_dma.memory[0x900800], std::byte{0x42});
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 0)));
}

TEST_F(TestdevTest, BadCommandsEndWithTheirStatus)
{
    command(kCopy, kMemory, kMemory + 0x100, 4);
    EXPECT_EQ(read(kRegStatus, 4), kNoBusMaster);
    enable();
    const auto status = [&](Command c, std::uint64_t source, std::uint64_t destination, std::uint64_t length) {
        host.irqs.triggered.clear();
        command(c, source, destination, length, 1);
        host.message_dma.answer_all();
        host.executor.run();
        host.message_dma.answer_all();
        EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 1)));
        return read(kRegStatus, 4);
    };
    EXPECT_EQ(status(kCopy, 0, kMemory, 4), kFault);
    EXPECT_EQ(status(kCopy, kMemory, ~0ull, 4), kFault);
    EXPECT_EQ(status(kCopy, kMemory, kMemory, kMaxTransfer + 1), kTooLarge);
    EXPECT_EQ(status(static_cast<Command>(0), kMemory, kMemory, 4), kBadCommand);
    EXPECT_EQ(status(static_cast<Command>(6), kMemory, kMemory, 4), kBadCommand);
    EXPECT_EQ(status(kToDevice, kMemory, kBar2Size - 3, 4), kBadCommand);
    EXPECT_EQ(status(kFromDevice, ~0ull, kMemory, 4), kBadCommand);
    host.dma.add({DmaAddress{0x200000}, 0x1000, true, false, host.memory.data()});
    EXPECT_EQ(status(kFill, 0, 0x200000, 4), kPermission);
    host.dma.add({DmaAddress{0x900000}, 0x1000, true, true, nullptr});
    host.message_dma.result = make_unexpected(guest::DmaError::timeout);
    EXPECT_EQ(status(kChecksum, 0x900000, 0, 4), kTimeout);
    EXPECT_EQ(status(kFill, 0, 0x900000, 4), kTimeout);
    EXPECT_EQ(read(kRegTransfers, 8), 0u);
}

TEST_F(TestdevTest, OverlappingCopyAndEmptyCopyAreHarmless)
{
    enable();
    command(kCopy, kMemory, kMemory + 1, 0x100);
    host.executor.run();
    EXPECT_EQ(read(kRegStatus, 4), kDone);
    command(kCopy, kMemory, kMemory, 0);
    host.executor.run();
    EXPECT_EQ(read(kRegStatus, 4), kDone);
}

TEST_F(TestdevTest, CompletionMayRaiseIntx)
{
    write(PCI_COMMAND, PCI_COMMAND_MASTER, 2, control::kRegionConfig);
    command(kFill, 0, kMemory, 4, kVectorIntx);
    host.executor.run();
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0)));
    EXPECT_EQ(read(kRegIntx, 4), 1u);
}

TEST_F(TestdevTest, CommandWhileBusyIsIgnored)
{
    enable();
    command(kFill, 0, kMemory, 4, 1);
    write(kRegCommand, kFill, 4);
    host.executor.run();
    EXPECT_EQ(read(kRegTransfers, 8), 1u);
}

TEST_F(TestdevTest, ResetWaitsForTheTransferAndItsInterruptIsLost)
{
    enable();
    write(kRegScratch32, 0x1234, 4);
    command(kFill, 0, kMemory, 4, 1);
    bool done = false;
    device->reset([&] { done = true; });
    EXPECT_FALSE(done);
    host.executor.run();
    EXPECT_TRUE(done);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_EQ(read(kRegStatus, 4), kIdle);
    EXPECT_EQ(read(kRegScratch32, 4), 0u);
    EXPECT_EQ(read(kRegTransfers, 8), 0u);
    EXPECT_EQ(read(kRegResets, 8), 1u);
}

TEST_F(TestdevTest, AnyAccessesAreSafe)
{
    std::mt19937_64 random(3);
    host.dma.add({DmaAddress{0}, 0x100000, true, true, nullptr});
    const auto regions = device->describe().regions;
    for (int step = 0; step < 4000; ++step) {
        const auto &region = regions[random() % regions.size()];
        // The first page has all registers.
        const auto offset = random() % std::min<std::uint64_t>(region.size, 0x1000);
        const auto size = std::min(region.size - offset, 1 + (random() % 8 == 0 ? random() % 5000 : random() % 8));
        std::vector<std::byte> data(size);
        if (random() % 4 == 0) {
            device->region_read(region.index, offset, data);
            continue;
        }
        for (auto &byte : data) {
            // Small values are commands, vectors and bits that mean something.
            byte = static_cast<std::byte>(random() % 3 == 0 ? random() : random() % 8);
        }
        device->region_write(region.index, offset, data);
        if (random() % 3 == 0) {
            host.message_dma.answer_all();
            host.executor.run();
        }
        if (random() % 50 == 0) {
            host.irqs.triggered.clear();
            device->irq_info(
                {static_cast<std::uint32_t>(random() % 6), 0, 1, static_cast<control::IrqAction>(1 + random() % 5)});
        }
    }
    while (!host.message_dma.waiting.empty() || !host.executor.tasks.empty()) {
        host.message_dma.answer_all();
        host.executor.run();
    }
    bool done = false;
    device->reset([&] { done = true; });
    EXPECT_TRUE(done) << "nothing is left running";
    EXPECT_EQ(read(kRegId, 4), kId);
    EXPECT_EQ(read(0, 4, control::kRegionConfig), 0x76641234u);
}

TEST_F(TestdevTest, DestructionDuringATransferIsSafe)
{
    enable();
    command(kFill, 0, kMemory, 4, 1);
    device.reset();
    host.executor.run();
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    bool idle = false;
    EXPECT_TRUE(host.dma.remove(DmaAddress{kMemory}, FakeHost::kMemorySize, [&] { idle = true; }));
    EXPECT_TRUE(idle) << "nothing stays pinned";
}

/// Keeps what it is given.
struct HeldWorkers final : guest::Workers {
    void submit(Lane, std::function<void()> work, std::function<void()> done) override
    {
        jobs.emplace_back(std::move(work), std::move(done));
    }
    std::vector<std::pair<std::function<void()>, std::function<void()>>> jobs;
};

TEST_F(TestdevTest, WorkerMayOutliveTheDeviceAndItsMemory)
{
    HeldWorkers workers;
    auto services = host.services();
    device = make_testdev({.no_mmap = true}, {services.executor, workers, services.dma, services.irqs, {}}).value();
    enable();
    command(kToDevice, kMemory, 0, kBar2Size);
    ASSERT_EQ(workers.jobs.size(), 1u);
    device.reset();
    workers.jobs[0].first();  // the address sanitizer watches
    workers.jobs[0].second();
}

}  // namespace
}  // namespace vvfu::testdev
