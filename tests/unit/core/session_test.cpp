// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

class SessionTest : public CoreTest {};

// ---- VERSION ----

TEST_F(SessionTest, VersionAnnouncesThePeerNegotiatesFeaturesThenReplies)
{
    create();
    device_add(sample_device());
    connect();
    EXPECT_STREQ("negotiating", core->state().state);
    feed(command(
        vu::Command::version,
        version_payload(R"({"capabilities":{"max_msg_fds":16,"max_data_xfer_size":65536,"write_multiple":true}})")));
    EXPECT_FALSE(has_reply());

    const auto up_request = take_request(control::Type::peer);
    EXPECT_EQ(1u, up_request.header.epoch);
    const auto up = control::decode_peer(up_request.payload);
    ASSERT_TRUE(up.has_value());
    EXPECT_EQ(control::PeerOp::up, up->op);
    EXPECT_EQ(16u, up->max_msg_fds);
    EXPECT_EQ(65536u, up->max_data_xfer_size);
    EXPECT_EQ(4711u, up->pid);
    EXPECT_EQ(1000u, up->uid);
    EXPECT_EQ(100u, up->gid);
    const auto features = take_request(control::Type::feature_bits);
    EXPECT_EQ(control::kFeatureWriteMultiple, control::decode_feature_bits(features.payload)->features);

    answer_well(up_request);
    EXPECT_FALSE(has_reply());
    answer_well(features);
    const auto reply = take_sent();
    const auto version = vu::decode_version(reply.payload);
    ASSERT_TRUE(version.has_value());
    EXPECT_EQ(0, version->major);
    EXPECT_EQ(0, version->minor);  // QEMU proposes 0.0 and refuses more
    EXPECT_LE(reply.payload.size(), 4 + vu::kMaxVersionJson + 1);
    EXPECT_EQ(16u, version->capabilities.max_msg_fds);
    EXPECT_EQ(1048576u, version->capabilities.max_data_xfer_size);
    EXPECT_EQ(65535u, version->capabilities.max_dma_maps);
    EXPECT_EQ(4096u, version->capabilities.pgsizes);
    EXPECT_EQ(true, version->capabilities.write_multiple);
    EXPECT_STREQ("connected", core->state().state);
    EXPECT_EQ(1u, core->state().epoch);
    EXPECT_EQ(4711u, core->state().peer.pid);
}

TEST_F(SessionTest, MinorIsTheSmallerOfBothSides)
{
    for (const auto &[proposed, expected] : {std::pair{1, 1}, std::pair{2, 2}, std::pair{7, 2}}) {
        create();
        device_add(sample_device());
        connect();
        feed(command(vu::Command::version, version_payload("", 0, static_cast<std::uint16_t>(proposed))));
        answer_all();
        EXPECT_EQ(expected, vu::decode_version(take_sent().payload)->minor);
        core.reset();
    }
}

TEST_F(SessionTest, WriteMultipleIsOfferedOnlyIfThePeerOfferedAndTheGuestAccepted)
{
    start_session("{}");
    EXPECT_EQ(EINVAL, call_errno(vu::Command::region_write_multi, concat(std::uint64_t{0})));
    core.reset();

    create();
    device_add(sample_device());
    connect();
    feed(command(vu::Command::version, version_payload(R"({"capabilities":{"write_multiple":true}})")));
    answer_well(take_request(control::Type::peer));
    answer(take_request(control::Type::feature_bits), concat(std::uint64_t{0}));
    EXPECT_EQ(std::nullopt, vu::decode_version(take_sent().payload)->capabilities.write_multiple);
}

