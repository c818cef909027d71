// SPDX-License-Identifier: BSD-3-Clause
//
// The example program with a vfio-user client: what its README promises.
#include <gtest/gtest.h>
#include <linux/pci_regs.h>
#include <sys/stat.h>

#include <csignal>

#include "adder.hpp"
#include "event_fd.hpp"
#include "process.hpp"
#include "temporary_directory.hpp"
#include "vfio_user_client.hpp"

namespace vvfu::test {
namespace {

using Registers = example::Adder::Registers;

constexpr std::uint32_t kBar0 = 0, kConfig = 7, kMsi = 1;

TEST(AdderProgram, AddsInTheClientsMemoryAndInterrupts)
{
    const TemporaryDirectory directory;
    const auto socket = directory.path("adder.sock");
    Process program({ADDER, socket});
    auto client = VfioUserClient::connect(socket);
    client.version();
    GuestRam ram(0x100000, 0x10000);
    ASSERT_EQ(client.dma_map(ram), 0);
    EventFd interrupt;
    const int fd = interrupt.fd();
    ASSERT_EQ(client.set_irqs(kDataEventfd | kActionTrigger, kMsi, 0, 1, {&fd, 1}), 0);
    client.write<std::uint16_t>(kConfig, PCI_COMMAND, PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY);
    client.write<std::uint32_t>(kBar0, offsetof(Registers, a), 1'000'000);
    client.write<std::uint32_t>(kBar0, offsetof(Registers, b), 234'567);
    client.write<std::uint64_t>(kBar0, offsetof(Registers, destination), ram.address() + 0x40);
    client.write<std::uint32_t>(kBar0, offsetof(Registers, go), 1);
    EXPECT_EQ(interrupt.wait(), 1u);
    EXPECT_EQ(field<std::uint32_t>(ram.bytes(), 0x40), 1'234'567u);
    EXPECT_EQ(client.read<std::uint32_t>(kBar0, offsetof(Registers, sum)), 1'234'567u);

    program.signal(SIGTERM);
    EXPECT_EQ(program.wait(), 0) << program.errors();
    struct stat info {};
    EXPECT_NE(::stat(socket.c_str(), &info), 0) << "the socket is removed";
}

TEST(AdderProgram, RefusesASocketPathThatCannotBe)
{
    Process program({ADDER, "/nonexistent/adder.sock"});
    EXPECT_EQ(program.wait(), 1);
    EXPECT_NE(program.errors().find("adder: "), std::string::npos);
}

}  // namespace
}  // namespace vvfu::test
