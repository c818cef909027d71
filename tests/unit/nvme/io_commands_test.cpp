// SPDX-License-Identifier: BSD-3-Clause
#include "io_commands.hpp"

#include <gtest/gtest.h>

#include "host.hpp"
#include "test_backing.hpp"

namespace vvfu::nvme::test {
namespace {

constexpr std::uint32_t kForceUnitAccess = 1u << 30, kDeallocate = 1u << 25;
constexpr std::uint64_t kBlocks = (1u << 20) / kBlockSize;

std::vector<std::byte> zeroes(std::size_t size)
{
    return std::vector<std::byte>(size);
}

/// Both kinds of backing, and the three ways to reach the host's memory.
struct Variant {
    const char *name;
    bool file;
    Place place;
};

class IoCommandsOn : public testing::TestWithParam<Variant> {
protected:
    IoCommandsOn() : host(options())
    {
        host.queue_place = host.list_place = host.data_place = GetParam().place;
        host.start();
    }
    NvmeOptions options() { return GetParam().file ? Host::file_options(file) : Host::memory_options(); }

    TemporaryFile file{1 << 20};
    Host host;
};

INSTANTIATE_TEST_SUITE_P(, IoCommandsOn,
                         testing::Values(Variant{"MemoryThroughWindow", false, Place::window},
                                         Variant{"FileThroughWindow", true, Place::window},
                                         Variant{"MemoryByMessages", false, Place::message},
                                         Variant{"FileByMessages", true, Place::message}),
                         [](const auto &variant) { return std::string(variant.param.name); });

TEST_P(IoCommandsOn, ReadReturnsWhatWriteStored)
{
    const auto data = pattern(4096, 1);
    EXPECT_EQ(host.write(16, data).status, Status::success);
    EXPECT_EQ(host.read(16, 8), data);
    EXPECT_EQ(host.read(15, 1), zeroes(512));
    EXPECT_EQ(host.read(24, 8), zeroes(4096));
}

TEST_P(IoCommandsOn, LargestTransferGoesThroughPrpList)
{
    const auto data = pattern(kMaxTransfer, 2);
    EXPECT_EQ(host.write(0, data).status, Status::success);
    EXPECT_EQ(host.read(0, kMaxTransfer / kBlockSize), data);
}

TEST_P(IoCommandsOn, WriteZeroesClearsExactlyItsRange)
{
    auto data = pattern(16 * 4096, 3);
    for (const std::uint32_t flags : {0u, kDeallocate, kForceUnitAccess}) {
        ASSERT_EQ(host.write(0, data).status, Status::success);
        auto entry = io(IoOpcode::write_zeroes, 3, 100);
        entry.cdw12 |= flags;
        ASSERT_EQ(host.execute(1, entry).status, Status::success);
        auto expected = data;
        std::fill_n(expected.begin() + 3 * 512, 100 * 512, std::byte{0});
        EXPECT_EQ(host.read(0, 128), expected);
    }
}

TEST_P(IoCommandsOn, WriteZeroesIsNotLimitedByMdts)
{
    ASSERT_EQ(host.write(1500, pattern(512, 4)).status, Status::success);
    EXPECT_EQ(host.execute(1, io(IoOpcode::write_zeroes, 0, kBlocks)).status, Status::success);
    EXPECT_EQ(host.read(1500, 1), zeroes(512));
}

TEST_P(IoCommandsOn, DeallocateClearsEveryRange)
{
    const auto data = pattern(64 * 1024, 5);
    ASSERT_EQ(host.write(0, data).status, Status::success);
    // Two ranges, of 8 and 16 blocks.
    struct {
        Le32 context0 = 0, blocks0 = 8;
        Le64 slba0 = 8;
        Le32 context1 = 0, blocks1 = 16;
        Le64 slba1 = 64;
    } ranges;
    auto entry = io(IoOpcode::dataset_management);
    entry.cdw10 = 1;
    entry.cdw11 = 1u << 2;
    entry.prp1 = host.allocate(4096, host.data_place);
    host.store(entry.prp1, std::as_bytes(std::span(&ranges, 1)));
    ASSERT_EQ(host.execute(1, entry).status, Status::success);
    auto expected = data;
    std::fill_n(expected.begin() + 8 * 512, 8 * 512, std::byte{0});
    std::fill_n(expected.begin() + 64 * 512, 16 * 512, std::byte{0});
    EXPECT_EQ(host.read(0, 128), expected);
}

TEST_P(IoCommandsOn, CompareTellsEqualFromDifferent)
{
    auto data = pattern(8192, 6);
    ASSERT_EQ(host.write(5, data).status, Status::success);
    auto entry = io(IoOpcode::compare, 5, 16);
    const auto buffer = host.allocate(8192, host.data_place);
    host.store(buffer, data);
    host.set_data(entry, buffer, data.size());
    EXPECT_EQ(host.execute(1, entry).status, Status::success);
    data.back() ^= std::byte{1};
    host.store(buffer, data);
    EXPECT_EQ(host.execute(1, entry).status, Status::compare_failure);
}

TEST_P(IoCommandsOn, FlushAndForcedWritesSucceed)
{
    auto entry = io(IoOpcode::write, 9, 1);
    entry.cdw12 |= kForceUnitAccess;
    const auto data = pattern(512, 7);
    entry.prp1 = host.allocate(512, host.data_place);
    host.store(entry.prp1, data);
    EXPECT_EQ(host.execute(1, entry).status, Status::success);
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success);
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush, 0, 1, kBroadcastNsid)).status, Status::success);
    EXPECT_EQ(host.read(9, 1), data);
}