TEST_F(SessionTest, VersionIsAnsweredWithoutFeaturesWhenTheGuestMissesItsDeadline)
{
    create();
    device_add(sample_device());
    connect();
    feed(command(vu::Command::version, version_payload(R"({"capabilities":{"write_multiple":true}})")));
    EXPECT_EQ(now + config.access_timeout, core->next_deadline());
    advance(config.access_timeout - 1ns);
    EXPECT_FALSE(has_reply());
    advance(1ns);
    EXPECT_EQ(std::nullopt, vu::decode_version(take_sent().payload)->capabilities.write_multiple);
    EXPECT_EQ(2u, core->state().deadline_expiries);
    // The late answers are ignored.
    answer_all();
    EXPECT_EQ(2u, core->state().unknown_replies);
    EXPECT_FALSE(port.broken);
}

TEST_F(SessionTest, BadVersionGetsEinvalAndTheConnectionEndsWithoutASession)
{
    const auto with_fd = [] {
        std::vector<Fd> fds;
        fds.push_back(make_eventfd());
        return fds;
    };
    const std::vector<ByteVector> bad = {
        {},
        filled(3, 0),
        version_payload("", 1, 0),
        version_payload("{"),
        version_payload("[]"),
        version_payload(R"({"capabilities":[]})"),
        version_payload(R"({"capabilities":{"max_msg_fds":"foo"}})"),
        version_payload(R"({"capabilities":{"max_msg_fds":-1}})"),
        version_payload(R"({"capabilities":{"max_msg_fds":1025}})"),
        version_payload(R"({"capabilities":{"migration":1}})"),
        version_payload(R"({"capabilities":{"migration":{"pgsize":4095}}})"),
        concat(std::uint32_t{0}, std::uint16_t{0x7b7b}),  // no NUL
    };
    create();
    device_add(sample_device());
    for (const auto &payload : bad) {
        connect();
        feed(command(vu::Command::version, payload));
        EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error);
        EXPECT_STREQ("listening", core->state().state);
        EXPECT_TRUE(port.requests.empty());
    }
    const auto before = open_fds();
    connect();
    feed(command(vu::Command::version, version_payload("")), with_fd());
    EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error);
    EXPECT_EQ(before, open_fds());
    EXPECT_EQ(bad.size() + 1, port.closed);
    EXPECT_EQ(0u, core->state().epoch);
}

TEST_F(SessionTest, AnythingBeforeVersionIsRefusedAndEndsTheConnection)
{
    create();
    device_add(sample_device());
    connect();
    feed(command(vu::Command::device_get_info, concat(vu::DeviceInfo{16, 0, 0, 0})));
    EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error);
    EXPECT_EQ(1u, port.closed);
}

TEST_F(SessionTest, ASecondVersionIsRefusedAndTheSessionLives)
{
    start_session();
    EXPECT_EQ(EINVAL, call_errno(vu::Command::version, version_payload("")));
    EXPECT_EQ(0, call_errno(vu::Command::device_get_info, concat(vu::DeviceInfo{16, 0, 0, 0})));
}

// ---- framing errors ----

TEST_F(SessionTest, ImpossibleSizesGetEinvalAndEndTheSession)
{
    for (const std::uint32_t size : {0u, 15u, vu::kMaxMessageSize + 1, 0xffffffffu}) {
        start_session();
        feed(concat(vu::Header{0xbad1, 8, size, 0, 0}));
        const auto reply = take_sent();
        EXPECT_EQ(0xbad1, reply.header.message_id);
        EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), reply.header.error);
        EXPECT_EQ(1u, port.closed);
        core.reset();
        port.closed = 0;
        port.requests.clear();
    }
}

TEST_F(SessionTest, UnknownCommandsAndUnsolicitedRepliesGetEinvalAndTheSessionLives)
{
    start_session();
    for (const unsigned kind : {0u, 11u, 12u, 14u, 19u, 0xffffu}) {
        feed(raw_command(static_cast<std::uint16_t>(kind), filled(1, 0)));
        EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error) << kind;
    }
    feed(raw_command(8, {}, vu::kTypeReply));
    EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error);
    feed(raw_command(8, {}, 7));  // neither command nor reply
    EXPECT_EQ(static_cast<std::uint32_t>(EINVAL), take_sent().header.error);
    EXPECT_EQ(0u, port.closed);
    EXPECT_EQ(8u, core->state().protocol_errors);
}

