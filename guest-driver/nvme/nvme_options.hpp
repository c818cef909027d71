// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "identity.hpp"
#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/pci_device.hpp"

namespace vvfu::nvme {

struct NvmeOptions {
    /// One namespace each, in order (the first is namespace 1); 1 to kMaxNamespaces. The path of a file or block device
    /// whose size is a multiple of 512 bytes, or "mem:SIZE" (bytes, or with a suffix K, M, G, T for powers of 1024).
    /// The same file or device twice only with read_only.
    std::vector<std::string> backings;
    bool read_only = false;  ///< every namespace is write protected
    IdentityOptions identity;
    std::uint16_t queue_pairs = 32;  ///< I/O queue pairs, 1 to kMaxQueuePairs
    /// One vector for each queue pair and for admin; MSI has 32 at most, and with INTx all share one.
    guest::InterruptKind interrupts = guest::InterruptKind::msix;
};

inline constexpr std::size_t kMaxNamespaces = 64;
inline constexpr std::uint16_t kMaxQueuePairs = 32;

/// The first backing that does not exist; empty: all do.
[[nodiscard]] std::string missing_backing(const NvmeOptions &options);

/// Opens the backings and builds the controller. Errors are one line for a person.
[[nodiscard]] guest::Result<std::unique_ptr<guest::DeviceModel>> make_nvme(const NvmeOptions &options,
                                                                           guest::DeviceServices services);

}  // namespace vvfu::nvme
