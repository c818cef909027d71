// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/pci_device.hpp"

#include <gmock/gmock.h>
#include <linux/pci_regs.h>

#include <memory>
#include <optional>
#include <stdexcept>

#include "fakes.hpp"

namespace vvfu::guest {
namespace {

using control::IrqAction;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

PciFunction example_function()
{
    PciFunction f;
    f.identity = {0x1234, 0x5678, 0x9abc, 0xdef0, 0x010802, 0x11};
    f.bars[0] = {0x4000, true, false, {}, 0};
    f.bars[2] = {0x1000, false, false, {}, 0};
    f.bars[4] = {0x10000, true, true, {{0x1000, 0x2000}, {0x8000, 0x8000}}, 0x1000};
    f.msix_vectors = 70;
    f.msix_bar = 0;
    f.msix_table_offset = 0x2000;
    f.msix_pba_offset = 0x3000;
    f.intx = true;
    return f;
}

/// The same with messages of MSI.
PciFunction example_with_msi(std::uint16_t vectors)
{
    auto f = example_function();
    f.msix_vectors = 0;
    f.msi_vectors = vectors;
    return f;
}

class ExampleDevice : public PciDevice {
public:
    struct Access {
        unsigned bar;
        std::uint64_t offset, size;
        friend bool operator==(const Access &, const Access &) = default;
    };
    using PciDevice::bus_master, PciDevice::interrupts, PciDevice::intx_set, PciDevice::trigger;
    using PciDevice::PciDevice;

    std::vector<Access> reads, writes;
    std::vector<bool> bus_master_changes;
    int resets = 0;
    bool reset_later = false;
    std::function<void()> finish_reset;

protected:
    void bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out) override
    {
        reads.push_back({bar, offset, out.size()});
        std::fill(out.begin(), out.end(), std::byte{0x5a});
    }
    void bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) override
    {
        writes.push_back({bar, offset, data.size()});
    }
    void function_reset(std::function<void()> done) override
    {
        ++resets;
        if (reset_later) {
            finish_reset = std::move(done);
        } else {
            done();
        }
    }
    void bus_master_changed() override { bus_master_changes.push_back(bus_master()); }
};

struct PciDeviceTest : testing::Test {
    test::FakeHost host{0x20000};
    std::unique_ptr<ExampleDevice> device = std::make_unique<ExampleDevice>(example_function(), host.services());

    std::vector<std::byte> read(std::uint32_t region, std::uint64_t offset, std::size_t size)
    {
        std::vector<std::byte> out(size, std::byte{0xcc});
        device->region_read(region, offset, out);
        return out;
    }
    std::uint64_t config(std::uint64_t offset, unsigned width)
    {
        std::uint64_t value = 0;
        const auto bytes = read(control::kRegionConfig, offset, width);
        std::memcpy(&value, bytes.data(), width);
        return value;
    }
    void write(std::uint32_t region, std::uint64_t offset, std::uint64_t value, unsigned width)
    {
        std::byte bytes[8];
        std::memcpy(bytes, &value, sizeof bytes);
        device->region_write(region, offset, std::span{bytes}.first(width));
    }
    void config_write(std::uint64_t offset, std::uint64_t value, unsigned width)
    {
        write(control::kRegionConfig, offset, value, width);
    }
    /// Walks the capability list as every driver does; 0: not found.
    std::uint64_t capability(std::uint8_t id)
    {
        auto at = config(PCI_CAPABILITY_LIST, 1);
        for (int guard = 0; at != 0 && guard < 48; ++guard, at = config(at + 1, 1)) {
            if (config(at, 1) == id) {
                return at;
            }
        }
        return 0;
    }
    void use_msi(std::uint16_t vectors)
    {
        device = std::make_unique<ExampleDevice>(example_with_msi(vectors), host.services());
        config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    }
    /// Message Control of MSI: enabled, with 2^log2_vectors vectors allowed.
    void enable_msi(unsigned log2_vectors)
    {
        config_write(capability(PCI_CAP_ID_MSI) + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | log2_vectors << 4, 2);
    }
    void enable_msix() { config_write(capability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE, 2); }
    void irq(std::uint32_t index, IrqAction action, std::uint32_t count = 1)
    {
        device->irq_info({index, 0, count, action});
    }
};

