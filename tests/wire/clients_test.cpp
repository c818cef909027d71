// SPDX-License-Identifier: BSD-3-Clause
//
// What real clients send, replayed: QEMU 11.1.3's vfio-user-pci (realize, MSI-X, machine reset, exit),
// cloud-hypervisor's
// --user-device, SPDK's host client.
#include <array>
#include <numeric>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(Clients);

constexpr std::uint32_t kAssign = kDataEventfd | kActionTrigger;
constexpr std::uint64_t kMiB = 1024 * 1024;

// QEMU 11.1.3's capabilities, in the order and spelling of its JSON writer: 214 bytes with header, version and NUL.
constexpr std::string_view kQemuJson =
    R"({"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, )"
    R"("migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "write_multiple": true}})";
static_assert(16 + 4 + kQemuJson.size() + 1 == 214);

/// A client that keeps to QEMU's message layouts and to the buffer sizes behind its replies.
class QemuClient {
public:
    explicit QemuClient(Fd socket) : client(std::move(socket)) {}

    void expect_reply(std::uint16_t id, std::size_t buffer, const char *what)
    {
        const auto reply = client.wait_reply(id);
        EXPECT_EQ(reply.result(), 0) << what;
        EXPECT_LE(reply.size, buffer) << what << ": reply larger than recv buffer";
    }

    std::uint16_t map(std::uint64_t address, std::uint64_t size, std::uint64_t offset, std::uint32_t flags, int fd)
    {
        const auto request = Packer().u32(32).u32(flags).u64(offset).u64(address).u64(size).take();
        return fd >= 0 ? client.send(kDmaMap, request, {&fd, 1}) : client.send(kDmaMap, request);
    }
    std::uint16_t unmap(std::uint64_t address, std::uint64_t size)
    {
        return client.send(kDmaUnmap, Packer().u32(24).u32(0).u64(address).u64(size).view());
    }

    /// Steps 1 to 9 of the realize sequence.
    void realize(GuestRam &ram)
    {
        negotiate();
        map_memory(ram);
        describe_device();
        read_config_and_probe();
    }

    void negotiate()
    {
        const auto id = client.send(kVersion, Packer().u16(0).u16(0).text(kQemuJson).u8(0).view());
        const auto reply = client.wait_reply(id);
        ASSERT_EQ(reply.result(), 0);
        EXPECT_LE(reply.size, 214u);
        EXPECT_EQ(field<std::uint16_t>(reply.payload, 0), 0);
        EXPECT_EQ(field<std::uint16_t>(reply.payload, 2), 0);
    }

    void map_memory(GuestRam &ram)
    {
        std::vector<std::uint16_t> ids;
        ids.push_back(map(0, 0xa0000, 0, 3, ram.fd()));
        ids.push_back(map(0xc0000, 0x20000, 0, 1, -1));  // ROMs: read-only, no fd
        ids.push_back(map(0xe0000, 0x20000, 0x20000, 1, -1));
        ids.push_back(map(0x100000, ram.size() - 0x100000, 0x100000, 3, ram.fd()));
        ids.push_back(map(0xfffc0000, 0x40000, 0, 1, -1));
        for (const auto id : ids) {
            expect_reply(id, 48, "DMA_MAP");
        }
    }

    void describe_device()
    {
        const auto info = client.transact(kGetInfo, Packer().u32(16).zeros(12).view());
        EXPECT_EQ(info.size, 32u);
        EXPECT_NE(field<std::uint32_t>(info.payload, 4) & 2u, 0u);  // PCI
        EXPECT_GE(field<std::uint32_t>(info.payload, 8), 8u);
        EXPECT_GE(field<std::uint32_t>(info.payload, 12), 3u);
        for (const std::uint32_t index : {0u, 1u, 2u, 3u, 4u, 5u, 7u}) {
            const auto region = client.region_info(index);
            EXPECT_LE(region.fds.size(), 1u);
            if ((region.flags & RegionInfoReply::kMmap) != 0) {
                EXPECT_EQ(region.fds.size(), 1u);
            }
        }
        EXPECT_EQ(client.irq_info(kErrIndex).count, 0u);
    }

