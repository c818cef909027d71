// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vvfu/guest/error.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// What a user-space driver may do with one PCI function. Implemented by VfioDevice, and by tests. Errors start with
/// the function's name.
class DeviceAccess {
public:
    virtual ~DeviceAccess() = default;

    /// For messages: "0000:00:04.0".
    [[nodiscard]] virtual const std::string &name() const noexcept = 0;
    /// The first 256 bytes of configuration space.
    [[nodiscard]] virtual Result<std::vector<std::byte>> config() const = 0;
    /// Maps bytes of a BAR read-write, until destruction.
    virtual Result<std::span<std::byte>> map_bar(unsigned bar, std::uint64_t offset, std::uint64_t size) = 0;
    [[nodiscard]] virtual unsigned msix_vectors() const = 0;
    /// Enables MSI-X with vector i on `eventfds[i]` (borrowed; they outlive the device). Once.
    virtual Result<void> enable_msix(std::span<const int> eventfds) = 0;
    /// Eventfds, owned by the device: the function is to be released (Transport::removal_event()), or has reported an
    /// uncorrectable error; -1: it cannot tell.
    [[nodiscard]] virtual int removal_event() const noexcept { return -1; }
    [[nodiscard]] virtual int error_event() const noexcept { return -1; }
    /// Zeroed memory that the function may read and write by DMA, until destruction.
    virtual Result<SharedBuffer> allocate(std::size_t bytes) = 0;
};

}  // namespace vvfu::guest