TEST_F(PciDeviceTest, IdentityIsInTheHeader)
{
    EXPECT_EQ(config(PCI_VENDOR_ID, 4), 0x56781234u);
    EXPECT_EQ(config(PCI_CLASS_REVISION, 4), 0x01080211u);
    EXPECT_EQ(config(PCI_SUBSYSTEM_VENDOR_ID, 4), 0xdef09abcu);
    EXPECT_EQ(config(PCI_INTERRUPT_PIN, 1), 1u);
    EXPECT_EQ(config(PCI_HEADER_TYPE, 1), 0u);
    EXPECT_NE(config(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST, 0u);
}

TEST_F(PciDeviceTest, DescribeOffersRegionsAndIrqs)
{
    const auto info = device->describe();
    EXPECT_EQ(info.vendor_id, 0x1234);
    EXPECT_EQ(info.class_revision, 0x01080211u);
    ASSERT_EQ(info.regions.size(), 4u);
    EXPECT_EQ(info.regions[2].index, 4u);
    EXPECT_EQ(info.regions[2].flags, control::kRegionRead | control::kRegionWrite | control::kRegionMmap);
    EXPECT_EQ(info.regions[2].region_memory_offset, 0x1000u);
    EXPECT_EQ(info.regions[2].areas.size(), 2u);
    EXPECT_EQ(info.regions[3].index, control::kRegionConfig);
    EXPECT_EQ(info.regions[3].size, 4096u);
    EXPECT_THAT(info.irqs,
                ElementsAre(control::IrqCount{control::kIrqIntx, 1}, control::IrqCount{control::kIrqMsix, 70}));
}

TEST_F(PciDeviceTest, BarSizingByAllOnes)
{
    for (std::uint64_t bar = 0; bar < 6; ++bar) {
        config_write(PCI_BASE_ADDRESS_0 + 4 * bar, 0xffffffff, 4);
    }
    EXPECT_EQ(config(PCI_BASE_ADDRESS_0, 8), 0xffffffffffffc004u) << "64-bit, 16 KiB";
    EXPECT_EQ(config(PCI_BASE_ADDRESS_2, 4), 0xfffff000u) << "32-bit, 4 KiB";
    EXPECT_EQ(config(PCI_BASE_ADDRESS_3, 4), 0u) << "absent";
    EXPECT_EQ(config(PCI_BASE_ADDRESS_4, 8), 0xffffffffffff000cu) << "64-bit, prefetchable, 64 KiB";
    config_write(PCI_BASE_ADDRESS_4, 0x1234567890, 8);
    EXPECT_EQ(config(PCI_BASE_ADDRESS_4, 8), 0x123456000cu);
}

TEST_F(PciDeviceTest, WholeConfigurationSpaceInOneRead)
{
    const auto whole = read(control::kRegionConfig, 0, 4096);
    for (std::size_t i = 0; i < whole.size(); ++i) {
        ASSERT_EQ(whole[i], read(control::kRegionConfig, i, 1)[0]) << i;
    }
    EXPECT_EQ(config(0x100, 4), 0u) << "no extended capability";
    EXPECT_EQ(config(PCI_ROM_ADDRESS, 4), 0u);
}

TEST_F(PciDeviceTest, WholeConfigurationSpaceInOneWriteChangesWritableBitsOnly)
{
    device->region_write(control::kRegionConfig, 0, std::vector<std::byte>(4096, std::byte{0}));
    EXPECT_EQ(config(PCI_VENDOR_ID, 4), 0x56781234u);
    config_write(PCI_ROM_ADDRESS, 0xfffff800, 4);
    EXPECT_EQ(config(PCI_ROM_ADDRESS, 4), 0u);
    EXPECT_EQ(device->resets, 0);
}

TEST_F(PciDeviceTest, CapabilitiesAreChained)
{
    EXPECT_NE(capability(PCI_CAP_ID_PM), 0u);
    const auto pcie = capability(PCI_CAP_ID_EXP);
    ASSERT_NE(pcie, 0u);
    EXPECT_EQ(config(pcie + PCI_EXP_FLAGS, 2), 2u) << "version 2, endpoint";
    EXPECT_NE(config(pcie + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR, 0u);
    const auto msix = capability(PCI_CAP_ID_MSIX);
    ASSERT_NE(msix, 0u);
    EXPECT_EQ(config(msix + PCI_MSIX_FLAGS, 2), 69u);
    EXPECT_EQ(config(msix + PCI_MSIX_TABLE, 4), 0x2000u);
    EXPECT_EQ(config(msix + PCI_MSIX_PBA, 4), 0x3000u);
}

TEST_F(PciDeviceTest, FunctionWithoutMsixOrIntxHasNeither)
{
    auto f = example_function();
    f.msix_vectors = 0;
    f.intx = false;
    device = std::make_unique<ExampleDevice>(f, host.services());
    EXPECT_EQ(capability(PCI_CAP_ID_MSIX), 0u);
    EXPECT_NE(capability(PCI_CAP_ID_EXP), 0u);
    EXPECT_EQ(config(PCI_INTERRUPT_PIN, 1), 0u);
    EXPECT_THAT(device->describe().irqs, IsEmpty());
    device->intx_set(true);
    device->trigger(0);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_EQ(config(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0u);
}

TEST_F(PciDeviceTest, PowerStateTakesD0AndD3hotOnly)
{
    const auto pmcsr = capability(PCI_CAP_ID_PM) + PCI_PM_CTRL;
    config_write(pmcsr, 3, 2);
    EXPECT_EQ(config(pmcsr, 2) & PCI_PM_CTRL_STATE_MASK, 3u);
    config_write(pmcsr, 1, 2);
    EXPECT_EQ(config(pmcsr, 2) & PCI_PM_CTRL_STATE_MASK, 3u) << "D1 is not supported";
    config_write(pmcsr, 0, 2);
    EXPECT_EQ(config(pmcsr, 2) & PCI_PM_CTRL_STATE_MASK, 0u);
}

TEST_F(PciDeviceTest, TheGateIsOpenWithBusMasterEnableInD0Only)
{
    auto &dma = host.services().dma;
    const auto pmcsr = capability(PCI_CAP_ID_PM) + PCI_PM_CTRL;
    const auto devctl = capability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    EXPECT_FALSE(dma.is_open());
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_TRUE(dma.is_open());
    config_write(PCI_COMMAND, 0, 2);
    EXPECT_FALSE(dma.is_open());
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    config_write(pmcsr, 3, 2);
    EXPECT_FALSE(dma.is_open());
    config_write(pmcsr, 0, 2);
    EXPECT_TRUE(dma.is_open());
    EXPECT_THAT(device->bus_master_changes, ElementsAre(true, false, true, false, true));
    device->reset_later = true;
    config_write(devctl, PCI_EXP_DEVCTL_BCR_FLR, 2);
    EXPECT_FALSE(dma.is_open()) << "before the reset is complete";
    device->finish_reset();
    EXPECT_FALSE(dma.is_open());
}

TEST_F(PciDeviceTest, MessagesArePendingUntilTheFunctionMaySendThem)
{
    const auto pmcsr = capability(PCI_CAP_ID_PM) + PCI_PM_CTRL;
    enable_msix();
    device->trigger(3);
    device->trigger(3);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_EQ(read(0, 0x3000, 1)[0], std::byte{1u << 3}) << "the PBA shows it";
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 3)));
    EXPECT_EQ(read(0, 0x3000, 1)[0], std::byte{0});
    config_write(pmcsr, 3, 2);
    device->trigger(4);
    EXPECT_THAT(host.irqs.triggered, SizeIs(1));
    config_write(pmcsr, 0, 2);
    EXPECT_THAT(host.irqs.triggered, SizeIs(2));
}

