// SPDX-License-Identifier: BSD-3-Clause
//
// Where the structures of a virtio-vfio-user function are: its vendor capabilities.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "vvfu/protocol/device_config.hpp"

namespace vvfu::guest {

struct VirtioCapabilities {
    std::optional<PciCap> common, notify, device;  // of VIRTIO 4.1.4
    std::optional<PciCap> doorbell, notification, window, region_memory;

    /// What makes a function a virtio-vfio-user function.
    [[nodiscard]] bool is_vfio_user() const noexcept { return doorbell.has_value() && window.has_value(); }
};

/// Walks the capability list in the first bytes (256) of configuration space. Never fails: what is malformed or unknown
/// is left out.
[[nodiscard]] VirtioCapabilities find_virtio_capabilities(std::span<const std::byte> config);

}  // namespace vvfu::guest
