// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_pci_transport.hpp"

#include <gmock/gmock.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <set>

#include "fake_sysfs.hpp"

namespace vvfu::guest {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::size_t kCommon = 0, kDevice = 0x2000, kNotify = 0x3000;  // in BAR 4

/// A function whose BARs are plain memory: registers keep what was written.
class FakeFunction : public DeviceAccess {
public:
    std::map<unsigned, std::vector<std::byte>> bars;
    std::vector<PciCap> caps = test::vfio_user_caps();
    DeviceConfig device_config;
    unsigned vectors = 16;
    std::vector<int> eventfds;
    bool *destroyed_with_status = nullptr;  // set to whether the device was still running

    FakeFunction()
    {
        caps[6].length = 0x8000;  // the window
        caps.push_back({kCapSharedMemory, 2, kShmidRegionMemory, 0x8000, 0x4000, 0});
        device_config.window_size = 0x8000;
        device_config.region_memory_size = 0x4000;
        device_config.doorbells = 64;
        device_config.notifications = 4;
        bars[0].resize(0x2000);
        bars[2].resize(0xc000);
        bars[4].resize(0x4000);
        put16(kCommon + VIRTIO_PCI_COMMON_NUMQ, kBaseQueues);
        put16(kCommon + VIRTIO_PCI_COMMON_Q_SIZE, 256);
        put16(kCommon + VIRTIO_PCI_COMMON_Q_NOFF, 3);
    }
    ~FakeFunction() override
    {
        if (destroyed_with_status != nullptr) {
            *destroyed_with_status = bars[4][kCommon + VIRTIO_PCI_COMMON_STATUS] != std::byte{0};
        }
    }
    void put16(std::size_t offset, std::uint16_t value) { std::memcpy(&bars[4][offset], &value, sizeof value); }
    template <typename T>
    T get(unsigned bar, std::size_t offset)
    {
        T value;
        std::memcpy(&value, &bars[bar][offset], sizeof value);
        return value;
    }

    [[nodiscard]] const std::string &name() const noexcept override { return name_; }
    [[nodiscard]] Result<std::vector<std::byte>> config() const override { return test::config_with(caps); }
    Result<std::span<std::byte>> map_bar(unsigned bar, std::uint64_t offset, std::uint64_t size) override
    {
        auto &memory = bars[bar];
        if (bar == 4 && offset == kDevice) {
            encode(device_config, std::span<std::byte, kDeviceConfigSize>{&memory[kDevice], kDeviceConfigSize});
        }
        if (offset > memory.size() || size > memory.size() - offset) {
            return failure(name_ + ": BAR is too small");
        }
        return std::span{memory}.subspan(offset, size);
    }
    [[nodiscard]] unsigned msix_vectors() const override { return vectors; }
    Result<void> enable_msix(std::span<const int> fds) override
    {
        eventfds.assign(fds.begin(), fds.end());
        return {};
    }
    Result<SharedBuffer> allocate(std::size_t) override { return failure("not in this test"); }

private:
    std::string name_ = "0000:00:04.0";
};

struct VirtioPciTransportTest : testing::Test {
    std::unique_ptr<FakeFunction> owned = std::make_unique<FakeFunction>();
    FakeFunction *function = owned.get();

    std::unique_ptr<VirtioPciTransport> create()
    {
        auto result = VirtioPciTransport::create(std::move(owned));
        EXPECT_TRUE(result) << result.error().message;
        return result ? std::move(*result) : nullptr;
    }
    std::string refusal()
    {
        const auto result = VirtioPciTransport::create(std::move(owned));
        return result ? "accepted" : result.error().message;
    }
};

TEST_F(VirtioPciTransportTest, MapsMemoryAndReadsConfiguration)
{
    const auto transport = create();
    EXPECT_EQ(transport->window().data(), function->bars[2].data());
    EXPECT_EQ(transport->window().size(), 0x8000u);
    EXPECT_EQ(transport->region_memory().data(), function->bars[2].data() + 0x8000);
    EXPECT_EQ(transport->region_memory().size(), 0x4000u);
    EXPECT_EQ(transport->config(), function->device_config);
    EXPECT_STREQ(transport->name(), "0000:00:04.0");
}

TEST_F(VirtioPciTransportTest, RegionMemoryMayBeAbsent)
{
    function->caps.pop_back();
    function->device_config.region_memory_size = 0;
    EXPECT_TRUE(create()->region_memory().empty());
}

TEST_F(VirtioPciTransportTest, MissingCapabilitiesAreNamed)
{
    const std::pair<std::size_t, const char *> structures[] = {{0, "common configuration"},
                                                               {2, "device configuration"},
                                                               {3, "notify"},
                                                               {4, "doorbell"},
                                                               {5, "notification"},
                                                               {6, "window"},
                                                               {7, "region memory"}};
    for (const auto &[index, name] : structures) {
        owned = std::make_unique<FakeFunction>();
        owned->caps.erase(owned->caps.begin() + static_cast<std::ptrdiff_t>(index));
        EXPECT_THAT(refusal(), AllOf(HasSubstr("0000:00:04.0"), HasSubstr(name)));
    }
}

//= VVFU-PCI-5
//= type=test
//# The driver MUST NOT use a capability that is shorter than its type requires, or that describes a range outside
//# its BAR.
TEST_F(VirtioPciTransportTest, RangesThatDoNotFitAreRefused)
{
    const auto refused_with = [&](auto change) {
        owned = std::make_unique<FakeFunction>();
        change(*owned);
        return refusal();
    };
    EXPECT_THAT(refused_with([](auto &f) { f.bars[2].resize(0x4000); }), HasSubstr("BAR is too small"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[6].length = 0x7000; }), HasSubstr("type 8 describes 0x7000 bytes"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[0].length = 55; }), HasSubstr("type 1 describes 0x37 bytes"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[2].length = 48; }), HasSubstr("type 4"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[4].offset = 2; }), HasSubstr("multiple of 4"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[4].length = 0xfc; }), HasSubstr("64 doorbells"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[4].multiplier = 0; }), HasSubstr("doorbells"));
    EXPECT_THAT(refused_with([](auto &f) { f.caps[4].multiplier = 6; }), HasSubstr("doorbells"));
    EXPECT_THAT(refused_with([](auto &f) { f.device_config.doorbells = 0xffffffff; }), HasSubstr("doorbells"));
    EXPECT_THAT(refused_with([](auto &f) { f.device_config.window_size = 0; }), HasSubstr("window"));
}

