// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-loopback with its testdev: registers, the mappable area, interrupts and DMA, as a driver VMM sees them.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "testdev_registers.hpp"
#include "wire_test.hpp"

namespace vvfu::test {
namespace {

using namespace vvfu::testdev;

constexpr std::uint32_t kAssign = kDataEventfd | kActionTrigger;
constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr std::uint32_t kBar1 = 1, kBar2 = 2;

class TestdevWire : public ::testing::Test {
protected:
    /// `arguments` of vvfu-loopback.
    explicit TestdevWire(const std::vector<std::string> &arguments = {"testdev"})
        : loopback(loopback_program(), arguments), client(loopback.connect())
    {
        client.version();
    }

    void use_msix()
    {
        enable_function(client);
        set_msix_enable(client, true);
        for (std::uint32_t i = 0; i < kVectors; ++i) {
            const int fd = vectors[i].fd();
            ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, i, 1, {&fd, 1}), 0);
        }
    }

    /// Starts a DMA command that ends with MSI-X vector 5, without waiting for it.
    void start(testdev::Command command, std::uint64_t source, std::uint64_t destination, std::uint64_t length)
    {
        client.write<std::uint64_t>(0, kRegSource, source);
        client.write<std::uint64_t>(0, kRegDestination, destination);
        client.write<std::uint64_t>(0, kRegLength, length);
        client.write<std::uint32_t>(0, kRegVector, 5);
        client.write<std::uint32_t>(0, kRegCommand, command);
    }

    /// The same, and the status it ends with. DMA commands of the server are served meanwhile.
    std::uint32_t transfer(testdev::Command command, std::uint64_t source, std::uint64_t destination,
                           std::uint64_t length)
    {
        start(command, source, destination, length);
        EXPECT_TRUE(client.serve_until([&] { return vectors[5].take() != 0; }, vectors[5].fd()));
        return client.read<std::uint32_t>(0, kRegStatus);
    }

    static void fill(const GuestRam &ram, std::uint64_t address, const Bytes &data)
    {
        std::memcpy(ram.at(address, data.size()).data(), data.data(), data.size());
    }
    static bool holds(const GuestRam &ram, std::uint64_t address, const Bytes &data)
    {
        return std::memcmp(ram.at(address, data.size()).data(), data.data(), data.size()) == 0;
    }

    LoopbackProcess loopback;
    VfioUserClient client;
    std::array<EventFd, testdev::kVectors> vectors;
};

TEST_F(TestdevWire, ScratchRegistersOfEveryWidthKeepWhatIsWritten)
{
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegId), kId);
    client.write<std::uint8_t>(0, kRegScratch8, 0xa5);
    client.write<std::uint16_t>(0, kRegScratch16, 0xbeef);
    client.write<std::uint32_t>(0, kRegScratch32, 0xdeadbeef);
    client.write<std::uint64_t>(0, kRegScratch64, 0x0123456789abcdef);
    EXPECT_EQ(client.read<std::uint8_t>(0, kRegScratch8), 0xa5);
    EXPECT_EQ(client.read<std::uint16_t>(0, kRegScratch16), 0xbeef);
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegScratch32), 0xdeadbeef);
    EXPECT_EQ(client.read<std::uint64_t>(0, kRegScratch64), 0x0123456789abcdef);
}

TEST_F(TestdevWire, PostedWritesAndWriteMultiReachTheRegistersInOrder)
{
    const auto writes = client.read<std::uint64_t>(0, kRegWrites);
    for (std::uint32_t i = 1; i <= 3000; ++i) {
        client.post<std::uint32_t>(0, kRegScratch32, i);
    }
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegScratch32), 3000u);
    std::vector<MultiWriteEntry> entries;
    for (std::uint32_t i = 0; i < 200; ++i) {
        entries.push_back({kRegScratch64, 0, 8, i});
    }
    client.write_multi(entries, true);
    EXPECT_EQ(client.read<std::uint64_t>(0, kRegScratch64), 199u);
    EXPECT_EQ(client.write_multi(entries), 0);
    EXPECT_EQ(client.read<std::uint64_t>(0, kRegWrites), writes + 3000 + 400);
    EXPECT_EQ(client.unclaimed_replies(), 0u);
}

