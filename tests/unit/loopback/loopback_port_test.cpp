// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/loopback/loopback_port.hpp"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>

#include "event_fd.hpp"
#include "process.hpp"
#include "temporary_directory.hpp"
#include "vfio_user_client.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/guest/thread_pool.hpp"

namespace vvfu::loopback {
namespace {

using namespace std::chrono_literals;
using guest::DmaAddress;
using guest::DmaDirection;
using guest::DmaError;
using guest::DmaMapping;

/// BAR 0: memory. Configuration space: bytes without meaning. 1 INTx, 4 MSI-X vectors. Guest thread only.
class MemoryModel final : public guest::DeviceModel {
public:
    [[nodiscard]] control::DeviceInfo describe() const override
    {
        control::DeviceInfo info;
        info.flags = control::kDeviceReset | control::kDeviceQuiesce;
        info.vendor_id = 0x1234;
        info.regions = {{0, control::kRegionRead | control::kRegionWrite, bar.size(), 0, {}},
                        {2, control::kRegionRead | control::kRegionWrite | control::kRegionMmap, 8192, 0, {{0, 8192}}},
                        {control::kRegionConfig, control::kRegionRead | control::kRegionWrite, 256, 0, {}}};
        info.irqs = {{control::kIrqIntx, 1}, {control::kIrqMsix, 4}};
        return info;
    }
    void region_read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> out) override
    {
        std::fill(out.begin(), out.end(), std::byte{0});
        if (region == 0) {
            std::copy_n(bar.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
        }
    }
    void region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data) override
    {
        ++writes;
        if (region == 0) {
            std::uint32_t value = 0;
            std::memcpy(&value, data.data(), std::min(sizeof value, data.size()));
            in_order = in_order && (offset != 8 || value == next_value++);
            std::copy(data.begin(), data.end(), bar.begin() + static_cast<std::ptrdiff_t>(offset));
        }
    }
    void irq_info(const control::IrqInfo &info) override { irqs.push_back(info); }
    void reset(std::function<void()> done) override
    {
        ++resets;
        if (hold_resets) {
            held = std::move(done);
        } else {
            done();
        }
    }

    std::array<std::byte, 4096> bar{};
    std::vector<control::IrqInfo> irqs;
    unsigned resets = 0;
    std::uint64_t writes = 0;
    bool in_order = true;
    std::uint32_t next_value = 0;
    bool hold_resets = false;
    std::function<void()> held;
};

/// The guest driver's half, on a thread of its own.
class Guest {
public:
    explicit Guest(guest::Transport &transport) : thread_([this, &transport] { main(transport); })
    {
        ready_.get_future().get();
    }
    /// Runs `function` on the guest driver's thread.
    template <typename Function>
    auto run(Function function)
    {
        std::packaged_task<std::invoke_result_t<Function>()> task{std::move(function)};
        auto result = task.get_future();
        reactor_->post([&task] { task(); });
        return result.get();
    }
    ~Guest()
    {
        run([this] { session_->stop([this] { reactor_->stop(); }); });
        thread_.join();
    }
    template <typename Condition>
    bool eventually(Condition condition)
    {
        const auto end = guest::Reactor::now() + 10s;
        while (!run(condition)) {
            if (guest::Reactor::now() > end) {
                return false;
            }
            std::this_thread::yield();
        }
        return true;
    }
    std::string registered() { return result_.get_future().get(); }
    /// As a model has it whose function may do DMA.
    guest::DmaSpace &dma()
    {
        session_->services().dma.open();
        return session_->services().dma;
    }
    guest::IrqSink &irqs() { return *session_; }
    guest::Session &session() { return *session_; }

    MemoryModel model;

private:
    void main(guest::Transport &transport)
    {
        reactor_ = std::move(*guest::Reactor::create());
        guest::ThreadPool workers{*reactor_};
        guest::SessionOptions options;
        options.restart_delay = 0ns;
        session_ = std::make_unique<guest::Session>(transport, *reactor_, workers, options);
        session_->start(
            model, [this](guest::Result<void> result) { result_.set_value(result ? "ok" : result.error().message); },
            [](const guest::Error &) {});
        ready_.set_value();
        reactor_->run();
        session_.reset();
    }