TEST_F(SessionTest, UnsolicitedRepliesOfAPeerThatReadsNothingEndTheSession)
{
    start_session();
    port.backlog = 5 * 1024 * 1024;
    const auto sent = port.sent.size();
    feed(raw_command(8, {}, vu::kTypeReply));
    EXPECT_EQ(sent, port.sent.size());  // not one byte more for it
    EXPECT_STREQ("listening", core->state().state);
}

TEST_F(SessionTest, NoReplyCommandsGetNoReplyNotEvenAnError)
{
    start_session();
    feed(raw_command(99, filled(4, 0), vu::kFlagNoReply));
    feed(command(vu::Command::device_get_info, {}, vu::kFlagNoReply));
    feed(command(vu::Command::device_get_info, concat(vu::DeviceInfo{16, 0, 0, 0}), vu::kFlagNoReply));
    feed(command(vu::Command::dma_map, dma_map_payload(0, 4096), vu::kFlagNoReply));
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4}), vu::kFlagNoReply));
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0, 4096), vu::kFlagNoReply));
    feed(command(vu::Command::device_reset, {}, vu::kFlagNoReply));
    answer_all();
    EXPECT_FALSE(has_reply());
}

TEST_F(SessionTest, FdsOfRefusedCommandsAreClosed)
{
    start_session();
    const auto before = open_fds();
    std::vector<Fd> fds;
    for (int i = 0; i < 3; ++i) {
        fds.push_back(make_eventfd());
    }
    EXPECT_EQ(EINVAL, call_errno(vu::Command::dma_map, dma_map_payload(0, 4096), std::move(fds)));
    EXPECT_EQ(before, open_fds());
}

TEST_F(SessionTest, MoreThanSixteenFdsAreRefusedAndClosed)
{
    start_session();
    const auto before = open_fds();
    std::vector<Fd> fds;
    for (int i = 0; i < 17; ++i) {
        fds.push_back(make_eventfd());
    }
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_reset, {}, std::move(fds)));
    EXPECT_EQ(before, open_fds());
}

// ---- GET_* ----

TEST_F(SessionTest, GetInfo)
{
    start_session();
    const auto reply = call(vu::Command::device_get_info, concat(vu::DeviceInfo{32, 0, 0, 0}, filled(16, 0)));
    EXPECT_EQ(concat(vu::DeviceInfo{16, vu::kDeviceFlagPci | vu::kDeviceFlagReset, 9, 5}), reply.payload);
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_info, concat(vu::DeviceInfo{15, 0, 0, 0})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_info, filled(15, 0)));
}

TEST_F(SessionTest, RegionInfoInTwoPasses)
{
    start_session();
    auto request = vu::RegionInfo{32, 0, 0, 0, 0, 0};
    auto reply = call(vu::Command::device_get_region_info, concat(request));
    ASSERT_EQ(32u, reply.payload.size());
    auto info = *vu::decode_prefix<vu::RegionInfo>(reply.payload);
    EXPECT_EQ(64u, info.argsz);
    EXPECT_EQ(vu::kRegionFlagRead | vu::kRegionFlagWrite | vu::kRegionFlagMmap, info.flags);
    EXPECT_EQ(0u, info.cap_offset);
    EXPECT_EQ(0x4000u, info.size);
    EXPECT_TRUE(reply.fds.empty());

    request.argsz = info.argsz;
    reply = call(vu::Command::device_get_region_info, concat(request));
    const auto full = vu::decode_region_info_reply(reply.payload);
    ASSERT_TRUE(full.has_value());
    EXPECT_EQ(64u, reply.payload.size());
    EXPECT_EQ(64u, full->info.argsz);  // cloud-hypervisor: message size - 48 == argsz - 32
    EXPECT_EQ(32u, full->info.cap_offset);
    EXPECT_NE(0u, full->info.flags & vu::kRegionFlagCaps);
    EXPECT_EQ(0u, full->info.offset);
    ASSERT_EQ(1u, full->areas.size());
    EXPECT_EQ((vu::SparseArea{0x1000, 0x1000}), full->areas[0]);
    ASSERT_EQ(1u, reply.fds.size());
    struct stat sent {};
    ::fstat(reply.fds[0].get(), &sent);
    EXPECT_EQ(port.region_memory.at(0x8000).inode, sent.st_ino);
    EXPECT_EQ(port.region_memory.at(0x8000).fd_offset, full->info.offset + 0x1000);
}