class IoCommands : public testing::Test {
protected:
    IoCommands() { host.start(); }
    Status status(const SubmissionEntry &entry) { return host.execute(1, entry).status; }
    SubmissionEntry with_buffer(SubmissionEntry entry)
    {
        entry.prp1 = host.allocate(4096);
        return entry;
    }

    Host host;
};

TEST_F(IoCommands, UnknownOpcodeIsInvalidOpcode)
{
    for (const unsigned opcode : {0x03u, 0x04u, 0x0cu, 0x0du, 0x7fu, 0x80u, 0xffu}) {
        const auto completion = host.execute(1, io(static_cast<IoOpcode>(opcode)));
        EXPECT_EQ(completion.status, Status::invalid_opcode);
        EXPECT_TRUE(completion.do_not_retry);
        EXPECT_TRUE(completion.more) << "it is in the error log";
    }
}

TEST_F(IoCommands, RangeBehindTheEndIsOutOfRange)
{
    for (const auto opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::compare, IoOpcode::write_zeroes}) {
        EXPECT_EQ(status(with_buffer(io(opcode, kBlocks - 1, 1))), Status::success);
        EXPECT_EQ(status(with_buffer(io(opcode, kBlocks - 1, 2))), Status::lba_out_of_range);
        EXPECT_EQ(status(with_buffer(io(opcode, kBlocks, 1))), Status::lba_out_of_range);
        EXPECT_EQ(status(with_buffer(io(opcode, ~std::uint64_t{0}, 1))), Status::lba_out_of_range);
        // A byte offset that wraps around to block 0.
        EXPECT_EQ(status(with_buffer(io(opcode, std::uint64_t{1} << 55, 1))), Status::lba_out_of_range);
    }
}

TEST_F(IoCommands, UnknownNamespaceIsInvalidNamespace)
{
    for (const auto opcode : {IoOpcode::flush, IoOpcode::read, IoOpcode::write, IoOpcode::compare,
                              IoOpcode::write_zeroes, IoOpcode::dataset_management}) {
        EXPECT_EQ(status(with_buffer(io(opcode, 0, 1, 0))), Status::invalid_namespace);
        EXPECT_EQ(status(with_buffer(io(opcode, 0, 1, 2))), Status::invalid_namespace);
    }
    EXPECT_EQ(status(with_buffer(io(IoOpcode::read, 0, 1, kBroadcastNsid))), Status::invalid_namespace);
}