//= VVFU-RESET-8
//= type=test
TEST_F(PciDeviceTest, MessagesThatWereNotSentWhenBusMasteringEndsArePending)
{
    enable_msix();
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    host.irqs.unsent[control::kIrqMsix] = {5};
    config_write(PCI_COMMAND, 0, 2);
    EXPECT_THAT(host.irqs.unsent[control::kIrqMsix], IsEmpty());
    EXPECT_EQ(read(0, 0x3000, 1)[0], std::byte{1u << 5});
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 5)));
}

TEST_F(PciDeviceTest, NoMessageIsPendingAcrossAResetOrWithoutMsix)
{
    const auto begin = [&] {
        enable_msix();
        config_write(PCI_COMMAND, 0, 2);
        device->trigger(3);
    };
    begin();
    host.irqs.unsent = {{control::kIrqMsix, {5}}, {control::kIrqIntx, {0}}};
    device->reset([] {});
    EXPECT_THAT(host.irqs.unsent[control::kIrqIntx], IsEmpty());
    enable_msix();
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    begin();
    config_write(capability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS, 0, 2);
    enable_msix();
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
}

TEST_F(PciDeviceTest, InterruptsComeFromTheExecutorsThreadOnly)
{
    enable_msix();
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    host.executor.on_thread = false;
    EXPECT_THROW(device->trigger(3), std::logic_error);
    EXPECT_THROW(device->intx_set(true), std::logic_error);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
}

