// SPDX-License-Identifier: BSD-3-Clause
//
// Lifecycle: driver, device, sessions; the control queue; broken guests.
#include "vvfu/core/core.hpp"

#include <algorithm>
#include <cerrno>

#include "core_fixture.hpp"
#include "no_memory.hpp"
#include "vvfu/base/rate_limit.hpp"

namespace vvfu::test {
namespace {

using control::Status;
using control::Type;

class CoreLifecycleTest : public CoreTest {
protected:
    control::Peer take_peer(GuestRequest &request)
    {
        request = take_request(Type::peer);
        const auto peer = control::decode_peer(request.payload);
        EXPECT_TRUE(peer.has_value());
        return peer.value_or(control::Peer{});
    }
    void fill_session()
    {
        ASSERT_EQ(0, map(0, 1 << 20, memory(1 << 20)));
        std::vector<Fd> fds;
        fds.push_back(make_eventfd());
        ASSERT_EQ(0, call_errno(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x24, 2, 0, 1}), std::move(fds)));
        std::vector<Fd> resample;
        resample.push_back(make_eventfd());
        ASSERT_EQ(0,
                  call_errno(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x14, 0, 0, 1}), std::move(resample)));
        port.events.clear();
    }
    void expect_released()
    {
        EXPECT_TRUE(port.window.empty());
        EXPECT_TRUE(port.doorbells.empty());
        EXPECT_TRUE(port.notifications.empty());
    }
    Status close_from_guest(std::uint32_t epoch)
    {
        return control(Type::peer_close, epoch, [](control::Buffer &out) { control::append_text(out, "enough"); })
            .header.status;
    }
};

TEST_F(CoreLifecycleTest, ConfigurationsOutOfRangeAreRefused)
{
    const auto refused = [&](const std::function<void(core::CoreConfig &)> &change) {
        auto bad = config;
        change(bad);
        const auto created = core::Core::create(bad, port);
        return !created && !created.error().empty();
    };
    EXPECT_FALSE(refused([](auto &) {}));
    EXPECT_TRUE(refused([](auto &c) { c.window_size = 0; }));
    EXPECT_TRUE(refused([](auto &c) { c.window_size = 4095; }));
    EXPECT_TRUE(refused([](auto &c) { c.region_memory_size = 100; }));
    EXPECT_FALSE(refused([](auto &c) { c.region_memory_size = 0; }));
    EXPECT_TRUE(refused([](auto &c) { c.doorbells = 0; }));
    EXPECT_TRUE(refused([](auto &c) { c.doorbells = 4097; }));
    EXPECT_TRUE(refused([](auto &c) { c.notifications = 0; }));
    EXPECT_TRUE(refused([](auto &c) { c.notifications = 1025; }));
    EXPECT_TRUE(refused([](auto &c) { c.unmap_timeout = 999us; }));
    EXPECT_TRUE(refused([](auto &c) { c.access_timeout = 4001ms; }));
}

//= VVFU-CONF-2
//= type=test
//= VVFU-CONF-4
//= type=test
TEST_F(CoreLifecycleTest, DeviceConfiguration)
{
    config.unmap_timeout = 1500ms;
    config.access_timeout = 3999500us;
    config.uuid[3] = 7;
    create();
    const auto device = core->device_config();
    EXPECT_EQ(config.uuid, device.uuid);
    EXPECT_EQ(kWindow, device.window_size);
    EXPECT_EQ(kRegionMemory, device.region_memory_size);
    EXPECT_EQ(64u, device.doorbells);
    EXPECT_EQ(4u, device.notifications);
    EXPECT_EQ(0u, device.access_queue_pairs);
    EXPECT_EQ(9u, device.max_regions);
    EXPECT_GE(device.request_buffer_size, 6184u);
    EXPECT_EQ(1500u, device.unmap_timeout);
    EXPECT_EQ(4000u, device.access_timeout);
    EXPECT_EQ(0u, core->device_features());
}

//= VVFU-INIT-2
//= type=test
TEST_F(CoreLifecycleTest, PeersAreAcceptedWhileADeviceIsRegistered)
{
    auto created = core::Core::create(config, port);
    core = std::move(*created);
    EXPECT_STREQ("no driver", core->state().state);
    core->driver_ok(now);
    EXPECT_STREQ("no device", core->state().state);
    EXPECT_EQ(-ENODEV, core->peer_connected(now, {}));
    EXPECT_FALSE(port.listening);
    EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
    EXPECT_TRUE(port.listening);
    EXPECT_STREQ("listening", core->state().state);
    EXPECT_EQ(Status::ok, device_del().header.status);
    EXPECT_FALSE(port.listening);
    EXPECT_STREQ("no device", core->state().state);
    EXPECT_EQ(-ENODEV, core->peer_connected(now, {}));
}