TEST_F(SessionTest, APeerThatTakesNoFdsIsOfferedNoMapping)
{
    start_session(R"({"capabilities":{"max_msg_fds":0}})");
    const auto reply = call(vu::Command::device_get_region_info, concat(vu::RegionInfo{64, 0, 0, 0, 0, 0}));
    EXPECT_EQ(concat(vu::RegionInfo{32, vu::kRegionFlagRead | vu::kRegionFlagWrite, 0, 0, 0x4000, 0}), reply.payload);
    EXPECT_TRUE(reply.fds.empty());
}

TEST_F(SessionTest, RegionInfoOfOtherRegionsAndBadRequests)
{
    start_session();
    auto reply = call(vu::Command::device_get_region_info,
                      concat(vu::RegionInfo{4064, 0, control::kRegionConfig, 0, 0, 0}, filled(4032, 0)));  // SPDK
    EXPECT_EQ(concat(vu::RegionInfo{32, 3, control::kRegionConfig, 0, 4096, 0}), reply.payload);
    EXPECT_TRUE(reply.fds.empty());
    reply = call(vu::Command::device_get_region_info, concat(vu::RegionInfo{32, 0, control::kRegionVga, 0, 0, 0}));
    EXPECT_EQ(concat(vu::RegionInfo{32, 0, control::kRegionVga, 0, 0, 0}), reply.payload);
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_region_info, concat(vu::RegionInfo{31, 0, 0, 0, 0, 0})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_region_info, concat(vu::RegionInfo{32, 0, 9, 0, 0, 0})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_region_info, filled(31, 0xff)));
}

TEST_F(SessionTest, IrqInfo)
{
    start_session();
    for (const auto &[index, count] : {std::pair{0u, 1u}, std::pair{1u, 4u}, std::pair{2u, 8u}, std::pair{3u, 1u}}) {
        const auto reply = call(vu::Command::device_get_irq_info, concat(vu::IrqInfo{16, 0, index, 0}));
        EXPECT_EQ(concat(vu::IrqInfo{16, vu::kIrqFlagEventfd, index, count}), reply.payload);
    }
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_irq_info, concat(vu::IrqInfo{16, 0, 5, 0})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_irq_info, concat(vu::IrqInfo{15, 0, 0, 0})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_get_irq_info, filled(12, 0)));
}

TEST_F(SessionTest, RegionIoFdsIsValidatedThenNotSupported)
{
    start_session();
    const auto call_with = [&](vu::RegionIoFds request) {
        return call_errno(vu::Command::device_get_region_io_fds, concat(request));
    };
    EXPECT_EQ(ENOTSUP, call_with({16, 0, 0, 0}));
    EXPECT_EQ(EINVAL, call_with({16, 1, 0, 0}));
    EXPECT_EQ(EINVAL, call_with({16, 0, 0, 1}));
    EXPECT_EQ(EINVAL, call_with({15, 0, 0, 0}));
    EXPECT_EQ(EINVAL, call_with({(1u << 20) + 1, 0, 0, 0}));
    EXPECT_EQ(EINVAL, call_with({16, 0, 9, 0}));
    EXPECT_EQ(EINVAL, call_with({16, 0, control::kRegionVga, 0}));
}