TEST_F(TestdevWire, MappedAreaAndTrappedAccessesShowTheSameBytes)
{
    const auto info = client.region_info(kBar2);
    ASSERT_EQ(info.fds.size(), 1u);
    ASSERT_EQ(info.areas.size(), 2u);
    std::uint8_t value = 1;
    for (const auto &area : info.areas) {
        void *memory = ::mmap(nullptr, area.size, PROT_READ | PROT_WRITE, MAP_SHARED, info.fds[0].get(),
                              static_cast<off_t>(info.offset + area.offset));
        ASSERT_NE(memory, MAP_FAILED);
        auto *bytes = static_cast<volatile std::uint8_t *>(memory);
        bytes[16] = value;
        EXPECT_EQ(client.read<std::uint8_t>(kBar2, area.offset + 16), value);
        client.write<std::uint8_t>(kBar2, area.offset + area.size - 1, static_cast<std::uint8_t>(value + 100));
        EXPECT_EQ(bytes[area.size - 1], value + 100);
        ::munmap(memory, area.size);
        ++value;
    }
}

/// All areas of BAR 2, mapped.
class MappedAreas {
public:
    explicit MappedAreas(VfioUserClient &client)
    {
        const auto info = client.region_info(kBar2);
        EXPECT_EQ(info.fds.size(), 1u);
        for (const auto &area : info.areas) {
            void *memory = ::mmap(nullptr, area.size, PROT_READ | PROT_WRITE, MAP_SHARED, info.fds.at(0).get(),
                                  static_cast<off_t>(info.offset + area.offset));
            EXPECT_NE(memory, MAP_FAILED);
            areas_.push_back({area.offset, {static_cast<std::uint8_t *>(memory), area.size}});
        }
    }
    ~MappedAreas()
    {
        for (const auto &area : areas_) {
            ::munmap(area.bytes.data(), area.bytes.size());
        }
    }
    MappedAreas(const MappedAreas &) = delete;
    MappedAreas &operator=(const MappedAreas &) = delete;

    void fill(std::uint8_t value)
    {
        for (const auto &area : areas_) {
            std::fill(area.bytes.begin(), area.bytes.end(), value);
        }
    }
    /// Whether all bytes are `value`, in the mappings and to the model.
    bool hold(std::uint8_t value, VfioUserClient &client)
    {
        return std::all_of(areas_.begin(), areas_.end(), [&](const Area &area) {
            const auto is_value = [&](auto byte) { return static_cast<std::uint8_t>(byte) == value; };
            const auto first = client.region_read(kBar2, area.offset, 64);
            const auto last = client.region_read(kBar2, area.offset + area.bytes.size() - 64, 64);
            return std::all_of(area.bytes.begin(), area.bytes.end(), is_value) &&
                   std::all_of(first.begin(), first.end(), is_value) && std::all_of(last.begin(), last.end(), is_value);
        });
    }

private:
    struct Area {
        std::uint64_t offset = 0;
        std::span<std::uint8_t> bytes;
    };
    std::vector<Area> areas_;
};

//= VVFU-REGION-2
//= VVFU-REGION-3
//= VVFU-RESET-3
//= type=test
TEST_F(TestdevWire, WhatAFormerPeerStillMapsIsWorthless)
{
    MappedAreas first{client};
    first.fill(0x11);
    ASSERT_TRUE(first.hold(0x11, client));
    client.close();
    client = loopback.connect();
    client.version();
    MappedAreas second{client};
    EXPECT_TRUE(second.hold(0, client));
    first.fill(0x22);
    EXPECT_TRUE(second.hold(0, client));
    second.fill(0x33);
    first.fill(0x44);
    EXPECT_TRUE(second.hold(0x33, client));
    EXPECT_EQ(client.reset(), 0);
    first.fill(0x55);
    EXPECT_TRUE(second.hold(0, client)) << "power-on state";
    second.fill(0x66);
    EXPECT_TRUE(second.hold(0x66, client)) << "the mapping outlives the reset";
}

TEST_F(TestdevWire, RegionMemoryCannotBeShrunkByThePeer)
{
    const auto info = client.region_info(kBar2);
    ASSERT_EQ(info.fds.size(), 1u);
    EXPECT_NE(::ftruncate(info.fds[0].get(), 0), 0);
    EXPECT_EQ(client.region_read(kBar2, 0, 64).size(), 64u);
}