    std::promise<void> ready_;
    std::promise<std::string> result_;
    std::unique_ptr<guest::Reactor> reactor_;
    std::unique_ptr<guest::Session> session_;
    std::thread thread_;
};

/// Writes to memory that is taken away meanwhile: a race by intention, so ThreadSanitizer must not look.
__attribute__((no_sanitize("thread"))) void scribble(volatile unsigned char *memory, std::size_t size,
                                                     const std::atomic<bool> &stop, std::atomic<std::uint64_t> &written)
{
    for (std::uint64_t i = 0; !stop; ++i) {
        memory[i % size] = static_cast<unsigned char>(i | 1);
        ++written;
    }
}

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM.
constexpr std::uint64_t kRequired = std::uint64_t{3} << 32;

class LoopbackTest : public ::testing::Test {
protected:
    LoopbackTest()
    {
        options.socket_path = path;
        options.core.window_size = std::uint64_t{1} << 30;
        options.core.region_memory_size = 8192;
        options.core.unmap_timeout = 50ms;
        options.core.access_timeout = 2s;
    }
    ~LoopbackTest() override
    {
        guest.reset();
        port.reset();
        EXPECT_FALSE(socket_exists()) << "the socket is unlinked at the end";
    }
    void start()
    {
        auto created = LoopbackPort::create(std::move(options));
        ASSERT_TRUE(created) << created.error().message;
        port = std::move(*created);
        guest = std::make_unique<Guest>(port->transport());
        ASSERT_EQ(guest->registered(), "ok");
    }
    test::VfioUserClient connect()
    {
        auto client = test::VfioUserClient::connect(path);
        client.version();
        return client;
    }
    [[nodiscard]] bool socket_exists() const
    {
        struct stat status {};
        return ::lstat(path.c_str(), &status) == 0;
    }
    bool wait_state(const std::string &state)
    {
        const auto end = guest::Reactor::now() + 10s;
        while (port->state().state != state) {
            if (guest::Reactor::now() > end) {
                return false;
            }
            std::this_thread::yield();
        }
        return true;
    }
    /// Reads a register that nobody writes until the model's answer comes: all-ones come from a guest that missed a
    /// deadline, until it answers anything.
    static bool model_answers(test::VfioUserClient &client)
    {
        const auto end = guest::Reactor::now() + 10s;
        std::uint32_t value = 0;
        do {
            value = client.read<std::uint32_t>(0, 0);
        } while (value != 0 && guest::Reactor::now() < end);
        return value == 0;
    }
    /// Maps `bytes` at `address` for writing and keeps the mapping.
    void pin(std::uint64_t address, std::uint64_t bytes, std::optional<DmaMapping> &out)
    {
        guest->run([&] {
            const guest::DmaSegment segment{DmaAddress{address}, bytes};
            // For any thread; a guest that misbehaves writes there, too.
            guest->dma().map({&segment, 1}, DmaDirection::from_peer, [&](Expected<DmaMapping, DmaError> mapping) {
                ASSERT_TRUE(mapping) << describe(mapping.error());
                out.emplace(std::move(*mapping));
            });
        });
        ASSERT_TRUE(out);
    }