TEST_F(IoCommands, TransferAboveMdtsIsInvalidField)
{
    const auto blocks = kMaxTransfer / kBlockSize + 1;
    for (const auto opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::compare}) {
        EXPECT_EQ(status(with_buffer(io(opcode, 0, blocks))), Status::invalid_field);
    }
}

TEST_F(IoCommands, FusedAndSglCommandsAreInvalidField)
{
    for (const unsigned flags : {0x01u, 0x02u, 0x40u, 0x80u, 0xc0u}) {
        auto entry = with_buffer(io(IoOpcode::read));
        entry.flags = static_cast<std::uint8_t>(flags);
        EXPECT_EQ(status(entry), Status::invalid_field);
    }
}

TEST_F(IoCommands, BadPrpsGetTheirStatus)
{
    auto entry = with_buffer(io(IoOpcode::read));
    entry.prp1 = entry.prp1 + 2;
    EXPECT_EQ(status(entry), Status::invalid_prp_offset);

    entry = with_buffer(io(IoOpcode::read, 0, 16));
    entry.prp2 = entry.prp1 + 8;
    EXPECT_EQ(status(entry), Status::invalid_prp_offset);

    entry = with_buffer(io(IoOpcode::read, 0, 24));
    entry.prp2 = entry.prp1 + 4;
    EXPECT_EQ(status(entry), Status::invalid_prp_offset) << "a list pointer that is not a multiple of 8";
}

TEST_F(IoCommands, MemoryThatIsNotThereIsDataTransferError)
{
    for (const auto opcode : {IoOpcode::read, IoOpcode::write, IoOpcode::compare}) {
        auto entry = io(opcode);
        entry.prp1 = 0x1000;
        const auto completion = host.execute(1, entry);
        EXPECT_EQ(completion.status, Status::data_transfer_error);
        EXPECT_FALSE(completion.do_not_retry);
        entry = with_buffer(io(opcode, 0, 24));
        entry.prp2 = 0x1000;
        EXPECT_EQ(status(entry), Status::data_transfer_error) << "the PRP list";
        entry = with_buffer(io(opcode, 0, 16));
        entry.prp2 = ~std::uint64_t{0xfff};
        EXPECT_EQ(status(entry), Status::data_transfer_error) << "the last page of the address space";
    }
}

TEST_F(IoCommands, DeallocateChecksAllRangesFirst)
{
    const auto data = pattern(512, 8);
    ASSERT_EQ(host.write(0, data).status, Status::success);
    struct {
        Le32 context0 = 0, blocks0 = 1;
        Le64 slba0 = 0;
        Le32 context1 = 0, blocks1 = 2;
        Le64 slba1 = kBlocks - 1;
    } ranges;
    auto entry = with_buffer(io(IoOpcode::dataset_management));
    entry.cdw10 = 1;
    entry.cdw11 = 1u << 2;
    host.store(entry.prp1, std::as_bytes(std::span(&ranges, 1)));
    EXPECT_EQ(status(entry), Status::lba_out_of_range);
    EXPECT_EQ(host.read(0, 1), data);
}

TEST_F(IoCommands, DatasetManagementWithoutDeallocateIsAHint)
{
    const auto data = pattern(512, 9);
    ASSERT_EQ(host.write(0, data).status, Status::success);
    auto entry = with_buffer(io(IoOpcode::dataset_management));
    entry.cdw10 = 0;
    entry.cdw11 = 3;
    struct {
        Le32 context = 0, blocks = 1;
        Le64 slba = 0;
    } range;
    host.store(entry.prp1, std::as_bytes(std::span(&range, 1)));
    EXPECT_EQ(status(entry), Status::success);
    EXPECT_EQ(host.read(0, 1), data);
}