TEST_F(TestdevWire, EveryMsixVectorIsRaised)
{
    use_msix();
    for (std::uint32_t i = 0; i < kVectors; ++i) {
        client.write<std::uint32_t>(0, kRegRaise, i);
        EXPECT_EQ(vectors[i].wait(), 1u) << i;
    }
    for (const auto &vector : vectors) {
        EXPECT_EQ(vector.take(), 0u);
    }
}

TEST_F(TestdevWire, MaskedVectorIsPendingInThePbaAndFiresOnUnmask)
{
    use_msix();
    ASSERT_EQ(client.set_irqs(kDataNone | kActionMask, kMsixIndex, 3, 1), 0);
    client.write<std::uint32_t>(0, kRegRaise, 3);
    EXPECT_EQ(client.read<std::uint64_t>(kBar1, kMsixPba), 1u << 3);
    EXPECT_EQ(vectors[3].take(), 0u);
    ASSERT_EQ(client.set_irqs(kDataNone | kActionUnmask, kMsixIndex, 3, 1), 0);
    EXPECT_EQ(vectors[3].wait(), 1u);
    EXPECT_EQ(client.read<std::uint64_t>(kBar1, kMsixPba), 0u);
}

TEST_F(TestdevWire, VectorWithoutEventfdIsPendingUntilOneIsAssigned)
{
    enable_function(client);
    set_msix_enable(client, true);
    client.write<std::uint32_t>(0, kRegRaise, 2);
    EXPECT_EQ(client.read<std::uint64_t>(kBar1, kMsixPba), 1u << 2);
    const int fd = vectors[2].fd();
    ASSERT_EQ(client.set_irqs(kAssign, kMsixIndex, 2, 1, {&fd, 1}), 0);
    EXPECT_EQ(vectors[2].wait(), 1u);
}

class TestdevMsiWire : public TestdevWire {
protected:
    TestdevMsiWire() : TestdevWire({"testdev", "--interrupts=msi"}) { enable_function(client); }

    /// All vectors in one message, as QEMU does when the guest sets MSI Enable.
    void connect_vectors()
    {
        std::array<int, kVectors> fds{};
        std::transform(vectors.begin(), vectors.end(), fds.begin(), [](const auto &vector) { return vector.fd(); });
        ASSERT_EQ(client.set_irqs(kAssign, kMsiIndex, 0, kVectors, fds), 0);
    }
    void raise(std::uint32_t vector) { client.write<std::uint32_t>(0, kRegRaise, vector); }
    [[nodiscard]] bool all_silent() const
    {
        return std::none_of(vectors.begin(), vectors.end(), [](const auto &vector) { return vector.take() != 0; });
    }
};

TEST_F(TestdevMsiWire, EveryVectorIsRaised)
{
    EXPECT_EQ(client.irq_info(kMsiIndex).count, kVectors);
    EXPECT_EQ(client.irq_info(kMsixIndex).count, 0u);
    EXPECT_EQ(client.region_info(kBar1).size, 0u) << "no MSI-X table";
    EXPECT_EQ(find_capability(client, kCapMsix), 0);
    set_msi_enable(client, true, 3);
    connect_vectors();
    for (std::uint32_t i = 0; i < kVectors; ++i) {
        raise(i);
        EXPECT_EQ(vectors[i].wait(), 1u) << i;
    }
    EXPECT_TRUE(all_silent());
}

TEST_F(TestdevMsiWire, NoVectorBeyondThoseThatTheDriverAllows)
{
    set_msi_enable(client, true, 1);
    connect_vectors();
    raise(2);
    raise(7);
    raise(1);
    EXPECT_EQ(vectors[1].wait(), 1u);
    EXPECT_TRUE(all_silent());
    set_msi_enable(client, true, 3);
    raise(7);
    EXPECT_EQ(vectors[7].wait(), 1u) << "and the message of before was not kept";
    EXPECT_TRUE(all_silent());
}

/// VFIO's way: kernel and clients need not pass the Enable bit on.
TEST_F(TestdevMsiWire, ConnectedVectorsAreEnough)
{
    connect_vectors();
    raise(7);
    EXPECT_EQ(vectors[7].wait(), 1u);
    ASSERT_EQ(client.set_irqs(kDataNone | kActionTrigger, kMsiIndex, 0, 0), 0);
    raise(7);
    connect_vectors();
    raise(6);
    EXPECT_EQ(vectors[6].wait(), 1u);
    EXPECT_TRUE(all_silent()) << "disabled in between";
}

