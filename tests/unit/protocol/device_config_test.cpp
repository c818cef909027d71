// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/device_config.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace vvfu {
namespace {

using control::DecodeError;

//= VVFU-CONF-1
//= type=test
TEST(DeviceConfigCodec, SurvivesARoundTrip)
{
    std::mt19937_64 generator{4711};
    const auto u32 = [&] { return static_cast<std::uint32_t>(generator()); };
    for (int i = 0; i < 200; ++i) {
        DeviceConfig config;
        std::generate(config.uuid.begin(), config.uuid.end(), [&] { return static_cast<std::uint8_t>(generator()); });
        config.window_size = generator();
        config.region_memory_size = generator();
        config.doorbells = u32();
        config.notifications = u32();
        config.access_queue_pairs = u32();
        config.max_message_size = u32();
        config.request_buffer_size = u32();
        config.max_regions = u32();
        config.unmap_timeout = u32();
        config.access_timeout = u32();
        std::array<std::byte, kDeviceConfigSize> bytes{};
        encode(config, bytes);
        EXPECT_EQ(decode_device_config(bytes), config);
    }
}

TEST(PciCapCodec, SurvivesARoundTrip)
{
    const PciCap caps[] = {{kCapDoorbell, 0, 0, 0x1000, 0x84, 4},
                           {kCapNotification, 0, 0, 0x2000, 4, 0},
                           {kCapSharedMemory, 2, kShmidRegionMemory, 0x2'0000'0000, 0x1'0000'1000, 0}};
    for (const auto &cap : caps) {
        std::array<std::byte, kPciCap64Size> bytes{};
        const auto size = encode_pci_cap(cap, bytes);
        EXPECT_EQ(bytes[0], std::byte{0x09});
        EXPECT_EQ(bytes[1], std::byte{0}) << "the next pointer is the caller's";
        EXPECT_EQ(std::to_integer<std::size_t>(bytes[2]), size);
        EXPECT_EQ(decode_pci_cap(std::span{bytes}.first(size)), cap);
    }
}

//= VVFU-PCI-5
//= type=test
TEST(PciCapCodec, RefusesCapabilitiesShorterThanTheirType)
{
    const std::pair<std::uint8_t, std::size_t> sizes[] = {{1, kPciCapSize},
                                                          {2, kPciCapDoorbellSize},
                                                          {kCapDoorbell, kPciCapDoorbellSize},
                                                          {kCapNotification, kPciCapSize},
                                                          {kCapSharedMemory, kPciCap64Size}};
    for (const auto &[type, needed] : sizes) {
        std::array<std::byte, kPciCap64Size> bytes{};
        encode_pci_cap({type, 0, 0, 0, 0, 0}, bytes);
        for (std::size_t size = 0; size <= kPciCap64Size; ++size) {
            auto cut = bytes;
            cut[2] = static_cast<std::byte>(size);
            EXPECT_EQ(decode_pci_cap(cut).has_value(), size >= needed) << "type " << int{type} << " cap_len " << size;
            cut[2] = std::byte{0xff};
            EXPECT_EQ(decode_pci_cap(std::span{cut}.first(size)).has_value(), size >= needed);
        }
    }
    EXPECT_EQ(decode_pci_cap({}).error(), DecodeError::too_short);
}

}  // namespace
}  // namespace vvfu