    const test::TemporaryDirectory directory;
    const std::string path = directory.path("sock");
    LoopbackOptions options;
    std::unique_ptr<LoopbackPort> port;
    std::unique_ptr<Guest> guest;
};

//= VVFU-INIT-2
//= type=test
TEST_F(LoopbackTest, TheSocketExistsWhileADeviceIsRegistered)
{
    auto created = LoopbackPort::create(std::move(options));
    ASSERT_TRUE(created);
    port = std::move(*created);
    EXPECT_FALSE(socket_exists());
    guest = std::make_unique<Guest>(port->transport());
    ASSERT_EQ(guest->registered(), "ok");
    EXPECT_TRUE(socket_exists());
    guest.reset();
    EXPECT_FALSE(socket_exists());
}

TEST_F(LoopbackTest, RegisterAccessesReachTheModelAndComeBack)
{
    start();
    auto client = connect();
    client.write<std::uint32_t>(0, 16, 0x12345678);
    EXPECT_EQ(client.read<std::uint32_t>(0, 16), 0x12345678u);
    EXPECT_EQ(client.read<std::uint16_t>(0, 18), 0x1234u);
    EXPECT_EQ(client.region_read(0, 0, 4096).size(), 4096u);
}

TEST_F(LoopbackTest, AFloodOfPostedWritesArrivesCompleteAndInOrder)
{
    start();
    auto client = connect();
    constexpr std::uint32_t kWrites = 20000;
    for (std::uint32_t i = 0; i < kWrites; ++i) {
        client.post<std::uint32_t>(0, 8, i);
    }
    EXPECT_EQ(client.read<std::uint32_t>(0, 8), kWrites - 1);
    guest->run([&] {
        EXPECT_TRUE(guest->model.in_order);
        EXPECT_EQ(guest->model.writes, kWrites);
    });
}

TEST_F(LoopbackTest, MappedMemoryIsSharedBothWays)
{
    start();
    auto client = connect();
    test::GuestRam ram{0x100000, 1 << 20};
    ASSERT_EQ(client.dma_map(ram), 0);
    ram.bytes()[100] = std::byte{0x77};
    guest->run([&] {
        std::array<std::byte, 1> byte{};
        guest->dma().read(DmaAddress{0x100000 + 100}, byte, [](Expected<void, DmaError> r) { EXPECT_TRUE(r); });
        EXPECT_EQ(byte[0], std::byte{0x77});
        byte[0] = std::byte{0x88};
        guest->dma().write(DmaAddress{0x100000 + 200}, byte, [](Expected<void, DmaError> r) { EXPECT_TRUE(r); });
    });
    EXPECT_EQ(ram.bytes()[200], std::byte{0x88});
    EXPECT_EQ(port->state().mapped_ranges, 1u);
    ASSERT_EQ(client.dma_unmap(0x100000, 1 << 20), 0);
    EXPECT_EQ(port->state().mapped_ranges, 0u);
}

TEST_F(LoopbackTest, MemoryWithoutFdIsReachedByMessage)
{
    start();
    auto client = connect();
    std::vector<std::byte> memory(600000);
    ASSERT_EQ(client.dma_map(0x100000, 1 << 20, 0, test::kMapRead | test::kMapWrite, -1), 0);
    client.serve_memory(0x100000, memory);
    std::vector<std::byte> data(500000);
    for (std::size_t i = 0; i < data.size(); ++i) {
        data[i] = static_cast<std::byte>(i * 7 + i / 256);
    }
    std::atomic<int> done{0};
    const test::EventFd finished;
    guest->run([&] {
        guest->dma().write(DmaAddress{0x100000 + 10}, data, [&](Expected<void, DmaError> r) {
            EXPECT_TRUE(r);
            ++done;
            finished.signal();
        });
    });
    ASSERT_TRUE(client.serve_until([&] { return done == 1; }, finished.fd()));
    EXPECT_EQ(finished.take(), 1u);
    EXPECT_EQ(std::memcmp(memory.data() + 10, data.data(), data.size()), 0);
    std::vector<std::byte> back(data.size());
    guest->run([&] {
        guest->dma().read(DmaAddress{0x100000 + 10}, back, [&](Expected<void, DmaError> r) {
            EXPECT_TRUE(r);
            ++done;
            finished.signal();
        });
    });
    ASSERT_TRUE(client.serve_until([&] { return done == 2; }, finished.fd()));
    EXPECT_EQ(back, data);
    guest->run([] {});  // the callback is over: it uses what goes out of scope here
}

TEST_F(LoopbackTest, RegionMemoryIsTheSameForPeerAndModel)
{
    start();
    auto client = connect();
    const auto info = client.region_info(2);
    ASSERT_EQ(info.fds.size(), 1u);
    void *mapped =
        ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, info.fds[0].get(), static_cast<off_t>(info.offset));
    ASSERT_NE(mapped, MAP_FAILED);
    static_cast<std::byte *>(mapped)[4097] = std::byte{0x3c};
    guest->run([&] { EXPECT_EQ(guest->session().services().region_memory[4097], std::byte{0x3c}); });
    ::munmap(mapped, 8192);
}

TEST_F(LoopbackTest, AVectorSignalsThePeersEventfdAndIsLatchedWithoutOne)
{
    start();
    auto client = connect();
    const test::EventFd event;
    guest->run([&] {
        guest->irqs().trigger(control::kIrqMsix, 2);
        EXPECT_TRUE(guest->irqs().pending(control::kIrqMsix, 2));
        EXPECT_FALSE(guest->irqs().pending(control::kIrqMsix, 1));
    });
    const std::array<int, 1> fds{event.fd()};
    const auto flags = test::kDataEventfd | test::kActionTrigger;
    ASSERT_EQ(client.set_irqs(flags, control::kIrqMsix, 2, 1, fds), 0);
    EXPECT_EQ(event.wait(), 1u) << "what was pending is delivered";
    guest->run([&] {
        EXPECT_FALSE(guest->irqs().pending(control::kIrqMsix, 2));
        guest->irqs().trigger(control::kIrqMsix, 2);
        guest->irqs().trigger(control::kIrqMsix, 1);
    });
    EXPECT_EQ(event.wait(), 1u);
}