TEST_F(PciDeviceTest, InD3hotOnlyConfigurationSpaceAnswers)
{
    const auto pmcsr = capability(PCI_CAP_ID_PM) + PCI_PM_CTRL;
    config_write(pmcsr, 3, 2);
    EXPECT_EQ(read(0, 0, 4), std::vector<std::byte>(4, std::byte{0xff}));
    write(0, 0, 1, 4);
    EXPECT_THAT(device->reads, IsEmpty());
    EXPECT_THAT(device->writes, IsEmpty());
    EXPECT_EQ(config(PCI_VENDOR_ID, 2), 0x1234u);
    device->intx_set(true);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    config_write(pmcsr, 0, 2);
    EXPECT_THAT(host.irqs.triggered, SizeIs(1)) << "the line is looked at again";
    EXPECT_EQ(read(0, 0, 1)[0], std::byte{0x5a});
}

TEST_F(PciDeviceTest, BusMasterFollowsCommand)
{
    EXPECT_FALSE(device->bus_master());
    config_write(PCI_COMMAND, 0xffff, 2);
    EXPECT_TRUE(device->bus_master());
    EXPECT_EQ(config(PCI_COMMAND, 2), 0x0546u) << "I/O space and reserved bits stay 0";
    config_write(PCI_COMMAND, 0, 1);
    EXPECT_FALSE(device->bus_master());
}

TEST_F(PciDeviceTest, ModelHearsOfChangesOfBusMaster)
{
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY, 2);
    config_write(PCI_COMMAND, PCI_COMMAND_MEMORY, 4);
    EXPECT_THAT(device->bus_master_changes, ElementsAre(true, false));
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    device->reset([] {});
    EXPECT_THAT(device->bus_master_changes, ElementsAre(true, false, true)) << "a reset says enough";
}

TEST_F(PciDeviceTest, BarAccessesReachTheModel)
{
    EXPECT_EQ(read(2, 0x10, 3), std::vector<std::byte>(3, std::byte{0x5a}));
    write(4, 0x20, 0, 8);
    EXPECT_THAT(device->reads, ElementsAre(ExampleDevice::Access{2, 0x10, 3}));
    EXPECT_THAT(device->writes, ElementsAre(ExampleDevice::Access{4, 0x20, 8}));
}

TEST_F(PciDeviceTest, AbsentRegionsReadAllOnes)
{
    EXPECT_EQ(read(control::kRegionVga, 0, 2), std::vector<std::byte>(2, std::byte{0xff}));
}