//= VVFU-DEVICE-2
//= type=test
TEST_F(CoreLifecycleTest, OneDeviceAtATime)
{
    create();
    EXPECT_EQ(Status::not_found, device_del().header.status);
    EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
    EXPECT_EQ(Status::busy, device_add(sample_device()).header.status);
    EXPECT_EQ(Status::ok, device_del().header.status);
    EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
}

TEST_F(CoreLifecycleTest, ASocketThatCannotListenRefusesTheDeviceWithTheReason)
{
    create();
    port.listen_result = -EADDRINUSE;
    const auto reply = device_add(sample_device());
    EXPECT_EQ(Status::io, reply.header.status);
    EXPECT_NE(std::string::npos, reply.text().find("in use"));
    port.listen_result = 0;
    EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
}

//= VVFU-SESSION-2
//= type=test
TEST_F(CoreLifecycleTest, ASecondPeerIsRefusedWhileOneIsServed)
{
    start_session();
    EXPECT_EQ(-EBUSY, core->peer_connected(now, {}));
    EXPECT_EQ(-EBUSY, core->peer_connected(now, {}));
    EXPECT_STREQ("connected", core->state().state);
    EXPECT_EQ(4711u, core->state().peer.pid);
}

//= VVFU-SESSION-4
//= type=test
//= VVFU-SESSION-3
//= type=test
TEST_F(CoreLifecycleTest, TheEndOfAConnectionReleasesEverythingThenTellsTheGuest)
{
    create();
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    const auto before = open_fds();
    begin_session();
    fill_session();
    core->doorbell_written(kMsixDoorbell + 1);
    core->peer_closed(now, 0);
    expect_released();
    EXPECT_EQ(before, open_fds());
    EXPECT_FALSE(core->doorbell_pending(kMsixDoorbell + 1));
    EXPECT_EQ((std::vector<std::string>{"unmap", "unmap areas", "close", "request"}), port.events);
    GuestRequest request;
    const auto down = take_peer(request);
    EXPECT_EQ(control::PeerOp::down, down.op);
    EXPECT_EQ(control::DownReason::peer_closed, down.reason);
    EXPECT_EQ(1u, request.header.epoch);
    EXPECT_STREQ("listening", core->state().state);
    EXPECT_EQ(0u, core->state().mapped_bytes);
    EXPECT_TRUE(port.listening);
}

//= VVFU-SESSION-5
//= type=test
//= VVFU-SESSION-1
//= type=test
TEST_F(CoreLifecycleTest, TheNextPeerIsReadOnlyAfterTheGuestAnsweredTheEndOfTheLast)
{
    start_session();
    core->peer_closed(now, ECONNRESET);
    EXPECT_FALSE(core->wants_peer_data());
    connect();
    EXPECT_FALSE(core->wants_peer_data());
    // A port that had read some bytes already may still hand them over.
    feed(command(vu::Command::version, version_payload("")));
    GuestRequest down;
    take_peer(down);
    EXPECT_TRUE(port.requests.empty());
    answer(down);
    EXPECT_TRUE(core->wants_peer_data());
    GuestRequest up;
    EXPECT_EQ(control::PeerOp::up, take_peer(up).op);
    EXPECT_EQ(2u, up.header.epoch);
}

TEST_F(CoreLifecycleTest, TheNextPeerIsReadAfterTheDeadlineOfAGuestThatDoesNotAnswer)
{
    start_session();
    core->peer_closed(now, 0);
    connect();
    advance(config.access_timeout);
    EXPECT_TRUE(core->wants_peer_data());
}

