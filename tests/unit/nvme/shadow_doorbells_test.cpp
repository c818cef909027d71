// SPDX-License-Identifier: BSD-3-Clause
#include "shadow_doorbells.hpp"

#include <gtest/gtest.h>

#include <random>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

/// A host that uses shadow doorbells as NVMe 7.13 describes.
class ShadowDoorbellsTest : public testing::Test {
protected:
    void start(bool msix = true, std::uint32_t entries = 16)
    {
        host.enable(msix);
        host.create_io_queue(1, entries, msix ? 1 : 0);
    }
    Status configure(std::uint64_t shadow_page, std::uint64_t event_page)
    {
        auto entry = admin(AdminOpcode::doorbell_buffer_config);
        entry.prp1 = shadow = shadow_page;
        entry.prp2 = events = event_page;
        return host.execute(0, entry).status;
    }
    void configure()
    {
        const auto pages = host.allocate(8192);
        ASSERT_EQ(configure(pages, pages + 4096), Status::success);
    }
    /// Returns whether the register had to be written, too.
    bool ring(std::uint32_t index, std::uint32_t value)
    {
        const auto old = host.load_as<Le32>(shadow + 4 * index);
        const Le32 little = value;
        std::memcpy(host.at(shadow + 4 * index), &little, sizeof(little));
        const auto event = host.load_as<Le32>(events + 4 * index);
        const bool needed = static_cast<std::uint16_t>(value - event - 1) < static_cast<std::uint16_t>(value - old);
        if (needed) {
            ++register_writes;
            host.write_bar(reg::kDoorbells + 4 * index, value);
        }
        return needed;
    }
    bool ring_sq() { return ring(2, host.queue(1).sq_tail); }
    bool ring_cq() { return ring(3, host.queue(1).cq_head); }

    Host host;
    std::uint64_t shadow = 0, events = 0;
    unsigned register_writes = 0;
};

TEST_F(ShadowDoorbellsTest, IntxFollowsAHeadThatMovedWithoutBusMaster)
{
    start(false);
    configure();
    host.submit(1, io(IoOpcode::flush));
    ring_sq();
    host.run();
    const auto raised = host.irqs.intx();
    host.set_bus_master(false);
    ASSERT_TRUE(host.poll(1));
    ring_cq();
    host.set_bus_master(true);
    host.device().irq_info({control::kIrqIntx, 0, 1, control::IrqAction::unmask});
    EXPECT_EQ(host.irqs.intx(), raised) << "nothing is left to interrupt for";
}

TEST_F(ShadowDoorbellsTest, EveryCommandCompletesWithFewerRegisterWrites)
{
    start();
    configure();
    std::mt19937 random(5);
    unsigned submitted = 0, completed = 0;
    while (completed < 1000) {
        for (auto n = random() % 15; n > 0 && submitted - completed < 15; --n) {
            host.submit(1, io(IoOpcode::flush));
            ++submitted;
            ring_sq();
        }
        host.run();
        while (host.poll(1)) {
            ++completed;
        }
        ring_cq();
        host.run();
        ASSERT_FALSE(host.fatal());
    }
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 7)).status, Status::success);
    EXPECT_LT(register_writes, submitted + submitted / 8) << "heads are announced once per ring";
}

TEST_F(ShadowDoorbellsTest, BusyQueueNeedsNoRegisterWrites)
{
    TemporaryFile file(1 << 20);
    start();
    configure();
    host.set_bus_master(false);  // stands for a controller that is busy
    for (int i = 0; i < 10; ++i) {
        host.submit(1, io(IoOpcode::flush));
        EXPECT_EQ(ring_sq(), i == 0);
    }
    host.set_bus_master(true);
    host.write_bar(reg::kDoorbells + 8, 1);
    host.run();
    unsigned completed = 0;
    while (host.poll(1)) {
        ++completed;
    }
    EXPECT_EQ(completed, 10u);
    host.submit(1, io(IoOpcode::flush));
    EXPECT_TRUE(ring_sq()) << "idle again";
}

TEST_F(ShadowDoorbellsTest, RegisterValuesOlderThanTheShadowAreHarmless)
{
    start();
    configure();
    for (std::uint32_t i = 1; i <= 5; ++i) {
        host.submit(1, io(IoOpcode::flush));
    }
    ring(2, 5);
    host.write_bar(reg::kDoorbells + 8, 2);
    host.run();
    EXPECT_EQ(host.drain(1).size(), 5u);
    EXPECT_EQ(field<Le64>(host.log_page(2, 512), 176), 0u) << "no error";
}

TEST_F(ShadowDoorbellsTest, FullCompletionQueueIsNoticed)
{
    start(true, 4);
    configure();
    unsigned completed = 0;
    for (int i = 0; i < 200; ++i) {
        host.submit(1, io(IoOpcode::flush));
        ring_sq();
        host.run();
        if (i % 3 == 2) {  // three completions fill the ring
            while (host.poll(1)) {
                ++completed;
                ring_cq();
            }
            host.run();
        }
    }
    EXPECT_GE(completed, 198u);
}