    void read_config_and_probe()
    {
        const auto id = client.send(kRegionRead, Packer().u64(0).u32(kConfigRegion).u32(4096).view());
        const auto config = client.wait_reply(id);
        ASSERT_EQ(config.size, 32u + 4096u);
        const auto rom = client.read<std::uint32_t>(kConfigRegion, 0x30);
        client.write<std::uint32_t>(kConfigRegion, 0x30, 0xfffff800);
        static_cast<void>(client.read<std::uint32_t>(kConfigRegion, 0x30));
        client.write<std::uint32_t>(kConfigRegion, 0x30, rom);
        for (const std::uint64_t bar : {0x10, 0x18, 0x20}) {
            static_cast<void>(client.read<std::uint32_t>(kConfigRegion, bar));
        }
        vectors = client.irq_info(kMsixIndex).count;
        EXPECT_GT(vectors, 0u);
        EXPECT_LE(client.read<std::uint8_t>(kConfigRegion, 0x3d), 4);
    }

    void enable_intx()
    {
        const int intx_fd = intx.fd(), resample_fd = resample.fd();
        EXPECT_EQ(client.set_irqs(kAssign, kIntxIndex, 0, 1, {&intx_fd, 1}), 0);
        EXPECT_EQ(client.set_irqs(kDataNone | kActionMask, kIntxIndex, 0, 1), 0);
        EXPECT_EQ(client.set_irqs(kDataEventfd | kActionUnmask, kIntxIndex, 0, 1, {&resample_fd, 1}), 0);
        EXPECT_EQ(client.set_irqs(kDataNone | kActionUnmask, kIntxIndex, 0, 1), 0);
    }

    void disable_intx()
    {
        EXPECT_EQ(client.set_irqs(kDataNone | kActionMask, kIntxIndex, 0, 1), 0);
        EXPECT_EQ(client.set_irqs(kDataNone | kActionUnmask, kIntxIndex, 0, 1), 0);
        EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kIntxIndex, 0, 0), 0);
    }

    void machine_reset()
    {
        disable_intx();
        const auto command = client.read<std::uint16_t>(kConfigRegion, 4);
        client.write<std::uint16_t>(kConfigRegion, 4, static_cast<std::uint16_t>(command & ~7));
        EXPECT_EQ(client.reset(), 0);
        enable_intx();
        for (std::uint64_t bar = 0x10; bar <= 0x24; bar += 4) {
            client.write<std::uint32_t>(kConfigRegion, bar, 0);
        }
    }

    /// One message per vector, after "count 1, no fd" for vector 0.
    void enable_msix()
    {
        EXPECT_EQ(client.set_irqs(kDataNone | kActionTrigger, kIntxIndex, 0, 0), 0);
        EXPECT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, 1), 0);
        msix = std::vector<EventFd>(vectors);
        for (std::uint32_t i = 0; i < vectors; ++i) {
            const int fd = msix[i].fd();
            EXPECT_EQ(client.set_irqs(kAssign, kMsixIndex, i, 1, {&fd, 1}), 0);
        }
    }

    VfioUserClient client;
    EventFd intx, resample;
    std::vector<EventFd> msix;
    std::uint32_t vectors = 0;
};