//= VVFU-SESSION-9
//= type=test
TEST_F(CoreLifecycleTest, APeerThatDoesNotCompleteVersionMakesRoomForTheNextOne)
{
    create();
    device_add(sample_device());
    const auto version = command(vu::Command::version, version_payload("{}"));
    for (const std::size_t sent : {std::size_t{0}, std::size_t{15}, version.size() - 1}) {
        connect();
        advance(5s);
        if (sent != 0) {
            feed({version.begin(), version.begin() + static_cast<std::ptrdiff_t>(sent)});  // does not buy time
        }
        EXPECT_EQ(now + 5s, core->next_deadline());
        advance(5s - 1ns);
        EXPECT_STREQ("negotiating", core->state().state);
        advance(1ns);
        EXPECT_STREQ("listening", core->state().state);
        EXPECT_EQ(kNever, core->next_deadline());
    }
    EXPECT_EQ(3u, port.closed);
    EXPECT_EQ(3u, core->state().deadline_expiries);
    EXPECT_TRUE(port.logged("VERSION"));
    EXPECT_TRUE(port.requests.empty());  // the guest never hears of such a peer
    begin_session();
    advance(10s);
    EXPECT_STREQ("connected", core->state().state);
}

//= VVFU-DEADLINE-2
//= type=test
TEST_F(CoreLifecycleTest, TheNextPeersVersionIsAnsweredInTimeAllTheSame)
{
    config.access_timeout = core::kPeerPatience;
    start_session();
    core->peer_closed(now, 0);
    connect();
    advance(core::kPeerPatience - 500ms);
    GuestRequest down;
    take_peer(down);
    answer(down);
    feed(command(vu::Command::version, version_payload("")));
    advance(500ms);
    EXPECT_EQ(static_cast<std::uint16_t>(vu::Command::version), take_sent().header.command);
}

TEST_F(CoreLifecycleTest, AVersionThatComesLateHasItsWholeTime)
{
    create();
    device_add(sample_device());
    connect();
    advance(2 * core::kPeerPatience);
    feed(command(vu::Command::version, version_payload("")));
    EXPECT_EQ(now + config.access_timeout, core->next_deadline());
}

TEST_F(CoreLifecycleTest, AParkedPeerThatLeavesChangesNothing)
{
    start_session();
    core->peer_closed(now, 0);
    connect();
    core->peer_closed(now, 0);
    connect();
    EXPECT_FALSE(core->wants_peer_data());
    GuestRequest down;
    take_peer(down);
    answer(down);
    EXPECT_EQ(0u, core->state().unknown_replies);
    EXPECT_TRUE(core->wants_peer_data());
    EXPECT_TRUE(port.requests.empty());
}

TEST_F(CoreLifecycleTest, ASessionThatTheGuestNeverHeardOfIsNotReported)
{
    create();
    device_add(sample_device());
    connect();
    core->peer_closed(now, 0);
    EXPECT_TRUE(port.requests.empty());
    port.request_buffers = 0;
    connect();
    feed(command(vu::Command::version, version_payload("")));
    core->peer_closed(now, 0);
    port.request_buffers = 100;
    core->request_buffers(now, 1);
    EXPECT_TRUE(port.requests.empty());
    connect();
    EXPECT_TRUE(core->wants_peer_data());
}

TEST_F(CoreLifecycleTest, AnUndeliveredEndIsDeliveredBeforeTheNextBeginning)
{
    start_session();
    port.request_buffers = 0;
    feed(command(vu::Command::region_write, concat(vu::RegionAccess{0, 0, 4}, filled(4, 0)), vu::kFlagNoReply));
    core->peer_closed(now, 0);
    advance(config.access_timeout);
    connect();
    feed(command(vu::Command::version, version_payload("")));
    port.request_buffers = 100;
    core->request_buffers(now, 1);
    GuestRequest request;
    EXPECT_EQ(control::PeerOp::down, take_peer(request).op);  // the write of the old session is gone
    EXPECT_EQ(control::PeerOp::up, take_peer(request).op);
}

TEST_F(CoreLifecycleTest, PeerDisconnectsInTheMiddleOfAMessage)
{
    create();
    ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
    const auto before = open_fds();
    begin_session();
    const auto during = open_fds();
    auto bytes = command(vu::Command::dma_map, dma_map_payload(0, 4096));
    bytes.resize(20);
    feed(bytes, memory(4096));
    EXPECT_EQ(during + 1, open_fds());
    core->peer_closed(now, 0);
    EXPECT_EQ(before, open_fds());
}

TEST_F(CoreLifecycleTest, RepliesOfAnEndedSessionAreIgnored)
{
    start_session();
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    const auto read = take_request(Type::region_read);
    core->peer_closed(now, 0);
    answer_well(read);
    EXPECT_FALSE(has_reply());
    EXPECT_EQ(1u, core->state().unknown_replies);
    EXPECT_FALSE(port.broken);
}