TEST_F(TestdevMsiWire, MaskedVectorFiresOnUnmask)
{
    set_msi_enable(client, true, 3);
    connect_vectors();
    ASSERT_EQ(client.set_irqs(kDataNone | kActionMask, kMsiIndex, 3, 1), 0);
    raise(3);
    EXPECT_TRUE(all_silent());
    ASSERT_EQ(client.set_irqs(kDataNone | kActionUnmask, kMsiIndex, 3, 1), 0);
    EXPECT_EQ(vectors[3].wait(), 1u);
}

TEST_F(TestdevMsiWire, MessagesWaitForBusMaster)
{
    set_msi_enable(client, true, 3);
    connect_vectors();
    client.write<std::uint16_t>(kConfigRegion, 4, 2);
    raise(3);
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegId), kId);
    EXPECT_TRUE(all_silent());
    enable_function(client);
    EXPECT_EQ(vectors[3].wait(), 1u);
    EXPECT_TRUE(all_silent());
}

TEST_F(TestdevMsiWire, IntxIsSilentWhileMessagesAreEnabled)
{
    EventFd intx;
    const int fd = intx.fd();
    ASSERT_EQ(client.set_irqs(kAssign, kIntxIndex, 0, 1, {&fd, 1}), 0);
    set_msi_enable(client, true);
    client.write<std::uint32_t>(0, kRegIntx, 1);
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegId), kId);
    EXPECT_EQ(intx.take(), 0u);
    set_msi_enable(client, false);
    EXPECT_EQ(intx.wait(), 1u);
}

TEST(TestdevIntxWire, ThereAreNoMessages)
{
    LoopbackProcess loopback(loopback_program(), {"testdev", "--interrupts=intx"});
    auto client = loopback.connect();
    client.version();
    EXPECT_EQ(client.irq_info(kIntxIndex).count, 1u);
    EXPECT_EQ(client.irq_info(kMsiIndex).count, 0u);
    EXPECT_EQ(client.irq_info(kMsixIndex).count, 0u);
    EXPECT_EQ(find_capability(client, kCapMsi) + find_capability(client, kCapMsix), 0);
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegVectors), 0u);
}

TEST_F(TestdevWire, IntxIsLevelTriggeredAndTheResampleFdUnmasks)
{
    enable_function(client);
    EventFd intx, resample;
    const int intx_fd = intx.fd(), resample_fd = resample.fd();
    ASSERT_EQ(client.set_irqs(kAssign, kIntxIndex, 0, 1, {&intx_fd, 1}), 0);
    ASSERT_EQ(client.set_irqs(kDataEventfd | kActionUnmask, kIntxIndex, 0, 1, {&resample_fd, 1}), 0);

    client.write<std::uint32_t>(0, kRegIntx, 1);
    EXPECT_EQ(intx.wait(), 1u);
    // The line stays high, so every unmask asserts it again...
    resample.signal();
    EXPECT_EQ(intx.wait(), 1u);
    ASSERT_EQ(client.set_irqs(kDataNone | kActionUnmask, kIntxIndex, 0, 1), 0);
    EXPECT_EQ(intx.wait(), 1u);
    // ...until it is low.
    client.write<std::uint32_t>(0, kRegIntx, 0);
    resample.signal();
    EXPECT_EQ(client.read<std::uint16_t>(kConfigRegion, 6) & 0x8, 0);  // Interrupt Status
    EXPECT_EQ(intx.take(), 0u);
    client.write<std::uint32_t>(0, kRegIntx, 1);
    EXPECT_EQ(intx.wait(), 1u);
}

//= VVFU-DOORBELL-6
//= type=test
//= VVFU-ORDER-1
//= VVFU-ORDER-2
//= type=test
TEST_F(TestdevWire, CopiesThroughTheWindowAreExact)
{
    use_msix();
    GuestRam ram(0x100000000, 16 * kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{4096}, std::uint64_t{65537}, 4 * kMiB}) {
        const auto data = pattern(size, static_cast<std::uint32_t>(size));
        const auto source = ram.address() + 3, destination = ram.address() + 8 * kMiB + 5;
        fill(ram, source, data);
        EXPECT_EQ(transfer(testdev::kCopy, source, destination, size), kDone);
        EXPECT_TRUE(holds(ram, destination, data)) << size;
    }
    EXPECT_EQ(client.dma_counters().reads + client.dma_counters().writes, 0u);
}