TEST_F(SessionTest, MigrationCommandsAreValidatedThenNotSupported)
{
    start_session();
    EXPECT_EQ(ENOTSUP, call_errno(vu::Command::device_feature, concat(vu::DeviceFeature{8, 1u << 16 | 1})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_feature, concat(vu::DeviceFeature{7, 1u << 16 | 1})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::device_feature, filled(7, 0)));
    EXPECT_EQ(ENOTSUP, call_errno(vu::Command::mig_data_read, concat(vu::MigData{8, 4096})));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::mig_data_read, concat(vu::MigData{8, (1u << 20) + 1})));
    EXPECT_EQ(ENOTSUP, call_errno(vu::Command::mig_data_write, concat(vu::MigData{12, 4}, filled(4, 1))));
    EXPECT_EQ(EINVAL, call_errno(vu::Command::mig_data_write, concat(vu::MigData{12, 5}, filled(4, 1))));
}

// ---- DEVICE_RESET ----

TEST_F(SessionTest, ResetIsAnsweredByTheGuest)
{
    start_session();
    feed(command(vu::Command::device_reset, {}));
    const auto request = take_request(control::Type::device_reset);
    EXPECT_FALSE(has_reply());
    answer(request);
    const auto reply = take_sent();
    EXPECT_EQ(0u, reply.header.error);
    EXPECT_EQ(16u, reply.header.size);
}

//= VVFU-DEADLINE-1
//= type=test
//= VVFU-RESET-4
//= type=test
TEST_F(SessionTest, ResetIsAnsweredAtItsDeadlineWithNoMemoryInTheWindow)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    map(0x1000, 0x1000, memory(0x1000), 0, vu::kDmaRead);
    port.events.clear();
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout - 1ns);
    EXPECT_EQ(2u, port.window.size());
    advance(1ns);
    EXPECT_EQ((std::vector<std::string>{"request", "unmap", "unmap", "send"}), port.events);
    EXPECT_EQ(0u, take_sent().header.error);
    // Nor does what is mapped meanwhile appear before the guest has answered.
    EXPECT_EQ(1u, port.requests.size());
    feed(command(vu::Command::dma_map, dma_map_payload(0x2000, 0x1000)), memory(0x1000));
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_TRUE(port.window.empty());
}

//= VVFU-RESET-5
//= type=test
TEST_F(SessionTest, ALateAnswerToAResetBringsTheMemoryBackWhereItWas)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    map(0x1000, 0x2000, memory(0x4000), 0x2000, vu::kDmaRead);
    const auto before = port.window;
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    take_sent();
    const auto reset = take_request(control::Type::device_reset);
    feed(command(vu::Command::dma_map, dma_map_payload(0x4000, 0x1000)), memory(0x1000));
    take_sent();
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0, 0x1000)));
    answer_all();
    EXPECT_EQ(0u, take_sent().header.error);
    EXPECT_TRUE(port.window.empty());
    port.events.clear();
    answer(reset);
    EXPECT_EQ(0u, core->state().unknown_replies);
    EXPECT_EQ((std::vector<std::string>{"map", "map"}), port.events);
    ASSERT_EQ(2u, port.window.size());
    const auto offset = std::next(before.begin())->first;
    ASSERT_TRUE(port.window.contains(offset));
    EXPECT_EQ(before.at(offset).inode, port.window.at(offset).inode);
    EXPECT_EQ(0x2000u, port.window.at(offset).fd_offset);
    EXPECT_EQ(core::kProtRead, port.window.at(offset).protection);
    read_fill = 0x5a;
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 1}, filled(1, 0x5a)),
              call(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 1})).payload);
}

