// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/session.hpp"

#include <gtest/gtest.h>
#include <sys/epoll.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fake_transport.hpp"
#include "vvfu/protocol/validation.hpp"

namespace vvfu::guest {
namespace {

using namespace std::chrono_literals;
using control::Status;
using control::Type;

/// Workers that work at once.
class InlineWorkers final : public Workers {
public:
    explicit InlineWorkers(Executor &executor) : executor_(executor) {}
    void submit(Lane, std::function<void()> work, std::function<void()> done) override
    {
        work();
        executor_.post(std::move(done));
    }

private:
    Executor &executor_;
};

/// Records what it is told; BAR 0 is 64 bytes of memory, region 1 read-only, region 2 write-only.
class RecordingModel final : public DeviceModel {
public:
    [[nodiscard]] control::DeviceInfo describe() const override
    {
        control::DeviceInfo info;
        info.flags = control::kDeviceReset | control::kDeviceQuiesce;
        info.features = control::kFeatureWriteMultiple;
        info.vendor_id = 0x1234;
        info.regions = {{0, control::kRegionRead | control::kRegionWrite, 64, 0, {}},
                        {1, control::kRegionRead, 0x100000, 0, {}},
                        {2, control::kRegionWrite, 64, 0, {}},
                        {control::kRegionConfig, control::kRegionRead | control::kRegionWrite, 256, 0, {}}};
        info.irqs = {{control::kIrqIntx, 1}, {control::kIrqMsix, 4}, {control::kIrqErr, 1}};
        return info;
    }
    void region_read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> out) override
    {
        log.push_back("read " + std::to_string(region) + "+" + std::to_string(offset));
        if (region == 0) {
            std::copy_n(bar.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
        } else {
            std::fill(out.begin(), out.end(), std::byte{0x5a});
        }
    }
    void region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data) override
    {
        log.push_back("write " + std::to_string(region) + "+" + std::to_string(offset));
        if (on_write) {
            on_write();
        }
        if (region == 0) {
            std::copy(data.begin(), data.end(), bar.begin() + static_cast<std::ptrdiff_t>(offset));
        }
    }
    void irq_info(const control::IrqInfo &info) override
    {
        log.push_back("irq " + std::to_string(info.index) + " " + std::to_string(static_cast<unsigned>(info.action)));
    }
    void reset(std::function<void()> done) override
    {
        log.push_back("reset");
        finish(std::move(done));
    }
    void peer_gone(std::function<void()> done) override
    {
        log.push_back("gone");
        finish(std::move(done));
    }
    void finish(std::function<void()> done)
    {
        if (hold_resets) {
            held = std::move(done);
        } else {
            done();
        }
    }

    std::array<std::byte, 64> bar{};
    std::vector<std::string> log;
    bool hold_resets = false;
    std::function<void()> on_write;
    std::function<void()> held;
};

class SessionTest : public ::testing::Test {
protected:
    SessionTest() { options.restart_delay = 0ns; }

    void start()
    {
        session = std::make_unique<Session>(transport, *reactor, workers, options);
        session->start(
            model, [this](Result<void> result) { registered = result ? "ok" : result.error().message; },
            [this](const Error &error) { failed = error.message; });
    }
    /// Runs the session until nothing is left to do.
    void run()
    {
        for (int i = 0; i < 8; ++i) {
            reactor->run_once(Nanoseconds::zero());
        }
    }
    /// Runs it until `done`, for what takes time.
    bool run_until(const std::function<bool()> &done)
    {
        const auto end = Reactor::now() + 10s;
        while (!done()) {
            if (Reactor::now() > end) {
                return false;
            }
            reactor->run_once(Reactor::now() + 1ms);
        }
        return true;
    }
    void accept_registration()
    {
        auto chain = transport.take(kControlQueue);
        ASSERT_TRUE(chain);
        ASSERT_EQ(chain->header.type, Type::device_info);
        transport.complete(*chain, Status::ok);
        run();
    }
    void start_registered()
    {
        start();
        accept_registration();
        ASSERT_EQ(registered, "ok");
    }
    void peer_up(std::uint32_t new_epoch = 1)
    {
        epoch = new_epoch;
        control::Buffer payload;
        control::append(payload, control::Peer{});
        EXPECT_EQ(status_of(request(Type::peer, payload)), Status::ok);
        ASSERT_TRUE(session->peer_up());
        session->services().dma.open();  // as a model does whose function may do DMA
    }
    void start_connected()
    {
        start_registered();
        peer_up();
    }
    /// With a DEVICE_RESET that the model has not finished.
    void start_with_a_reset_held()
    {
        start_connected();
        model.hold_resets = true;
        send(Type::device_reset, {});
        run();
    }

    std::uint64_t send(Type type, control::Bytes payload, std::uint16_t flags = 0)
    {
        control::Buffer message;
        control::begin(message, {.type = type, .flags = flags, .request_id = ++last_id, .epoch = epoch});
        message.insert(message.end(), payload.begin(), payload.end());
        control::finish(message);
        EXPECT_TRUE(transport.push_request(message));
        return last_id;
    }
    /// Sends a request and returns its reply, if it came at once.
    std::optional<FakeTransport::Chain> request(Type type, control::Bytes payload)
    {
        const auto id = send(type, payload);
        run();
        auto reply = transport.take(kReplyQueue);
        if (reply) {
            EXPECT_EQ(reply->header.request_id, id);
            EXPECT_EQ(reply->header.type, type);
            EXPECT_EQ(reply->header.epoch, epoch);
            EXPECT_TRUE(reply->header.is_reply());
        }
        return reply;
    }
    static std::optional<Status> status_of(const std::optional<FakeTransport::Chain> &reply)
    {
        return reply ? std::optional{reply->header.status} : std::nullopt;
    }
    template <typename... Arguments>
    static control::Buffer payload_of(const Arguments &...arguments)
    {
        control::Buffer payload;
        control::append(payload, arguments...);
        return payload;
    }
    std::optional<Status> memory(control::MemoryOp op, std::uint64_t address, std::uint64_t size, std::uint64_t offset,
                                 std::uint32_t flags = control::kMemoryRead | control::kMemoryWrite)
    {
        return status_of(request(Type::memory_info, payload_of(control::MemoryInfo{op, flags, address, size, offset})));
    }
    static std::vector<std::byte> bytes(std::initializer_list<unsigned> values)
    {
        std::vector<std::byte> out;
        for (const auto value : values) {
            out.push_back(static_cast<std::byte>(value));
        }
        return out;
    }