TEST_F(VirtioPciTransportTest, EveryQueueAndNotificationHasItsOwnVector)
{
    const auto transport = create();
    EXPECT_EQ(function->eventfds.size(), 1u + kBaseQueues + 4u);
    std::set<int> fds{transport->config_event()};
    for (unsigned queue = 0; queue < kBaseQueues; ++queue) {
        fds.insert(transport->queue_event(queue));
    }
    EXPECT_EQ(fds.size(), 1u + kBaseQueues);
    EXPECT_TRUE(fds.contains(function->eventfds[0]));
    const int notification = transport->notification_event(0);
    EXPECT_EQ(notification, function->eventfds[4]);
    EXPECT_FALSE(fds.contains(notification));
    EXPECT_EQ(function->get<std::uint16_t>(0, 0x1000 + kNotificationVector), 4);
    EXPECT_EQ(transport->notification_event(4), -1) << "there are only four";
}

TEST_F(VirtioPciTransportTest, FewVectorsLeaveNotificationsUnconnected)
{
    function->vectors = 4;
    const auto transport = create();
    EXPECT_EQ(function->eventfds.size(), 4u);
    EXPECT_EQ(transport->notification_event(0), -1);
    owned = std::make_unique<FakeFunction>();
    owned->vectors = 3;
    EXPECT_THAT(refusal(), AllOf(HasSubstr("3 MSI-X vectors"), HasSubstr("4 are needed")));
}

TEST_F(VirtioPciTransportTest, QueuesAreSetUpAndNotified)
{
    const auto transport = create();
    transport->notify(1);
    EXPECT_EQ(function->get<std::uint16_t>(4, kNotify + 12), 0) << "not set up yet";
    ASSERT_TRUE(transport->setup_queue(1, {128, 0x1000, 0x2000, 0x3000}));
    EXPECT_EQ(function->get<std::uint16_t>(4, kCommon + VIRTIO_PCI_COMMON_Q_SELECT), 1);
    EXPECT_EQ(function->get<std::uint16_t>(4, kCommon + VIRTIO_PCI_COMMON_Q_MSIX), 2);
    EXPECT_EQ(function->get<std::uint16_t>(4, kCommon + VIRTIO_PCI_COMMON_Q_ENABLE), 1);
    transport->notify(1);
    EXPECT_EQ(function->get<std::uint16_t>(4, kNotify + 12), 1) << "queue_notify_off 3, multiplier 4";
    EXPECT_FALSE(transport->setup_queue(kBaseQueues, {128, 0x1000, 0x2000, 0x3000}));
}

TEST_F(VirtioPciTransportTest, NotifyRegisterOutsideItsCapabilityIsRefused)
{
    function->put16(kCommon + VIRTIO_PCI_COMMON_Q_NOFF, 0x400);
    const auto transport = create();
    const auto result = transport->setup_queue(0, {128, 0x1000, 0x2000, 0x3000});
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr("notify register of queue 0"));
}

TEST_F(VirtioPciTransportTest, DoorbellsAreOneWordEach)
{
    const auto transport = create();
    transport->ring_doorbell(63);
    EXPECT_EQ(function->get<std::uint32_t>(0, 63 * 4), 1u);
    EXPECT_EQ(function->get<std::uint32_t>(0, 62 * 4), 0u);
    EXPECT_TRUE(transport->doorbell_pending(63)) << "memory that keeps the value looks pending";
    EXPECT_FALSE(transport->doorbell_pending(62));
    transport->ring_doorbell(64);
    EXPECT_EQ(function->get<std::uint32_t>(0, 64 * 4), 0u) << "there is no such doorbell";
    EXPECT_FALSE(transport->doorbell_pending(64));
}

TEST_F(VirtioPciTransportTest, DriverOkUsesTheConfigurationVector)
{
    const auto transport = create();
    function->put16(kCommon + VIRTIO_PCI_COMMON_MSIX, kNoVector);
    ASSERT_TRUE(transport->driver_ok());
    EXPECT_EQ(function->get<std::uint16_t>(4, kCommon + VIRTIO_PCI_COMMON_MSIX), 0);
    EXPECT_FALSE(transport->needs_reset());
    function->bars[4][kCommon + VIRTIO_PCI_COMMON_STATUS] = std::byte{VIRTIO_CONFIG_S_NEEDS_RESET};
    EXPECT_TRUE(transport->needs_reset());
}

TEST_F(VirtioPciTransportTest, DestructionResetsTheDeviceFirst)
{
    bool running = true;
    function->destroyed_with_status = &running;
    auto transport = create();
    ASSERT_TRUE(transport->driver_ok());
    transport.reset();
    EXPECT_FALSE(running);
}

}  // namespace
}  // namespace vvfu::guest