TEST_F(PciDeviceTest, MsixTableIsStorageAndStartsMasked)
{
    EXPECT_EQ(read(0, 0x200c, 1)[0], std::byte{1});
    EXPECT_EQ(read(0, 0x2000 + 69 * 16 + 12, 1)[0], std::byte{1});
    write(0, 0x2010, 0x1122334455667788, 8);
    EXPECT_EQ(read(0, 0x2012, 2), (std::vector<std::byte>{std::byte{0x66}, std::byte{0x55}}));
    EXPECT_THAT(device->writes, IsEmpty());
}

TEST_F(PciDeviceTest, AccessesAcrossTableAndPbaAreSplit)
{
    const auto bytes = read(0, 0x1ffe, 0x1800);
    EXPECT_EQ(bytes[0], std::byte{0x5a});
    EXPECT_EQ(bytes[2], std::byte{0}) << "first byte of the table";
    EXPECT_EQ(bytes[2 + 70 * 16], std::byte{0x5a});
    EXPECT_EQ(bytes[0x1002], std::byte{0}) << "first byte of the PBA";
    EXPECT_EQ(bytes[0x1002 + 16], std::byte{0x5a});
    EXPECT_THAT(device->reads, ElementsAre(ExampleDevice::Access{0, 0x1ffe, 2},
                                           ExampleDevice::Access{0, 0x2000 + 70 * 16, 0x1000 - 70 * 16},
                                           ExampleDevice::Access{0, 0x3010, 0x1800 - 0x1002 - 16}));
}

TEST_F(PciDeviceTest, PbaShowsLatchedDoorbells)
{
    host.irqs.latched = {{control::kIrqMsix, 1}, {control::kIrqMsix, 66}, {control::kIrqIntx, 0}};
    EXPECT_EQ(read(0, 0x3000, 1)[0], std::byte{2});
    EXPECT_EQ(read(0, 0x3008, 1)[0], std::byte{4});
    write(0, 0x3000, 0xff, 1);
    EXPECT_EQ(read(0, 0x3000, 1)[0], std::byte{2}) << "read-only";
}

TEST_F(PciDeviceTest, MsixTriggersOnlyWhileEnabled)
{
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    device->trigger(3);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    enable_msix();
    EXPECT_EQ(device->interrupts(), InterruptKind::msix);
    device->trigger(3);
    device->trigger(70);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsix, 3)));
}

TEST_F(PciDeviceTest, ConnectedVectorsEnableMsixUntilTheIndexIsDisabled)
{
    irq(control::kIrqMsix, IrqAction::assign, 4);
    EXPECT_EQ(device->interrupts(), InterruptKind::msix);
    irq(control::kIrqMsix, IrqAction::deassign, 1);
    EXPECT_EQ(device->interrupts(), InterruptKind::msix);
    irq(control::kIrqMsix, IrqAction::disable, 0);
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    irq(control::kIrqMsix, IrqAction::assign, 4);
    device->peer_gone([] {});
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
}

TEST_F(PciDeviceTest, MsiCapabilityHas64BitAddressesAndNoMasks)
{
    for (const unsigned log2_vectors : {0u, 3u, 5u}) {
        use_msi(static_cast<std::uint16_t>(1u << log2_vectors));
        const auto msi = capability(PCI_CAP_ID_MSI);
        ASSERT_NE(msi, 0u);
        EXPECT_EQ(capability(PCI_CAP_ID_MSIX), 0u);
        EXPECT_NE(capability(PCI_CAP_ID_EXP), 0u);
        EXPECT_EQ(config(msi + PCI_MSI_FLAGS, 2), PCI_MSI_FLAGS_64BIT | log2_vectors << 1);
        config_write(msi, ~std::uint64_t{0} & ~std::uint64_t{PCI_MSI_FLAGS_QSIZE} << 16, 8);
        config_write(msi + 8, ~std::uint64_t{0}, 8);
        EXPECT_EQ(config(msi + PCI_MSI_FLAGS, 2), PCI_MSI_FLAGS_64BIT | log2_vectors << 1 | PCI_MSI_FLAGS_ENABLE);
        EXPECT_EQ(config(msi + PCI_MSI_ADDRESS_LO, 8), ~std::uint64_t{3}) << "dwords";
        EXPECT_EQ(config(msi + PCI_MSI_DATA_64, 4), 0xffffu) << "nothing behind Message Data";
        EXPECT_THAT(device->describe().irqs, ElementsAre(control::IrqCount{control::kIrqIntx, 1},
                                                         control::IrqCount{control::kIrqMsi, 1u << log2_vectors}));
    }
}