TEST_F(TestdevWire, CopiesCrossNeighbouringRangesOfDifferentFiles)
{
    use_msix();
    GuestRam low(0x100000, kMiB), high(0x200000, kMiB);
    ASSERT_EQ(client.dma_map(low), 0);
    ASSERT_EQ(client.dma_map(high), 0);
    const auto data = pattern(8192, 1);
    fill(low, 0x100000, data);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100000, 0x200000 - 4096, 8192), kDone);
    EXPECT_TRUE(holds(low, 0x200000 - 4096, Bytes(data.begin(), data.begin() + 4096)));
    EXPECT_TRUE(holds(high, 0x200000, Bytes(data.begin() + 4096, data.end())));
}

TEST_F(TestdevWire, DmaOutsideThePeersMemoryIsAFault)
{
    use_msix();
    GuestRam ram(0x100000, kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100000, 0x200000, 16), kFault);
    EXPECT_EQ(transfer(testdev::kCopy, 0, 0x100000, 16), kFault);
    EXPECT_EQ(transfer(testdev::kCopy, 0x1ffff8, 0x100000, 16), kFault);
    EXPECT_EQ(transfer(testdev::kCopy, ~std::uint64_t{7}, 0x100000, 16), kFault);
}

TEST_F(TestdevWire, ReadOnlyMemoryIsNotWritten)
{
    use_msix();
    GuestRam rom(0x100000, kMiB), ram(0x1000000, kMiB);
    ASSERT_EQ(client.dma_map(rom, kMapRead), 0);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(transfer(testdev::kCopy, 0x1000000, 0x100000, 4096), kPermission);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100000, 0x1000000, 4096), kDone);
}

TEST_F(TestdevWire, UnmapRevokesAtOnce)
{
    use_msix();
    GuestRam ram(0x100000, 8 * kMiB);
    for (int round = 0; round < 10; ++round) {
        ASSERT_EQ(client.dma_map(ram), 0);
        start(testdev::kFill, 0, ram.address(), 4 * kMiB);
        ASSERT_EQ(client.dma_unmap(ram.address(), ram.size()), 0);
        EXPECT_EQ(loopback.process().mappings("guest-ram"), 0u);
        // Nothing of the fill may arrive from now on.
        std::memset(ram.bytes().data(), 0x77, ram.size());
        ASSERT_TRUE(client.serve_until([&] { return vectors[5].take() != 0; }, vectors[5].fd()));
        for (std::size_t i = 0; i < ram.size(); i += 4096) {
            ASSERT_EQ(ram.bytes()[i], std::byte{0x77});
        }
        EXPECT_EQ(transfer(testdev::kFill, 0, ram.address(), 4096), kFault);
    }
}

TEST_F(TestdevWire, MessageOnlyMemoryIsReachedByDmaReadAndWrite)
{
    use_msix();
    GuestRam ram(0x100000, 16 * kMiB);
    ASSERT_EQ(client.dma_map(ram.address(), ram.size(), 0, kMapRead | kMapWrite, -1), 0);
    client.serve_memory(ram);
    const auto data = pattern(2 * kMiB, 9);
    fill(ram, 0x100001, data);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100001, 0x900003, data.size()), kDone);
    EXPECT_TRUE(holds(ram, 0x900003, data));
    EXPECT_GT(client.dma_counters().reads, 0u);
    EXPECT_GT(client.dma_counters().writes, 0u);
    EXPECT_LE(client.dma_counters().largest, kMiB);  // this peer's max_data_xfer_size
}