TEST_F(ShadowDoorbellsTest, IntxFollowsTheShadowHead)
{
    start(false);
    configure();
    host.drain(0);
    host.run();
    const auto unmask = [&] { host.device().irq_info({control::kIrqIntx, 0, 1, control::IrqAction::unmask}); };
    unmask();
    for (int i = 0; i < 40; ++i) {
        const auto before = host.irqs.intx();
        host.submit(1, io(IoOpcode::flush));
        ring_sq();
        host.run();
        ASSERT_EQ(host.irqs.intx(), before + 1);
        ASSERT_TRUE(host.poll(1));
        EXPECT_TRUE(ring_cq()) << "the level depends on it";
        unmask();
        ASSERT_EQ(host.irqs.intx(), before + 1) << "low";
    }
}

TEST_F(ShadowDoorbellsTest, QueuesUsedBeforeAndMadeLaterAreServed)
{
    start();
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success);
    }
    configure();
    EXPECT_EQ(host.load_as<Le32>(shadow + 8), 3u) << "the tail, for the host to see";
    host.submit(1, io(IoOpcode::flush));
    EXPECT_TRUE(ring_sq());
    host.run();
    EXPECT_TRUE(host.poll(1));
    host.create_io_queue(2, 16);
    host.submit(2, io(IoOpcode::flush));
    EXPECT_TRUE(ring(4, 1));
    host.run();
    EXPECT_TRUE(host.poll(2));
}

TEST_F(ShadowDoorbellsTest, ShadowWrittenBeforeTheCommandCounts)
{
    start();
    const auto pages = host.allocate(8192);
    const Le32 tail = 2;
    std::memcpy(host.at(pages + 8), &tail, sizeof(tail));
    host.submit(1, io(IoOpcode::flush));
    host.submit(1, io(IoOpcode::flush));
    ASSERT_EQ(configure(pages, pages + 4096), Status::success);
    host.run();
    EXPECT_TRUE(host.poll(1));
    EXPECT_TRUE(host.poll(1));
}

TEST_F(ShadowDoorbellsTest, CompletionsThatWaitForRoomSeeAHeadWrittenBeforeTheCommand)
{
    start(true, 4);
    for (int i = 0; i < 6; ++i) {  // three fill the completion queue
        host.submit(1, io(IoOpcode::flush));
        host.ring_sq(1);
        host.run();
    }
    ASSERT_TRUE(host.poll(1));
    ASSERT_TRUE(host.poll(1));
    const auto pages = host.allocate(8192);
    const Le32 tail = host.queue(1).sq_tail, head = host.queue(1).cq_head;
    std::memcpy(host.at(pages + 8), &tail, sizeof(tail));
    std::memcpy(host.at(pages + 12), &head, sizeof(head));
    ASSERT_EQ(configure(pages, pages + 4096), Status::success);
    host.run();
    for (int i = 0; i < 3; ++i) {
        EXPECT_TRUE(host.poll(1)) << i;
    }
}

TEST_F(ShadowDoorbellsTest, ImpossibleShadowValueIsAnError)
{
    start();
    configure();
    const auto id = host.submit(0, admin(AdminOpcode::async_event_request));
    host.ring_sq(0);
    const Le32 bad = 500;
    std::memcpy(host.at(shadow + 8), &bad, sizeof(bad));
    host.write_bar(reg::kDoorbells + 8, 1);
    host.run();
    const auto completions = host.drain(0);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].command_id, id);
    EXPECT_EQ(completions[0].dw0, 0x01'01'00u);
}

TEST_F(ShadowDoorbellsTest, BuffersThatCannotBeUsedAreRefused)
{
    start();
    const auto page = host.allocate(8192);
    EXPECT_EQ(configure(page + 4, page + 4096), Status::invalid_field);
    EXPECT_EQ(configure(page, page + 4096 + 8), Status::invalid_field);
    EXPECT_EQ(configure(0x1000, page), Status::data_transfer_error);
    EXPECT_EQ(configure(page, 0x1000), Status::data_transfer_error);
    EXPECT_EQ(configure(host.allocate(4096, Place::message), page), Status::internal_error);
    host.run();
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success) << "registers still work";
}

TEST_F(ShadowDoorbellsTest, BuffersThatVanishAreFatal)
{
    for (const bool as_messages : {false, true}) {
        Host other;
        other.enable();
        other.create_io_queue();
        auto entry = admin(AdminOpcode::doorbell_buffer_config);
        entry.prp1 = other.allocate(4096);
        entry.prp2 = other.allocate(4096);
        ASSERT_EQ(other.execute(0, entry).status, Status::success);
        ASSERT_TRUE(other.dma.remove(guest::DmaAddress{Host::kWindow}, Host::kMemory, [] {}));
        if (as_messages) {
            other.hold_messages = true;
            other.dma.add({guest::DmaAddress{Host::kWindow}, Host::kMemory, true, true, nullptr});
        }
        other.ring_sq(1);
        other.run();
        EXPECT_TRUE(other.fatal());
        other.messages.waiting.clear();
        other.write_bar(reg::kCc, 0);
        other.run();
        EXPECT_EQ(other.read_bar(reg::kCsts), 0u);
    }
}

TEST_F(ShadowDoorbellsTest, ResetGoesBackToRegisters)
{
    start();
    configure();
    host.disable();
    host.start();
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success);
}

}  // namespace
}  // namespace vvfu::nvme::test