TEST_F(PciDeviceTest, MsiAndMsixCanBeOfferedTogetherAndMsixIsPreferred)
{
    auto f = example_function();
    f.msi_vectors = 4;
    device = std::make_unique<ExampleDevice>(f, host.services());
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_NE(capability(PCI_CAP_ID_MSI), 0u);
    EXPECT_NE(capability(PCI_CAP_ID_MSIX), 0u);
    enable_msi(2);
    device->trigger(3);
    enable_msix();
    device->trigger(69);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 3), Pair(control::kIrqMsix, 69)));
}

TEST_F(PciDeviceTest, MultipleMessageEnableLimitsTheVectors)
{
    use_msi(8);
    const auto control = capability(PCI_CAP_ID_MSI) + PCI_MSI_FLAGS;
    device->trigger(0);
    EXPECT_THAT(host.irqs.triggered, IsEmpty()) << "not enabled";
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    enable_msi(1);
    EXPECT_EQ(device->interrupts(), InterruptKind::msi);
    device->trigger(1);
    device->trigger(2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 1)));
    irq(control::kIrqMsi, IrqAction::assign, 8);
    device->trigger(2);
    EXPECT_THAT(host.irqs.triggered, SizeIs(1)) << "more eventfds than the driver allows vectors";
    enable_msi(5);
    EXPECT_EQ(config(control, 2) & PCI_MSI_FLAGS_QSIZE, 3u << 4) << "more than the function has";
    device->trigger(7);
    device->trigger(8);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 1), Pair(control::kIrqMsi, 7)));
    enable_msi(7);
    EXPECT_EQ(config(control, 2) & PCI_MSI_FLAGS_QSIZE, 3u << 4) << "reserved value";
}

TEST_F(PciDeviceTest, ConnectedVectorsEnableMsiUntilTheIndexIsDisabled)
{
    use_msi(8);
    device->irq_info({control::kIrqMsi, 0, 2, IrqAction::assign});
    device->irq_info({control::kIrqMsi, 2, 1, IrqAction::assign});
    EXPECT_EQ(device->interrupts(), InterruptKind::msi);
    device->trigger(2);
    device->trigger(3);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 2)));
    irq(control::kIrqMsi, IrqAction::deassign, 1);
    EXPECT_EQ(device->interrupts(), InterruptKind::msi);
    irq(control::kIrqMsi, IrqAction::disable, 0);
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    irq(control::kIrqMsi, IrqAction::assign, 8);
    device->peer_gone([] {});
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    device->trigger(0);
    EXPECT_THAT(host.irqs.triggered, SizeIs(1));
}

TEST_F(PciDeviceTest, MsiNeedsBusMasterAndEndsWithAReset)
{
    use_msi(4);
    enable_msi(2);
    config_write(PCI_COMMAND, 0, 2);
    device->trigger(1);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    host.irqs.unsent[control::kIrqMsi] = {2};
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 1))) << "it waited";
    config_write(PCI_COMMAND, 0, 2);
    EXPECT_THAT(host.irqs.unsent[control::kIrqMsi], IsEmpty());
    device->trigger(0);
    enable_msi(0);
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqMsi, 1), Pair(control::kIrqMsi, 0)))
        << "the driver allows one vector by now";
    config_write(capability(PCI_CAP_ID_MSI) + PCI_MSI_ADDRESS_LO, 0xfee00000, 8);
    device->reset([] {});
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    EXPECT_EQ(config(capability(PCI_CAP_ID_MSI) + PCI_MSI_FLAGS, 8), PCI_MSI_FLAGS_64BIT | 2u << 1);
}