TEST_P(Clients, QemuRealizesResetsEnablesMsixAndQuitsByEndOfFile)
{
    const auto fds = idle_fds();
    const auto mappings = server_.mappings();
    for (int round = 0; round < 2; ++round) {
        QemuClient qemu(server_.connect());
        GuestRam ram(0, 16 * kMiB);
        qemu.realize(ram);
        qemu.enable_intx();
        qemu.machine_reset();
        qemu.machine_reset();  // SeaBIOS's own, 0.1 s later
        qemu.enable_msix();
        EXPECT_EQ(qemu.client.set_irqs(kDataNone | kActionTrigger, kMsixIndex, 0, qemu.vectors), 0);
        for (const auto &event : qemu.msix) {
            EXPECT_EQ(event.wait(), 1u);
        }
        qemu.client.close();
        EXPECT_TRUE(eventually([&] { return server_.mappings() == mappings; }));
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

TEST_P(Clients, QemuRemapsItsMemoryInBurstsWhileTheFirmwareRuns)
{
    QemuClient qemu(server_.connect());
    GuestRam ram(0, 16 * kMiB);
    qemu.realize(ram);
    for (int round = 0; round < 6; ++round) {
        std::vector<std::uint16_t> maps, unmaps;
        unmaps.push_back(qemu.unmap(0, 0xa0000));
        unmaps.push_back(qemu.unmap(0xc0000, 0x20000));
        unmaps.push_back(qemu.unmap(0xe0000, 0x20000));
        maps.push_back(qemu.map(0, 0xc0000, 0, 3, ram.fd()));
        maps.push_back(qemu.map(0xc0000, 0x8000, 0xc0000, 1, ram.fd()));
        maps.push_back(qemu.map(0xc8000, 0x38000, 0xc8000, 3, ram.fd()));
        unmaps.push_back(qemu.unmap(0, 0xc0000));
        unmaps.push_back(qemu.unmap(0xc0000, 0x8000));
        unmaps.push_back(qemu.unmap(0xc8000, 0x38000));
        maps.push_back(qemu.map(0, 0xa0000, 0, 3, ram.fd()));
        maps.push_back(qemu.map(0xc0000, 0x20000, 0, 1, -1));
        maps.push_back(qemu.map(0xe0000, 0x20000, 0x20000, 1, -1));
        for (const auto id : maps) {
            qemu.expect_reply(id, 48, "DMA_MAP");
        }
        for (const auto id : unmaps) {
            qemu.expect_reply(id, 40, "DMA_UNMAP");
        }
    }
}

TEST_P(Clients, QemuMapsTheDevicesOwnBarAreasWithoutFd)
{
    QemuClient qemu(server_.connect());
    GuestRam ram(0, 16 * kMiB);
    qemu.realize(ram);
    const auto region = qemu.client.region_info(2);
    for (int round = 0; round < 2; ++round) {
        for (const auto &area : region.areas) {
            qemu.expect_reply(qemu.map(0xfe000000 + area.offset, area.size, 0, 3, -1), 48, "DMA_MAP");
        }
        for (const auto &area : region.areas) {
            qemu.expect_reply(qemu.unmap(0xfe000000 + area.offset, area.size), 40, "DMA_UNMAP");
        }
    }
    EXPECT_EQ(qemu.client.dma_counters().reads + qemu.client.dma_counters().writes, 0u);
}

TEST_P(Clients, CloudHypervisorEnumeratesMapsAndAssigns)
{
    auto client = connect();
    const auto version = client.version(
        1, R"({"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}})");
    EXPECT_LE(version.minor, 1);
    const auto info = client.transact(kGetInfo, Packer().u32(32).zeros(12).view());
    ASSERT_EQ(info.size, 32u);
    const auto regions = field<std::uint32_t>(info.payload, 8);
    for (std::uint32_t index = 0; index < regions; ++index) {  // ROM and VGA included
        static_cast<void>(client.region_info(index));
    }
    for (std::uint32_t index = 0; index < field<std::uint32_t>(info.payload, 12); ++index) {
        static_cast<void>(client.irq_info(index));
    }
    const auto vectors = std::min(client.irq_info(kMsixIndex).count, 16u);
    std::vector<EventFd> events(vectors);
    std::vector<int> fds;
    for (const auto &event : events) {
        fds.push_back(event.fd());
    }
    EXPECT_EQ(client.set_irqs(kAssign, kMsixIndex, 0, vectors, fds), 0);
    GuestRam low(0, 4 * kMiB), high(0x100000000, 4 * kMiB);
    EXPECT_EQ(client.dma_map(low), 0);
    EXPECT_EQ(client.dma_map(high), 0);
    EXPECT_EQ(client.dma_unmap(low.address(), low.size()), 0);
}

TEST_P(Clients, SpdkWorksWithoutJsonAndWithItsLargeRequests)
{
    auto client = connect();
    EXPECT_EQ(client.version(0, "").major, 0);
    const auto info = client.transact(kGetInfo, Packer().u32(16).zeros(12).view());
    ASSERT_EQ(info.result(), 0);
    for (std::uint32_t index = 0; index < field<std::uint32_t>(info.payload, 8); ++index) {
        Packer request;
        request.u32(4064).u32(0).u32(index).u32(0).u64(0).u64(0);
        request.zeros(4064 - request.view().size());
        const auto reply = client.transact(kGetRegionInfo, request.view());
        ASSERT_EQ(reply.result(), 0) << index;
        EXPECT_LE(reply.payload.size(), 4064u);
        EXPECT_EQ(reply.payload.size(), field<std::uint32_t>(reply.payload, 0));
        EXPECT_LE(reply.fds.size(), 1u);
    }
    GuestRam ram(0x200000, 2 * kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    const int fd = ram.fd();
    const auto unmap = client.transact(kDmaUnmap, Packer().u32(24).u32(0).u64(0x200000).u64(2 * kMiB).view(), {&fd, 1});
    EXPECT_EQ(unmap.result(), 0);
}

}  // namespace
}  // namespace vvfu::test
