// SPDX-License-Identifier: BSD-3-Clause
//
// What the specification demands of the device, clause by clause, with the core as the device: single messages,
// operation per vfio-user command, errors.
#include "device_bench.hpp"

namespace vvfu::spec {
namespace {

// ---- DEVICE_INFO and FEATURE_BITS ---------------------------------------------------------------

struct BadDevice {
    const char *what;
    Status status;
    void (*change)(control::DeviceInfo &);
};

const BadDevice kBadDevices[] = {
    {"region index", Status::invalid,
     [](auto &d) {
         d.regions.push_back({kMaxRegions, 1, 4096, 0, {}});
     }},
    {"region twice", Status::invalid, [](auto &d) { d.regions.push_back(d.regions[0]); }},
    {"interrupt index", Status::invalid,
     [](auto &d) {
         d.irqs.push_back({5, 1});
     }},
    {"interrupt twice", Status::invalid,
     [](auto &d) {
         d.irqs.push_back({control::kIrqMsix, 1});
     }},
    {"region flags", Status::invalid, [](auto &d) { d.regions[0].flags |= 8; }},
    {"device flags", Status::invalid, [](auto &d) { d.flags |= 0x100; }},
    {"region too large", Status::invalid, [](auto &d) { d.regions[0].size = (std::uint64_t{1} << 56) + 1; }},
    {"no configuration space", Status::invalid, [](auto &d) { d.regions.pop_back(); }},
    {"size of configuration space", Status::invalid, [](auto &d) { d.regions[2].size = 1024; }},
    {"area in configuration space", Status::invalid,
     [](auto &d) {
         d.regions[2].flags |= control::kRegionMmap;
         d.regions[2].areas = {{0, 4096}};
     }},
    {"MMAP without area", Status::invalid, [](auto &d) { d.regions[0].flags |= control::kRegionMmap; }},
    {"area without MMAP", Status::invalid, [](auto &d) { d.regions[1].flags &= ~std::uint32_t{control::kRegionMmap}; }},
    {"area not aligned", Status::invalid, [](auto &d) { d.regions[1].areas[0].offset = 0x800; }},
    {"area empty", Status::invalid, [](auto &d) { d.regions[1].areas[0].size = 0; }},
    {"area outside", Status::invalid,
     [](auto &d) {
         d.regions[1].areas[0] = {0x7000, 0x2000};
     }},
    {"area wraps", Status::invalid,
     [](auto &d) {
         d.regions[1].areas[0] = {0x1000, ~std::uint64_t{0xfff}};
     }},
    {"areas overlap", Status::invalid,
     [](auto &d) {
         d.regions[1].areas.push_back({0x2000, 0x1000});
     }},
    {"region memory offset", Status::invalid, [](auto &d) { d.regions[1].region_memory_offset = 0x800; }},
    {"outside region memory", Status::no_space, [](auto &d) { d.regions[1].region_memory_offset = 0xd000; }},
    {"two INTx", Status::invalid, [](auto &d) { d.irqs[0].count = 2; }},
    {"two ERR", Status::invalid, [](auto &d) { d.irqs[2].count = 2; }},
    {"too many vectors", Status::no_space, [](auto &d) { d.irqs[1].count = 8; }},
    {"vectors overflow", Status::no_space, [](auto &d) { d.irqs[1].count = ~0u; }},
    {"RETAIN", Status::unsupported, [](auto &d) { d.flags |= control::kDeviceRetain; }},
};

//= VVFU-DEVICE-1
//= type=test
TEST(Device, RefusesADescriptionThatBreaksARule)
{
    for (const auto &bad : kBadDevices) {
        DeviceBench bench;
        auto info = example_device();
        bad.change(info);
        const auto reply = bench.add(info);
        EXPECT_EQ(control::name(reply.header.status), control::name(bad.status)) << bad.what;
        EXPECT_FALSE(reply.payload.empty()) << bad.what << ": no reason";
        EXPECT_FALSE(bench.listening) << bad.what;
        EXPECT_LT(bench.connect(), 0) << bad.what;
        EXPECT_FALSE(bench.broken) << bad.what;
        EXPECT_EQ(bench.add().header.status, Status::ok) << bad.what;
    }
}

TEST(Device, RefusesADeviceWhileItCannotAcceptPeers)
{
    DeviceBench bench;
    bench.listen_result = -EADDRINUSE;
    EXPECT_EQ(bench.add().header.status, Status::io);
    bench.listen_result = 0;
    EXPECT_EQ(bench.add().header.status, Status::ok);
}

//= VVFU-DEVICE-2
//= type=test
TEST(Device, RefusesASecondDevice)
{
    DeviceBench bench;
    EXPECT_EQ(bench.add().header.status, Status::ok);
    EXPECT_EQ(bench.add().header.status, Status::busy);
    EXPECT_TRUE(bench.listening);
    EXPECT_EQ(bench.del().header.status, Status::ok);
    EXPECT_EQ(bench.del().header.status, Status::not_found);
    EXPECT_EQ(bench.add().header.status, Status::ok);
}

//= VVFU-DEVICE-3
//= type=test
TEST(Device, EndsTheSessionBeforeItAnswersTheWithdrawal)
{
    DeviceBench bench;
    bench.start_session();
    bench.events.clear();
    EXPECT_EQ(bench.del().header.status, Status::ok);
    const auto at = [&](const char *event) { return std::find(bench.events.begin(), bench.events.end(), event); };
    EXPECT_LT(at("close_peer"), at("complete_control"));
    EXPECT_LT(at("unlisten"), at("complete_control"));
    EXPECT_NE(at("complete_control"), bench.events.end());
    EXPECT_EQ(control::decode_peer(bench.next(Type::peer).payload)->reason, control::DownReason::device_deleted);
}

//= VVFU-FEATURES-1
//= VVFU-FEATURES-3
//= type=test
TEST(Device, FeaturesNeedPeerDeviceAndDriver)
{
    struct Case {
        bool peer, device, accepted;
    };
    for (const Case c : {Case{true, true, true}, {true, true, false}, {true, false, true}, {false, true, true}}) {
        DeviceBench bench;
        auto info = example_device();
        info.features = c.device ? std::uint64_t{control::kFeatureWriteMultiple} : 0;
        bench.add(info);
        bench.connect();
        const auto id = bench.version(c.peer ? R"({"capabilities":{"write_multiple":true}})" : "{}");
        bench.answer(bench.next(Type::peer));
        const auto request = bench.next(Type::feature_bits);
        const auto offered = control::decode_feature_bits(request.payload)->features;
        EXPECT_EQ(offered, c.peer && c.device ? std::uint64_t{control::kFeatureWriteMultiple} : 0);
        bench.reply(request, payload(control::FeatureBits{c.accepted ? offered : 0}));
        const auto *reply = bench.reply_to(id);
        ASSERT_NE(reply, nullptr);
        const auto version = vu::decode_version(reply->payload);
        ASSERT_TRUE(version.has_value());
        EXPECT_EQ(version->capabilities.write_multiple.value_or(false), c.peer && c.device && c.accepted);
    }
}

//= VVFU-ERROR-10
//= type=test
TEST(Device, BreaksWhenTheDriverAcceptsWhatWasNotOffered)
{
    for (const auto accepted : {std::uint64_t{2}, std::uint64_t{1} << 63, std::uint64_t{3}}) {
        DeviceBench bench;
        bench.add();
        bench.connect();
        bench.version(R"({"capabilities":{"write_multiple":true}})");
        bench.answer(bench.next(Type::peer));
        bench.reply(bench.next(Type::feature_bits), payload(control::FeatureBits{accepted}));
        EXPECT_TRUE(bench.broken.has_value());
        EXPECT_TRUE(bench.sent.empty());
    }
}

//= VVFU-DEVICE-6
//= type=test
TEST(Device, IgnoresFeaturesOfTheDeviceThatItDoesNotKnow)
{
    DeviceBench bench;
    auto info = example_device();
    info.features = ~std::uint64_t{0};
    EXPECT_EQ(bench.add(info).header.status, Status::ok);
    bench.connect();
    bench.version(R"({"capabilities":{"write_multiple":true}})");
    bench.answer(bench.next(Type::peer));
    EXPECT_EQ(control::decode_feature_bits(bench.next(Type::feature_bits).payload)->features,
              std::uint64_t{control::kFeatureWriteMultiple});
}

//= VVFU-DEVICE-4
//= type=test
TEST(Device, RefusesDeviceInfoOfASession)
{
    DeviceBench bench;
    EXPECT_EQ(bench.control(Type::device_info, payload(example_device()), 1).header.status, Status::invalid);
    EXPECT_FALSE(bench.listening);
    bench.add();
    control::DeviceInfo del;
    del.op = control::DeviceInfoOp::del;
    EXPECT_EQ(bench.control(Type::device_info, payload(del), 1).header.status, Status::invalid);
    EXPECT_TRUE(bench.listening);
}

// ---- register accesses --------------------------------------------------------------------------

//= VVFU-ACCESS-1
//= type=test
TEST(Device, AccessThatIsEmptyOrOutsideTheRegionNeverReachesTheDriver)
{
    DeviceBench bench;
    bench.start_session();
    EXPECT_EQ(bench.result(bench.read(control::kRegionBar0, 0, 0)), 0);
    EXPECT_EQ(bench.result(bench.write(control::kRegionBar0, 0, 0)), 0);
    EXPECT_EQ(bench.result(bench.read(control::kRegionBar0, 0xfffd, 4)), EINVAL);
    EXPECT_EQ(bench.result(bench.read(control::kRegionBar0, ~std::uint64_t{0}, 2)), EINVAL);
    EXPECT_EQ(bench.result(bench.write(control::kRegionBar0, 0x10000, 1)), EINVAL);
    EXPECT_EQ(bench.result(bench.read(1, 0, 4)), EINVAL) << "BAR 1 does not exist";
    EXPECT_EQ(bench.result(bench.read(9, 0, 4)), EINVAL);
    EXPECT_TRUE(bench.requests.empty());
}

//= VVFU-ACCESS-3
//= type=test
TEST(Device, ReadThatTheDriverRefusesGivesAllOnes)
{
    DeviceBench bench;
    bench.start_session();
    const auto id = bench.read(control::kRegionBar0, 8, 6);
    bench.reply(bench.next(Type::region_read), {}, Status::permission);
    const auto *reply = bench.reply_to(id);
    ASSERT_NE(reply, nullptr);
    EXPECT_EQ(reply->error(), 0);
    const auto data = vu::decode_region_data(reply->payload);
    ASSERT_TRUE(data.has_value());
    EXPECT_EQ(Buffer(data->data.begin(), data->data.end()), Buffer(6, std::byte{0xff}));
}

// ---- DMA ----------------------------------------------------------------------------------------

class DeviceDma : public ::testing::Test {
protected:
    DeviceDma()
    {
        bench.start_session(R"({"capabilities":{"max_data_xfer_size":4096}})");
        bench.map(0x10000, 0x10000, -1);
        bench.map(0x20000, 0x1000, -1, 0, vu::kDmaRead);
        bench.answer_all();
    }
    std::uint64_t start(Type type, std::uint64_t address, std::uint64_t count)
    {
        auto out = payload(control::DmaAccess{address, count});
        if (type == Type::dma_write) {
            out.resize(out.size() + static_cast<std::size_t>(count), std::byte{0x77});
        }
        return bench.send_control(message({type, 0, 0, ++request_id, 1, Status::ok}, out), 0x20000);
    }
    Status status(std::uint64_t token)
    {
        EXPECT_TRUE(bench.replies.contains(token));
        return parse(bench.replies[token]).header.status;
    }
    DeviceBench bench;
    std::uint64_t request_id = 0;
};

//= VVFU-DMA-1
//= type=test
TEST_F(DeviceDma, RangeAndPermissionAreCheckedWithoutThePeer)
{
    EXPECT_EQ(status(start(Type::dma_read, 0xffff, 2)), Status::fault);
    EXPECT_EQ(status(start(Type::dma_read, 0x20fff, 2)), Status::fault);
    EXPECT_EQ(status(start(Type::dma_read, ~std::uint64_t{0}, 2)), Status::fault);
    EXPECT_EQ(status(start(Type::dma_write, 0x20000, 4)), Status::permission);
    EXPECT_EQ(status(start(Type::dma_write, 0x1fffe, 4)), Status::permission);
    EXPECT_TRUE(bench.commands().empty());
    start(Type::dma_read, 0x1fffe, 4);
    EXPECT_EQ(bench.commands().size(), 1u) << "two ranges that are neighbours";
}

//= VVFU-DMA-2
//= type=test
TEST_F(DeviceDma, AccessesAreSplitToThePeersLimit)
{
    const auto token = start(Type::dma_read, 0x10000, 10'000);
    auto commands = bench.commands();
    std::uint64_t at = 0x10000;
    for (std::size_t i = 0; i < commands.size(); commands = bench.commands(), ++i) {
        const auto access = *vu::decode_prefix<vu::DmaAccess>(commands[i].payload);
        EXPECT_EQ(access.address, at);
        EXPECT_LE(access.count, 4096u);
        at += access.count;
        auto data = payload(access);
        data.resize(data.size() + static_cast<std::size_t>(access.count), static_cast<std::byte>(i));
        bench.peer_reply(commands[i].header, data);
    }
    EXPECT_EQ(at, 0x10000u + 10'000);
    ASSERT_EQ(status(token), Status::ok);
    const auto reply = parse(bench.replies[token]);
    const auto data = control::decode_dma_data(reply.payload);
    ASSERT_TRUE(data && data->data.size() == 10'000);
    EXPECT_EQ(data->data[0], std::byte{0});
    EXPECT_EQ(data->data[4096], std::byte{1});
    EXPECT_EQ(data->data[9999], std::byte{2});
}

//= VVFU-DMA-3
//= type=test
TEST_F(DeviceDma, CommandsOfThePeerAreServedMeanwhile)
{
    const auto token = start(Type::dma_read, 0x10000, 4);
    EXPECT_TRUE(bench.core().wants_peer_data());
    const auto read = bench.read(control::kRegionBar0, 0, 4);
    bench.answer_all();
    EXPECT_EQ(bench.result(read), 0);
    EXPECT_FALSE(bench.replies.contains(token));
    auto data = payload(vu::DmaAccess{0x10000, 4});
    data.resize(data.size() + 4);
    bench.peer_reply(bench.commands().front().header, data);
    EXPECT_TRUE(bench.replies.contains(token));
}

//= VVFU-DMA-5
//= VVFU-DMA-6
//= VVFU-OP-4
//= type=test
TEST_F(DeviceDma, ResetWaitsForNoCommandToThePeer)
{
    const auto read = start(Type::dma_read, 0x10000, 10'000), write = start(Type::dma_write, 0x10000, 4);
    const auto asked = bench.commands().size();
    const auto reset = bench.command(vu::Command::device_reset);
    EXPECT_EQ(status(read), Status::busy);
    EXPECT_EQ(status(write), Status::busy);
    EXPECT_EQ(status(start(Type::dma_read, 0x10000, 4)), Status::busy);
    bench.answer_all();
    EXPECT_EQ(bench.result(reset), 0);
    EXPECT_EQ(bench.commands().size(), asked);
    const auto next = start(Type::dma_write, 0x10000, 4);
    EXPECT_EQ(bench.commands().size(), asked + 1);
    EXPECT_FALSE(bench.replies.contains(next));
}

//= VVFU-DMA-5
//= VVFU-OP-4
//= type=test
TEST_F(DeviceDma, UnmapWaitsForNoCommandToThePeer)
{
    const auto read = start(Type::dma_read, 0x10000, 4), across = start(Type::dma_read, 0x1fffe, 4);
    const auto other = start(Type::dma_read, 0x20000, 4);
    const auto unmap = bench.unmap(0x10000, 0x10000);
    EXPECT_EQ(status(read), Status::fault);
    EXPECT_EQ(status(across), Status::fault);
    bench.answer_all();
    EXPECT_EQ(bench.result(unmap), 0);
    EXPECT_FALSE(bench.replies.contains(other));
}

//= VVFU-DMA-7
//= type=test
TEST_F(DeviceDma, RepliesOfThePeerToAccessesThatWereEndedAreDiscarded)
{
    start(Type::dma_read, 0x10000, 4);
    const auto ended = bench.commands().back();
    bench.command(vu::Command::device_reset);
    bench.answer_all();
    const auto token = start(Type::dma_read, 0x10000, 4);
    auto data = payload(vu::DmaAccess{0x10000, 4});
    data.resize(data.size() + 4, std::byte{1});
    bench.peer_reply(ended.header, data);
    EXPECT_FALSE(bench.replies.contains(token));
    EXPECT_TRUE(bench.connected);
    bench.peer_reply(bench.commands().back().header, data);
    EXPECT_EQ(status(token), Status::ok);
}

//= VVFU-DMA-4
//= type=test
TEST_F(DeviceDma, EmptyAndOverlongAccessesAreInvalid)
{
    EXPECT_EQ(status(start(Type::dma_read, 0x10000, 0)), Status::invalid);
    EXPECT_EQ(status(start(Type::dma_write, 0x10000, 0)), Status::invalid);
    EXPECT_EQ(status(start(Type::dma_read, 0x10000, kMaxMessageSize - 47)), Status::invalid);
    EXPECT_EQ(status(start(Type::dma_read, 0x10000, ~std::uint64_t{0})), Status::invalid);
    EXPECT_TRUE(bench.commands().empty());
    EXPECT_FALSE(bench.broken);
}

TEST(Device, DmaWithoutASessionIsNotConnected)
{
    DeviceBench bench;
    bench.add();
    EXPECT_EQ(bench.control(Type::dma_read, payload(control::DmaAccess{0, 4}), 0).header.status, Status::not_connected);
}

//= VVFU-CLOSE-1
//= type=test
TEST(Device, ClosesTheConnectionBeforeItAnswersPeerClose)
{
    DeviceBench bench;
    bench.start_session();
    bench.events.clear();
    Buffer text;
    control::append_text(text, "enough\x1b[0m");
    EXPECT_EQ(bench.control(Type::peer_close, text, 1).header.status, Status::ok);
    const auto at = [&](const char *event) { return std::find(bench.events.begin(), bench.events.end(), event); };
    EXPECT_LT(at("close_peer"), at("complete_control"));
    EXPECT_FALSE(bench.connected);
    EXPECT_EQ(control::decode_peer(bench.next(Type::peer).payload)->reason, control::DownReason::guest_closed);
    EXPECT_NE(bench.log_text.find("enough?[0m"), std::string::npos);
}

// ---- operation per command ----------------------------------------------------------------------

//= VVFU-OP-1
//= type=test
TEST(Device, NeverRepliesToACommandWithNoReply)
{
    DeviceBench bench;
    bench.start_session();
    const auto sent = bench.sent.size();
    bench.write(control::kRegionBar0, 0, 4, vu::kFlagNoReply);
    bench.write(control::kRegionBar0, 0x10000, 4, vu::kFlagNoReply);  // outside
    bench.command(vu::Command{99}, {}, {}, vu::kFlagNoReply);
    bench.command(vu::Command::dma_map, {}, {}, vu::kFlagNoReply);
    bench.command(vu::Command::device_get_info, payload(vu::DeviceInfo{16, 0, 0, 0}), {}, vu::kFlagNoReply);
    bench.command(vu::Command::device_reset, {}, {}, vu::kFlagNoReply);
    bench.answer_all();
    bench.advance(std::chrono::seconds{5});
    EXPECT_EQ(bench.sent.size(), sent);
    EXPECT_TRUE(bench.connected);
}

/// Open descriptors of a file in this process.
std::size_t descriptors_of(int fd)
{
    std::size_t count = 0;
    for (int other = 0; other < 1024; ++other) {
        struct stat a {
        }, b{};
        count += ::fstat(fd, &a) == 0 && ::fstat(other, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
    }
    return count;
}

//= VVFU-OP-2
//= type=test
TEST(Device, ClosesDescriptorsThatItDoesNotKeep)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x1000);
    const auto before = descriptors_of(memory.fd());
    bench.command(vu::Command::device_get_info, payload(vu::DeviceInfo{16, 0, 0, 0}), {memory.fd()});
    bench.command(vu::Command{99}, {}, {memory.fd(), memory.fd()});
    bench.command(vu::Command::dma_map, {}, {memory.fd()});
    bench.set_irqs(kAssign, control::kIrqMsix, 9, 1, {memory.fd()});
    bench.command(vu::Command::device_reset, {}, std::vector<int>(vu::kMaxMsgFds + 1, memory.fd()));
    bench.unmap(0, 0x1000);
    EXPECT_EQ(descriptors_of(memory.fd()), before);
    bench.map(0, 0x1000, memory.fd());
    bench.answer_all();
    EXPECT_EQ(descriptors_of(memory.fd()), before + 1) << "one of each file, whatever the number of mappings";
    bench.unmap(0, 0x1000);
    bench.answer_all();
    EXPECT_EQ(descriptors_of(memory.fd()), before);
}

//= VVFU-OP-3
//= type=test
TEST(Device, GoesOnAfterARefusedCommandUnlessTheStreamIsOutOfStep)
{
    DeviceBench bench;
    bench.start_session();
    struct Case {
        vu::Command command;
        Buffer payload;
        int error;
    };
    const Case cases[] = {
        {vu::Command{99}, {}, EINVAL},
        {vu::Command{14}, {}, EINVAL},
        {vu::Command::version, {}, EINVAL},
        {vu::Command::dma_read, payload(vu::DmaAccess{0, 4}), EINVAL},
        {vu::Command::dma_map, Buffer(31), EINVAL},
        {vu::Command::dma_map, payload(vu::DmaMap{32, 3, 0, 0, std::uint64_t{9} << 40}), ENOSPC},
        {vu::Command::dma_unmap, payload(vu::DmaUnmap{24, 0, 0x1000, 0x1000}), ENOENT},
        {vu::Command::device_get_info, payload(vu::DeviceInfo{8, 0, 0, 0}), EINVAL},
        {vu::Command::device_get_region_info, payload(vu::RegionInfo{32, 0, 9, 0, 0, 0}), EINVAL},
        {vu::Command::device_get_irq_info, payload(vu::IrqInfo{16, 0, 5, 0}), EINVAL},
        {vu::Command::device_get_region_io_fds, payload(vu::RegionIoFds{16, 0, 0, 0}), ENOTSUP},
        {vu::Command::device_feature, payload(vu::DeviceFeature{8, 1}), ENOTSUP},
        {vu::Command::mig_data_read, payload(vu::MigData{8, 16}), ENOTSUP},
    };
    for (const auto &c : cases) {
        EXPECT_EQ(bench.result(bench.command(c.command, c.payload)), c.error) << vu::name(c.command);
    }
    EXPECT_TRUE(bench.connected);
    const auto id = bench.read(control::kRegionBar0, 0, 4);
    bench.answer_all();
    EXPECT_EQ(bench.result(id), 0);

    vu::Buffer bad;
    vu::begin_command(bad, vu::Command::device_get_info, 1234);
    const std::uint32_t size = 15;
    std::memcpy(bad.data() + offsetof(vu::Header, size), &size, sizeof size);
    bench.feed(bad);
    EXPECT_EQ(bench.result(1234), EINVAL);
    EXPECT_FALSE(bench.connected);
}

//= VVFU-OP-5
//= type=test
TEST(Device, RepliesOnlyAfterEarlierPostedWritesAreComplete)
{
    Event event;
    for (const bool answers : {true, false}) {
        DeviceBench bench;
        bench.start_session();
        bench.write(control::kRegionBar0, 0, 4, vu::kFlagNoReply);
        const auto irqs = bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {event.fd()});
        const auto empty = bench.read(control::kRegionBar0, 0, 0);
        EXPECT_EQ(bench.result(irqs), -1);
        EXPECT_EQ(bench.result(empty), -1);
        if (answers) {
            bench.answer_all();
        } else {
            bench.advance(DeviceBench::kAccessTimeout);
        }
        EXPECT_EQ(bench.result(irqs), 0);
        EXPECT_EQ(bench.result(empty), 0);
    }
}

//= VVFU-OP-6
//= type=test
TEST(Device, RefusesInterruptsThatAreNoEventfds)
{
    DeviceBench bench;
    bench.start_session();
    Memory memory(0x1000);
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const Fd reader{ends[0]}, writer{ends[1]};
    for (const int fd : {memory.fd(), writer.get()}) {
        EXPECT_EQ(bench.result(bench.set_irqs(kAssign, control::kIrqMsix, 0, 1, {fd})), EINVAL);
    }
    bench.ring(kDoorbellMsix0);
    EXPECT_TRUE(bench.core().doorbell_pending(kDoorbellMsix0));
}

// ---- errors -------------------------------------------------------------------------------------

void expect_broken(DeviceBench &bench, const char *what)
{
    EXPECT_TRUE(bench.broken) << what;
    EXPECT_FALSE(bench.connected) << what;
    EXPECT_FALSE(bench.listening) << what;
    EXPECT_TRUE(bench.window.empty()) << what;
}

//= VVFU-ERROR-1
//= VVFU-ERROR-5
//= type=test
TEST(Device, MalformedHeaderBreaksIt)
{
    const auto good = message({Type::device_info, 0, 0, 1, 0, Status::ok}, payload(example_device()));
    const auto changed = [&](std::size_t offset, unsigned value) {
        auto out = good;
        out[offset] = static_cast<std::byte>(value);
        return out;
    };
    const std::pair<const char *, Buffer> cases[] = {
        {"nothing", {}},
        {"short header", Buffer(good.begin(), good.begin() + 31)},
        {"short message", Buffer(good.begin(), good.end() - 1)},
        {"length", changed(4, 33)},
        {"flags", changed(2, 4)},
        {"reply on the controlq", changed(2, control::kFlagReply)},
        {"posted on the controlq", changed(2, control::kFlagPosted)},
        {"reserved", changed(31, 1)},
    };
    for (const auto &[what, bytes] : cases) {
        DeviceBench bench;
        bench.start_session();
        Memory memory(0x1000);
        bench.map(0, 0x1000, memory.fd());
        const auto token = bench.send_control(bytes);
        expect_broken(bench, what);
        EXPECT_FALSE(bench.replies.contains(token)) << what;
        const auto replies = bench.replies.size();
        bench.send_control(good);
        EXPECT_EQ(bench.replies.size(), replies) << what << ": queues are ignored";
    }
    DeviceBench bench;
    bench.start_session();
    bench.read(control::kRegionBar0, 0, 4);
    bench.core().reply(bench.now, kReplyQueue, bench.requests.front());
    expect_broken(bench, "request on the replyq");
}

//= VVFU-ERROR-2
//= type=test
TEST(Device, ReplyOfAnotherTypeBreaksIt)
{
    DeviceBench bench;
    bench.start_session();
    bench.read(control::kRegionBar0, 0, 4);
    auto request = bench.next(Type::region_read);
    request.header.type = Type::region_write;
    bench.reply(request, Bytes{request.payload}.first(16));
    expect_broken(bench, "type");
}

//= VVFU-ERROR-3
//= type=test
TEST(Device, ReplyWithTheWrongPayloadBreaksIt)
{
    struct Case {
        const char *what;
        void (*run)(DeviceBench &);
    };
    const Case cases[] = {
        {"short read",
         [](DeviceBench &b) {
             b.read(control::kRegionBar0, 0, 4);
             const auto request = b.next(Type::region_read);
             b.reply(request, request.payload);
         }},
        {"read of something else",
         [](DeviceBench &b) {
             b.read(control::kRegionBar0, 0, 4);
             auto request = b.next(Type::region_read);
             request.payload[0] = std::byte{4};
             b.answer(request);
         }},
        {"write without access",
         [](DeviceBench &b) {
             b.write(control::kRegionBar0, 0, 4);
             b.reply(b.next(Type::region_write));
         }},
        {"memory with payload",
         [](DeviceBench &b) {
             b.map(0, 0x1000, -1);
             b.reply(b.next(Type::memory_info), Buffer(1));
         }},
        {"reset with payload",
         [](DeviceBench &b) {
             b.command(vu::Command::device_reset);
             b.reply(b.next(Type::device_reset), Buffer(8));
         }},
        {"text of 257 bytes",
         [](DeviceBench &b) {
             b.read(control::kRegionBar0, 0, 4);
             b.reply(b.next(Type::region_read), Buffer(control::kTextMax + 1), Status::io);
         }},
    };
    for (const auto &c : cases) {
        DeviceBench bench;
        bench.start_session();
        c.run(bench);
        expect_broken(bench, c.what);
    }
}

//= VVFU-ERROR-4
//= type=test
TEST(Device, BufferThatIsTooSmallBreaksIt)
{
    {
        DeviceBench bench;
        bench.start_session();
        bench.buffer_size = 40;
        bench.read(control::kRegionBar0, 0, 4);
        expect_broken(bench, "requestq buffer");
    }
    {
        DeviceBench bench;
        bench.start_session();
        bench.send_control(message({Type::irq_trigger, 0, 0, 1, 1, Status::ok}, payload(control::IrqTrigger{2, 0})),
                           287);
        expect_broken(bench, "reply part");
    }
    DeviceBench bench;
    bench.start_session();
    bench.map(0, 0x1000, -1);
    bench.send_control(message({Type::dma_read, 0, 0, 1, 1, Status::ok}, payload(control::DmaAccess{0, 1000})), 1047);
    expect_broken(bench, "reply part of DMA_READ");
}

//= VVFU-ERROR-6
//= type=test
TEST(Device, WorksAgainAfterTheDriverHasResetIt)
{
    DeviceBench bench;
    bench.start_session();
    bench.send_control(Buffer(3));
    expect_broken(bench, "message");
    bench.core().driver_reset(bench.now);
    bench.core().driver_ok(bench.now);
    bench.requests.clear();
    bench.broken.reset();
    bench.start_session();
    const auto id = bench.read(control::kRegionBar0, 0, 4);
    bench.answer_all();
    EXPECT_EQ(bench.result(id), 0);
    EXPECT_FALSE(bench.broken);
}

TEST(Device, RequestWithASoundHeaderAndABadPayloadIsInvalidOnly)
{
    DeviceBench bench;
    bench.start_session();
    EXPECT_EQ(bench.control(Type::device_info, Buffer(31)).header.status, Status::invalid);
    EXPECT_EQ(bench.control(Type::irq_trigger, Buffer(7), 1).header.status, Status::invalid);
    EXPECT_EQ(bench.control(Type::dma_read, Buffer(17), 1).header.status, Status::invalid);
    EXPECT_EQ(bench.control(Type::peer_close, Buffer(257), 1).header.status, Status::invalid);
    EXPECT_FALSE(bench.broken);
    EXPECT_TRUE(bench.connected);
}

}  // namespace
}  // namespace vvfu::spec