    std::unique_ptr<Reactor> reactor = std::move(*Reactor::create());
    InlineWorkers workers{*reactor};
    FakeTransport transport;
    SessionOptions options;
    std::unique_ptr<Session> session;
    RecordingModel model;
    std::string registered, failed;
    std::uint32_t epoch = 0;
    std::uint64_t last_id = 0;
};

// ---- bring-up and registration ----

//= VVFU-INIT-1
//= VVFU-QUEUE-5
//= type=test
TEST_F(SessionTest, SetsUpAllQueuesFillsTheRequestQueueAndRegistersTheModel)
{
    start();
    EXPECT_EQ(transport.resets, 1u);
    EXPECT_TRUE(transport.driver_is_ok);
    EXPECT_GE(transport.notified[kRequestQueue], 1u);
    auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    EXPECT_EQ(chain->header.epoch, 0u);
    EXPECT_GE(chain->element.writable_bytes(), 288u);
    const auto info = control::decode_device_info(chain->payload());
    ASSERT_TRUE(info);
    EXPECT_EQ(*info, model.describe());
    EXPECT_EQ(registered, "") << "not before the device has answered";
    transport.complete(*chain, Status::ok);
    run();
    EXPECT_EQ(registered, "ok");
    for (unsigned i = 0; i < kQueueSize; ++i) {
        EXPECT_TRUE(transport.push_request(std::vector<std::byte>(transport.device_config.request_buffer_size)));
    }
}

TEST_F(SessionTest, ARefusedRegistrationReportsTheReasonOfTheDevice)
{
    start();
    auto chain = transport.take(kControlQueue);
    control::Buffer text;
    control::append_text(text, "too many doorbells");
    transport.complete(*chain, Status::invalid, text);
    run();
    EXPECT_NE(registered.find("too many doorbells"), std::string::npos) << registered;
    EXPECT_FALSE(transport.driver_is_ok) << "the function is left reset";
}

//= VVFU-FEAT-2
//= type=test
TEST_F(SessionTest, AMissingFeatureFailsTheStart)
{
    transport.offered = std::uint64_t{1} << 32;
    start();
    EXPECT_EQ(registered, "") << "never from inside start()";
    run();
    EXPECT_NE(registered.find("feature"), std::string::npos);
    EXPECT_FALSE(transport.driver_is_ok);
}

TEST_F(SessionTest, AMissingQueueOrTooLittleMemoryFailsTheStart)
{
    transport.missing_queues = {kReplyQueue};
    start();
    run();
    EXPECT_NE(registered.find("no queue 2"), std::string::npos) << registered;
    registered.clear();
    transport.missing_queues.clear();
    transport.allocation_limit = 0;
    start();
    run();
    EXPECT_NE(registered.find("out of DMA memory"), std::string::npos) << registered;
}

TEST_F(SessionTest, AConfigurationThatNoDeviceMayHaveFailsTheStart)
{
    transport.device_config.request_buffer_size = 64;
    start();
    run();
    EXPECT_NE(registered.find("configuration"), std::string::npos) << registered;
}

TEST_F(SessionTest, ADeviceThatDoesNotAnswerTheRegistrationFailsTheStart)
{
    options.control_timeout = 1ms;
    start();
    ASSERT_TRUE(run_until([this] { return !registered.empty(); }));
    EXPECT_NE(registered.find("DEVICE_INFO"), std::string::npos) << registered;
}

// ---- requests ----

//= VVFU-QUEUE-8
//= VVFU-ACCESS-2
//= type=test
TEST_F(SessionTest, ReadsAndWritesRegistersInOrder)
{
    start_connected();
    const auto data = bytes({1, 2, 3, 4});
    const auto id = send(Type::region_write, payload_of(control::RegionAccess{8, 0, 4}, data));
    send(Type::region_read, payload_of(control::RegionAccess{8, 0, 4}));
    run();
    const auto write = transport.take(kReplyQueue);
    ASSERT_TRUE(write);
    EXPECT_EQ(write->header.request_id, id);
    EXPECT_EQ(*control::decode_region_access(write->payload()), (control::RegionAccess{8, 0, 4}));
    const auto read = transport.take(kReplyQueue);
    ASSERT_TRUE(read);
    const auto result = control::decode_region_data(read->payload());
    ASSERT_TRUE(result);
    EXPECT_EQ(result->access, (control::RegionAccess{8, 0, 4}));
    EXPECT_TRUE(std::equal(data.begin(), data.end(), result->data.begin(), result->data.end()));
    EXPECT_EQ(model.log, (std::vector<std::string>{"write 0+8", "read 0+8"}));
}

//= VVFU-MSG-5
//= type=test
TEST_F(SessionTest, APostedWriteGetsNoReplyNotEvenAnError)
{
    start_connected();
    send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({7})), control::kFlagPosted);
    send(Type::region_write, payload_of(control::RegionAccess{64, 0, 1}, bytes({7})), control::kFlagPosted);
    run();
    EXPECT_FALSE(transport.take(kReplyQueue));
    EXPECT_EQ(model.bar[0], std::byte{7});
    EXPECT_EQ(session->counters().bad_requests, 1u);
}

//= VVFU-MULTI-1
//= type=test
TEST_F(SessionTest, AMultiWriteHappensInOrderAndNotAtAllIfOneEntryIsBad)
{
    start_connected();
    std::vector<control::MultiWrite> writes(3);
    for (unsigned i = 0; i < 3; ++i) {
        writes[i].access = {4, 0, 2};
        writes[i].data[0] = static_cast<std::byte>(i + 1);
    }
    writes[1].access.offset = 8;
    EXPECT_EQ(status_of(request(Type::region_write_multi, payload_of(std::span<const control::MultiWrite>{writes}))),
              Status::ok);
    EXPECT_EQ(model.log, (std::vector<std::string>{"write 0+4", "write 0+8", "write 0+4"}));
    EXPECT_EQ(model.bar[4], std::byte{3});
    writes[2].access.offset = 63;
    EXPECT_EQ(status_of(request(Type::region_write_multi, payload_of(std::span<const control::MultiWrite>{writes}))),
              Status::invalid);
    EXPECT_EQ(model.log.size(), 3u);
}

//= VVFU-ERROR-7
//= type=test
TEST_F(SessionTest, AccessesOutsideWhatTheModelDescribesAreRefused)
{
    start_connected();
    const auto read = [this](std::uint32_t region, std::uint64_t offset, std::uint32_t count) {
        return status_of(request(Type::region_read, payload_of(control::RegionAccess{offset, region, count})));
    };
    EXPECT_EQ(read(0, 61, 4), Status::invalid);
    EXPECT_EQ(read(0, ~std::uint64_t{0}, 4), Status::invalid);
    EXPECT_EQ(read(0, 0, 0), Status::invalid);
    EXPECT_EQ(read(3, 0, 1), Status::invalid) << "a region that does not exist";
    EXPECT_EQ(read(99, 0, 1), Status::invalid);
    EXPECT_EQ(read(2, 0, 1), Status::permission);
    EXPECT_EQ(read(1, 0, kRequestBufferSize), Status::invalid) << "the reply would not fit";
    EXPECT_EQ(read(1, 0, kRequestBufferSize - 48), Status::ok);
    EXPECT_EQ(status_of(request(Type::region_write, payload_of(control::RegionAccess{0, 1, 1}, bytes({1})))),
              Status::permission);
    EXPECT_EQ(model.log.size(), 1u);
    EXPECT_TRUE(transport.driver_is_ok) << "bad fields do not break the device";
}

