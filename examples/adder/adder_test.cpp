// SPDX-License-Identifier: BSD-3-Clause
#include "adder.hpp"

#include <gmock/gmock.h>
#include <linux/pci_regs.h>

#include "fakes.hpp"

namespace example {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using namespace vvfu::guest;
using namespace vvfu::control;

struct AdderTest : testing::Test {
    test::FakeHost host;
    Adder adder{host.services()};

    template <typename T>
    void write(std::uint32_t region, std::uint64_t offset, T value)
    {
        adder.region_write(region, offset, std::as_bytes(std::span{&value, 1}));
    }
    std::uint32_t read(std::uint64_t offset)
    {
        std::uint32_t value = 0;
        adder.region_read(kRegionBar0, offset, std::as_writable_bytes(std::span{&value, 1}));
        return value;
    }
    std::uint32_t memory_at(std::size_t offset)
    {
        std::uint32_t value = 0;
        std::memcpy(&value, host.memory.data() + offset, sizeof value);
        return value;
    }
    void enable(bool bus_master = true)
    {
        write<std::uint16_t>(kRegionConfig, PCI_COMMAND, bus_master ? PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY : 0);
        adder.irq_info({kIrqMsi, 0, 1, IrqAction::assign});
    }
    void add(std::uint32_t a, std::uint32_t b, std::uint64_t destination)
    {
        write(kRegionBar0, offsetof(Adder::Registers, a), a);
        write(kRegionBar0, offsetof(Adder::Registers, b), b);
        write(kRegionBar0, offsetof(Adder::Registers, destination), destination);
        write<std::uint32_t>(kRegionBar0, offsetof(Adder::Registers, go), 1);
    }
};

TEST_F(AdderTest, WritesTheSumToMemoryAndRaisesItsVector)
{
    enable();
    add(40, 2, host.kMemoryAddress + 0x20);
    EXPECT_EQ(memory_at(0x20), 42u);
    EXPECT_EQ(read(offsetof(Adder::Registers, sum)), 42u);
    EXPECT_THAT(host.irqs.triggered, ElementsAre(Pair(kIrqMsi, 0u)));
}

TEST_F(AdderTest, DoesNoDmaWithoutBusMaster)
{
    enable(false);
    add(40, 2, host.kMemoryAddress);
    EXPECT_EQ(memory_at(0), 0u);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
}

TEST_F(AdderTest, RaisesNothingWhenTheDestinationIsNotMemory)
{
    enable();
    add(1, 2, 0xdead0000);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
}

TEST_F(AdderTest, KeepsTheSumAgainstWrites)
{
    write<std::uint32_t>(kRegionBar0, offsetof(Adder::Registers, sum), 7);
    EXPECT_EQ(read(offsetof(Adder::Registers, sum)), 0u);
}

TEST_F(AdderTest, ReadsAllOnesOutsideOfItsRegisters)
{
    EXPECT_EQ(read(0x100), 0xffffffffu);
}

TEST_F(AdderTest, ResetWaitsForMessageOnlyDmaAndRaisesNothingAfterwards)
{
    host.dma.add({DmaAddress{0x8000000}, 0x1000, true, true, nullptr});
    enable();
    add(1, 2, 0x8000000);
    bool done = false;
    adder.reset([&] { done = true; });
    EXPECT_FALSE(done);
    host.message_dma.answer_all();
    EXPECT_TRUE(done);
    EXPECT_THAT(host.irqs.triggered, IsEmpty());
    EXPECT_EQ(read(offsetof(Adder::Registers, a)), 0u);
}

}  // namespace
}  // namespace example