TEST_F(LoopbackTest, TheResampleEventfdOfIntxReachesTheModel)
{
    start();
    auto client = connect();
    const test::EventFd trigger, resample;
    const std::array<int, 1> trigger_fd{trigger.fd()}, resample_fd{resample.fd()};
    ASSERT_EQ(client.set_irqs(test::kDataEventfd | test::kActionTrigger, control::kIrqIntx, 0, 1, trigger_fd), 0);
    ASSERT_EQ(client.set_irqs(test::kDataEventfd | test::kActionUnmask, control::kIrqIntx, 0, 1, resample_fd), 0);
    for (std::size_t i = 1; i <= 3; ++i) {
        resample.signal();
        EXPECT_TRUE(guest->eventually([&] {
            return static_cast<std::size_t>(std::count_if(
                       guest->model.irqs.begin(), guest->model.irqs.end(), [](const control::IrqInfo &info) {
                           return info.index == control::kIrqIntx && info.action == control::IrqAction::unmask;
                       })) >= i;
        }));
    }
}

TEST_F(LoopbackTest, UnmapWaitsForAnAccessInProgress)
{
    options.core.unmap_timeout = 4s;
    start();
    auto client = connect();
    test::GuestRam ram{0, 65536};
    ASSERT_EQ(client.dma_map(ram), 0);
    std::optional<DmaMapping> mapping;
    pin(0, 4096, mapping);
    auto *first = static_cast<std::byte *>(mapping->readable()[0].iov_base);
    test::Packer payload;
    payload.u32(24).u32(0).u64(0).u64(65536);
    const auto id = client.send(test::kDmaUnmap, payload.view());
    EXPECT_EQ(client.read<std::uint32_t>(0, 0), 0u) << "other accesses go on meanwhile";
    guest->run([&] {
        EXPECT_EQ(guest->dma().ranges(), 0u) << "no new access reaches the range";
        EXPECT_TRUE(mapping->readable().empty()) << "and no access that was begun before goes on";
        *first = std::byte{1};
        mapping.reset();
    });
    EXPECT_EQ(client.wait_reply(id).result(), 0);
    EXPECT_EQ(port->state().deadline_expiries, 0u);
    EXPECT_EQ(ram.bytes()[0], std::byte{1});
}