TEST_F(SessionTest, MalformedPayloadsAreRefusedWithAText)
{
    start_connected();
    for (const auto type : {Type::region_read, Type::region_write, Type::region_write_multi, Type::feature_bits,
                            Type::memory_info, Type::irq_info, Type::peer}) {
        const auto reply = request(type, bytes({1, 2, 3}));
        EXPECT_EQ(status_of(reply), Status::invalid) << name(type);
        EXPECT_NE(control::decode_text(reply->payload()), "");
    }
    EXPECT_EQ(status_of(request(Type::device_reset, bytes({1}))), Status::invalid);
    EXPECT_TRUE(model.log.empty());
    EXPECT_EQ(session->counters().bad_requests, 8u);
}

//= VVFU-MSG-6
//= type=test
TEST_F(SessionTest, UnknownRequestsAreUnsupported)
{
    start_connected();
    for (const auto type : {Type::device_feature, Type::migration_data, Type::dma_read, static_cast<Type>(500)}) {
        EXPECT_EQ(status_of(request(type, {})), Status::unsupported);
    }
}

/// The rows of the specification's table of checks that are the driver's. Those that reset the device:
/// BrokenDeviceTest.
TEST_F(SessionTest, ChecksHaveTheConsequencesOfTheTable)
{
    using control::Check;
    start_connected();
    const auto irq = payload_of(control::IrqInfo{control::kIrqIntx, 0, 1, control::IrqAction::mask});
    const auto named = [](std::optional<Status> status) {
        return status ? std::string{control::name(*status)} : std::string{"no reply"};
    };
    const std::map<Check, std::function<std::string()>> provoked{
        {Check::driver_epoch,
         [&] {
             epoch = 7;
             const auto status = status_of(request(Type::irq_info, irq));
             epoch = 1;
             return named(status);
         }},
        {Check::driver_posted,
         [&] {
             const auto before = session->counters().bad_requests;
             send(Type::irq_info, irq, control::kFlagPosted);
             run();
             const bool counted = session->counters().bad_requests == before + 1;
             return std::string{counted && !transport.take(kReplyQueue) ? "counted and ignored" : "answered"};
         }},
        {Check::driver_request_type, [&] { return named(status_of(request(static_cast<Type>(77), irq))); }},
        {Check::driver_payload, [&] { return named(status_of(request(Type::irq_info, bytes({1})))); }},
        {Check::driver_reserved,
         [&] {
             const auto status = memory(control::MemoryOp::add, 0x1000, 0x1000, 0, 0xf0 | control::kMemoryRead);
             return std::string{status == Status::ok ? "ignored" : "refused"};
         }},
    };
    for (const auto &rule : control::kRules) {
        if (rule.checked_by != "driver" || rule.consequence == control::Consequence::driver_resets) {
            continue;
        }
        ASSERT_TRUE(provoked.contains(rule.check)) << rule.condition << ": a row without a test";
        EXPECT_EQ(provoked.at(rule.check)(), control::name(rule.consequence)) << rule.condition;
    }
    EXPECT_TRUE(model.log.empty());
}

//= VVFU-SESSION-7
//= type=test
TEST_F(SessionTest, RequestsOfAnotherEpochAreStaleAndHaveNoEffect)
{
    start_connected();
    epoch = 7;
    EXPECT_EQ(status_of(request(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({9})))),
              Status::stale);
    EXPECT_EQ(status_of(request(Type::device_reset, {})), Status::stale);
    EXPECT_TRUE(model.log.empty());
    EXPECT_EQ(session->counters().stale_requests, 2u);
}

TEST_F(SessionTest, RequestsBeforeAPeerAreStale)
{
    start_registered();
    EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 1}))), Status::stale);
}

TEST_F(SessionTest, ASecondPeerUpIsRefused)
{
    start_connected();
    epoch = 2;
    EXPECT_EQ(status_of(request(Type::peer, payload_of(control::Peer{}))), Status::invalid);
    epoch = 1;
    EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 1}))), Status::ok);
}

//= VVFU-FEATURES-2
//= VVFU-EXT-2
//= type=test
TEST_F(SessionTest, AcceptsOnlyFeaturesThatAreOfferedAndThatTheModelWants)
{
    start_connected();
    const auto reply =
        request(Type::feature_bits,
                payload_of(control::FeatureBits{control::kFeatureWriteMultiple | control::kFeatureMigration}));
    ASSERT_EQ(status_of(reply), Status::ok);
    EXPECT_EQ(control::decode_feature_bits(reply->payload())->features, control::kFeatureWriteMultiple);
    const auto none = request(Type::feature_bits, payload_of(control::FeatureBits{control::kFeatureMigration}));
    EXPECT_EQ(control::decode_feature_bits(none->payload())->features, 0u);
}

TEST_F(SessionTest, IrqInfoReachesTheModelIfItsVectorsExist)
{
    start_connected();
    const auto irq = [this](control::IrqInfo info) { return status_of(request(Type::irq_info, payload_of(info))); };
    EXPECT_EQ(irq({control::kIrqMsix, 1, 3, control::IrqAction::assign}), Status::ok);
    EXPECT_EQ(irq({control::kIrqMsix, 2, 3, control::IrqAction::assign}), Status::invalid);
    EXPECT_EQ(irq({control::kIrqMsix, 0xffffffff, 2, control::IrqAction::assign}), Status::invalid);
    EXPECT_EQ(irq({control::kIrqMsi, 0, 1, control::IrqAction::assign}), Status::invalid);
    EXPECT_EQ(irq({77, 0, 0, control::IrqAction::disable}), Status::invalid);
    EXPECT_EQ(model.log, (std::vector<std::string>{"irq 2 1"}));
}

TEST_F(SessionTest, NotificationZeroIsAnUnmaskOfIntx)
{
    transport.with_notification = true;
    start_connected();
    transport.fire_notification();
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"irq 0 4"}));
}

// ---- memory ----

TEST_F(SessionTest, AnAnnouncedRangeIsThePeersMemoryInTheWindow)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0x2000), Status::ok);
    transport.window()[0x2008] = std::byte{42};
    std::array<std::byte, 1> out{};
    session->services().dma.read(DmaAddress{0x10008}, out,
                                 [](Expected<void, DmaError> result) { EXPECT_TRUE(result); });
    EXPECT_EQ(out[0], std::byte{42});
}

//= VVFU-MEMORY-3
//= type=test
TEST_F(SessionTest, RangesOutsideTheWindowAreRefused)
{
    start_connected();
    const auto add = [this](std::uint64_t size, std::uint64_t offset) {
        return memory(control::MemoryOp::add, 0x10000, size, offset);
    };
    EXPECT_EQ(add(0x1000, FakeTransport::kWindow - 0xfff), Status::invalid);
    EXPECT_EQ(add(FakeTransport::kWindow + 1, 0), Status::invalid);
    EXPECT_EQ(add(0x1000, ~std::uint64_t{0} - 0xfff), Status::invalid);
    EXPECT_EQ(session->services().dma.ranges(), 0u);
    EXPECT_EQ(add(0x1000, FakeTransport::kWindow - 0x1000), Status::ok);
    EXPECT_EQ(add(0x1000, 0), Status::busy) << "overlap";
}

