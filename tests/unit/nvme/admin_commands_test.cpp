// SPDX-License-Identifier: BSD-3-Clause
#include "admin_commands.hpp"

#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

class AdminCommands : public testing::Test {
protected:
    AdminCommands() { host.enable(); }
    Status status(const SubmissionEntry &entry) { return host.execute(0, entry).status; }

    SubmissionEntry create_cq(std::uint16_t id, std::uint32_t entries = 16, std::uint16_t vector = 1)
    {
        auto entry = admin(AdminOpcode::create_io_cq, (entries - 1) << 16 | id, std::uint32_t{vector} << 16 | 3);
        entry.prp1 = host.allocate(4096);
        return entry;
    }
    SubmissionEntry create_sq(std::uint16_t id, std::uint16_t cq, std::uint32_t entries = 16)
    {
        auto entry = admin(AdminOpcode::create_io_sq, (entries - 1) << 16 | id, std::uint32_t{cq} << 16 | 1);
        entry.prp1 = host.allocate(4096);
        return entry;
    }
    SubmissionEntry delete_queue(AdminOpcode opcode, std::uint16_t id) { return admin(opcode, id); }

    Host host;
};

TEST_F(AdminCommands, UnknownOpcodeIsInvalidOpcode)
{
    for (const unsigned opcode : {0x03u, 0x07u, 0x0du, 0x10u, 0x11u, 0x14u, 0x15u, 0x18u, 0x7du, 0x80u, 0x81u, 0xc0u}) {
        EXPECT_EQ(status(admin(static_cast<AdminOpcode>(opcode))), Status::invalid_opcode);
    }
}

TEST_F(AdminCommands, FusedAndSglCommandsAreInvalidField)
{
    for (const unsigned flags : {0x01u, 0x40u, 0x80u}) {
        auto entry = admin(AdminOpcode::identify, 1);
        entry.flags = static_cast<std::uint8_t>(flags);
        EXPECT_EQ(status(entry), Status::invalid_field);
    }
}

TEST_F(AdminCommands, CreateCqRefusesBadParameters)
{
    EXPECT_EQ(status(create_cq(0)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_cq(33)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_cq(1, 1)), Status::invalid_queue_size);
    EXPECT_EQ(status(create_cq(1, kMaxQueueEntries + 1)), Status::invalid_queue_size);
    EXPECT_EQ(status(create_cq(1, 16, 33)), Status::invalid_interrupt_vector);
    auto entry = create_cq(1);
    entry.cdw11 = entry.cdw11 & ~1u;
    EXPECT_EQ(status(entry), Status::invalid_field) << "not contiguous";
    entry = create_cq(1);
    entry.prp1 = entry.prp1 + 16;
    EXPECT_EQ(status(entry), Status::invalid_prp_offset);
    EXPECT_EQ(status(create_cq(1, kMaxQueueEntries, 32)), Status::success);
    EXPECT_EQ(status(create_cq(1)), Status::invalid_queue_identifier) << "exists";
}

TEST_F(AdminCommands, CreateSqRefusesBadParameters)
{
    ASSERT_EQ(status(create_cq(1)), Status::success);
    EXPECT_EQ(status(create_sq(0, 1)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_sq(33, 1)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_sq(1, 2)), Status::completion_queue_invalid);
    EXPECT_EQ(status(create_sq(1, 0)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_sq(1, 1, 1)), Status::invalid_queue_size);
    EXPECT_EQ(status(create_sq(1, 1, kMaxQueueEntries + 1)), Status::invalid_queue_size);
    auto entry = create_sq(1, 1);
    entry.cdw11 = entry.cdw11 & ~1u;
    EXPECT_EQ(status(entry), Status::invalid_field);
    EXPECT_EQ(status(create_sq(1, 1)), Status::success);
    EXPECT_EQ(status(create_sq(1, 1)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_sq(2, 1)), Status::success) << "two queues may share a completion queue";
}

TEST_F(AdminCommands, QueuesAreDeletedInOrderOnly)
{
    ASSERT_EQ(status(create_cq(1)), Status::success);
    ASSERT_EQ(status(create_sq(1, 1)), Status::success);
    ASSERT_EQ(status(create_sq(2, 1)), Status::success);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_cq, 1)), Status::invalid_queue_deletion);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_sq, 1)), Status::success);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_sq, 1)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_cq, 1)), Status::invalid_queue_deletion);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_sq, 2)), Status::success);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_cq, 1)), Status::success);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_cq, 1)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_sq, 0)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(delete_queue(AdminOpcode::delete_io_cq, 0)), Status::invalid_queue_identifier);
    EXPECT_EQ(status(create_cq(1)), Status::success) << "the identifier is free again";
}

