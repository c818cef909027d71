// SPDX-License-Identifier: BSD-3-Clause
#include "queue_engine.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

SubmissionEntry read_into(std::uint64_t buffer, std::uint64_t slba)
{
    auto entry = io(IoOpcode::read, slba);
    entry.prp1 = buffer;
    return entry;
}

class QueueEngineIn : public testing::TestWithParam<Place> {
protected:
    QueueEngineIn() { host.queue_place = GetParam(); }
    Host host;
};
INSTANTIATE_TEST_SUITE_P(, QueueEngineIn, testing::Values(Place::window, Place::message));

TEST_P(QueueEngineIn, RingsWrapManyTimes)
{
    host.enable();
    host.create_io_queue(1, 5);
    const auto buffer = host.allocate(4096);
    std::mt19937 random(7);
    std::set<std::uint16_t> outstanding;
    unsigned completed = 0;
    while (completed < 500) {
        // The queue holds four commands.
        for (auto n = random() % 5; n > 0 && outstanding.size() < 4; --n) {
            outstanding.insert(host.submit(1, read_into(buffer, random() % 100)));
        }
        host.ring_sq(1);
        host.run();
        for (const auto &completion : host.drain(1)) {
            ASSERT_EQ(completion.status, Status::success);
            ASSERT_EQ(outstanding.erase(completion.command_id), 1u);
            ++completed;
        }
        ASSERT_TRUE(outstanding.empty());
    }
    EXPECT_FALSE(host.fatal());
}

TEST_P(QueueEngineIn, FullCompletionQueueHoldsCompletionsBack)
{
    host.enable();
    // The completion queue holds three entries, the submission queue 31 commands.
    const auto cq_memory = host.make_queue(4);
    auto cq = admin(AdminOpcode::create_io_cq, 3u << 16 | 1, 1u << 16 | 3);
    cq.prp1 = cq_memory.cq;
    ASSERT_EQ(host.execute(0, cq).status, Status::success);
    const auto sq_memory = host.make_queue(32);
    auto sq = admin(AdminOpcode::create_io_sq, 31u << 16 | 1, 1u << 16 | 1);
    sq.prp1 = sq_memory.sq;
    ASSERT_EQ(host.execute(0, sq).status, Status::success);

    const auto flush = io(IoOpcode::flush);
    for (std::uint32_t i = 0; i < 31; ++i) {
        auto entry = flush;
        entry.command_id = static_cast<std::uint16_t>(i);
        std::memcpy(host.at(sq_memory.sq + i * sizeof(entry)), &entry, sizeof(entry));
    }
    host.write_bar(reg::kDoorbells + 8, 31);
    host.run();

    const auto entry_at = [&](std::uint32_t index) {
        return host.load_as<CompletionEntry>(cq_memory.cq + index * sizeof(CompletionEntry));
    };
    std::uint32_t head = 0;
    bool phase = true;
    for (std::uint16_t id = 0; id < 31;) {
        std::uint32_t batch = 0;
        while (batch < 4 && ((entry_at(head).status & 1) != 0) == phase) {
            ASSERT_EQ(entry_at(head).command_id, id++) << "in order";
            head = (head + 1) % 4;
            phase = head == 0 ? !phase : phase;
            ++batch;
        }
        ASSERT_GT(batch, 0u);
        ASSERT_LE(batch, 3u) << "one entry stays free";
        host.write_bar(reg::kDoorbells + 8 + 4, head);
        host.run();
    }
}

TEST_P(QueueEngineIn, ReportsTheSubmissionQueueHead)
{
    host.enable();
    host.create_io_queue(1, 8);
    for (std::uint32_t i = 1; i <= 20; ++i) {
        const auto completion = host.execute(1, io(IoOpcode::flush));
        EXPECT_EQ(completion.sq_head, i % 8);
    }
}