//= VVFU-MEMORY-1
//= type=test
TEST_F(SessionTest, TheAnswerToAWithdrawalWaitsUntilTheRangeIsNotUsed)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0), Status::ok);
    std::optional<DmaMapping> mapping;
    const DmaSegment segment{DmaAddress{0x10000}, 16};
    session->services().dma.map({&segment, 1}, DmaDirection::to_peer, [&](Expected<DmaMapping, DmaError> result) {
        ASSERT_TRUE(result);
        mapping.emplace(std::move(*result));
    });
    ASSERT_TRUE(mapping);
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x1000, 0), std::nullopt);
    EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}))), Status::ok)
        << "later requests do not wait for it";
    mapping.reset();
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.type, Type::memory_info);
    EXPECT_EQ(reply->header.status, Status::ok);
}

//= VVFU-MEMORY-5
//= type=test
TEST_F(SessionTest, ARangeThatIsBeingLetGoIsNoOverlap)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x2000, 0), Status::ok);
    std::optional<DmaMapping> mapping;
    const DmaSegment segment{DmaAddress{0x10000}, 16};
    session->services().dma.map({&segment, 1}, DmaDirection::from_peer,
                                [&](Expected<DmaMapping, DmaError> result) { mapping.emplace(std::move(*result)); });
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x2000, 0), std::nullopt) << "it is in use";
    EXPECT_EQ(memory(control::MemoryOp::add, 0x10000, 0x2000, 0x4000), Status::ok);
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x2000, 0x4000), Status::ok) << "nobody uses the new one";
    EXPECT_EQ(memory(control::MemoryOp::add, 0x11000, 0x4000, 0x8000), Status::ok) << "nor if it overlaps partly";
    mapping.reset();
    EXPECT_TRUE(transport.take(kReplyQueue)) << "the answer to the first";
    EXPECT_EQ(memory(control::MemoryOp::add, 0x12000, 0x1000, 0), Status::busy);
}

//= VVFU-MEMORY-5
//= type=test
TEST_F(SessionTest, NorIsARangeWhoseWithdrawalWaitsForAReset)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x2000, 0), Status::ok);
    model.hold_resets = true;
    send(Type::device_reset, {});
    send(Type::memory_info, payload_of(control::MemoryInfo{control::MemoryOp::del, 3, 0x10000, 0x2000, 0}));
    send(Type::memory_info, payload_of(control::MemoryInfo{control::MemoryOp::add, 3, 0x11000, 0x2000, 0x4000}));
    run();
    EXPECT_FALSE(transport.take(kReplyQueue));
    model.held();
    run();
    for (const auto type : {Type::device_reset, Type::memory_info, Type::memory_info}) {
        const auto reply = transport.take(kReplyQueue);
        ASSERT_TRUE(reply);
        EXPECT_EQ(reply->header.type, type);
        EXPECT_EQ(status_of(reply), Status::ok);
    }
}

TEST_F(SessionTest, WithdrawingWhatIsNotThereIsNotFound)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x2000, 0), Status::ok);
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x1000, 0), Status::not_found);
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x2000, 0), Status::ok);
    EXPECT_EQ(memory(control::MemoryOp::del, 0x10000, 0x2000, 0), Status::not_found);
}

// ---- message-only DMA ----

TEST_F(SessionTest, MessageOnlyMemoryIsReadByMessage)
{
    start_connected();
    const std::uint32_t flags = control::kMemoryRead | control::kMemoryMessageOnly;
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0, flags), Status::ok);
    std::array<std::byte, 4> out{};
    bool done = false;
    session->services().dma.read(DmaAddress{0x10010}, out, [&](Expected<void, DmaError> result) {
        EXPECT_TRUE(result);
        done = true;
    });
    auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    EXPECT_EQ(chain->header.type, Type::dma_read);
    EXPECT_EQ(chain->header.epoch, 1u);
    const auto access = control::decode_dma_access(chain->payload());
    ASSERT_TRUE(access);
    EXPECT_EQ(*access, (control::DmaAccess{0x10010, 4}));
    //= VVFU-QUEUE-2
    //= type=test
    EXPECT_GE(chain->element.writable_bytes(), 48u + 4u);
    transport.complete(*chain, Status::ok, payload_of(*access, bytes({1, 2, 3, 4})));
    EXPECT_FALSE(done);
    run();
    EXPECT_TRUE(done);
    EXPECT_EQ(out[3], std::byte{4});
}

//= VVFU-CONF-3
//= type=test
TEST_F(SessionTest, ALargeTransferIsSplitAndManyPartsAreOutstanding)
{
    transport.device_config.max_message_size = 4096;
    start_connected();
    std::vector<std::byte> data(200000);
    for (std::size_t i = 0; i < data.size(); ++i) {
        data[i] = static_cast<std::byte>(i * 31 >> 3);
    }
    bool done = false;
    session->dma_write(DmaAddress{0x5000}, data, [&](Expected<void, DmaError> result) {
        EXPECT_TRUE(result);
        done = true;
    });
    std::vector<std::byte> written(data.size());
    std::size_t most = 0;
    while (!done) {
        std::vector<FakeTransport::Chain> chains;
        while (auto chain = transport.take(kControlQueue)) {
            EXPECT_LE(chain->message.size(), 4096u);
            const auto part = control::decode_dma_data(chain->payload());
            ASSERT_TRUE(part);
            std::copy(part->data.begin(), part->data.end(),
                      written.begin() + static_cast<std::ptrdiff_t>(part->access.address - 0x5000));
            chains.push_back(std::move(*chain));
        }
        ASSERT_FALSE(chains.empty());
        most = std::max(most, chains.size());
        //= VVFU-QUEUE-4
        //= type=test
        for (auto chain = chains.rbegin(); chain != chains.rend(); ++chain) {
            transport.complete(*chain, Status::ok, payload_of(*control::decode_dma_access(chain->payload().first(16))));
        }
        run();
    }
    EXPECT_EQ(written, data);
    EXPECT_GT(most, 1u);
    EXPECT_EQ(session->counters().dma_messages, (200000 + 4047) / 4048);
}

TEST_F(SessionTest, StatusOfAMessageBecomesTheErrorOfTheTransfer)
{
    start_connected();
    for (const auto &[status, expected] : {std::pair{Status::fault, DmaError::fault},
                                           {Status::permission, DmaError::permission},
                                           {Status::timeout, DmaError::timeout},
                                           {Status::busy, DmaError::io},
                                           {Status::stale, DmaError::io},
                                           {Status::not_connected, DmaError::io}}) {
        std::array<std::byte, 8> buffer{};
        std::optional<DmaError> error;
        session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) {
            ASSERT_FALSE(result);
            error = result.error();
        });
        transport.complete(*transport.take(kControlQueue), status);
        run();
        EXPECT_EQ(error, expected) << name(status);
    }
}