TEST_F(AdminCommands, DeletedQueueTakesNoMoreCommands)
{
    host.create_io_queue();
    ASSERT_EQ(status(delete_queue(AdminOpcode::delete_io_sq, 1)), Status::success);
    host.submit(1, io(IoOpcode::flush));
    host.ring_sq(1);
    host.run();
    EXPECT_FALSE(host.poll(1));
}

TEST_F(AdminCommands, NumberOfQueuesCannotChangeLater)
{
    const auto set = admin(AdminOpcode::set_features, 0x07, 0x00030003);
    const auto completion = host.execute(0, set);
    EXPECT_EQ(completion.status, Status::success);
    EXPECT_EQ(completion.dw0, 31u << 16 | 31u);
    host.create_io_queue();
    EXPECT_EQ(status(set), Status::command_sequence_error);
}

TEST_F(AdminCommands, IdentifyDataOutsideMemoryIsDataTransferError)
{
    auto entry = admin(AdminOpcode::identify, 1);
    entry.prp1 = 0x1000;
    EXPECT_EQ(status(entry), Status::data_transfer_error);
    entry.prp1 = Host::kWindow + 1;
    EXPECT_EQ(status(entry), Status::invalid_prp_offset);
}

TEST_F(AdminCommands, IdentifyMayCrossAPage)
{
    auto entry = admin(AdminOpcode::identify, 1);
    const auto first = host.allocate(4096), second = host.allocate(8192) + 4096;
    entry.prp1 = first + 2048;
    entry.prp2 = second;
    ASSERT_EQ(status(entry), Status::success);
    EXPECT_EQ(text(host.load(first + 2048, 2048), 4, 8), "TEST0001");
    EXPECT_EQ(text(host.load(first + 2048 + 24, 21), 0, 21), "virtio-vfio-user NVMe");
    EXPECT_EQ(field<Le16>(host.load(second, 2), 0), 2500u) << "power state 0 starts the second half";
}

