// SPDX-License-Identifier: BSD-3-Clause
#include "controller.hpp"

#include <gtest/gtest.h>

#include "host.hpp"
#include "test_backing.hpp"

namespace vvfu::nvme::test {
namespace {

constexpr std::uint32_t kNormalShutdown = 1u << 14, kAbruptShutdown = 2u << 14;

SubmissionEntry read_into(Host &host, std::uint64_t slba = 0, Place place = Place::window)
{
    auto entry = io(IoOpcode::read, slba);
    entry.prp1 = host.allocate(512, place, 512);
    return entry;
}

// ---- registers ----

TEST(ControllerRegisters, CapabilitiesAndVersion)
{
    Host host;
    const auto cap = host.read_bar(reg::kCap, 8);
    EXPECT_EQ(cap & 0xffff, kMaxQueueEntries - 1) << "MQES";
    EXPECT_EQ(cap >> 16 & 1, 1u) << "CQR";
    EXPECT_EQ(cap >> 32 & 0xf, 0u) << "DSTRD";
    EXPECT_EQ(cap >> 37 & 0xff, 1u) << "CSS";
    EXPECT_EQ(cap >> 48 & 0xf, 0u) << "MPSMIN";
    EXPECT_EQ(cap >> 52 & 0xf, 4u) << "MPSMAX";
    EXPECT_EQ(host.read_bar(reg::kVs), 0x00010400u);
    EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
}

TEST(ControllerRegisters, ReadsOfEverySizeAgree)
{
    Host host;
    const auto cap = host.read_bar(reg::kCap, 8);
    for (const std::size_t size : {1u, 2u, 4u}) {
        for (std::uint64_t offset = 0; offset < 8; offset += size) {
            const auto mask = (std::uint64_t{1} << (8 * size)) - 1;
            EXPECT_EQ(host.read_bar(offset, size), cap >> (8 * offset) & mask);
        }
    }
    EXPECT_EQ(host.read_bar(0x20), 0u) << "NSSR is absent";
    EXPECT_EQ(host.read_bar(0x38, 8), 0u);
    EXPECT_EQ(host.read_bar(reg::kDoorbells), 0u);
}

TEST(ControllerRegisters, QueueAddressesTakeQuadwordsAndDwords)
{
    Host host;
    host.write_bar(reg::kAsq, 0x1234'5678'9abc'dfff, 8);
    EXPECT_EQ(host.read_bar(reg::kAsq, 8), 0x1234'5678'9abc'd000u);
    host.write_bar(reg::kAcq, 0xfedc'b000);
    host.write_bar(reg::kAcq + 4, 0x7654'3210);
    EXPECT_EQ(host.read_bar(reg::kAcq, 8), 0x7654'3210'fedc'b000u);
    host.write_bar(reg::kAqa, 0xffff'ffff);
    EXPECT_EQ(host.read_bar(reg::kAqa), 0x0fff'0fffu);
}

TEST(ControllerRegisters, ReadOnlyAndOddWritesChangeNothing)
{
    Host host;
    const auto cap = host.read_bar(reg::kCap, 8);
    host.write_bar(reg::kCap, 0, 8);
    host.write_bar(reg::kVs, 0);
    host.write_bar(reg::kCsts, 0xffff'ffff);
    host.write_bar(reg::kCc, 1, 1);
    host.write_bar(reg::kCc, 1, 2);
    host.write_bar(reg::kCc + 1, 1, 4);
    EXPECT_EQ(host.read_bar(reg::kCap, 8), cap);
    EXPECT_EQ(host.read_bar(reg::kVs), 0x00010400u);
    EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
    EXPECT_EQ(host.read_bar(reg::kCc), 0u);
}

TEST(ControllerRegisters, InterruptMaskIsSetAndCleared)
{
    Host host;
    host.write_bar(reg::kIntms, 0x5);
    host.write_bar(reg::kIntms, 0x2);
    EXPECT_EQ(host.read_bar(reg::kIntms), 0x7u);
    host.write_bar(reg::kIntmc, 0x5);
    EXPECT_EQ(host.read_bar(reg::kIntmc), 0x2u);
}

// ---- enabling ----

TEST(ControllerEnable, ImpossibleSettingsAreFatal)
{
    for (const std::uint32_t cc : {Host::kCcEnable | 1u << 4, Host::kCcEnable | 1u << 11, Host::kCcEnable | 5u << 7}) {
        Host host;
        host.write_bar(reg::kAqa, 0x001f'001f);
        host.write_bar(reg::kCc, cc);
        EXPECT_FALSE(host.ready());
        EXPECT_TRUE(host.fatal());
        host.write_bar(reg::kCc, 0);
        EXPECT_FALSE(host.fatal()) << "a reset clears it";
    }
}

TEST(ControllerEnable, AdminQueueOfOneEntryIsFatal)
{
    Host host;
    host.write_bar(reg::kAqa, 0x001f'0000);
    host.write_bar(reg::kCc, Host::kCcEnable);
    EXPECT_TRUE(host.fatal());
}

TEST(ControllerEnable, AdminQueueInsideAPageIsFatal)
{
    for (const auto queue : {reg::kAsq, reg::kAcq}) {
        Host host;
        host.write_bar(reg::kAqa, 0x001f'001f);
        host.write_bar(queue, Host::kWindow + 4096, 8);
        host.write_bar(reg::kCc, Host::kCcEnable | 1u << 7);  // pages of 8 KiB
        EXPECT_TRUE(host.fatal());
        host.write_bar(reg::kCc, 0);
        host.write_bar(reg::kCc, Host::kCcEnable);
        EXPECT_TRUE(host.ready());
    }
}

TEST(ControllerEnable, IoQueuesNeedTheEntrySizes)
{
    Host host;
    host.enable();
    host.write_bar(reg::kCc, 1);
    auto cq = admin(AdminOpcode::create_io_cq, 15u << 16 | 1, 1u << 16 | 3);
    cq.prp1 = host.allocate(4096);
    EXPECT_EQ(host.execute(0, cq).status, Status::invalid_queue_size);
}

TEST(ControllerEnable, WorksWithEveryPageSize)
{
    for (std::uint32_t shift = 12; shift <= 16; ++shift) {
        Host host;
        host.page_shift = shift;
        host.start();
        const auto data = pattern(200 * 1024, shift);
        ASSERT_EQ(host.write(0, data).status, Status::success);
        EXPECT_EQ(host.read(0, 400), data);
    }
}

TEST(ControllerEnable, CanBeResetAndEnabledAgain)
{
    Host host;
    for (int round = 0; round < 3; ++round) {
        host.start();
        const auto data = pattern(512, static_cast<unsigned>(round));
        if (round > 0) {
            EXPECT_EQ(host.read(0, 1), pattern(512, static_cast<unsigned>(round - 1))) << "data survives";
        }
        EXPECT_EQ(host.write(0, data).status, Status::success);
        const auto asq = host.read_bar(reg::kAsq, 8);
        host.disable();
        EXPECT_EQ(host.read_bar(reg::kAsq, 8), asq) << "survives a controller reset";
    }
}

TEST(ControllerEnable, NothingIsFetchedWithoutBusMaster)
{
    Host host;
    host.enable();
    host.set_bus_master(false);
    host.submit(0, admin(AdminOpcode::get_features, 7));
    host.ring_sq(0);
    host.run();
    EXPECT_FALSE(host.poll(0));
    host.set_bus_master(true);
    host.run();
    EXPECT_EQ(host.drain(0).size(), 1u) << "the doorbell rang before";
}

TEST(ControllerEnable, CompletionsWaitForBusMaster)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    const auto id = host.submit(1, io(IoOpcode::flush));
    host.ring_sq(1);
    host.set_bus_master(false);
    host.run_deferred();
    EXPECT_FALSE(host.poll(1));
    EXPECT_EQ(host.irqs.msix(1), 0u);
    host.set_bus_master(true);
    const auto completions = host.drain(1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].command_id, id);
    EXPECT_EQ(host.irqs.msix(1), 1u);
}

/// The queues are reached by messages, and the one that fetches a flush is not answered.
void start_with_held_fetch(Host &host)
{
    host.queue_place = Place::message;
    host.start();
    host.hold_messages = true;
    host.submit(1, io(IoOpcode::flush));
    host.ring_sq(1);
    host.run();
}

/// A fetch by message of the time before ends after the function may do DMA again.
TEST(ControllerEnable, AFetchThatBusMasterInterruptedIsMadeAgain)
{
    Host host;
    start_with_held_fetch(host);
    ASSERT_EQ(host.messages.waiting.size(), 1u);
    host.set_bus_master(false);
    host.set_bus_master(true);
    host.hold_messages = false;
    host.run();
    EXPECT_EQ(host.drain(1).size(), 1u);
}

/// Likewise the write of a completion.
TEST(ControllerEnable, ACompletionThatBusMasterInterruptedIsPostedAgain)
{
    Host host;
    start_with_held_fetch(host);
    ASSERT_TRUE(host.messages.answer_one());
    host.run();
    ASSERT_EQ(host.messages.waiting.size(), 1u) << "the completion";
    host.set_bus_master(false);
    host.set_bus_master(true);
    host.hold_messages = false;
    host.run();
    EXPECT_EQ(host.irqs.msix(1), 1u);
    EXPECT_EQ(host.drain(1).size(), 1u);
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success);
}

TEST(ControllerEnable, QueueMemoryThatIsGoneIsFatal)
{
    Host host;
    host.enable();
    host.submit(0, admin(AdminOpcode::get_features, 7));
    ASSERT_TRUE(host.dma.remove(guest::DmaAddress{Host::kWindow}, Host::kMemory, [] {}));
    host.ring_sq(0);
    host.run();
    EXPECT_TRUE(host.fatal());
    host.write_bar(reg::kCc, 0);
    EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
}

// ---- doorbells ----

TEST(ControllerDoorbells, InvalidOnesRaiseAnEventAndNothingElse)
{
    struct {
        std::uint64_t offset;
        std::uint32_t value, info;
    } cases[] = {
        {reg::kDoorbells + 8 * 2, 1, 0},       // no submission queue 2
        {reg::kDoorbells + 8 * 2 + 4, 1, 0},   // no completion queue 2
        {reg::kDoorbells + 8 * 200, 1, 0},     // no such identifier
        {reg::kDoorbells + 8 * 1, 64, 1},      // the ring has 64 entries
        {reg::kDoorbells + 8 * 1, 0xffff, 1},  //
        {reg::kDoorbells + 8 * 1 + 4, 1, 1},   // no completion to release
    };
    for (const auto &test : cases) {
        Host host;
        host.start();
        const auto id = host.submit(0, admin(AdminOpcode::async_event_request));
        host.ring_sq(0);
        host.write_bar(test.offset, test.value);
        host.run();
        const auto completions = host.drain(0);
        ASSERT_EQ(completions.size(), 1u) << "offset " << test.offset;
        EXPECT_EQ(completions[0].command_id, id);
        EXPECT_EQ(completions[0].dw0, 0x01'00'00u | test.info << 8);
        EXPECT_EQ(field<Le16>(host.log_page(1, 64), 8), 0xffffu) << "an error of no command";
        EXPECT_EQ(host.read(0, 1).size(), 512u) << "the queue still works";
    }
}

TEST(ControllerDoorbells, EventsAreMaskedUntilTheLogIsRead)
{
    Host host;
    host.start();
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.ring_sq(0);
    host.write_bar(reg::kDoorbells + 8 * 1, 64);
    host.write_bar(reg::kDoorbells + 8 * 2, 1);
    host.run();
    EXPECT_EQ(host.drain(0).size(), 1u) << "one event of the type";
    host.log_page(1, 64, true);
    EXPECT_FALSE(host.poll(0)) << "the event was retained";
    auto entry = admin(AdminOpcode::get_log_page, 15u << 16 | 1);
    entry.prp1 = host.allocate(4096);
    host.submit(0, entry);
    host.ring_sq(0);
    host.run();
    EXPECT_EQ(host.drain(0).size(), 2u) << "the log page, and the second event";
}

TEST(ControllerDoorbells, QuadwordWriteIsTwoDoorbells)
{
    Host host;
    host.start();
    host.submit(1, read_into(host));
    host.submit(1, read_into(host));
    host.write_bar(reg::kDoorbells + 8, 1);
    host.run();
    ASSERT_TRUE(host.poll(1));
    host.write_bar(reg::kDoorbells + 8, std::uint64_t{1} << 32 | 2, 8);
    host.run();
    EXPECT_TRUE(host.poll(1));
}

// ---- interrupts ----

TEST(ControllerInterrupts, MsixVectorsFollowTheCompletionQueues)
{
    Host host;
    host.enable();
    const auto admin_interrupts = [&] { return host.irqs.msix(0); };
    const auto before = admin_interrupts();
    host.create_io_queue(1, 64, 5);
    host.create_io_queue(2, 64, 32);
    EXPECT_EQ(admin_interrupts(), before + 4);
    host.submit(1, read_into(host));
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(host.irqs.msix(5), 1u);
    host.submit(2, read_into(host));
    host.ring_sq(2);
    host.run();
    EXPECT_EQ(host.irqs.msix(32), 1u);
    EXPECT_EQ(host.irqs.intx(), 0u);
}

TEST(ControllerInterrupts, OneMessagePerRound)
{
    Host host;
    host.start();
    for (int i = 0; i < 40; ++i) {
        host.submit(1, read_into(host));
    }
    host.ring_sq(1);
    EXPECT_EQ(host.irqs.msix(1), 1u);
    EXPECT_EQ(host.drain(1).size(), 40u);
}

TEST(ControllerInterrupts, QueueWithoutInterruptsIsSilent)
{
    Host host;
    host.enable();
    auto cq = admin(AdminOpcode::create_io_cq, 15u << 16 | 1, 1);
    cq.prp1 = host.allocate(4096);
    ASSERT_EQ(host.execute(0, cq).status, Status::success);
    auto sq = admin(AdminOpcode::create_io_sq, 15u << 16 | 1, 1u << 16 | 1);
    sq.prp1 = host.allocate(4096);
    ASSERT_EQ(host.execute(0, sq).status, Status::success);
    const auto before = host.irqs.total();
    const auto flush = io(IoOpcode::flush);
    std::memcpy(host.at(sq.prp1), &flush, sizeof(flush));
    host.write_bar(reg::kDoorbells + 8, 1);
    host.run();
    EXPECT_EQ(host.load_as<CompletionEntry>(cq.prp1).status & 1, 1u) << "it did complete";
    EXPECT_EQ(host.irqs.total(), before);
}

TEST(ControllerInterrupts, IntxStaysHighUntilTheHeadsCatchUp)
{
    Host host;
    host.enable(false);
    const auto unmask = [&] { host.device().irq_info({control::kIrqIntx, 0, 1, control::IrqAction::unmask}); };
    host.submit(0, admin(AdminOpcode::get_features, 7));
    host.submit(0, admin(AdminOpcode::get_features, 7));
    host.ring_sq(0);
    host.run();
    EXPECT_EQ(host.irqs.intx(), 1u);
    unmask();
    EXPECT_EQ(host.irqs.intx(), 2u) << "still high";
    host.poll(0);
    host.ring_cq(0);
    unmask();
    EXPECT_EQ(host.irqs.intx(), 3u) << "one completion is left";
    host.poll(0);
    host.ring_cq(0);
    unmask();
    EXPECT_EQ(host.irqs.intx(), 3u) << "low";
    EXPECT_EQ(host.irqs.total(), 3u) << "no MSI-X message";
}

TEST(ControllerInterrupts, IntmsMasksIntx)
{
    Host host;
    host.enable(false);
    host.write_bar(reg::kIntms, 1);
    host.submit(0, admin(AdminOpcode::get_features, 7));
    host.ring_sq(0);
    host.run();
    EXPECT_EQ(host.irqs.intx(), 0u);
    host.write_bar(reg::kIntmc, 1);
    EXPECT_EQ(host.irqs.intx(), 1u);
}

/// A controller that has `vectors` vectors of MSI, 2^log2_allowed of which the host allows.
struct MsiHost : Host {
    explicit MsiHost(std::uint16_t vectors, unsigned log2_allowed) : Host(options(vectors))
    {
        enable(false);
        set_msi(true, log2_allowed);
    }
    static NvmeOptions options(std::uint16_t vectors)
    {
        auto options = memory_options();
        options.queue_pairs = static_cast<std::uint16_t>(vectors - 1);
        options.interrupts = guest::InterruptKind::msi;
        return options;
    }
    /// Completes one command; the host does not look at it.
    void complete_one(std::uint16_t qid)
    {
        submit(qid, qid == 0 ? admin(AdminOpcode::get_features, 7) : read_into(*this));
        ring_sq(qid);
        run();
    }
};

TEST(ControllerInterrupts, MsiVectorsFollowTheCompletionQueues)
{
    MsiHost host(4, 2);
    host.complete_one(0);
    EXPECT_EQ(host.irqs.msi(0), 1u);
    host.drain(0);
    host.create_io_queue(1, 16, 3);
    host.create_io_queue(2, 16, 1);
    host.complete_one(1);
    EXPECT_EQ(host.irqs.msi(3), 1u);
    host.complete_one(1);
    EXPECT_EQ(host.irqs.msi(3), 2u) << "each round, although the host has not acknowledged the first";
    host.complete_one(2);
    EXPECT_EQ(host.irqs.msi(1), 1u);
    EXPECT_EQ(host.irqs.intx() + host.irqs.msix(0), 0u);
}

TEST(ControllerInterrupts, MsiMessagesBeyondWhatTheHostAllowsAreNotSent)
{
    MsiHost host(4, 1);
    host.create_io_queue(1, 16, 3);
    const auto before = host.irqs.total();
    host.complete_one(1);
    EXPECT_EQ(host.irqs.total(), before);
    EXPECT_EQ(host.drain(1).size(), 1u);
}

TEST(ControllerInterrupts, IntmsMasksEachVectorOfMsi)
{
    MsiHost host(4, 2);
    host.create_io_queue(1, 16, 1);
    host.create_io_queue(2, 16, 2);
    host.write_bar(reg::kIntms, 1u << 1 | 1u << 3);
    host.complete_one(1);
    host.complete_one(2);
    EXPECT_EQ(host.irqs.msi(1), 0u);
    EXPECT_EQ(host.irqs.msi(2), 1u);
    host.write_bar(reg::kIntmc, 1u << 3);
    EXPECT_EQ(host.irqs.total() - host.irqs.msi(0), 1u) << "nothing waits there";
    host.write_bar(reg::kIntmc, 1u << 1);
    EXPECT_EQ(host.irqs.msi(1), 1u);
    EXPECT_EQ(host.irqs.msi(2), 1u) << "was not masked";
    // What the host has taken while the vector was masked needs no message.
    host.drain(1);
    host.write_bar(reg::kIntms, 1u << 1);
    host.complete_one(1);
    host.drain(1);
    host.write_bar(reg::kIntmc, 1u << 1);
    EXPECT_EQ(host.irqs.msi(1), 1u);
    // What it has not taken does, whether there was a message before or not.
    host.complete_one(1);
    EXPECT_EQ(host.irqs.msi(1), 2u);
    host.write_bar(reg::kIntms, 1u << 1);
    host.write_bar(reg::kIntmc, 1u << 1);
    EXPECT_EQ(host.irqs.msi(1), 3u);
}

TEST(ControllerInterrupts, IntmsMasksMessagesThatCoalescingHeldBack)
{
    MsiHost host(2, 1);
    host.create_io_queue(1, 16, 1);
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x08, 1u << 8 | 3)).status, Status::success);
    host.complete_one(1);
    host.write_bar(reg::kIntms, 1u << 1);
    host.executor.fire_timers();
    EXPECT_EQ(host.irqs.msi(1), 0u);
    host.write_bar(reg::kIntmc, 1u << 1);
    EXPECT_EQ(host.irqs.msi(1), 1u);
}

TEST(ControllerInterrupts, IntmsHasNoEffectOnMsix)
{
    Host host;
    host.start();
    host.write_bar(reg::kIntms, 0xffff'ffff);
    host.submit(1, read_into(host));
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(host.irqs.msix(1), 1u);
    host.write_bar(reg::kIntmc, 0xffff'ffff);
    EXPECT_EQ(host.irqs.msix(1), 1u);
}

TEST(ControllerInterrupts, WithIntxAloneThereIsOneVector)
{
    auto options = Host::memory_options();
    options.interrupts = guest::InterruptKind::intx;
    Host host(options);
    host.enable(false);
    auto cq = admin(AdminOpcode::create_io_cq, 15u << 16 | 1, 1u << 16 | 3);
    cq.prp1 = host.allocate(4096);
    EXPECT_EQ(host.execute(0, cq).status, Status::invalid_interrupt_vector);
    host.create_io_queue(1, 16, 0);
    host.create_io_queue(32, 16, 0);
    const auto before = host.irqs.intx();
    host.device().irq_info({control::kIrqIntx, 0, 1, control::IrqAction::unmask});
    host.submit(32, read_into(host));
    host.ring_sq(32);
    host.run();
    EXPECT_EQ(host.irqs.intx(), before + 1);
    EXPECT_EQ(host.irqs.total(), host.irqs.intx());
}

TEST(ControllerInterrupts, QueuesMayNameAnyVectorOfTheControllerWhileMsixIsOff)
{
    auto options = Host::memory_options();
    options.queue_pairs = 3;
    Host host(options);
    host.enable(false);
    auto cq = admin(AdminOpcode::create_io_cq, 15u << 16 | 1, 4u << 16 | 3);
    cq.prp1 = host.allocate(4096);
    EXPECT_EQ(host.execute(0, cq).status, Status::invalid_interrupt_vector) << "it has 0 to 3";
    host.create_io_queue(1, 16, 3);
    host.set_msix(true);
    host.submit(1, read_into(host));
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(host.irqs.msix(3), 1u);
}

TEST(ControllerInterrupts, CoalescingHoldsMessagesBackUntilThresholdOrTime)
{
    Host host;
    host.start();
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x08, 2u << 8 | 3)).status, Status::success);
    const auto read_one = [&] {
        host.submit(1, read_into(host));
        host.ring_sq(1);
        host.run();
        host.drain(1);
    };
    for (int i = 0; i < 3; ++i) {
        read_one();
    }
    EXPECT_EQ(host.irqs.msix(1), 0u);
    read_one();
    EXPECT_EQ(host.irqs.msix(1), 1u) << "threshold 3 is 0's based";
    read_one();
    EXPECT_EQ(host.irqs.msix(1), 1u);
    ASSERT_FALSE(host.executor.timers.empty());
    EXPECT_EQ(host.executor.timers[0].first, std::chrono::microseconds(200));
    host.executor.fire_timers();
    EXPECT_EQ(host.irqs.msix(1), 2u) << "time is up";
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x09, 1u << 16 | 1)).status, Status::success);
    read_one();
    EXPECT_EQ(host.irqs.msix(1), 3u) << "coalescing disabled for the vector";
}

TEST(ControllerInterrupts, AMessageThatIsDueWithoutBusMasterIsSentLater)
{
    Host host;
    host.start();
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x08, 2u << 8 | 3)).status, Status::success);
    host.submit(1, read_into(host));
    host.ring_sq(1);
    host.run();
    host.set_bus_master(false);
    host.executor.fire_timers();
    EXPECT_EQ(host.irqs.msix(1), 0u);
    host.set_bus_master(true);
    EXPECT_EQ(host.irqs.msix(1), 1u);
}