//= VVFU-QUEUE-10
//= type=test
TEST_F(SessionTest, RequestsAreServedWhileTransfersAreOutstanding)
{
    start_connected();
    std::vector<std::byte> buffer(64);
    session->dma_read(DmaAddress{0}, buffer, [](Expected<void, DmaError>) {});
    ASSERT_TRUE(transport.take(kControlQueue));
    EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}))), Status::ok);
}

TEST_F(SessionTest, AnEmptyTransferSucceedsWithoutMessageAndNotInsideTheCall)
{
    start_connected();
    bool done = false;
    session->dma_read(DmaAddress{0}, {}, [&](Expected<void, DmaError> result) { done = result.has_value(); });
    EXPECT_FALSE(done);
    run();
    EXPECT_TRUE(done);
    EXPECT_FALSE(transport.take(kControlQueue));
}

// ---- reset and the end of a session ----

//= VVFU-RESET-1
//= type=test
TEST_F(SessionTest, RequestsAfterAResetWaitUntilTheModelHasFinishedIt)
{
    start_connected();
    model.hold_resets = true;
    const auto id = send(Type::device_reset, {});
    send(Type::memory_info,
         payload_of(control::MemoryInfo{control::MemoryOp::add, control::kMemoryRead, 0x1000, 0x1000, 0}));
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"reset"}));
    EXPECT_FALSE(transport.take(kReplyQueue));
    EXPECT_EQ(session->services().dma.ranges(), 0u);
    model.held();
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"reset"}));
    EXPECT_EQ(session->services().dma.ranges(), 1u);
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request_id, id) << "answered before what came after it";
}

//= VVFU-RESET-2
//= type=test
TEST_F(SessionTest, AccessesDuringAResetAreAnsweredAtOnceAndReachNoModel)
{
    start_connected();
    model.hold_resets = true;
    send(Type::device_reset, {});
    send(Type::memory_info,
         payload_of(control::MemoryInfo{control::MemoryOp::add, control::kMemoryRead, 0x1000, 0x1000, 0}));
    const auto write = send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({5})));
    const auto read = send(Type::region_read, payload_of(control::RegionAccess{0, 0, 2}));
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"reset"}));
    const auto written = transport.take(kReplyQueue);
    ASSERT_TRUE(written);
    EXPECT_EQ(written->header.request_id, write);
    EXPECT_EQ(written->header.status, Status::ok);
    const auto answer = transport.take(kReplyQueue);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->header.request_id, read);
    const auto data = answer->payload();
    ASSERT_EQ(data.size(), control::kRegionAccessSize + 2);
    EXPECT_EQ(data[control::kRegionAccessSize], std::byte{0xff});
    EXPECT_EQ(data[control::kRegionAccessSize + 1], std::byte{0xff});
    EXPECT_FALSE(transport.take(kReplyQueue)) << "the reset is not answered";
    model.held();
    run();
}

//= VVFU-RESET-2
//= type=test
TEST_F(SessionTest, AccessesThatWaitedBehindAnotherResetAreAnsweredAtOnce)
{
    start_connected();
    model.hold_resets = true;
    send(Type::peer, payload_of(control::Peer{.op = control::PeerOp::down}));
    epoch = 2;
    send(Type::peer, payload_of(control::Peer{}));
    const auto reset = send(Type::device_reset, {});
    const auto read = send(Type::region_read, payload_of(control::RegionAccess{0, 0, 1}));
    run();
    EXPECT_FALSE(transport.take(kReplyQueue)) << "all of the next session wait for the end of the last one";
    std::exchange(model.held, nullptr)();
    run();
    ASSERT_EQ(model.log, (std::vector<std::string>{"gone", "reset"}));
    ASSERT_TRUE(transport.take(kReplyQueue)) << "PEER(DOWN)";
    ASSERT_TRUE(transport.take(kReplyQueue)) << "PEER(UP)";
    const auto answer = transport.take(kReplyQueue);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->header.request_id, read);
    EXPECT_EQ(answer->payload().back(), std::byte{0xff});
    model.held();
    run();
    const auto last = transport.take(kReplyQueue);
    ASSERT_TRUE(last);
    EXPECT_EQ(last->header.request_id, reset);
}

//= VVFU-RESET-8
//= type=test
TEST_F(SessionTest, AWriteThatStopsDmaIsAnsweredWhenDmaWritesOfTheTimeBeforeAreOver)
{
    start_connected();
    auto &dma = session->services().dma;
    const std::array<std::byte, 4> data{};
    bool over = false;
    session->dma_write(DmaAddress{0x1000}, data, [&](Expected<void, DmaError>) { over = true; });
    const auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    model.on_write = [&] { dma.close(); };
    const auto id = send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({5})));
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"write 0+0"}));
    EXPECT_FALSE(transport.take(kReplyQueue));
    transport.complete(*chain, Status::timeout);
    run();
    EXPECT_TRUE(over);
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request_id, id);
}

//= VVFU-RESET-8
//= type=test
TEST_F(SessionTest, AWriteThatStopsDmaIsAnsweredWhenTriggersOfTheTimeBeforeAreOver)
{
    start_connected();
    session->trigger(control::kIrqErr, 0);
    run();
    const auto trigger = transport.take(kControlQueue);
    ASSERT_TRUE(trigger);
    model.on_write = [&] { session->services().dma.close(); };
    const auto id = send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({5})));
    run();
    EXPECT_FALSE(transport.take(kReplyQueue));
    transport.complete(*trigger, Status::ok);
    run();
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request_id, id);
}

//= VVFU-RESET-8
//= type=test
TEST_F(SessionTest, OnlyMessagesOfTheTimeBeforeAreWaitedFor)
{
    start_connected();
    auto &dma = session->services().dma;
    const std::array<std::byte, 4> data{};
    const auto write = [&] {
        session->dma_write(DmaAddress{0x1000}, data, [](Expected<void, DmaError>) {});
        return transport.take(kControlQueue);
    };
    const auto old = write();
    ASSERT_TRUE(old);
    model.on_write = [&] { dma.close(); };
    const auto id = send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({5})));
    run();
    dma.open();
    const auto later = write();
    ASSERT_TRUE(later);
    transport.complete(*old, Status::timeout);
    run();
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request_id, id);
    model.on_write = nullptr;
    EXPECT_TRUE(request(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({6}))));
}