TEST_F(AdminCommands, UnknownLogPageIsInvalidLogPage)
{
    for (const unsigned id : {0x00u, 0x04u, 0x06u, 0x80u, 0xc0u}) {
        auto entry = admin(AdminOpcode::get_log_page, 0x7f'0000 | id);
        entry.prp1 = host.allocate(4096);
        EXPECT_EQ(status(entry), Status::invalid_log_page);
    }
}

TEST_F(AdminCommands, LogPageRangesAreChecked)
{
    auto entry = admin(AdminOpcode::get_log_page, 0x7f'0000 | 2);
    entry.prp1 = host.allocate(4096);
    entry.cdw12 = 516;
    EXPECT_EQ(status(entry), Status::invalid_field) << "offset behind the page";
    entry.cdw12 = 2;
    EXPECT_EQ(status(entry), Status::invalid_field) << "offset not a multiple of 4";
    entry.cdw12 = 0;
    entry.cdw13 = 1;
    EXPECT_EQ(status(entry), Status::invalid_field) << "upper half of the offset";
    entry.cdw13 = 0;
    entry.nsid = 1;
    EXPECT_EQ(status(entry), Status::invalid_field) << "no SMART page per namespace";
    entry.nsid = kBroadcastNsid;
    entry.cdw11 = 0x10;
    EXPECT_EQ(status(entry), Status::invalid_field) << "more than MDTS";
}

TEST_F(AdminCommands, LogPageOffsetAndExcessLength)
{
    host.fetch(admin(AdminOpcode::identify, 1), 4096);
    const auto whole = host.log_page(3, 512);
    EXPECT_EQ(field<std::uint8_t>(whole, 0), 1u);
    const std::string version = VVFU_VERSION;
    EXPECT_EQ(text(whole, 8, 8), version + std::string(8 - version.size(), ' '));
    auto entry = admin(AdminOpcode::get_log_page, 255u << 16 | 3);
    entry.cdw12 = 8;
    const auto tail = host.fetch(entry, 1024);
    EXPECT_TRUE(std::equal(whole.begin() + 8, whole.end(), tail.begin()));
    EXPECT_EQ(std::vector<std::byte>(tail.begin() + 504, tail.end()), std::vector<std::byte>(520));
}

TEST_F(AdminCommands, SmartCountsWhatTheHostDoes)
{
    host.create_io_queue();
    for (int i = 0; i < 3; ++i) {
        ASSERT_EQ(host.write(0, pattern(512 * 700, 1)).status, Status::success);
    }
    host.read(0, 8);
    const auto smart = host.log_page(2, 512);
    EXPECT_EQ(field<Le64>(smart, 32), 1u) << "Data Units Read: 8 blocks, rounded up";
    EXPECT_EQ(field<Le64>(smart, 48), 3u) << "Data Units Written: 2100 blocks";
    EXPECT_EQ(field<Le64>(smart, 64), 1u) << "Host Read Commands";
    EXPECT_EQ(field<Le64>(smart, 80), 3u) << "Host Write Commands";
    EXPECT_EQ(field<Le64>(smart, 176), 0u) << "Number of Error Information Log Entries";
    EXPECT_EQ(field<Le16>(smart, 1), kTemperature);
}

TEST_F(AdminCommands, ErrorLogHasTheNewestFirst)
{
    host.create_io_queue();
    auto bad = io(IoOpcode::read, 0x1'0000'0007, 1);
    ASSERT_EQ(host.execute(1, bad).status, Status::lba_out_of_range);
    const auto first = host.execute(1, io(static_cast<IoOpcode>(0x7f)));
    const auto log = host.log_page(1, 128);
    EXPECT_EQ(field<Le64>(log, 0), 2u);
    EXPECT_EQ(field<Le16>(log, 8), 1u) << "SQ";
    EXPECT_EQ(field<Le16>(log, 10), first.command_id);
    EXPECT_EQ(field<Le16>(log, 12) >> 1 & 0x7ff, static_cast<unsigned>(Status::invalid_opcode));
    EXPECT_EQ(field<Le64>(log, 64), 1u);
    EXPECT_EQ(field<Le64>(log, 64 + 16), 0x1'0000'0007u) << "LBA";
    EXPECT_EQ(field<Le32>(log, 64 + 24), 1u) << "namespace";
    EXPECT_EQ(field<Le64>(host.log_page(2, 512), 176), 2u);
}

TEST_F(AdminCommands, ErrorLogKeepsTheLast64)
{
    for (int i = 0; i < 70; ++i) {
        ASSERT_EQ(status(create_cq(0)), Status::invalid_queue_identifier);
    }
    const auto log = host.log_page(1, 4096);
    EXPECT_EQ(field<Le64>(log, 0), 70u);
    EXPECT_EQ(field<Le64>(log, 63 * 64), 7u);
}

TEST_F(AdminCommands, ProbingIsNoError)
{
    EXPECT_EQ(status(admin(static_cast<AdminOpcode>(0x7f))), Status::invalid_opcode);
    EXPECT_EQ(status(admin(AdminOpcode::identify, 0x05)), Status::invalid_field);
    auto descriptors = admin(AdminOpcode::identify, 3);
    descriptors.nsid = 17;
    EXPECT_EQ(status(descriptors), Status::invalid_namespace);
    EXPECT_EQ(status(admin(AdminOpcode::get_log_page, 0x7f)), Status::invalid_log_page);
    EXPECT_EQ(status(admin(AdminOpcode::get_features, 0x0e)), Status::invalid_field);
    EXPECT_EQ(status(admin(AdminOpcode::set_features, 0x0e)), Status::invalid_field);
    EXPECT_EQ(field<Le64>(host.log_page(2, 512), 176), 0u) << "Number of Error Information Log Entries";
    EXPECT_EQ(status(create_cq(0)), Status::invalid_queue_identifier);
    EXPECT_EQ(field<Le64>(host.log_page(2, 512), 176), 1u) << "that was one";
}

TEST_F(AdminCommands, EffectsPageListsWhatIsSupported)
{
    const auto page = host.log_page(5, 4096);
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
        if (opcode == static_cast<unsigned>(AdminOpcode::async_event_request)) {
            continue;  // it has no completion to look at
        }
        const bool listed = (field<Le32>(page, 4 * opcode) & 1) != 0;
        const bool works = status(admin(static_cast<AdminOpcode>(opcode))) != Status::invalid_opcode;
        EXPECT_EQ(listed, works) << "admin opcode " << opcode;
    }
    host.create_io_queue();
    for (unsigned opcode = 0; opcode < 256; ++opcode) {
        const bool listed = (field<Le32>(page, 1024 + 4 * opcode) & 1) != 0;
        const bool works = host.execute(1, io(static_cast<IoOpcode>(opcode))).status != Status::invalid_opcode;
        EXPECT_EQ(listed, works) << "NVM opcode " << opcode;
    }
}

TEST_F(AdminCommands, AbortOfUnknownCommandSaysNotAborted)
{
    const auto completion = host.execute(0, admin(AdminOpcode::abort, 0x1234'0001));
    EXPECT_EQ(completion.status, Status::success);
    EXPECT_EQ(completion.dw0 & 1, 1u);
}

TEST_F(AdminCommands, AsyncEventRequestCanBeAborted)
{
    const auto id = host.submit(0, admin(AdminOpcode::async_event_request));
    host.ring_sq(0);
    host.run();
    ASSERT_FALSE(host.poll(0));
    host.submit(0, admin(AdminOpcode::abort, std::uint32_t{id} << 16));
    host.ring_sq(0);
    host.run();
    const auto completions = host.drain(0);
    ASSERT_EQ(completions.size(), 2u);
    EXPECT_EQ(completions[0].command_id, id);
    EXPECT_EQ(completions[0].status, Status::abort_requested);
    EXPECT_EQ(completions[1].status, Status::success);
    EXPECT_EQ(completions[1].dw0 & 1, 0u);
}

TEST_F(AdminCommands, CommandThatWaitsForItsDataCanBeAborted)
{
    host.create_io_queue();
    host.hold_messages = true;
    auto entry = io(IoOpcode::write);
    entry.prp1 = host.allocate(4096, Place::message);
    const auto before = host.read(0, 1);
    const auto id = host.submit(1, entry);
    host.ring_sq(1);
    host.run();
    ASSERT_EQ(host.messages.waiting.size(), 1u);
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::abort, std::uint32_t{id} << 16 | 1)).dw0 & 1, 0u);
    const auto completions = host.drain(1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].status, Status::abort_requested);
    host.store(entry.prp1, pattern(512, 3));
    host.hold_messages = false;
    host.run();
    EXPECT_TRUE(host.drain(1).empty()) << "one completion only";
    EXPECT_EQ(host.read(0, 1), before) << "and nothing was written";
}