// ---- resets with work under way ----

enum class Ending { disable, function_reset, peer_gone };

class ControllerReset : public testing::TestWithParam<Ending> {
protected:
    ControllerReset() { host.start(); }
    void begin()
    {
        switch (GetParam()) {
            case Ending::disable: host.write_bar(reg::kCc, 0x0046'0000); break;
            case Ending::function_reset: host.device().reset([this] { ++done; }); break;
            case Ending::peer_gone:
                host.dma.clear();
                host.device().peer_gone([this] { ++done; });
                break;
        }
    }
    [[nodiscard]] bool over() { return GetParam() == Ending::disable ? !host.ready() : done == 1; }

    TemporaryFile file{1 << 20};
    Host host{Host::file_options(file)};
    int done = 0;
};

INSTANTIATE_TEST_SUITE_P(, ControllerReset,
                         testing::Values(Ending::disable, Ending::function_reset, Ending::peer_gone));

TEST_P(ControllerReset, WithNothingUnderWayIsImmediate)
{
    begin();
    EXPECT_TRUE(over());
}

TEST_P(ControllerReset, WaitsForBackingAndCompletesNothingAfterwards)
{
    host.workers.deferred = true;
    for (int i = 0; i < 8; ++i) {
        host.submit(1, read_into(host, static_cast<std::uint64_t>(i), i % 2 == 0 ? Place::window : Place::message));
    }
    for (int i = 0; i < 4; ++i) {
        host.submit(0, admin(AdminOpcode::async_event_request));
    }
    host.ring_sq(0);
    host.ring_sq(1);
    host.run();
    ASSERT_EQ(host.workers.jobs.size(), 8u);
    const auto interrupts = host.irqs.total();
    begin();
    host.run();
    EXPECT_FALSE(over());
    host.run_deferred();
    EXPECT_TRUE(over());
    EXPECT_FALSE(host.poll(1));
    EXPECT_EQ(host.irqs.total(), interrupts);
    EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
}

TEST_P(ControllerReset, WaitsForMessages)
{
    host.hold_messages = true;
    auto entry = io(IoOpcode::write);
    entry.prp1 = host.allocate(512, Place::message);
    host.submit(1, entry);
    host.ring_sq(1);
    host.run();
    ASSERT_EQ(host.messages.waiting.size(), 1u);
    begin();
    host.run();
    EXPECT_FALSE(over());
    host.run_deferred();
    EXPECT_TRUE(over());
    EXPECT_FALSE(host.poll(1));
}

TEST_P(ControllerReset, LeavesTheControllerUsable)
{
    host.workers.deferred = true;
    host.submit(1, read_into(host));
    host.ring_sq(1);
    begin();
    host.run_deferred();
    host.workers.deferred = false;
    if (GetParam() == Ending::peer_gone) {
        host.add_memory();
    }
    host.start();
    EXPECT_EQ(host.read(0, 1).size(), 512u);
}

TEST(ControllerResetDetails, DisableAndEnableInOneGo)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    host.submit(1, read_into(host));
    host.ring_sq(1);
    host.run();
    host.write_bar(reg::kCc, 0x0046'0000);
    EXPECT_TRUE(host.ready()) << "work is under way";
    host.enable();
    EXPECT_TRUE(host.ready());
    host.workers.deferred = false;
    host.run();
    EXPECT_TRUE(host.ready());
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 7)).status, Status::success);
}