//= VVFU-RESET-8
//= type=test
TEST_F(SessionTest, WhatFollowsAPostedWriteThatStopsDmaWaitsInItsPlace)
{
    start_connected();
    session->dma_write(DmaAddress{0x1000}, std::array<std::byte, 4>{}, [](Expected<void, DmaError>) {});
    const auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    model.on_write = [&] { session->services().dma.close(); };
    send(Type::region_write, payload_of(control::RegionAccess{0, 0, 1}, bytes({5})), control::kFlagPosted);
    const auto read = send(Type::region_read, payload_of(control::RegionAccess{0, 0, 1}));
    const auto multi = send(Type::region_write_multi, payload_of(std::vector<control::MultiWrite>{}));
    run();
    EXPECT_FALSE(transport.take(kReplyQueue));
    model.bar[0] = std::byte{9};
    transport.complete(*chain, Status::timeout);
    run();
    const auto reply = transport.take(kReplyQueue);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.request_id, read);
    EXPECT_EQ(reply->payload().back(), std::byte{5}) << "as it was when it was read";
    const auto next = transport.take(kReplyQueue);
    ASSERT_TRUE(next);
    EXPECT_EQ(next->header.request_id, multi);
}

//= VVFU-DMA-5
//= type=test
TEST_F(SessionTest, TheModelHearsOfAResetBeforeItsTransfersFail)
{
    start_connected();
    model.hold_resets = true;
    std::array<std::byte, 4> buffer{};
    std::vector<std::string> before;
    session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) {
        EXPECT_FALSE(result);
        before = model.log;
    });
    const auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    transport.complete(*chain, Status::busy);
    send(Type::device_reset, {});
    run();
    EXPECT_EQ(before, (std::vector<std::string>{"reset"}));
    model.held();
}

TEST_F(SessionTest, ABacklogBeyondItsLimitStaysInTheRingAndIsServedLater)
{
    start_with_a_reset_held();
    unsigned sent = 0;
    control::Buffer message;
    for (;; ++sent) {
        control::begin(message, {.type = Type::irq_info, .request_id = ++last_id, .epoch = 1});
        control::append(message, control::IrqInfo{control::kIrqIntx, 0, 0, control::IrqAction::assign});
        control::finish(message);
        if (!transport.push_request(message)) {
            run();
            if (!transport.push_request(message)) {
                break;  // nothing is taken out of the ring any more
            }
        }
    }
    EXPECT_GT(sent, 1000u);
    EXPECT_LT(sent, 5000u) << "bounded";
    model.hold_resets = false;
    model.held();
    ASSERT_TRUE(run_until([&] {
        while (transport.take(kReplyQueue)) {
        }
        return model.log.size() >= sent + 1;
    }));
    EXPECT_EQ(model.log.size(), sent + 1);
    const auto id = send(Type::region_read, payload_of(control::RegionAccess{0, 0, 1}));
    EXPECT_TRUE(run_until([&] {
        while (const auto reply = transport.take(kReplyQueue)) {
            if (reply->header.request_id == id) {
                return reply->header.status == Status::ok;
            }
        }
        return false;
    }));
}

//= VVFU-SESSION-8
//= type=test
TEST_F(SessionTest, WhenThePeerIsGoneItsMemoryIsForgottenAndTheModelResetBeforeTheAnswer)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0), Status::ok);
    model.hold_resets = true;
    control::Peer down;
    down.op = control::PeerOp::down;
    down.reason = control::DownReason::peer_closed;
    //= VVFU-SESSION-8
    //= type=test
    EXPECT_EQ(status_of(request(Type::peer, payload_of(down))), std::nullopt);
    EXPECT_EQ(model.log, (std::vector<std::string>{"gone"}));
    EXPECT_EQ(session->services().dma.ranges(), 0u);
    EXPECT_FALSE(session->peer_up());
    model.hold_resets = false;
    model.held();
    run();
    EXPECT_EQ(status_of(transport.take(kReplyQueue)), Status::ok);
    peer_up(2);
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0), Status::ok);
}

TEST_F(SessionTest, AWithdrawalThatIsStillPendingWhenThePeerGoesIsNotAnsweredTwice)
{
    start_connected();
    ASSERT_EQ(memory(control::MemoryOp::add, 0x10000, 0x1000, 0), Status::ok);
    std::optional<DmaMapping> mapping;
    const DmaSegment segment{DmaAddress{0x10000}, 16};
    session->services().dma.map({&segment, 1}, DmaDirection::to_peer,
                                [&](Expected<DmaMapping, DmaError> result) { mapping.emplace(std::move(*result)); });
    send(Type::memory_info, payload_of(control::MemoryInfo{control::MemoryOp::del, 3, 0x10000, 0x1000, 0}));
    control::Peer down;
    down.op = control::PeerOp::down;
    send(Type::peer, payload_of(down));
    run();
    ASSERT_TRUE(transport.take(kReplyQueue));
    mapping.reset();
    run();
    unsigned replies = 0;
    while (const auto reply = transport.take(kReplyQueue)) {
        EXPECT_EQ(reply->header.type, Type::memory_info);
        ++replies;
    }
    EXPECT_LE(replies, 1u) << "a late answer is allowed, the device ignores it";
}

// ---- interrupts ----

TEST_F(SessionTest, VectorsMapToDoorbellsInTheOrderOfTheirIndices)
{
    start_connected();
    auto &irqs = session->services().irqs;
    irqs.trigger(control::kIrqIntx, 0);
    irqs.trigger(control::kIrqMsix, 0);
    irqs.trigger(control::kIrqMsix, 3);
    EXPECT_EQ(transport.doorbells_rung, (std::vector<std::uint32_t>{0, 1, 4}));
    irqs.trigger(control::kIrqMsix, 4);
    irqs.trigger(control::kIrqMsi, 0);
    irqs.trigger(9, 0);
    run();
    EXPECT_EQ(transport.doorbells_rung.size(), 3u) << "vectors that do not exist";
    transport.pending = {2};
    EXPECT_TRUE(irqs.pending(control::kIrqMsix, 1));
    EXPECT_FALSE(irqs.pending(control::kIrqMsix, 2));
    EXPECT_FALSE(irqs.pending(control::kIrqErr, 0));
}

TEST_F(SessionTest, OnlyTheReactorsThreadMayTrigger)
{
    start_connected();
    reactor->post(
        [&] { std::thread{[&] { EXPECT_THROW(session->trigger(control::kIrqMsix, 0), std::logic_error); }}.join(); });
    run();
    EXPECT_TRUE(transport.doorbells_rung.empty());
}

TEST_F(SessionTest, AVectorWithoutDoorbellIsTriggeredByMessage)
{
    start_connected();
    session->trigger(control::kIrqErr, 0);
    run();
    const auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    EXPECT_EQ(chain->header.type, Type::irq_trigger);
    EXPECT_EQ(*control::decode_irq_trigger(chain->payload()), (control::IrqTrigger{control::kIrqErr, 0}));
}

