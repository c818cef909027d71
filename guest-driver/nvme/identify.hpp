// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "identity.hpp"
#include "spec.hpp"
#include "vvfu/base/expected.hpp"

namespace vvfu::nvme {

inline constexpr std::uint16_t kPciVendorId = 0x1af4;
/// From the range that the vendor leaves for experiments (QEMU's docs/specs/pci-ids.rst); drivers go by the class code.
inline constexpr std::uint16_t kPciDeviceId = 0x10f1;
inline constexpr std::uint16_t kPciSubsystemId = 0x1100;

/// What Identify says about one namespace.
struct NamespaceIdentity {
    std::uint64_t blocks = 0;
    bool write_protected = false;
    bool discard_zeroes = false;
    NamespaceIds ids;
};

/// What Identify says about the controller.
struct ControllerIdentity {
    DiskIdentity disk;  ///< its namespaces are repeated below
    bool volatile_cache = false;
    std::vector<NamespaceIdentity> namespaces;  ///< namespace 1 first
};

/// NVMe 5.15: the 4096 bytes that an Identify command returns.
[[nodiscard]] Expected<std::vector<std::byte>, Status> identify(const ControllerIdentity &identity,
                                                                const SubmissionEntry &command);

}  // namespace vvfu::nvme