//= VVFU-WINDOW-3
//= type=test
TEST_F(LoopbackTest, UnmapDoesNotDependOnTheModelsGoodWill)
{
    start();
    auto client = connect();
    test::GuestRam ram{0, 65536};
    ASSERT_EQ(client.dma_map(ram), 0);
    std::optional<DmaMapping> mapping;
    pin(0, 65536, mapping);
    auto *stolen = static_cast<volatile unsigned char *>(mapping->readable()[0].iov_base);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> written{0};
    std::thread hostile{[&] { scribble(stolen, 65536, stop, written); }};
    EXPECT_EQ(client.dma_unmap(0, 65536), 0);
    std::memset(ram.bytes().data(), 0, 65536);
    const auto now = written.load();
    while (written < now + 200000) {
        std::this_thread::yield();
    }
    stop = true;
    hostile.join();
    EXPECT_TRUE(std::all_of(ram.bytes().begin(), ram.bytes().end(), [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_EQ(port->state().deadline_expiries, 1u);
    guest->run([&] { mapping.reset(); });
    EXPECT_TRUE(model_answers(client));
}

TEST_F(LoopbackTest, SessionsFollowEachOtherAndStartFromPowerOn)
{
    start();
    const auto fds = test::count_open_fds();
    for (std::uint32_t session = 1; session <= 5; ++session) {
        auto client = connect();
        test::GuestRam ram{0, 65536};
        ASSERT_EQ(client.dma_map(ram), 0);
        const test::EventFd event;
        const std::array<int, 1> irq{event.fd()};
        ASSERT_EQ(client.set_irqs(test::kDataEventfd | test::kActionTrigger, control::kIrqMsix, 0, 1, irq), 0);
        EXPECT_EQ(port->state().epoch, session);
        EXPECT_EQ(port->state().peer.pid, static_cast<std::uint32_t>(::getpid()));
        client.close();
        ASSERT_TRUE(guest->eventually([&] { return guest->model.resets == session; }));
        ASSERT_TRUE(wait_state("listening"));
        guest->run([&] { EXPECT_EQ(guest->dma().ranges(), 0u); });
    }
    EXPECT_EQ(test::count_open_fds(), fds);
}

TEST_F(LoopbackTest, APeerThatDiesWithMemoryInUseCostsOnlyItsSession)
{
    start();
    std::optional<DmaMapping> mapping;
    std::byte *first = nullptr;
    {
        auto client = connect();
        test::GuestRam ram{0, 65536};
        ASSERT_EQ(client.dma_map(ram), 0);
        pin(0, 65536, mapping);
        first = static_cast<std::byte *>(mapping->readable()[0].iov_base);
        for (int i = 0; i < 5000; ++i) {
            client.post<std::uint32_t>(0, 16, 1);
        }
    }
    ASSERT_TRUE(guest->eventually([&] { return guest->model.resets == 1; }));
    guest->run([&] {
        *first = std::byte{1};  // scratch memory by now
        mapping.reset();
    });
    auto next = connect();
    EXPECT_EQ(next.read<std::uint32_t>(0, 16), 1u);
    EXPECT_EQ(port->state().mapped_ranges, 0u);
}

TEST_F(LoopbackTest, APeerThatDiesDuringMessageDmaFailsTheTransfer)
{
    start();
    std::promise<Expected<void, DmaError>> result;
    std::vector<std::byte> buffer(300000);
    {
        auto client = connect();
        ASSERT_EQ(client.dma_map(0, 1 << 20, 0, test::kMapRead | test::kMapWrite, -1), 0);
        guest->run([&] {
            guest->dma().read(DmaAddress{0}, buffer, [&](Expected<void, DmaError> r) { result.set_value(r); });
        });
    }
    EXPECT_EQ(result.get_future().get(), make_unexpected(DmaError::io));
    EXPECT_EQ(connect().read<std::uint32_t>(0, 0), 0u);
}

TEST_F(LoopbackTest, APeerThatLeavesWhileTheModelResetsDoesNotHoldUpTheNext)
{
    options.core.access_timeout = 100ms;
    start();
    guest->run([&] { guest->model.hold_resets = true; });
    {
        auto client = connect();
        static_cast<void>(client.send(test::kReset, {}));
        ASSERT_TRUE(guest->eventually([&] { return guest->model.resets == 1; }));
        for (int i = 0; i < 20000; ++i) {
            client.post<std::uint32_t>(0, 16, 1);
            if (i % 1000 == 0 && port->state().deadline_expiries > 0) {
                break;
            }
        }
    }
    auto next = test::VfioUserClient::connect(path);
    std::thread release{[&] {
        guest->run([&] {
            guest->model.hold_resets = false;
            guest->model.held();
        });
    }};
    next.version();
    release.join();
    EXPECT_TRUE(model_answers(next));
}

//= VVFU-SESSION-2
//= type=test
TEST_F(LoopbackTest, ASecondPeerIsTurnedAwayAtOnce)
{
    start();
    auto client = connect();
    auto second = test::VfioUserClient::connect(path);
    EXPECT_TRUE(second.closed_by_server());
    EXPECT_EQ(client.read<std::uint32_t>(0, 0), 0u);
}

TEST_F(LoopbackTest, ANewPeerIsServedAlthoughTheEndOfTheOldOneWasNotSeenYet)
{
    start();
    for (int i = 0; i < 50; ++i) {
        auto client = connect();
        client.post<std::uint32_t>(0, 16, 1);
        client.close();
        auto next = connect();  // at once
        EXPECT_EQ(next.read<std::uint32_t>(0, 16), 1u);
    }
}

TEST_F(LoopbackTest, StoppingTheDriverDisconnectsThePeer)
{
    start();
    auto client = connect();
    guest.reset();
    EXPECT_TRUE(client.closed_by_server());
    EXPECT_FALSE(socket_exists());
}

//= VVFU-FEAT-1
//= VVFU-FEAT-4
//= VVFU-FEAT-5
//= VVFU-FEAT-6
//= type=test
TEST_F(LoopbackTest, FeaturesThatDoNotFitAreRefused)
{
    auto created = LoopbackPort::create(std::move(options));
    ASSERT_TRUE(created);
    port = std::move(*created);
    auto &transport = port->transport();
    for (const auto features : {std::uint64_t{0}, std::uint64_t{1} << 32, std::uint64_t{1} << 33}) {
        EXPECT_FALSE(transport.negotiate(features, 0));
    }
    EXPECT_FALSE(transport.negotiate(kRequired, kRequired | 1));
    constexpr auto kInOrder = std::uint64_t{1} << 35, kRingReset = std::uint64_t{1} << 40;
    EXPECT_EQ(transport.negotiate(kRequired | kInOrder | kRingReset, kRequired).value_or(0), kRequired);
}

//= VVFU-INIT-4
//= type=test
TEST_F(LoopbackTest, WithoutDriverOkNothingIsServed)
{
    auto created = LoopbackPort::create(std::move(options));
    ASSERT_TRUE(created);
    port = std::move(*created);
    auto &transport = port->transport();
    transport.reset();
    const auto ring = transport.allocate(16384);
    ASSERT_TRUE(ring);
    const auto address = ring->device_address;
    auto *avail_idx = reinterpret_cast<std::uint16_t *>(ring->host.data() + 4096 + 2);
    ASSERT_TRUE(transport.setup_queue(kControlQueue, {4, address, address + 4096, address + 8192}));
    ASSERT_TRUE(transport.driver_ok());                    // without FEATURES_OK
    std::atomic_ref<std::uint16_t>{*avail_idx}.store(77);  // breaks a queue that is looked at
    transport.notify(kControlQueue);
    EXPECT_STREQ(port->state().state, "no driver");
    EXPECT_FALSE(transport.needs_reset());
}

TEST_F(LoopbackTest, ADriverThatBreaksAQueueLosesItsSessionAndCanStartAgain)
{
    auto created = LoopbackPort::create(std::move(options));
    ASSERT_TRUE(created);
    port = std::move(*created);
    auto &transport = port->transport();
    transport.reset();
    ASSERT_TRUE(transport.negotiate(kRequired, kRequired));
    const auto ring = transport.allocate(16384);
    ASSERT_TRUE(ring);
    const auto address = ring->device_address;
    ASSERT_TRUE(transport.setup_queue(kControlQueue, {4, address, address + 4096, address + 8192}));
    ASSERT_TRUE(transport.driver_ok());
    auto *avail_idx = reinterpret_cast<std::uint16_t *>(ring->host.data() + 4096 + 2);
    std::atomic_ref<std::uint16_t>{*avail_idx}.store(77);
    auto reactor = std::move(*guest::Reactor::create());
    bool changed = false;
    ASSERT_TRUE(reactor->watch(transport.config_event(), EPOLLIN | EPOLLET, [&](std::uint32_t) { changed = true; }));
    transport.notify(kControlQueue);
    const auto end = guest::Reactor::now() + 10s;
    while (!changed && guest::Reactor::now() < end) {
        reactor->run_once(end);
    }
    EXPECT_TRUE(transport.needs_reset());
    transport.reset();
    EXPECT_FALSE(transport.needs_reset());
    guest = std::make_unique<Guest>(transport);
    EXPECT_EQ(guest->registered(), "ok");
    EXPECT_EQ(connect().read<std::uint32_t>(0, 0), 0u);
}

TEST_F(LoopbackTest, ADriverIsRefusedQueuesOutsideSharedMemory)
{
    auto created = LoopbackPort::create(std::move(options));
    ASSERT_TRUE(created);
    port = std::move(*created);
    auto &transport = port->transport();
    EXPECT_FALSE(transport.setup_queue(0, {4, 0, 0, 0}));
    EXPECT_FALSE(transport.setup_queue(7, {4, 0x100000, 0x101000, 0x102000}));
    EXPECT_EQ(transport.queue_size_max(3), 0u);
}

TEST_F(LoopbackTest, BadSizesAreRefusedWithOneLine)
{
    options.core.window_size = 12345;
    const auto created = LoopbackPort::create(std::move(options));
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().message.find('\n'), std::string::npos);
}

TEST_F(LoopbackTest, TakesASocketThatWasPassed)
{
    Fd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(socket.get(), 4), 0);
    options.socket_path.clear();
    options.listen_fd = std::move(socket);
    start();
    EXPECT_EQ(connect().read<std::uint32_t>(0, 0), 0u);
    guest.reset();
    port.reset();
    EXPECT_TRUE(socket_exists()) << "who made it removes it";
    ::unlink(path.c_str());
}

}  // namespace
}  // namespace vvfu::loopback