TEST_F(SessionTest, TriggersByMessageAreMergedWhileTheyWaitAndNoneIsLost)
{
    transport.device_config.doorbells = 1;
    start_connected();
    for (int i = 0; i < 2000; ++i) {
        session->trigger(control::kIrqErr, 0);
        run();
    }
    session->trigger(control::kIrqMsix, 3);
    session->trigger(control::kIrqMsix, 0);
    run();
    std::vector<control::IrqTrigger> sent;
    while (const auto chain = transport.take(kControlQueue)) {
        ASSERT_EQ(chain->header.type, Type::irq_trigger);
        sent.push_back(*control::decode_irq_trigger(chain->payload()));
        transport.complete(*chain, Status::ok);
        run();
    }
    for (const std::uint32_t vector : {0u, 3u}) {
        const control::IrqTrigger expected{control::kIrqMsix, vector};
        EXPECT_EQ(std::count(sent.begin(), sent.end(), expected), 1) << vector;
    }
    EXPECT_LE(sent.size(), 16u);
}

//= VVFU-RESET-8
//= type=test
TEST_F(SessionTest, TriggersThatAreNotSentCanBeTakenBack)
{
    transport.device_config.doorbells = 1;
    start_connected();
    session->trigger(control::kIrqMsix, 3);
    session->trigger(control::kIrqErr, 0);
    EXPECT_EQ(session->withdraw(control::kIrqMsix), std::vector<std::uint32_t>{3});
    EXPECT_TRUE(session->withdraw(control::kIrqMsix).empty());
    run();
    const auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    EXPECT_EQ(*control::decode_irq_trigger(chain->payload()), (control::IrqTrigger{control::kIrqErr, 0}));
    EXPECT_FALSE(transport.take(kControlQueue));
}

//= VVFU-RESET-1
//= type=test
TEST_F(SessionTest, NoTriggerOfTheTimeBeforeAResetIsSentAfterIt)
{
    start_connected();
    send(Type::device_reset, {});
    session->trigger(control::kIrqErr, 0);
    run();
    ASSERT_TRUE(transport.take(kReplyQueue));
    EXPECT_FALSE(transport.take(kControlQueue));
    session->trigger(control::kIrqErr, 0);
    run();
    EXPECT_TRUE(transport.take(kControlQueue));
}

//= VVFU-RESET-1
//= type=test
TEST_F(SessionTest, AResetIsNotAnsweredBeforeTheTriggersThatWereSent)
{
    start_connected();
    session->trigger(control::kIrqErr, 0);
    run();
    const auto trigger = transport.take(kControlQueue);
    ASSERT_TRUE(trigger);
    send(Type::device_reset, {});
    run();
    EXPECT_FALSE(transport.take(kReplyQueue));
    transport.complete(*trigger, Status::ok);
    run();
    EXPECT_TRUE(transport.take(kReplyQueue));
}

// ---- efficiency ----

TEST_F(SessionTest, RepliesNeedNoInterruptAndRequestsAskForNoneWhileTheyAreTaken)
{
    start_connected();
    for (int i = 0; i < 200; ++i) {
        ASSERT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}))), Status::ok);
    }
    EXPECT_LE(transport.used_signals, 205u) << "one per request, none for its reply";
    EXPECT_LE(transport.notified[kReplyQueue], 205u);
}

TEST_F(SessionTest, ADeviceThatDoesNotTakeRepliesGetsAllOfThemLater)
{
    start_connected();
    control::Buffer message;
    const auto push = [&] {
        control::begin(message, {.type = Type::region_read, .request_id = ++last_id, .epoch = 1});
        control::append(message, control::RegionAccess{0, 0, 4});
        control::finish(message);
        const bool pushed = transport.push_request(message);
        last_id -= pushed ? 0 : 1;
        return pushed;
    };
    const auto first = last_id + 1;
    for (int idle = 0; idle < 3;) {
        idle = push() ? 0 : idle + 1;
        run();
        ASSERT_LT(last_id, 5000u) << "requests are taken although their replies go nowhere";
    }
    EXPECT_LT(model.log.size(), last_id) << "some stay in the ring";
    auto expected = first;
    ASSERT_TRUE(run_until([&] {
        for (auto reply = transport.take(kReplyQueue); reply; reply = transport.take(kReplyQueue)) {
            EXPECT_EQ(reply->header.request_id, expected++);
        }
        return expected > last_id;
    }));
    EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}))), Status::ok);
}

TEST_F(SessionTest, PollingFindsARequestWithoutANotification)
{
    options.poll = 1min;
    start_registered();
    send(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}));
    const auto before = transport.used_signals;
    std::thread device{[&] {
        while (transport.wants_used_notification(kRequestQueue)) {
            std::this_thread::yield();  // until the driver is awake
        }
        transport.push_request(bytes({1, 2, 3}));  // breaks the device, which ends the polling
    }};
    EXPECT_TRUE(run_until([&] { return session->counters().requests == 2; }));
    device.join();
    EXPECT_EQ(transport.used_signals, before);
}

TEST_F(SessionTest, PollingLeavesOtherEventsTheirTurn)
{
    options.poll = 1h;
    start_connected();
    const Fd other{::eventfd(1, EFD_CLOEXEC)};
    bool served = false;
    ASSERT_TRUE(reactor->watch(other.get(), EPOLLIN | EPOLLET, [&](std::uint32_t) { served = true; }));
    ASSERT_FALSE(transport.wants_used_notification(kRequestQueue)) << "it polls";
    reactor->run_once();
    EXPECT_TRUE(served);
    reactor->unwatch(other.get());
}

TEST_F(SessionTest, PollingEndsAfterItsTime)
{
    options.poll = 1ms;
    start_connected();
    EXPECT_TRUE(run_until([&] { return transport.wants_used_notification(kRequestQueue); }));
}

// ---- broken devices ----

class BrokenDeviceTest : public SessionTest {
protected:
    /// What the device does; afterwards the session must have reset it and registered again.
    void expect_recovery(const std::function<void()> &break_it)
    {
        start_connected();
        const auto resets = transport.resets;
        break_it();
        ASSERT_TRUE(run_until([&] { return transport.resets >= resets + 2 && transport.driver_is_ok; }));
        EXPECT_FALSE(session->peer_up());
        EXPECT_EQ(model.log.back(), "gone");
        accept_registration();
        peer_up(5);
        EXPECT_EQ(status_of(request(Type::region_read, payload_of(control::RegionAccess{0, 0, 4}))), Status::ok);
        EXPECT_EQ(session->counters().restarts, 1u);
        EXPECT_EQ(failed, "");
    }
};

TEST_F(BrokenDeviceTest, NeedsResetLeadsToANewRegistration)
{
    expect_recovery([this] { transport.set_broken(); });
}

TEST_F(BrokenDeviceTest, ACorruptRequestQueueLeadsToANewRegistration)
{
    expect_recovery([this] { transport.corrupt_used_index(kRequestQueue); });
}

TEST_F(BrokenDeviceTest, ACorruptControlQueueLeadsToANewRegistration)
{
    expect_recovery([this] { transport.corrupt_used_index(kControlQueue); });
}