TEST(IoCommandsReadOnly, EveryChangeIsRefused)
{
    TemporaryFile file(1 << 20);
    auto options = Host::file_options(file);
    options.read_only = true;
    Host host(options);
    host.start();
    for (const auto opcode : {IoOpcode::write, IoOpcode::write_zeroes}) {
        auto entry = io(opcode);
        entry.prp1 = host.allocate(4096);
        EXPECT_EQ(host.execute(1, entry).status, Status::namespace_write_protected);
    }
    auto entry = io(IoOpcode::dataset_management);
    entry.cdw10 = 0;
    entry.cdw11 = 1u << 2;
    entry.prp1 = host.allocate(4096);
    EXPECT_EQ(host.execute(1, entry).status, Status::namespace_write_protected);
    EXPECT_EQ(host.read(0, 8), std::vector<std::byte>(4096));
    EXPECT_EQ(host.execute(1, io(IoOpcode::flush)).status, Status::success);
}

TEST(IoCommandsNamespaces, EachHasItsOwnData)
{
    auto options = Host::memory_options();
    options.backings = {"mem:64K", "mem:128K", "mem:512"};
    Host host(options);
    host.start();
    const auto first = pattern(512, 10), second = pattern(512, 11), third = pattern(512, 12);
    ASSERT_EQ(host.write(0, first, 1).status, Status::success);
    ASSERT_EQ(host.write(0, second, 2).status, Status::success);
    ASSERT_EQ(host.write(0, third, 3).status, Status::success);
    EXPECT_EQ(host.read(0, 1, 1), first);
    EXPECT_EQ(host.read(0, 1, 2), second);
    EXPECT_EQ(host.read(0, 1, 3), third);
    EXPECT_EQ(host.write(200, second, 1).status, Status::lba_out_of_range);
    EXPECT_EQ(host.write(200, second, 2).status, Status::success);
    EXPECT_EQ(host.write(1, second, 3).status, Status::lba_out_of_range);
}

TEST(IoCommandsBackingErrors, TruncatedFileIsAMediaError)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    std::filesystem::resize_file(file.path(), 4096);
    auto entry = io(IoOpcode::read, 100, 1);
    entry.prp1 = host.allocate(4096);
    EXPECT_EQ(host.execute(1, entry).status, Status::unrecovered_read_error);
    const auto smart = host.log_page(2, 512);
    EXPECT_EQ(field<Le64>(smart, 160), 1u) << "Media and Data Integrity Errors";
    const auto errors = host.log_page(1, 64);
    EXPECT_EQ(field<Le64>(errors, 16), 100u) << "LBA";
}

TEST(IoCommandsStopped, CompareTakesTheDataOfBeforeBusMasterEnableWasCleared)
{
    TemporaryFile file(1 << 20);
    Host host(Host::file_options(file));
    host.start();
    const auto data = pattern(512, 7);
    ASSERT_EQ(host.write(0, data).status, Status::success);
    host.workers.deferred = true;
    auto entry = io(IoOpcode::compare);
    entry.prp1 = host.allocate(512);
    host.store(entry.prp1, data);
    host.submit(1, entry);
    host.ring_sq(1);
    host.run();
    host.set_bus_master(false);
    host.store(entry.prp1, pattern(512, 8));
    host.run_deferred();
    host.set_bus_master(true);
    host.run();
    const auto completions = host.drain(1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].status, Status::success);
}

Status failing_status(int error, IoOpcode opcode)
{
    StorageScript script;
    script.read_error = script.write_error = error;
    Host host(std::make_unique<TestBacking>(script));
    host.start();
    auto entry = io(opcode);
    if (opcode == IoOpcode::dataset_management) {
        entry.cdw10 = 0;
        entry.cdw11 = 1u << 2;
    }
    entry.prp1 = host.allocate(4096);
    const auto completion = host.execute(1, entry);
    EXPECT_FALSE(completion.do_not_retry);
    const auto smart = host.log_page(2, 512);
    for (const auto offset : {32u, 48u, 64u, 80u}) {
        EXPECT_EQ(field<Le64>(smart, offset), 0u) << "failed commands are not counted";
    }
    return completion.status;
}