TEST_P(QueueEngineIn, CommandsOfManyQueuesAllComplete)
{
    host.enable();
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        host.create_io_queue(qid, 32);
    }
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        for (int i = 0; i < 31; ++i) {
            host.submit(qid, io(IoOpcode::flush));
        }
    }
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        host.ring_sq(qid);
    }
    host.run();
    for (std::uint16_t qid = 1; qid <= 32; ++qid) {
        EXPECT_EQ(host.drain(qid).size(), 31u) << "queue " << qid;
        EXPECT_GE(host.irqs.msix(qid), 1u);
    }
}

TEST(QueueEngine, LongBacklogLeavesTheExecutorItsTurn)
{
    Host host;
    host.enable();
    host.create_io_queue(1, 256);
    for (int i = 0; i < 255; ++i) {
        host.submit(1, io(IoOpcode::flush));
    }
    host.ring_sq(1);
    const auto in_call = host.drain(1).size();
    EXPECT_GT(in_call, 0u);
    EXPECT_LT(in_call, 255u);
    host.run();
    EXPECT_EQ(in_call + host.drain(1).size(), 255u);
}

TEST(QueueEngine, BusyQueueDoesNotStarveAnother)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.enable();
    const auto buffer = host.allocate(512);
    host.create_io_queue(1, 256);
    host.create_io_queue(2, 256);
    host.set_bus_master(false);  // both doorbells ring before the first fetch
    for (int i = 0; i < 200; ++i) {
        host.submit(1, read_into(buffer, 0));
    }
    const auto lone = host.submit(2, io(static_cast<IoOpcode>(0x7f)));
    host.ring_sq(1);
    host.ring_sq(2);
    host.workers.deferred = true;
    host.set_bus_master(true);
    EXPECT_LE(host.workers.jobs.size(), 64u);
    const auto completions = host.drain(2);
    ASSERT_EQ(completions.size(), 1u) << "its turn came in the first round";
    EXPECT_EQ(completions[0].command_id, lone);
    host.run_deferred();
}

TEST(QueueEngine, CommandsInFlightAreBounded)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.enable();
    const auto buffer = host.allocate(512);
    host.create_io_queue(1, 1024);
    host.workers.deferred = true;
    for (int i = 0; i < 1000; ++i) {
        host.submit(1, read_into(buffer, 0));
    }
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(host.workers.jobs.size(), kMaxInFlight);
    std::size_t total = 0;
    while (total < 1000) {
        host.run_deferred();
        const auto completed = host.drain(1).size();
        ASSERT_GT(completed, 0u);
        total += completed;
    }
    EXPECT_EQ(total, 1000u);
}

TEST(QueueEngine, CommandsOfAllQueuesAreBoundedAndAdminIsNot)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.enable();
    host.workers.deferred = true;
    const auto buffer = host.allocate(512);
    for (std::uint16_t qid = 1; qid <= 4; ++qid) {
        host.create_io_queue(qid, 128);
        for (int i = 0; i < 127; ++i) {
            host.submit(qid, read_into(buffer, 0));
        }
        host.ring_sq(qid);
        host.run();
    }
    EXPECT_EQ(host.workers.jobs.size(), kMaxCommands);
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 7)).status, Status::success);
    host.run_deferred();
    for (std::uint16_t qid = 1; qid <= 4; ++qid) {
        EXPECT_EQ(host.drain(qid).size(), 127u);
    }
}

TEST(QueueEngine, AbortedCommandsCountUntilTheirDataIsThrough)
{
    Host host;
    host.enable();
    host.create_io_queue(1, 1024);
    host.hold_messages = true;
    auto entry = io(IoOpcode::write);
    entry.prp1 = host.allocate(512, Place::message);
    std::vector<std::uint16_t> ids;
    for (int i = 0; i < 600; ++i) {
        ids.push_back(host.submit(1, entry));
    }
    host.ring_sq(1);
    host.run();
    for (std::uint32_t i = 0; i < kMaxCommands; ++i) {
        ASSERT_EQ(host.execute(0, admin(AdminOpcode::abort, std::uint32_t{ids[i]} << 16 | 1)).dw0 & 1, 0u);
    }
    EXPECT_EQ(host.drain(1).size(), kMaxCommands);
    host.run();
    EXPECT_EQ(host.messages.waiting.size(), kMaxCommands) << "no more than that";
    host.hold_messages = false;
    host.run();
    EXPECT_EQ(host.drain(1).size(), 600 - kMaxCommands) << "the rest had its turn";
}