TEST_F(BrokenDeviceTest, ARequestShorterThanAHeaderLeadsToANewRegistration)
{
    expect_recovery([this] { transport.push_request(bytes({1, 2, 3})); });
}

TEST_F(BrokenDeviceTest, AReplyOnTheRequestQueueLeadsToANewRegistration)
{
    expect_recovery([this] { send(Type::region_read, {}, control::kFlagReply); });
}

TEST_F(BrokenDeviceTest, AReplyOfAnotherTypeLeadsToANewRegistrationAndFailsTheTransfer)
{
    std::array<std::byte, 8> buffer{};
    std::optional<DmaError> error;
    expect_recovery([&] {
        session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) { error = result.error(); });
        auto chain = transport.take(kControlQueue);
        chain->header.type = Type::dma_write;
        transport.complete(*chain, Status::ok);
    });
    EXPECT_EQ(error, DmaError::io);
}

TEST_F(BrokenDeviceTest, ADmaReadReplyOfTheWrongSizeLeadsToANewRegistrationAndFailsTheTransfer)
{
    std::array<std::byte, 8> buffer{};
    std::optional<DmaError> error;
    expect_recovery([&] {
        session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) { error = result.error(); });
        auto chain = transport.take(kControlQueue);
        transport.complete(*chain, Status::ok, payload_of(control::DmaAccess{0, 4}, bytes({1, 2, 3, 4})));
    });
    EXPECT_EQ(error, DmaError::io);
}

TEST_F(BrokenDeviceTest, TransfersInFlightFailWhenTheDeviceBreaks)
{
    std::vector<std::byte> buffer(64 * 1024 * 1024 / 8);
    std::optional<DmaError> error;
    expect_recovery([&] {
        session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) { error = result.error(); });
        transport.set_broken();
    });
    EXPECT_EQ(error, DmaError::io);
}

TEST_F(BrokenDeviceTest, ADeviceThatBreaksAgainAndAgainIsGivenUp)
{
    options.max_restarts = 2;
    start_registered();
    for (unsigned i = 0; i < 3; ++i) {
        ASSERT_TRUE(run_until([&] { return transport.driver_is_ok; }));
        transport.set_broken();
        ASSERT_TRUE(run_until([&] { return !transport.driver_is_ok; }));
    }
    ASSERT_TRUE(run_until([&] { return !failed.empty(); }));
    EXPECT_NE(failed.find("DEVICE_NEEDS_RESET"), std::string::npos) << failed;
    EXPECT_EQ(session->counters().restarts, 2u);
}

TEST_F(BrokenDeviceTest, ARegistrationThatHeldCountsAnew)
{
    options.max_restarts = 1;
    options.stable_after = 0ns;
    start_registered();
    for (unsigned i = 0; i < 5; ++i) {
        transport.set_broken();
        ASSERT_TRUE(run_until([&] { return transport.resets == 2 * i + 3 && transport.driver_is_ok; })) << i;
        accept_registration();
    }
    EXPECT_EQ(failed, "");
    EXPECT_EQ(session->counters().restarts, 5u);
}

TEST_F(BrokenDeviceTest, AModelThatIsResettingIsNotResetAgain)
{
    start_with_a_reset_held();
    transport.set_broken();
    run();
    EXPECT_EQ(model.log, (std::vector<std::string>{"reset"}));
    EXPECT_FALSE(transport.driver_is_ok) << "waits for the model";
    model.hold_resets = false;
    model.held();
    ASSERT_TRUE(run_until([&] { return transport.driver_is_ok; }));
}

TEST_F(BrokenDeviceTest, AResetThatWaitsForATriggerEndsWithTheDevice)
{
    expect_recovery([&] {
        session->trigger(control::kIrqErr, 0);
        run();
        send(Type::device_reset, {});
        run();
        transport.set_broken();
    });
}

TEST_F(BrokenDeviceTest, ADeviceThatBreaksDuringAResetTakesTheNextSession)
{
    start_with_a_reset_held();
    transport.set_broken();
    run();
    model.hold_resets = false;
    model.held();
    ASSERT_TRUE(run_until([&] { return transport.driver_is_ok; }));
    EXPECT_EQ(model.log, (std::vector<std::string>{"reset", "gone"}));
    EXPECT_FALSE(session->peer_up());
    accept_registration();
    peer_up(2);
}

// ---- stop ----

TEST_F(SessionTest, StopWithdrawsTheDeviceRestsTheModelAndResetsTheFunction)
{
    start_connected();
    bool stopped = false;
    session->stop([&] { stopped = true; });
    run();
    auto chain = transport.take(kControlQueue);
    ASSERT_TRUE(chain);
    EXPECT_EQ(control::decode_device_info(chain->payload())->op, control::DeviceInfoOp::del);
    EXPECT_FALSE(stopped);
    transport.complete(*chain, Status::ok);
    run();
    EXPECT_TRUE(stopped);
    EXPECT_EQ(model.log, (std::vector<std::string>{"gone"}));
    EXPECT_FALSE(transport.driver_is_ok);
}

TEST_F(SessionTest, StopDoesNotWaitForEverOnADeviceThatDoesNotAnswer)
{
    options.control_timeout = 1ms;
    start_connected();
    bool stopped = false;
    session->stop([&] { stopped = true; });
    ASSERT_TRUE(run_until([&] { return stopped; }));
    EXPECT_FALSE(transport.driver_is_ok);
}

TEST_F(SessionTest, StopWorksInEveryState)
{
    bool stopped = false;
    session = std::make_unique<Session>(transport, *reactor, workers, options);
    session->stop([&] { stopped = true; });
    ASSERT_TRUE(run_until([&] { return stopped; })) << "not started";
    stopped = false;
    start();
    session->stop([&] { stopped = true; });
    ASSERT_TRUE(run_until([&] { return stopped; })) << "registration in flight";
    EXPECT_EQ(registered, "");
    stopped = false;
    session->stop([&] { stopped = true; });
    ASSERT_TRUE(run_until([&] { return stopped; })) << "stopped already";
    stopped = false;
    options.restart_delay = 1h;
    start_registered();
    transport.set_broken();
    run();
    session->stop([&] { stopped = true; });
    ASSERT_TRUE(run_until([&] { return stopped; })) << "waiting for a restart";
    EXPECT_EQ(failed, "");
}

TEST_F(SessionTest, TransfersFailOnceTheSessionIsStopped)
{
    start_registered();
    session->stop([] {});
    transport.complete(*transport.take(kControlQueue), Status::ok);
    run();
    std::array<std::byte, 4> buffer{};
    std::optional<DmaError> error;
    session->dma_read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> result) { error = result.error(); });
    run();
    EXPECT_EQ(error, DmaError::io);
}

TEST_F(SessionTest, CanBeDestroyedAtAnyTime)
{
    start_connected();
    session->trigger(control::kIrqErr, 0);
    model.hold_resets = true;
    send(Type::device_reset, {});
    run();
    session.reset();
    model.held();
    run();
}

}  // namespace
}  // namespace vvfu::guest