//= VVFU-DEVICE-3
//= type=test
TEST_F(CoreLifecycleTest, WithdrawingTheDeviceEndsTheSession)
{
    start_session();
    fill_session();
    EXPECT_EQ(Status::ok, device_del().header.status);
    expect_released();
    EXPECT_EQ(1u, port.closed);
    EXPECT_FALSE(port.listening);
    GuestRequest request;
    EXPECT_EQ(control::DownReason::device_deleted, take_peer(request).reason);
    EXPECT_EQ("complete", port.events.back());
}

//= VVFU-CLOSE-1
//= type=test
TEST_F(CoreLifecycleTest, TheGuestCanCloseTheSession)
{
    start_session();
    fill_session();
    EXPECT_EQ(Status::ok, close_from_guest(1));
    expect_released();
    EXPECT_TRUE(port.logged("enough"));
    EXPECT_EQ((std::vector<std::string>{"unmap", "unmap areas", "close", "request", "complete"}), port.events);
    GuestRequest request;
    EXPECT_EQ(control::DownReason::guest_closed, take_peer(request).reason);
    EXPECT_EQ(Status::stale, close_from_guest(1));
}

TEST_F(CoreLifecycleTest, AGuestThatRefusesThePeerEndsTheSession)
{
    create();
    device_add(sample_device());
    connect();
    feed(command(vu::Command::version, version_payload("")));
    GuestRequest up;
    take_peer(up);
    answer(up, filled(2, 'n'), Status::busy);
    EXPECT_EQ(1u, port.closed);
    take_request(Type::feature_bits);
    GuestRequest down;
    EXPECT_EQ(control::DownReason::guest_closed, take_peer(down).reason);
    EXPECT_STREQ("listening", core->state().state);
}

//= VVFU-INIT-3
//= type=test
TEST_F(CoreLifecycleTest, DriverResetWithdrawsEverythingSilently)
{
    start_session();
    fill_session();
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    port.requests.clear();
    const auto token = start_control(Type::dma_read, 1, [](control::Buffer &out) {
        control::append(out, control::DmaAccess{0, 4});
    });
    core->driver_reset(now);
    expect_released();
    EXPECT_EQ(1u, port.closed);
    EXPECT_FALSE(port.listening);
    EXPECT_TRUE(port.requests.empty());
    EXPECT_FALSE(port.completed.contains(token));
    EXPECT_EQ(kNever, core->next_deadline());
    EXPECT_STREQ("no driver", core->state().state);

    core->driver_ok(now);
    EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
    port.sent.clear();
    begin_session();
    EXPECT_EQ(2u, core->state().epoch);
}

// ---- control queue ----

//= VVFU-MSG-6
//= type=test
TEST_F(CoreLifecycleTest, UnknownTypesAreUnsupported)
{
    create();
    for (const unsigned type : {0u, 2u, 5u, 10u, 16u, 999u}) {
        const auto reply = control(Type{static_cast<std::uint16_t>(type)}, 0, [](control::Buffer &) {});
        EXPECT_EQ(Status::unsupported, reply.header.status) << type;
    }
    EXPECT_FALSE(port.broken);
}

//= VVFU-MSG-3
//= type=test
TEST_F(CoreLifecycleTest, RepliesRepeatTypeIdAndEpoch)
{
    create();
    control_id = 0x1122334455667787;
    const auto reply = control(Type::irq_trigger, 9, [](control::Buffer &out) {
        control::append(out, control::IrqTrigger{0, 0});
    });
    EXPECT_EQ(Type::irq_trigger, reply.header.type);
    EXPECT_EQ(0x1122334455667788u, reply.header.request_id);
    EXPECT_EQ(9u, reply.header.epoch);
    EXPECT_EQ(Status::not_connected, reply.header.status);
}

TEST_F(CoreLifecycleTest, MalformedPayloadsAreInvalid)
{
    start_session();
    const auto status = [&](Type type, std::size_t size) {
        return control(type, type == Type::device_info ? 0 : 1,
                       [&](control::Buffer &out) { out.resize(out.size() + size); })
            .header.status;
    };
    for (const auto type : {Type::device_info, Type::dma_read, Type::dma_write, Type::irq_trigger}) {
        EXPECT_EQ(Status::invalid, status(type, 3));
        EXPECT_EQ(Status::invalid, status(type, 100));
    }
    EXPECT_EQ(Status::invalid, status(Type::peer_close, 257));
    EXPECT_FALSE(port.broken);
}