TEST(IoCommandsBackingErrors, ErrnoDecidesTheStatus)
{
    const auto media_errors = {EIO, ENODATA, EREMOTEIO, EILSEQ, EBADMSG};
    for (const auto opcode : {IoOpcode::write, IoOpcode::write_zeroes, IoOpcode::dataset_management}) {
        EXPECT_EQ(failing_status(ENOSPC, opcode), Status::capacity_exceeded);
        EXPECT_EQ(failing_status(ENOMEM, opcode), Status::internal_error);
        for (const int error : media_errors) {
            EXPECT_EQ(failing_status(error, opcode), Status::write_fault) << std::strerror(error);
        }
    }
    for (const auto opcode : {IoOpcode::read, IoOpcode::compare}) {
        EXPECT_EQ(failing_status(EFAULT, opcode), Status::internal_error);
        for (const int error : media_errors) {
            EXPECT_EQ(failing_status(error, opcode), Status::unrecovered_read_error) << std::strerror(error);
        }
    }
}

// ---- what is durable ----

constexpr std::uint32_t kFua = 1u << 30;

class IoCommandsDurability : public testing::Test {
protected:
    IoCommandsDurability() { host.start(); }
    Completion run(IoOpcode opcode, std::uint32_t cdw12 = 0)
    {
        auto entry = io(opcode);
        entry.cdw12 = cdw12;
        entry.prp1 = host.allocate(4096);
        return host.execute(1, entry);
    }
    Completion set_write_cache(bool on) { return host.execute(0, admin(AdminOpcode::set_features, 6, on ? 1 : 0)); }
    std::uint8_t critical_warning() { return field<std::uint8_t>(host.log_page(2, 512), 0); }
    void expect_lost(const Completion &completion, const char *what)
    {
        EXPECT_EQ(completion.status, Status::write_fault) << what;
        EXPECT_TRUE(completion.do_not_retry) << what;
    }

    StorageScript script;
    Host host{std::make_unique<TestBacking>(script)};
};

TEST_F(IoCommandsDurability, AFailedFlushIsNeverForgotten)
{
    ASSERT_EQ(run(IoOpcode::write).status, Status::success);
    script.sync_errors = {EIO};  // once, then success: what Linux does after a failed write-back
    expect_lost(run(IoOpcode::flush), "the first flush");
    for (const int again : {1, 2}) {
        expect_lost(run(IoOpcode::flush), again == 1 ? "the host's retry" : "and the next");
        expect_lost(run(IoOpcode::write, kFua), "FUA write");
        expect_lost(run(IoOpcode::write_zeroes, kFua), "FUA write zeroes");
        auto all = io(IoOpcode::flush);
        all.nsid = kBroadcastNsid;
        expect_lost(host.execute(1, all), "flush of all namespaces");
    }
    EXPECT_EQ(run(IoOpcode::write).status, Status::success) << "into the cache, as before";
    EXPECT_EQ(critical_warning(), 1u << 2) << "reliability degraded";
    EXPECT_EQ(field<Le64>(host.log_page(2, 512), 160), 1u) << "media errors";
    host.disable();
    host.start();
    expect_lost(run(IoOpcode::flush), "a reset repairs nothing");
    host.device().reset([] {});
    host.run();
    host.forget_memory();
    host.start();
    expect_lost(run(IoOpcode::flush), "nor does the next driver");
    EXPECT_EQ(critical_warning(), 1u << 2);
}

TEST_F(IoCommandsDurability, AnErrorThatAFuaWriteWasToldOfFailsTheFlushToo)
{
    ASSERT_EQ(run(IoOpcode::write).status, Status::success);
    script.sync_errors = {ENOSPC};
    expect_lost(run(IoOpcode::write, kFua), "it got the error of the earlier write");
    expect_lost(run(IoOpcode::flush), "and kept it for nobody else");
}

TEST_F(IoCommandsDurability, FlushesAtOnceShareTheErrorAndOneSyncRunsAtATime)
{
    script.hold_syncs = true;
    script.sync_errors = {0, EIO};
    for (int i = 0; i < 4; ++i) {
        host.submit(1, io(IoOpcode::flush));
    }
    host.ring_sq(1);
    host.run();
    EXPECT_EQ(script.calls, "s");
    script.release_syncs();
    host.run();
    EXPECT_EQ(host.drain(1).size(), 1u) << "what came during the first waits for the second";
    EXPECT_EQ(script.calls, "ss");
    script.release_syncs();
    host.run();
    const auto rest = host.drain(1);
    ASSERT_EQ(rest.size(), 3u);
    for (const auto &completion : rest) {
        expect_lost(completion, "all of the second");
    }
}