TEST(QueueEngine, AsynchronousCompletionsShareAnInterrupt)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    for (int i = 0; i < 10; ++i) {
        auto read = io(IoOpcode::read);
        read.prp1 = host.allocate(512);
        host.submit(1, read);
    }
    host.ring_sq(1);
    host.run();
    host.run_deferred();
    EXPECT_EQ(host.drain(1).size(), 10u);
    EXPECT_EQ(host.irqs.msix(1), 1u);
}

TEST(QueueEngine, DeletionWaitsForCommandsUnderWay)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    for (int i = 0; i < 3; ++i) {
        host.submit(1, io(IoOpcode::flush));
    }
    host.ring_sq(1);
    const auto id = host.submit(0, admin(AdminOpcode::delete_io_sq, 1));
    host.ring_sq(0);
    host.run();
    EXPECT_FALSE(host.poll(0));
    auto delete_cq = admin(AdminOpcode::delete_io_cq, 1);
    EXPECT_EQ(host.execute(0, delete_cq).status, Status::invalid_queue_deletion) << "still in use";
    host.run_deferred();
    const auto completions = host.drain(0);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].command_id, id);
    EXPECT_EQ(host.drain(1).size(), 3u);
    EXPECT_EQ(host.execute(0, delete_cq).status, Status::success);
}

TEST(QueueEngine, DeletionDoesNotWaitForRoomInTheCompletionQueue)
{
    for (const auto place : {Place::window, Place::message}) {
        TemporaryFile file(1 << 20);
        Host host(Host::file_options(file));
        host.queue_place = place;
        host.enable();
        host.create_io_queue(1, 4);
        host.submit(1, io(IoOpcode::flush));
        host.submit(1, io(IoOpcode::flush));
        host.submit(1, io(IoOpcode::flush));
        host.ring_sq(1);
        host.run();
        // The completion queue is full now, and the host does not look at it.
        host.submit(1, io(IoOpcode::flush));
        host.submit(1, io(IoOpcode::flush));
        host.ring_sq(1);
        host.run();
        EXPECT_EQ(host.execute(0, admin(AdminOpcode::delete_io_sq, 1)).status, Status::success);
        EXPECT_EQ(host.execute(0, admin(AdminOpcode::delete_io_cq, 1)).status, Status::success);
    }
}

TEST(QueueEngine, UnmapWaitsForDataInUse)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    host.submit(1, read_into(host.allocate(512), 0));
    host.ring_sq(1);
    host.run();
    bool idle = false;
    ASSERT_TRUE(host.dma.remove(guest::DmaAddress{Host::kWindow}, Host::kMemory, [&] { idle = true; }));
    EXPECT_FALSE(idle);
    host.run_deferred();
    EXPECT_TRUE(idle);
}

TEST(QueueEngine, UnmapDoesNotWaitForDataThatWasTaken)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    host.workers.deferred = true;
    const auto data = pattern(512, 1);
    for (const auto opcode : {IoOpcode::write, IoOpcode::compare}) {
        auto entry = io(opcode);
        entry.prp1 = host.allocate(512);
        host.store(entry.prp1, data);
        host.submit(1, entry);
    }
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(host.workers.jobs.size(), 2u);
    bool idle = false;
    ASSERT_TRUE(host.dma.remove(guest::DmaAddress{Host::kWindow}, Host::kMemory, [&] { idle = true; }));
    EXPECT_TRUE(idle);
    host.run_deferred();
}

}  // namespace
}  // namespace vvfu::nvme::test