TEST(ControllerResetDetails, FeaturesAndEventsAreForgotten)
{
    Host host;
    host.start();
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x0b, 2)).status, Status::success);
    host.disable();
    host.start();
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 0x0b)).dw0, 0u);
}

TEST(ControllerResetDetails, ModelCanBeDestroyedWithWorkUnderWay)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    host.submit(1, read_into(host));
    host.submit(1, read_into(host, 1, Place::message));
    auto entry = io(IoOpcode::write);
    entry.prp1 = host.allocate(512, Place::message);
    host.hold_messages = true;
    host.submit(1, entry);
    host.ring_sq(1);
    host.run();
    host.destroy_device();
    host.run_deferred();
}

// ---- shutdown ----

TEST(ControllerShutdown, FlushesAfterWhatIsUnderWay)
{
    TemporaryFile file(1 << 20);
    for (const auto kind : {kNormalShutdown, kAbruptShutdown}) {
        Host host(Host::file_options(file));
        host.start();
        host.workers.deferred = true;
        host.submit(1, read_into(host));
        host.ring_sq(1);
        host.run();
        host.write_bar(reg::kCc, Host::kCcEnable | kind);
        host.run();
        EXPECT_EQ(host.shutdown_status(), 1u) << "occurring";
        host.run_deferred();
        EXPECT_EQ(host.shutdown_status(), 2u) << "complete";
        EXPECT_EQ(host.drain(1).size(), 1u) << "the command was not lost";
        host.write_bar(reg::kCc, 0);
        EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
    }
}

