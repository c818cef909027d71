// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_registers.hpp"

#include <gmock/gmock.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#include <map>

namespace vvfu::guest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kVersion1 = std::uint64_t{1} << 32, kAccessPlatform = std::uint64_t{1} << 33;

/// The common configuration structure as a device implements it, with the widths of VIRTIO 4.1.4.3 enforced.
class FakeDevice : public Registers {
public:
    std::uint64_t offered = kVersion1 | kAccessPlatform | 5, accepted = 0;
    bool rejects_features = false, takes_vectors = true, stuck_in_reset = false, breaks = false;
    std::uint8_t device_status = 0, config_generation = 0;
    std::uint16_t config_vector = 0xffff;
    struct Queue {
        std::uint16_t size = 256, vector = 0xffff, enabled = 0;
        std::uint32_t address[6] = {};
    };
    std::map<unsigned, Queue> queues{{0, {}}, {1, {}}, {2, {}}};
    std::vector<int> status_writes;

    [[nodiscard]] std::uint8_t read8(std::size_t offset) const override
    {
        if (offset == VIRTIO_PCI_COMMON_CFGGENERATION) {
            return config_generation;
        }
        EXPECT_EQ(offset, std::size_t{VIRTIO_PCI_COMMON_STATUS});
        return device_status;
    }
    [[nodiscard]] std::uint16_t read16(std::size_t offset) const override
    {
        switch (offset) {
            case VIRTIO_PCI_COMMON_MSIX: return config_vector;
            case VIRTIO_PCI_COMMON_NUMQ: return static_cast<std::uint16_t>(queues.size());
            case VIRTIO_PCI_COMMON_Q_SIZE: return queues.at(selected_).size;
            case VIRTIO_PCI_COMMON_Q_MSIX: return queues.at(selected_).vector;
            case VIRTIO_PCI_COMMON_Q_NOFF: return static_cast<std::uint16_t>(selected_ * 2);
            default: ADD_FAILURE() << "16-bit read at " << offset; return 0;
        }
    }
    [[nodiscard]] std::uint32_t read32(std::size_t offset) const override
    {
        EXPECT_EQ(offset, std::size_t{VIRTIO_PCI_COMMON_DF});
        return static_cast<std::uint32_t>(offered >> (32 * device_select_));
    }
    void write8(std::size_t offset, std::uint8_t value) override
    {
        EXPECT_EQ(offset, std::size_t{VIRTIO_PCI_COMMON_STATUS});
        status_writes.push_back(value);
        if (value == 0 && stuck_in_reset) {
            device_status = 0xff;
            return;
        }
        device_status = value;
        if (rejects_features) {
            device_status = static_cast<std::uint8_t>(device_status & ~VIRTIO_CONFIG_S_FEATURES_OK);
        }
        if (breaks && (value & VIRTIO_CONFIG_S_DRIVER_OK) != 0) {
            device_status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        }
    }
    void write16(std::size_t offset, std::uint16_t value) override
    {
        switch (offset) {
            case VIRTIO_PCI_COMMON_MSIX: config_vector = takes_vectors ? value : std::uint16_t{0xffff}; break;
            case VIRTIO_PCI_COMMON_Q_SELECT: selected_ = value; break;
            case VIRTIO_PCI_COMMON_Q_SIZE: queues.at(selected_).size = value; break;
            case VIRTIO_PCI_COMMON_Q_MSIX:
                queues.at(selected_).vector = takes_vectors ? value : std::uint16_t{0xffff};
                break;
            case VIRTIO_PCI_COMMON_Q_ENABLE: queues.at(selected_).enabled = value; break;
            default: ADD_FAILURE() << "16-bit write at " << offset;
        }
    }
    void write32(std::size_t offset, std::uint32_t value) override
    {
        if (offset >= VIRTIO_PCI_COMMON_Q_DESCLO && offset <= VIRTIO_PCI_COMMON_Q_USEDHI) {
            queues.at(selected_).address[(offset - VIRTIO_PCI_COMMON_Q_DESCLO) / 4] = value;
        } else if (offset == VIRTIO_PCI_COMMON_DFSELECT) {
            device_select_ = value;
        } else if (offset == VIRTIO_PCI_COMMON_GFSELECT) {
            driver_select_ = value;
        } else {
            EXPECT_EQ(offset, std::size_t{VIRTIO_PCI_COMMON_GF});
            accepted |= std::uint64_t{value} << (32 * driver_select_);
        }
    }

private:
    std::uint32_t device_select_ = 0, driver_select_ = 0;
    unsigned selected_ = 0;
};

struct CommonConfigTest : testing::Test {
    FakeDevice device;
    CommonConfig common{device};
};

//= VVFU-EXT-2
//= type=test
TEST_F(CommonConfigTest, BringUpFollowsTheOrderOfTheSpecification)
{
    EXPECT_TRUE(common.reset());
    const auto accepted = common.negotiate(kVersion1 | kAccessPlatform | 2, kVersion1 | kAccessPlatform);
    ASSERT_TRUE(accepted);
    EXPECT_EQ(*accepted, kVersion1 | kAccessPlatform) << "bit 1 is not offered, bits 0 and 2 are not wanted";
    EXPECT_EQ(device.accepted, *accepted);
    EXPECT_TRUE(common.driver_ok());
    EXPECT_THAT(device.status_writes, ElementsAre(0, 1, 3, 11, 15));
}