//= VVFU-RESET-6
//= type=test
//= VVFU-DEADLINE-5
//= type=test
TEST_F(SessionTest, WhileAResetIsOverdueNothingWaitsForTheGuest)
{
    start_session();
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    take_sent();
    const auto reset = take_request(control::Type::device_reset);
    feed(command(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x21, 2, 0, 0})));
    answer_all();  // the guest is not silent, but busy
    take_sent();
    for (int i = 0; i < 3; ++i) {
        feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
        EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, 0xff)), take_sent().payload);
        feed(command(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(4, 1))));
        EXPECT_EQ(0u, take_sent().header.error);
        feed(command(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(4, 1)), vu::kFlagNoReply));
        feed(command(vu::Command::region_write_multi, concat(std::uint64_t{1}, vu::MultiWrite{0, 0, 1, {}})));
        EXPECT_EQ(0u, take_sent().header.error);
        feed(command(vu::Command::device_reset, {}));
        EXPECT_EQ(0u, take_sent().header.error);
    }
    EXPECT_TRUE(port.requests.empty());
    EXPECT_EQ(12u, core->state().dropped_accesses);
    EXPECT_FALSE(has_reply());
    answer(reset);
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    EXPECT_EQ(1u, port.requests.size());
}

//= VVFU-RESET-4
//= type=test
TEST_F(SessionTest, MemoryComesBackWhenTheLastOfSeveralResetsIsAnswered)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    feed(command(vu::Command::device_reset, {}));
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    const auto first = take_request(control::Type::device_reset), second = take_request(control::Type::device_reset);
    answer(second);
    EXPECT_TRUE(port.window.empty());
    answer(first);
    EXPECT_EQ(1u, port.window.size());
}

//= VVFU-RESET-7
//= type=test
TEST_F(SessionTest, AResetThatIsRefusedTooLateEndsTheSession)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    answer(take_request(control::Type::device_reset), {}, control::Status::io);
    EXPECT_EQ(1u, port.closed);
    const auto down = control::decode_peer(take_request(control::Type::peer).payload);
    ASSERT_TRUE(down.has_value());
    EXPECT_EQ(control::DownReason::guest_closed, down->reason);
}

//= VVFU-RESET-7
//= type=test
TEST_F(SessionTest, MemoryThatCannotBeShownAgainEndsTheSession)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    port.map_result = -ENOMEM;
    answer(take_request(control::Type::device_reset));
    EXPECT_EQ(1u, port.closed);
    EXPECT_TRUE(port.logged("cannot be mapped again"));
    const auto down = control::decode_peer(take_request(control::Type::peer).payload);
    ASSERT_TRUE(down.has_value());
    EXPECT_EQ(control::DownReason::host_error, down->reason);
}

TEST_F(SessionTest, ASessionMayEndWhileAResetIsOverdue)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    feed(command(vu::Command::device_reset, {}));
    advance(config.access_timeout);
    core->peer_closed(now, 0);
    answer_all();
    port.sent.clear();
    begin_session();
    EXPECT_EQ(0, map(0, 0x1000, memory(0x1000)));
    EXPECT_EQ(1u, port.window.size());
}

// ---- a silent guest ----

//= VVFU-DEADLINE-3
//= type=test
//= VVFU-DEADLINE-4
//= type=test
//= VVFU-DEADLINE-5
//= type=test
TEST_F(SessionTest, APeerWaitsOnceForAGuestThatIsStuck)
{
    start_session();
    for (std::uint64_t i = 0; i < 8; ++i) {
        map(i * 0x1000, 0x1000, memory(0x1000));
    }
    Nanoseconds waited{};
    const auto wait_for_reply = [&] {
        while (!has_reply() && core->next_deadline() != kNever) {
            const auto by = std::max(core->next_deadline() - now, Nanoseconds{0});
            waited += by;
            advance(by);
        }
        return take_sent();
    };
    feed(command(vu::Command::device_reset, {}));
    EXPECT_EQ(0u, wait_for_reply().header.error);
    for (int i = 0; i < 20; ++i) {
        feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
        EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, 0xff)), wait_for_reply().payload);
    }
    for (std::uint64_t i = 0; i < 8; ++i) {
        feed(command(vu::Command::dma_unmap, dma_unmap_payload(i * 0x1000, 0x1000)));
        EXPECT_EQ(0u, wait_for_reply().header.error);
    }
    core->peer_closed(now, 0);
    connect();
    feed(command(vu::Command::version, version_payload("")));
    EXPECT_EQ(0u, wait_for_reply().header.error);
    EXPECT_EQ(config.access_timeout, waited);
    EXPECT_EQ(1u, core->state().silences);
    EXPECT_TRUE(port.logged("silent"));
    answer_all();  // it wakes up
    EXPECT_TRUE(port.logged("answers again"));
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, read_fill)),
              call(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})).payload);
}