TEST(ControllerShutdown, NeverCompletesWhenItsFlushFailed)
{
    StorageScript script;
    Host host(std::make_unique<TestBacking>(script));
    host.start();
    script.sync_errors = {EIO};
    host.write_bar(reg::kCc, Host::kCcEnable | kNormalShutdown);
    host.run();
    EXPECT_EQ(host.shutdown_status(), 1u) << "occurring";
    EXPECT_TRUE(host.fatal());
    host.write_bar(reg::kCc, 0);
    host.run();
    EXPECT_EQ(host.read_bar(reg::kCsts), 0u);
    host.start();
    host.write_bar(reg::kCc, Host::kCcEnable | kNormalShutdown);
    host.run();
    EXPECT_EQ(host.shutdown_status(), 1u) << "the second try is not believed either";
}

TEST(ControllerShutdown, OfADisabledControllerCompletes)
{
    Host host;
    host.write_bar(reg::kCc, kNormalShutdown);
    EXPECT_EQ(host.shutdown_status(), 2u);
    host.write_bar(reg::kCc, 0);
    EXPECT_EQ(host.shutdown_status(), 0u);
    host.write_bar(reg::kCc, kNormalShutdown);
    host.start();
    EXPECT_EQ(host.shutdown_status(), 0u);
}

TEST(ControllerShutdown, UnsafeOnesAreCounted)
{
    Host host;
    const auto unsafe = [&] { return field<Le64>(host.log_page(2, 512), 144); };
    host.enable();
    EXPECT_EQ(unsafe(), 0u);
    host.device().reset([] {});
    host.enable();
    EXPECT_EQ(unsafe(), 1u);
    host.write_bar(reg::kCc, Host::kCcEnable | kNormalShutdown);
    host.device().reset([] {});
    host.enable();
    EXPECT_EQ(unsafe(), 1u);
}

}  // namespace
}  // namespace vvfu::nvme::test