// ---- broken guests ----

class BrokenGuestTest : public CoreLifecycleTest {
protected:
    void expect_broken()
    {
        EXPECT_TRUE(port.broken.has_value());
        EXPECT_STREQ("broken", core->state().state);
        EXPECT_EQ(1u, port.closed);
        EXPECT_FALSE(port.listening);
        expect_released();
        EXPECT_EQ(-ENODEV, core->peer_connected(now, {}));
        EXPECT_FALSE(core->wants_peer_data());
        //= VVFU-ERROR-6
        //= type=test
        core->driver_reset(now);
        core->driver_ok(now);
        port.requests.clear();
        port.sent.clear();
        EXPECT_EQ(Status::ok, device_add(sample_device()).header.status);
        begin_session();
        core.reset();
        port.broken.reset();
        port.closed = 0;
        port.requests.clear();
        port.sent.clear();
    }
    ByteVector message(const std::function<void(ByteVector &)> &change, std::uint16_t flags)
    {
        control::Buffer out;
        control::begin(out, {Type::irq_info, flags, 0, 1, 1, Status::ok});
        control::finish(out);
        change(out);
        return out;
    }
    /// A core whose peer maps memory, with another port.
    std::unique_ptr<core::Core> map_through(FakePort &other_port)
    {
        auto other = std::move(*core::Core::create(config, other_port));
        other->driver_ok(now);
        control::Buffer add;
        control::begin(add, {Type::device_info, 0, 0, 1, 0, Status::ok});
        control::append(add, sample_device());
        control::finish(add);
        other->control_request(now, 1, add, 1000);
        EXPECT_EQ(0, other->peer_connected(now, {}));
        other->peer_data(now, command(vu::Command::version, version_payload("")), {});
        other->tick(now + config.access_timeout);
        auto fds = memory(4096);
        other->peer_data(now, command(vu::Command::dma_map, dma_map_payload(0, 4096)), fds);
        return other;
    }
    std::vector<ByteVector> bad_headers(std::uint16_t flags)
    {
        return {message([](auto &m) { m.resize(31); }, flags),
                message([](auto &m) { m.resize(33); }, flags),
                message([](auto &m) { m.clear(); }, flags),
                message([](auto &m) { m[2] |= std::byte{4}; }, flags),
                message([](auto &m) { m[24] = std::byte{1}; }, flags),
                message([](auto &m) { m[2] ^= std::byte{1}; }, flags),
                message([](auto &m) { m[2] |= std::byte{2}; }, flags)};
    }
};

//= VVFU-ERROR-1
//= type=test
//= VVFU-ERROR-5
//= type=test
TEST_F(BrokenGuestTest, BadHeadersOnTheReplyQueue)
{
    for (const auto &bad : bad_headers(control::kFlagReply)) {
        start_session();
        fill_session();
        core->reply(now, 2, bad);
        expect_broken();
    }
}

//= VVFU-ERROR-1
//= type=test
TEST_F(BrokenGuestTest, BadHeadersOnTheControlQueue)
{
    for (const auto &bad : bad_headers(0)) {
        start_session();
        fill_session();
        core->control_request(now, 99, bad, 1000);
        EXPECT_FALSE(port.completed.contains(99));
        expect_broken();
    }
}

//= VVFU-ERROR-2
//= type=test
TEST_F(BrokenGuestTest, AReplyOfAnotherType)
{
    start_session();
    feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
    auto request = take_request(Type::region_read);
    request.header.type = Type::region_write;
    answer(request, concat(vu::RegionAccess{0, 0, 4}));
    expect_broken();
}

//= VVFU-ERROR-8
//= type=test
TEST_F(BrokenGuestTest, AReplyOfAnotherEpochReachesNoPeer)
{
    for (const std::uint32_t epoch : {0u, 2u, 0xffffffffu}) {
        start_session();
        feed(command(vu::Command::region_read, concat(vu::RegionAccess{0, 0, 4})));
        auto request = take_request(Type::region_read);
        request.header.epoch = epoch;
        answer(request, concat(vu::RegionAccess{0, 0, 4}, filled(4, 1)));
        EXPECT_FALSE(has_reply());
        expect_broken();
    }
}

