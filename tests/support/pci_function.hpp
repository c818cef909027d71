// SPDX-License-Identifier: BSD-3-Clause
//
// Configuration space of the device behind a vfio-user socket, as a driver VMM would use it.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "vfio_user_client.hpp"

namespace vvfu::test {

inline constexpr std::uint32_t kConfigRegion = 7, kIntxIndex = 0, kMsiIndex = 1, kMsixIndex = 2, kErrIndex = 3,
                               kReqIndex = 4;
inline constexpr std::uint8_t kCapPowerManagement = 0x01, kCapMsi = 0x05, kCapPciExpress = 0x10, kCapMsix = 0x11;

/// Offset of the first capability `id` in configuration space, 0 if there is none.
inline std::uint8_t find_capability(VfioUserClient &client, std::uint8_t id)
{
    auto at = client.read<std::uint8_t>(kConfigRegion, 0x34);
    for (int budget = 48; at != 0 && budget > 0; --budget) {
        const auto entry = client.read<std::uint16_t>(kConfigRegion, at);
        if ((entry & 0xff) == id) {
            return at;
        }
        at = static_cast<std::uint8_t>(entry >> 8);
    }
    return 0;
}

/// Sets Memory Space Enable and Bus Master Enable.
inline void enable_function(VfioUserClient &client)
{
    const auto command = client.read<std::uint16_t>(kConfigRegion, 0x04);
    client.write(kConfigRegion, 0x04, static_cast<std::uint16_t>(command | 0x06));
}

/// Sets or clears MSI-X Enable of Message Control.
inline void set_msix_enable(VfioUserClient &client, bool enable)
{
    const auto cap = find_capability(client, kCapMsix);
    if (cap == 0) {
        throw std::runtime_error("no MSI-X capability");
    }
    const auto control = client.read<std::uint16_t>(kConfigRegion, cap + 2u);
    client.write(kConfigRegion, cap + 2u, static_cast<std::uint16_t>(enable ? control | 0x8000u : control & 0x7fffu));
}

/// Sets MSI Enable and Multiple Message Enable (2^log2_vectors vectors) of Message Control, or clears both.
inline void set_msi_enable(VfioUserClient &client, bool enable, unsigned log2_vectors = 0)
{
    const auto cap = find_capability(client, kCapMsi);
    if (cap == 0) {
        throw std::runtime_error("no MSI capability");
    }
    client.write(kConfigRegion, cap + 2u, static_cast<std::uint16_t>(enable ? 1u | log2_vectors << 4 : 0u));
}

}  // namespace vvfu::test