//= VVFU-DEADLINE-4
//= type=test
TEST_F(SessionTest, RemovalsThatAreNotAnsweredSayNothingAboutRegisters)
{
    start_session();
    for (std::uint64_t i = 0; i < 3; ++i) {
        map(i * 0x1000, 0x1000, memory(0x1000));
    }
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0, 0x1000)));
    advance(config.unmap_timeout);
    take_sent();
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0x1000, 0x1000)));
    EXPECT_EQ(0u, take_sent().header.error) << "at once";
    port.requests.clear();
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    EXPECT_FALSE(has_reply());
    answer_all();
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, read_fill)), take_sent().payload);
    feed(command(vu::Command::dma_unmap, dma_unmap_payload(0x2000, 0x1000)));
    EXPECT_FALSE(has_reply()) << "it answered";
    EXPECT_EQ(0u, core->state().silences);
}

//= VVFU-DEADLINE-3
//= type=test
TEST_F(SessionTest, AnUnmapBehindManyPostedWritesToAStoppedGuestIsAnsweredWithinADeadline)
{
    start_session();
    map(0, 0x1000, memory(0x1000));
    port.request_buffers = 100;
    const auto began = now;
    const auto send = [&](const ByteVector &message) {
        // As the port does: the socket is read when the core wants to.
        while (!core->wants_peer_data()) {
            ASSERT_NE(kNever, core->next_deadline());
            advance(core->next_deadline() - now);
        }
        feed(message);
    };
    const auto write = concat(vu::RegionAccess{0, 0, 4}, filled(4, 1));
    for (int i = 0; i < 6000; ++i) {
        send(command(vu::Command::region_write, write, vu::kFlagNoReply));
    }
    send(command(vu::Command::dma_unmap, dma_unmap_payload(0, 0x1000)));
    while (!has_reply()) {
        ASSERT_NE(kNever, core->next_deadline());
        advance(core->next_deadline() - now);
    }
    EXPECT_EQ(static_cast<std::uint16_t>(vu::Command::dma_unmap), take_sent().header.command);
    EXPECT_EQ(config.access_timeout, now - began);
    EXPECT_TRUE(port.window.empty());
    EXPECT_LT(4000u, core->state().dropped_accesses);
    // It goes on, and answers what tells that it does.
    port.request_buffers = 100000;
    core->request_buffers(now, 1);
    answer_all();
    EXPECT_EQ(concat(vu::RegionAccess{0, 0, 4}, filled(4, read_fill)),
              call(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})).payload);
}

TEST_F(SessionTest, ResetClearsPendingDoorbells)
{
    start_session();
    core->doorbell_written(kMsixDoorbell);
    EXPECT_TRUE(core->doorbell_pending(kMsixDoorbell));
    EXPECT_EQ(0, call_errno(vu::Command::device_reset, {}));
    EXPECT_FALSE(core->doorbell_pending(kMsixDoorbell));
}

TEST_F(SessionTest, ResetOfADeviceThatCannotIsNotSupported)
{
    create();
    auto info = sample_device();
    info.flags = 0;
    device_add(info);
    begin_session();
    EXPECT_EQ(ENOTSUP, call_errno(vu::Command::device_reset, {}));
    const auto reply = call(vu::Command::device_get_info, concat(vu::DeviceInfo{16, 0, 0, 0}));
    EXPECT_EQ(concat(vu::DeviceInfo{16, vu::kDeviceFlagPci, 9, 5}), reply.payload);
}

}  // namespace
}  // namespace vvfu::test