TEST_F(TestdevWire, CopiesBetweenMappedAndMessageOnlyMemory)
{
    use_msix();
    GuestRam mapped(0x100000, kMiB), other(0x200000, kMiB);
    ASSERT_EQ(client.dma_map(mapped), 0);
    ASSERT_EQ(client.dma_map(other.address(), other.size(), 0, kMapRead | kMapWrite, -1), 0);
    client.serve_memory(other);
    const auto data = pattern(100'000, 4);
    fill(mapped, 0x100000, data);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100000, 0x210000, data.size()), kDone);
    EXPECT_TRUE(holds(other, 0x210000, data));
    // Across the boundary, from one kind into the other.
    EXPECT_EQ(transfer(testdev::kCopy, 0x210000, 0x200000 - 50'000, data.size()), kDone);
    EXPECT_TRUE(holds(mapped, 0x200000 - 50'000, Bytes(data.begin(), data.begin() + 50'000)));
}

TEST_F(TestdevWire, TransfersAreSplitToThePeersLimit)
{
    VfioUserClient &first = client;
    first.close();
    client = loopback.connect();
    client.version(0, R"({"capabilities":{"max_data_xfer_size":8192}})");
    use_msix();
    GuestRam ram(0x100000, kMiB);
    ASSERT_EQ(client.dma_map(ram.address(), ram.size(), 0, kMapRead | kMapWrite, -1), 0);
    client.serve_memory(ram);
    const auto data = pattern(100'000, 5);
    fill(ram, 0x100000, data);
    EXPECT_EQ(transfer(testdev::kCopy, 0x100000, 0x180000, data.size()), kDone);
    EXPECT_TRUE(holds(ram, 0x180000, data));
    EXPECT_LE(client.dma_counters().largest, 8192u);
}

TEST_F(TestdevWire, PeersErrorOnDmaEndsTheTransferWithIoOrFault)
{
    use_msix();
    ASSERT_EQ(client.dma_map(0x100000, kMiB, 0, kMapRead | kMapWrite, -1), 0);
    // Nothing is served there: the client answers EFAULT.
    const auto status = transfer(testdev::kChecksum, 0x100000, 0, 4096);
    EXPECT_TRUE(status == kIo || status == kFault) << status;
    EXPECT_GT(client.dma_counters().failed, 0u);
}

TEST_F(TestdevWire, DmaRepliesInterleavedWithOwnCommandsAndOutOfOrder)
{
    use_msix();
    GuestRam ram(0x100000, 4 * kMiB);
    ASSERT_EQ(client.dma_map(ram.address(), ram.size(), 0, kMapRead | kMapWrite, -1), 0);
    client.serve_memory(ram);
    const auto data = pattern(kMiB, 6);
    fill(ram, 0x100000, data);
    std::vector<Message> held;
    client.on_dma([&](Message message) { held.push_back(std::move(message)); });
    start(testdev::kCopy, 0x100000, 0x300000, data.size());
    bool finished = false;
    while (!finished) {
        ASSERT_TRUE(
            client.serve_until([&] { return !held.empty() || (finished = vectors[5].take() != 0); }, vectors[5].fd()));
        // Own commands are answered while the DMA replies are outstanding.
        EXPECT_EQ(client.read<std::uint32_t>(0, kRegId), kId);
        EXPECT_EQ(client.device_info().num_regions, 9u);
        const auto answers = std::exchange(held, {});
        for (auto it = answers.rbegin(); it != answers.rend(); ++it) {
            client.answer_dma(*it);
        }
    }
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegStatus), kDone);
    EXPECT_TRUE(holds(ram, 0x300000, data));
}

/// A transfer whose DMA the peer holds.
class UnansweredDma : public TestdevWire, public ::testing::WithParamInterface<testdev::Command> {
protected:
    /// Starts a transfer that is left waiting for the peer.
    void start_and_hold()
    {
        use_msix();
        map();
        dma.begin();
        start(GetParam(), ram.address(), ram.address(), kSize);
        ASSERT_TRUE(dma.wait_for(1));
    }
    void map() { ASSERT_EQ(client.dma_map(ram.address(), ram.size(), 0, kMapRead | kMapWrite, -1), 0); }
    void expect_end_by_unmap(std::uint64_t address, std::uint64_t size, std::uint32_t flags)
    {
        start_and_hold();
        EXPECT_EQ(client.dma_unmap(address, size, flags), 0);
        ASSERT_TRUE(client.serve_until([&] { return vectors[5].take() != 0; }, vectors[5].fd()));
        EXPECT_EQ(client.read<std::uint32_t>(0, kRegStatus), kFault);
        dma.answer(ram);
        map();
        expect_alive();
    }
    void expect_alive()
    {
        use_msix();
        EXPECT_EQ(transfer(GetParam(), ram.address(), ram.address(), kSize), kDone);
        EXPECT_EQ(client.unclaimed_replies(), 0u) << "late replies are not refused";
        expect_no_deadline(loopback);
    }