TEST_F(PciDeviceTest, IntxObeysMsi)
{
    use_msi(1);
    enable_msi(0);
    device->intx_set(true);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    config_write(capability(PCI_CAP_ID_MSI) + PCI_MSI_FLAGS, 0, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0)));
}

TEST(PciFunction, OffersTheKindOfInterruptThatIsAskedFor)
{
    PciFunction f;
    EXPECT_EQ(f.vectors(), 0u);
    f.offer(InterruptKind::msix, 33);
    EXPECT_EQ(f.msix_vectors, 33u);
    EXPECT_EQ(f.msi_vectors, 0u);
    EXPECT_EQ(f.vectors(), 33u);
    f.offer(InterruptKind::msi, 33);
    EXPECT_EQ(f.msix_vectors, 0u);
    EXPECT_EQ(f.msi_vectors, 32u) << "all that MSI has";
    f.offer(InterruptKind::msi, 5);
    EXPECT_EQ(f.vectors(), 8u) << "a power of two";
    f.offer(InterruptKind::msi, 1);
    EXPECT_EQ(f.vectors(), 1u);
    f.offer(InterruptKind::intx, 5);
    EXPECT_EQ(f.msix_vectors + f.msi_vectors, 0);
    EXPECT_TRUE(f.intx);
    EXPECT_EQ(f.vectors(), 1u);
}

TEST_F(PciDeviceTest, IntxIsLevelAndAutomasked)
{
    device->intx_set(true);
    EXPECT_NE(config(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0u);
    device->intx_set(true);
    device->intx_set(false);
    device->intx_set(true);
    EXPECT_EQ(host.irqs.triggered.size(), 1u) << "masked until the peer unmasks";
    irq(control::kIrqIntx, IrqAction::unmask);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0), Pair(control::kIrqIntx, 0)));
    device->intx_set(false);
    EXPECT_EQ(config(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0u);
    irq(control::kIrqIntx, IrqAction::unmask);
    EXPECT_EQ(host.irqs.triggered.size(), 2u) << "the level is low";
    device->intx_set(true);
    EXPECT_EQ(host.irqs.triggered.size(), 3u);
}

TEST_F(PciDeviceTest, IntxWaitsForItsTargetAndItsMask)
{
    irq(control::kIrqIntx, IrqAction::mask);
    device->intx_set(true);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    irq(control::kIrqIntx, IrqAction::disable, 0);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    irq(control::kIrqIntx, IrqAction::assign);
    EXPECT_EQ(host.irqs.triggered.size(), 1u) << "a new target sees the level";
}

TEST_F(PciDeviceTest, IntxObeysInterruptDisableAndMsix)
{
    config_write(PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 2);
    device->intx_set(true);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_NE(config(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0u);
    enable_msix();
    config_write(PCI_COMMAND, 0, 2);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    config_write(capability(PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS, 0, 2);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(control::kIrqIntx, 0)));
}