//= VVFU-ERROR-9
//= type=test
TEST_F(BrokenGuestTest, ARequestWithTheIdOfOneThatIsOpen)
{
    start_session();
    EXPECT_EQ(0, map(0, 4096));
    const auto dma_read = [](control::Buffer &out) { control::append(out, control::DmaAccess{0, 4}); };
    const auto first = start_control(Type::dma_read, 1, dma_read);
    --control_id;
    const auto second = start_control(Type::dma_read, 1, dma_read);
    EXPECT_FALSE(port.completed.contains(first));
    EXPECT_FALSE(port.completed.contains(second));
    expect_broken();
}

//= VVFU-ERROR-1
//= type=test
TEST_F(BrokenGuestTest, AStatusInARequest)
{
    start_session();
    core->control_request(now, 99, message([](auto &m) { m[20] = std::byte{1}; }, 0), 1000);
    expect_broken();
}

//= VVFU-ERROR-3
//= type=test
TEST_F(BrokenGuestTest, PayloadsWhereThereAreNone)
{
    for (const auto &[kind, payload] :
         {std::pair{vu::Command::device_reset, ByteVector{}}, std::pair{vu::Command::dma_map, dma_map_payload(0, 4096)},
          std::pair{vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x21, 2, 0, 0})}}) {
        start_session();
        feed(command(kind, payload));
        answer(take_request(), filled(1, 0));
        expect_broken();
    }
    start_session();
    feed(command(vu::Command::device_reset, {}));
    answer(take_request(), filled(257, 'x'), Status::io);  // more text than there may be
    expect_broken();
}

TEST_F(BrokenGuestTest, RepliesOnOtherQueues)
{
    start_session();
    feed(command(vu::Command::device_reset, {}));
    control::Buffer out;
    auto header = take_request().header;
    header.flags = control::kFlagReply;
    control::begin(out, header);
    control::finish(out);
    core->reply(now, 4, out);
    expect_broken();
}

//= VVFU-ERROR-4
//= type=test
TEST_F(BrokenGuestTest, RequestBuffersThatAreTooSmall)
{
    start_session();
    fill_session();
    port.push_result = -EMSGSIZE;
    feed(command(vu::Command::device_reset, {}));
    port.push_result = 0;
    expect_broken();
}

//= VVFU-ERROR-4
//= type=test
TEST_F(BrokenGuestTest, ReplyPartsThatAreTooSmall)
{
    start_session();
    start_control(
        Type::irq_trigger, 1,
        [](control::Buffer &out) {
            control::append(out, control::IrqTrigger{0, 0});
        },
        287);
    expect_broken();
}

TEST_F(BrokenGuestTest, ABrokenDeviceIgnoresEverythingUntilReset)
{
    start_session();
    core->reply(now, 2, filled(5, 0));
    port.events.clear();
    const auto before = open_fds();
    feed(command(vu::Command::dma_map, dma_map_payload(0, 4096)), memory(4096));
    EXPECT_EQ(before, open_fds());
    core->control_request(now, 1234, filled(40, 0), 1000);
    core->request_buffers(now, 1);
    core->peer_closed(now, 0);
    core->notification_fired(now, 0);
    core->send_drained(now);
    core->tick(now + 10s);
    EXPECT_TRUE(port.events.empty());
    EXPECT_EQ(kNever, core->next_deadline());
    expect_broken();
}

//= VVFU-MSG-7
//= type=test
TEST_F(BrokenGuestTest, UnknownRepliesAreCountedLoggedOnceAndIgnored)
{
    start_session();
    port.lines.clear();
    for (int i = 0; i < 3; ++i) {
        core->reply(now, 2, message([](auto &) {}, control::kFlagReply));
    }
    EXPECT_EQ(3u, core->state().unknown_replies);
    EXPECT_EQ(1u, port.lines.size());
    EXPECT_FALSE(port.broken);
}

TEST_F(BrokenGuestTest, AMapForWhichThereIsNotEnoughMemoryLeavesNothingInTheWindow)
{
    struct Scarce : FakePort {
        NoMemory memory{false};
        int window_map(std::uint64_t offset, std::uint64_t size, int protection, int fd,
                       std::uint64_t fd_offset) override
        {
            const int rc = FakePort::window_map(offset, size, protection, fd, fd_offset);
            memory.arm(true);
            return rc;
        }
        void window_unmap(std::uint64_t offset, std::uint64_t size) override
        {
            memory.arm(false);
            FakePort::window_unmap(offset, size);
        }
    } scarce;
    const auto other = map_through(scarce);
    scarce.memory.arm(false);
    EXPECT_TRUE(scarce.window.empty());
    EXPECT_TRUE(scarce.broken.has_value());
    EXPECT_STREQ("broken", other->state().state);
}

