// SPDX-License-Identifier: BSD-3-Clause
#include "virtio_capabilities.hpp"

#include <gtest/gtest.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>

#include <random>

#include "fake_sysfs.hpp"

namespace vvfu::guest {
namespace {

TEST(VirtioCapabilities, FindsEveryStructure)
{
    auto caps = test::vfio_user_caps();
    caps.push_back({kCapSharedMemory, 2, kShmidRegionMemory, std::uint64_t{8} << 30, 0x100000, 0});
    const auto found = find_virtio_capabilities(test::config_with(caps));
    ASSERT_TRUE(found.is_vfio_user());
    EXPECT_EQ(found.common, caps[0]);
    EXPECT_EQ(found.device, caps[2]);
    EXPECT_EQ(found.notify, caps[3]);
    EXPECT_EQ(found.doorbell, caps[4]);
    EXPECT_EQ(found.notification, caps[5]);
    EXPECT_EQ(found.window, caps[6]);
    EXPECT_EQ(found.region_memory, caps[7]);
}

//= VVFU-PCI-4
//= type=test
//# The driver MUST use the first instance of a capability type (and `id`, for type 8), and ignore types that it does
//# not know.
TEST(VirtioCapabilities, FirstInstanceCountsAndUnknownTypesAreIgnored)
{
    const PciCap first{kCapDoorbell, 0, 0, 0x100, 0x200, 4}, second{kCapDoorbell, 1, 0, 0x300, 0x400, 8};
    const PciCap unknown{42, 0, 0, 0, 1, 0}, other_id{kCapSharedMemory, 2, 9, 0, 0x1000, 0};
    const auto found = find_virtio_capabilities(test::config_with({unknown, other_id, first, second}));
    EXPECT_EQ(found.doorbell, first);
    EXPECT_FALSE(found.window);
    EXPECT_FALSE(found.is_vfio_user());
}

//= VVFU-PCI-5
//= type=test
//# The driver MUST NOT use a capability that is shorter than its type requires, or that describes a range outside
//# its BAR.
TEST(VirtioCapabilities, TooShortOnesAndReservedBarsAreIgnored)
{
    const PciCap reserved{kCapDoorbell, 6, 0, 0, 0x100, 4}, good{kCapDoorbell, 0, 0, 0x40, 0x100, 4};
    auto config = test::config_with({good, reserved, good});
    config[0x40 + PCI_CAP_FLAGS] = std::byte{16};  // cap_len: the multiplier is missing
    const auto found = find_virtio_capabilities(config);
    EXPECT_EQ(found.doorbell, good) << "the third";
}

TEST(VirtioCapabilities, LoopsAndTruncatedListsEnd)
{
    auto config = test::config_with(test::vfio_user_caps());
    config[0x41] = std::byte{0x40};
    EXPECT_TRUE(find_virtio_capabilities(config).common);
    config[0x41] = std::byte{0xfc};
    EXPECT_FALSE(find_virtio_capabilities(config).is_vfio_user());
    EXPECT_FALSE(find_virtio_capabilities(std::span{config}.first(64)).common) << "what an ordinary user may read";
    EXPECT_FALSE(find_virtio_capabilities({}).common);
    config[PCI_STATUS] = std::byte{0};
    EXPECT_FALSE(find_virtio_capabilities(config).common);
}

TEST(VirtioCapabilities, AnyBytesAreSafe)
{
    std::mt19937 random(7);
    std::vector<std::byte> config(256);
    for (int i = 0; i < 3000; ++i) {
        for (auto &byte : config) {
            // Mostly small values, so that the list has links and vendor capabilities.
            byte = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 16);
        }
        config[PCI_STATUS] = std::byte{PCI_STATUS_CAP_LIST};
        const auto found = find_virtio_capabilities(std::span{config}.first(random() % 257));
        ASSERT_TRUE(!found.doorbell || found.doorbell->bar <= 5);
    }
}

}  // namespace
}  // namespace vvfu::guest