TEST_F(CommonConfigTest, MissingFeatureFails)
{
    device.offered = kVersion1;
    const auto result = common.negotiate(kVersion1 | kAccessPlatform, kVersion1 | kAccessPlatform);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr("iommu_platform=on"));
    EXPECT_NE(device.device_status & VIRTIO_CONFIG_S_FAILED, 0);
}

TEST_F(CommonConfigTest, RejectedFeaturesFail)
{
    device.rejects_features = true;
    EXPECT_FALSE(common.negotiate(kVersion1, kVersion1));
    EXPECT_NE(device.device_status & VIRTIO_CONFIG_S_FAILED, 0);
}

TEST_F(CommonConfigTest, DeviceThatIsGoneIsNotWaitedFor)
{
    device.stuck_in_reset = true;
    EXPECT_FALSE(common.reset());
    EXPECT_FALSE(common.negotiate(kVersion1, kVersion1));
}

TEST_F(CommonConfigTest, QueueGetsAddressesVectorAndEnable)
{
    const QueueAddresses addresses{128, 0x1122334455667788, 0x2000, 0x3000000000000000};
    const auto notify_offset = common.setup_queue(2, addresses, 3);
    ASSERT_TRUE(notify_offset);
    EXPECT_EQ(*notify_offset, 4);
    const auto &queue = device.queues[2];
    EXPECT_THAT(queue.address, ElementsAre(0x55667788u, 0x11223344u, 0x2000u, 0u, 0u, 0x30000000u));
    EXPECT_EQ(queue.size, 128);
    EXPECT_EQ(queue.vector, 3);
    EXPECT_EQ(queue.enabled, 1);
}

TEST_F(CommonConfigTest, QueueThatIsAbsentOrTooSmallFails)
{
    EXPECT_EQ(common.queue_size_max(3), 0);
    EXPECT_FALSE(common.setup_queue(3, {128, 0, 0, 0}, 3));
    EXPECT_FALSE(common.setup_queue(0, {512, 0, 0, 0}, 3));
    EXPECT_EQ(device.queues[0].enabled, 0);
}

TEST_F(CommonConfigTest, VectorsAreReadBack)
{
    EXPECT_TRUE(common.set_config_vector(0));
    device.takes_vectors = false;
    EXPECT_FALSE(common.set_config_vector(0));
    EXPECT_FALSE(common.setup_queue(0, {128, 0, 0, 0}, 1));
    EXPECT_EQ(device.queues[0].enabled, 0);
}

TEST_F(CommonConfigTest, NeedsResetIsSeen)
{
    EXPECT_FALSE(common.needs_reset());
    device.breaks = true;
    EXPECT_FALSE(common.driver_ok());
    EXPECT_TRUE(common.needs_reset());
}

/// Device configuration whose generation changes during the first reads.
class ChangingConfig : public Registers {
public:
    ChangingConfig(FakeDevice &device, int changes) : device_(device), changes_(changes) {}
    [[nodiscard]] std::uint32_t read32(std::size_t offset) const override
    {
        if (offset == 16) {
            const bool change = changes_ > 0;
            changes_ -= change;
            device_.config_generation = static_cast<std::uint8_t>(device_.config_generation + change);
            return change ? 0xbad : 0x600d;
        }
        return offset == 0 ? 0x04030201 : 0;
    }
    [[nodiscard]] std::uint8_t read8(std::size_t) const override { return unexpected(); }
    [[nodiscard]] std::uint16_t read16(std::size_t) const override { return unexpected(); }
    void write8(std::size_t, std::uint8_t) override { unexpected(); }
    void write16(std::size_t, std::uint16_t) override { unexpected(); }
    void write32(std::size_t, std::uint32_t) override { unexpected(); }

private:
    static std::uint8_t unexpected()
    {
        ADD_FAILURE() << "device configuration is read in 32-bit accesses only";
        return 0;
    }
    FakeDevice &device_;
    mutable int changes_;
};

TEST_F(CommonConfigTest, DeviceConfigIsReadUntilItIsConsistent)
{
    const auto config = read_device_config(ChangingConfig{device, 3}, common);
    EXPECT_EQ(config.window_size, 0x600du);
    EXPECT_EQ(config.uuid[0], 1);
    EXPECT_EQ(config.uuid[3], 4);
    EXPECT_EQ(read_device_config(ChangingConfig{device, 1000000}, common).window_size, 0xbadu) << "not for ever";
}

/// Notification registers of a device that connects no vector.
class FakeNotification : public Registers {
public:
    [[nodiscard]] std::uint8_t read8(std::size_t) const override { return 0; }
    [[nodiscard]] std::uint16_t read16(std::size_t) const override { return kNoVector; }
    [[nodiscard]] std::uint32_t read32(std::size_t) const override { return 0; }
    void write8(std::size_t, std::uint8_t) override {}
    void write16(std::size_t, std::uint16_t) override {}
    void write32(std::size_t, std::uint32_t) override {}
};

//= VVFU-NOTIFY-4
//= type=test
//# The driver MUST read `notification_msix_vector` back and treat the notification as not connected if the value
//# differs from what it wrote.
TEST(ConnectNotification, VectorIsReadBack)
{
    alignas(4) std::byte memory[4] = {};
    MappedRegisters registers{memory};
    EXPECT_TRUE(connect_notification(registers, 2, 7));
    EXPECT_EQ(memory[0], std::byte{2});
    EXPECT_EQ(memory[2], std::byte{7});

    FakeNotification refusing;
    EXPECT_FALSE(connect_notification(refusing, 2, 7));
}

}  // namespace
}  // namespace vvfu::guest