// ---- what others can make the core say ----

class CoreLogTest : public CoreLifecycleTest {
protected:
    std::size_t count(std::string_view part) const
    {
        return static_cast<std::size_t>(std::count_if(port.lines.begin(), port.lines.end(), [&](const auto &line) {
            return line.text.find(part) != std::string::npos;
        }));
    }
};

TEST_F(CoreLogTest, AFloodOfConnectionsBecomesAFewLinesAndANumber)
{
    start_session();
    for (int i = 0; i < 1000; ++i) {
        EXPECT_EQ(-EBUSY, core->peer_connected(now, {7, 8, 9}));
    }
    EXPECT_EQ(RateLimit::kBurst, count("a second peer was refused, pid 7 uid 8"));
    EXPECT_EQ(now + RateLimit::kInterval, core->next_deadline());
    advance(RateLimit::kInterval - 1ns);
    EXPECT_EQ(0u, count("more times"));
    advance(1ns);
    const auto summary = port.lines.back().text;
    EXPECT_EQ(0u, summary.find(std::to_string(1000 - RateLimit::kBurst) +
                               " more times: a second peer was refused; the last: a second peer"))
        << summary;
    EXPECT_EQ(core::LogLevel::warning, port.lines.back().level);
    EXPECT_EQ(kNever, core->next_deadline());
    EXPECT_EQ(-EBUSY, core->peer_connected(now, {7, 8, 9}));
    EXPECT_EQ(port.lines.back().text.find("a second peer was refused"), 0u) << "a new interval";
}

TEST_F(CoreLogTest, AFloodOfSessionsBecomesAFewLinesAndANumber)
{
    create();
    device_add(sample_device());
    for (int i = 0; i < 100; ++i) {
        begin_session();
        ASSERT_EQ(0, map(0, 2 << 20));  // memory without a file: a line of its own, once per session
        core->peer_closed(now, 0);
        answer_all();
    }
    EXPECT_EQ(RateLimit::kBurst, count(" begins: "));
    EXPECT_EQ(RateLimit::kBurst, count(" ended: "));
    EXPECT_EQ(RateLimit::kBurst, count("by messages only"));
    advance(RateLimit::kInterval);
    EXPECT_EQ(3u, count(" more times: "));
    EXPECT_EQ(1u, count("session 100 begins: ")) << "what may still go on is told";
}

TEST_F(CoreLogTest, AGuestThatBreaksTheDeviceAgainAndAgainIsCounted)
{
    create();
    for (int i = 0; i < 100; ++i) {
        core->reply(now, 2, filled(5, 0));
        core->driver_reset(now);
        core->driver_ok(now);
    }
    EXPECT_EQ(RateLimit::kBurst, count("device broken"));
    core->reply(now, 2, filled(5, 0));
    advance(RateLimit::kInterval);  // reported while broken, too
    EXPECT_EQ(1u, count(" more times: the device broke"));
    EXPECT_EQ(kNever, core->next_deadline());
}

TEST_F(CoreLogTest, ThePortsOwnLinesHaveTheSameLimit)
{
    create();
    for (int i = 0; i < 100; ++i) {
        core->log(now, core::LogLevel::error, "nothing was accepted", "cannot accept");
    }
    EXPECT_EQ(RateLimit::kBurst, count("cannot accept"));
    for (int i = 0; i < 100; ++i) {
        core->log(now, core::LogLevel::debug, "detail", "a detail");
    }
    EXPECT_EQ(100u, count("a detail"));
}

TEST_F(BrokenGuestTest, ThrowingPortsBreakTheDeviceInsteadOfTheProgram)
{
    struct Throwing : FakePort {
        int window_map(std::uint64_t, std::uint64_t, int, int, std::uint64_t) override { throw std::bad_alloc{}; }
    } throwing;
    const auto other = map_through(throwing);
    EXPECT_EQ("out of memory", throwing.broken);
    EXPECT_STREQ("broken", other->state().state);
    EXPECT_FALSE(throwing.listening);
}

}  // namespace
}  // namespace vvfu::test