    static constexpr std::uint64_t kSize = 64 * 1024;  // one command
    GuestRam ram{0x100000, kSize};
    HeldDma dma{client};
};

INSTANTIATE_TEST_SUITE_P(ReadAndWrite, UnansweredDma, ::testing::Values(testdev::kChecksum, testdev::kFill),
                         [](const auto &suite) { return suite.param == testdev::kFill ? "Write" : "Read"; });

//= VVFU-OP-4
//= VVFU-DMA-5
//= VVFU-DMA-7
//= type=test
TEST_P(UnansweredDma, DoesNotHoldUpAReset)
{
    start_and_hold();
    EXPECT_EQ(client.reset(), 0);
    EXPECT_EQ(vectors[5].take(), 0u) << "the transfer ended with the reset, not before";
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegStatus), kIdle);
    dma.answer(ram);
    expect_alive();
}

//= VVFU-OP-4
//= VVFU-DMA-5
//= VVFU-DMA-7
//= type=test
TEST_P(UnansweredDma, DoesNotHoldUpAnUnmap)
{
    expect_end_by_unmap(ram.address(), ram.size(), 0);
}

//= VVFU-DMA-5
//= type=test
TEST_P(UnansweredDma, DoesNotHoldUpAnUnmapOfEverything)
{
    expect_end_by_unmap(0, 0, kUnmapAll);
}

TEST_F(TestdevWire, PeerKilledDuringDmaLeavesNothingBehind)
{
    const auto fds = loopback.process().open_fds();
    for (int round = 0; round < 5; ++round) {
        client.close();
        client = loopback.connect();
        client.version();
        use_msix();
        GuestRam mapped(0x1000000, 8 * kMiB);
        ASSERT_EQ(client.dma_map(mapped), 0);
        ASSERT_EQ(client.dma_map(0x100000, kMiB, 0, kMapRead | kMapWrite, -1), 0);
        bool asked = false;
        client.on_dma([&](const Message &) { asked = true; });
        start(testdev::kCopy, 0x100000, 0x1000000, 65536);
        ASSERT_TRUE(client.serve_until([&] { return asked; }));
    }
    client.close();
    EXPECT_TRUE(eventually([&] { return loopback.process().mappings("guest-ram") == 0; }));
    EXPECT_TRUE(eventually([&] { return loopback.process().open_fds() < fds; }));
    EXPECT_TRUE(loopback.process().running());
}

TEST_F(TestdevWire, ResetReturnsRegistersToTheirDefaults)
{
    client.write<std::uint32_t>(0, kRegScratch32, 7);
    enable_function(client);
    EXPECT_EQ(client.reset(), 0);
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegScratch32), 0u);
    EXPECT_EQ(client.read<std::uint16_t>(kConfigRegion, 4) & 6, 0);
}

TEST_F(TestdevWire, FunctionLevelResetThroughThePcieCapability)
{
    const auto cap = find_capability(client, kCapPciExpress);
    ASSERT_NE(cap, 0);
    client.write<std::uint32_t>(0, kRegScratch32, 7);
    const auto resets = client.read<std::uint64_t>(0, kRegResets);
    const auto control = client.read<std::uint16_t>(kConfigRegion, cap + 8u);
    client.write<std::uint16_t>(kConfigRegion, cap + 8u, static_cast<std::uint16_t>(control | 0x8000));
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegScratch32), 0u);
    EXPECT_EQ(client.read<std::uint64_t>(0, kRegResets), resets + 1);
}

TEST_F(TestdevWire, NextPeerStartsFromPowerOnState)
{
    client.write<std::uint32_t>(0, kRegScratch32, 7);
    enable_function(client);
    client.close();
    client = loopback.connect();
    client.version();
    EXPECT_EQ(client.read<std::uint32_t>(0, kRegScratch32), 0u);
    EXPECT_EQ(client.read<std::uint16_t>(kConfigRegion, 4) & 6, 0);
}

}  // namespace
}  // namespace vvfu::test