TEST_F(AdminCommands, FifthAsyncEventRequestExceedsTheLimit)
{
    for (int i = 0; i < 5; ++i) {
        host.submit(0, admin(AdminOpcode::async_event_request));
    }
    host.ring_sq(0);
    host.run();
    const auto completions = host.drain(0);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].status, Status::async_event_limit_exceeded);
}

TEST_F(AdminCommands, TemperatureBelowThresholdRaisesAnEvent)
{
    const auto id = host.submit(0, admin(AdminOpcode::async_event_request));
    host.ring_sq(0);
    ASSERT_EQ(status(admin(AdminOpcode::set_features, 0x0b, 0x2)), Status::success);
    host.submit(0, admin(AdminOpcode::set_features, 0x04, kTemperature - 10));
    host.ring_sq(0);
    host.run();
    const auto completions = host.drain(0);
    ASSERT_EQ(completions.size(), 2u);
    const auto &event = completions[0].command_id == id ? completions[0] : completions[1];
    EXPECT_EQ(event.command_id, id);
    EXPECT_EQ(event.dw0, 0x02'01'01u) << "SMART event, temperature threshold, SMART log";
    EXPECT_EQ(field<std::uint8_t>(host.log_page(2, 512), 0), 2u) << "Critical Warning";
}

TEST_F(AdminCommands, TemperatureEventComesOnceForACrossing)
{
    ASSERT_EQ(status(admin(AdminOpcode::set_features, 0x04, kTemperature - 10)), Status::success);
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.submit(0, admin(AdminOpcode::set_features, 0x0b, 0x2));
    host.ring_sq(0);
    host.run();
    EXPECT_EQ(host.drain(0).size(), 2u) << "enabled after the crossing";
    host.log_page(2, 512);
    EXPECT_EQ(status(admin(AdminOpcode::set_features, 0x01, 4)), Status::success) << "no event with it";
    ASSERT_EQ(status(admin(AdminOpcode::set_features, 0x04, kTemperature + 10)), Status::success);
    host.submit(0, admin(AdminOpcode::set_features, 0x04, kTemperature - 10));
    host.ring_sq(0);
    host.run();
    EXPECT_EQ(host.drain(0).size(), 2u) << "crossed again";
}

TEST(AdminCommandsByMessages, EveryDataStructureArrives)
{
    Host host;
    host.queue_place = host.list_place = host.data_place = Place::message;
    host.enable();
    EXPECT_EQ(text(host.fetch(admin(AdminOpcode::identify, 1), 4096), 4, 8), "TEST0001");
    EXPECT_EQ(field<Le16>(host.log_page(2, 512), 1), kTemperature);
    EXPECT_EQ(host.log_page(1, 16384).size(), 16384u);
}

}  // namespace
}  // namespace vvfu::nvme::test
