// SPDX-License-Identifier: BSD-3-Clause
//
// A device for tests and benchmarks. Its registers are documented in README.md beside this file.
#pragma once

#include <cstdint>
#include <memory>

#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/pci_device.hpp"

namespace vvfu::testdev {

struct TestdevOptions {
    /// No area of BAR 2 can be mapped by the peer; BAR 2 is then plain memory behind trapped accesses.
    bool no_mmap = false;
    guest::InterruptKind interrupts = guest::InterruptKind::msix;
};

/// Bytes of region memory that the device needs; a multiple of 4096.
[[nodiscard]] std::uint64_t region_memory_size(const TestdevOptions &options);

/// Fails when region memory is too small.
[[nodiscard]] guest::Result<std::unique_ptr<guest::DeviceModel>> make_testdev(const TestdevOptions &options,
                                                                              guest::DeviceServices services);

}  // namespace vvfu::testdev