TEST_F(PciDeviceTest, ResetRestoresPowerOnState)
{
    config_write(PCI_COMMAND, 0xffff, 2);
    config_write(PCI_BASE_ADDRESS_2, 0xe0000000, 4);
    config_write(PCI_INTERRUPT_LINE, 11, 1);
    enable_msix();
    write(0, 0x200c, 0, 4);
    device->intx_set(true);
    bool done = false;
    device->reset([&] { done = true; });
    EXPECT_TRUE(done);
    EXPECT_EQ(device->resets, 1);
    EXPECT_EQ(config(PCI_COMMAND, 2), 0u);
    EXPECT_EQ(config(PCI_BASE_ADDRESS_2, 4), 0u);
    EXPECT_EQ(config(PCI_INTERRUPT_LINE, 1), 0u);
    EXPECT_EQ(config(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT, 0u);
    EXPECT_EQ(device->interrupts(), InterruptKind::intx);
    EXPECT_EQ(read(0, 0x200c, 1)[0], std::byte{1});
}

TEST_F(PciDeviceTest, InitiateFlrResetsTheFunction)
{
    const auto devctl = capability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    config_write(devctl, 0x2810, 2);
    EXPECT_EQ(device->resets, 0);
    config_write(devctl, 0x2810 | PCI_EXP_DEVCTL_BCR_FLR, 2);
    EXPECT_EQ(device->resets, 1);
    EXPECT_FALSE(device->bus_master());
    EXPECT_EQ(config(devctl, 2) & PCI_EXP_DEVCTL_BCR_FLR, 0u);
    config_write(devctl - 4, std::uint64_t{PCI_EXP_DEVCTL_BCR_FLR} << 32, 8);
    EXPECT_EQ(device->resets, 2) << "also as part of a wider write";
}

TEST_F(PciDeviceTest, AccessesDuringFunctionLevelReset)
{
    device->reset_later = true;
    const auto devctl = capability(PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    config_write(devctl, PCI_EXP_DEVCTL_BCR_FLR, 2);
    EXPECT_EQ(config(PCI_COMMAND, 4), 0xffffffffu) << "what Linux polls for";
    EXPECT_EQ(read(2, 0, 4), std::vector<std::byte>(4, std::byte{0xff}));
    write(2, 0, 1, 4);
    config_write(PCI_COMMAND, PCI_COMMAND_MASTER, 2);
    irq(control::kIrqMsix, IrqAction::assign);
    device->trigger(0);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_THAT(device->writes, IsEmpty());
    bool done = false;
    device->reset([&] { done = true; });
    EXPECT_EQ(device->resets, 1) << "one reset is enough";
    EXPECT_FALSE(done);
    device->finish_reset();
    EXPECT_TRUE(done);
    EXPECT_EQ(config(PCI_COMMAND, 2), 0u);
}

TEST_F(PciDeviceTest, ResetCompletionAfterDestructionIsIgnored)
{
    device->reset_later = true;
    bool done = false;
    device->reset([&] { done = true; });
    const auto finish = device->finish_reset;
    device.reset();
    finish();
    EXPECT_FALSE(done);
}

TEST_F(PciDeviceTest, UnrealisableFunctionsAreRejected)
{
    const auto rejected = [&](auto change) {
        auto f = example_function();
        change(f);
        EXPECT_THROW(ExampleDevice(f, host.services()), std::invalid_argument);
    };
    rejected([](auto &f) { f.bars[2].size = 0x1800; });
    rejected([](auto &f) { f.bars[2].size = 8; });
    rejected([](auto &f) { f.bars[2].size = 1ull << 32; });
    rejected([](auto &f) { f.bars[1].size = 0x1000; });
    rejected([](auto &f) { f.bars[5] = {0x1000, true, false, {}, 0}; });
    rejected([](auto &f) { f.bars[4].areas[0].offset = 0x800; });
    rejected([](auto &f) { f.bars[4].areas[1].size = 0x9000; });
    rejected([](auto &f) { f.bars[4].areas[0].size = 0x8000; });
    rejected([](auto &f) { f.bars[4].region_memory_offset = 0x11000; });
    rejected([](auto &f) { f.msix_table_offset = 0x3c00; });
    rejected([](auto &f) { f.msix_pba_offset = 0x2010; });
    rejected([](auto &f) { f.msix_pba_offset = 0x3004; });
    rejected([](auto &f) { f.msix_bar = 3; });
    rejected([](auto &f) { f.msix_vectors = 2049; });
    rejected([](auto &f) { f.msi_vectors = 3; });
    rejected([](auto &f) { f.msi_vectors = 64; });
    rejected([](auto &f) { f.identity.class_code = 0x1000000; });
    rejected([](auto &f) {
        f.msix_bar = 4;
        f.msix_table_offset = 0x1000;
    });
}

}  // namespace
}  // namespace vvfu::guest