TEST_F(IoCommandsDurability, TheHostThatAskedForItGetsOneEvent)
{
    ASSERT_EQ(host.execute(0, admin(AdminOpcode::set_features, 0x0b, 1u << 2)).status, Status::success);
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.submit(0, admin(AdminOpcode::async_event_request));
    host.ring_sq(0);
    host.run();
    EXPECT_TRUE(host.drain(0).empty());
    script.sync_errors = {EIO};
    expect_lost(run(IoOpcode::flush), "flush");
    expect_lost(run(IoOpcode::flush), "flush");
    const auto events = host.drain(0);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].dw0, 0x02'00'01u) << "SMART log page, reliability, SMART / health status";
}

TEST_F(IoCommandsDurability, FuaAppliesToReadsToo)
{
    for (const auto opcode : {IoOpcode::read, IoOpcode::compare}) {
        script.calls.clear();
        run(opcode);
        EXPECT_EQ(script.calls, "r");
        script.calls.clear();
        run(opcode, kFua);
        EXPECT_EQ(script.calls, "sr") << "what was written is durable before it is read";
    }
    script.sync_errors = {EIO};
    expect_lost(run(IoOpcode::read, kFua), "read");
}

TEST_F(IoCommandsDurability, WithoutWriteCacheEarlierAndLaterWritesAreDurable)
{
    ASSERT_EQ(run(IoOpcode::write).status, Status::success);
    script.calls.clear();
    EXPECT_EQ(set_write_cache(false).status, Status::success);
    EXPECT_EQ(script.calls, "s");
    EXPECT_EQ(run(IoOpcode::write).status, Status::success);
    EXPECT_EQ(run(IoOpcode::write_zeroes).status, Status::success);
    EXPECT_EQ(script.calls, "swszs");
    EXPECT_EQ(set_write_cache(false).status, Status::success);
    EXPECT_EQ(script.calls, "swszs") << "nothing to do";
    EXPECT_EQ(set_write_cache(true).status, Status::success);
    EXPECT_EQ(run(IoOpcode::write).status, Status::success);
    EXPECT_EQ(script.calls, "swszsw");
    script.sync_errors = {EIO};
    expect_lost(set_write_cache(false), "the earlier writes are not durable");
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 6)).dw0, 1u) << "so the cache is still there";
}

TEST_F(IoCommandsDurability, TheEndOfTheProgramFlushes)
{
    std::vector<bool> durable;
    script.calls.clear();
    host.device().make_durable([&](bool result) { durable.push_back(result); });
    EXPECT_EQ(script.calls, "s");
    script.sync_errors = {EIO};
    host.device().make_durable([&](bool result) { durable.push_back(result); });
    EXPECT_EQ(durable, (std::vector<bool>{true, false}));
}

TEST_F(IoCommandsDurability, ErrorsAreCountedForPrograms)
{
    script.read_error = EIO;
    script.write_error = ENOSPC;
    script.sync_errors = {EIO};
    run(IoOpcode::read);
    run(IoOpcode::write);
    run(IoOpcode::flush);
    host.write_bar(reg::kCc, 0);
    host.run();
    guest::Counters counters;
    host.device().counters(counters);
    std::map<std::string, std::uint64_t> values;
    for (const auto &counter : counters) {
        values[counter.name] = counter.value;
    }
    for (const auto *name : {"read_errors", "no_space_errors", "flush_errors", "controller_resets"}) {
        EXPECT_EQ(values[name], 1u) << name;
    }
    EXPECT_EQ(values["media_errors"], 2u);
    EXPECT_EQ(values["write_errors"], 0u);
}

}  // namespace
}  // namespace vvfu::nvme::test
