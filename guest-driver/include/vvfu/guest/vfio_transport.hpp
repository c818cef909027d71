// SPDX-License-Identifier: BSD-3-Clause
//
// Finds virtio-vfio-user functions in a device guest and drives them through VFIO.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// "12345678-9abc-def0-1234-56789abcdef0", upper or lower case, with these dashes or with none.
[[nodiscard]] std::optional<Uuid> parse_uuid(std::string_view text);
[[nodiscard]] std::string to_string(const Uuid &uuid);

/// "0000:00:04.0", or "00:04.0" in domain 0.
[[nodiscard]] bool is_pci_address(std::string_view text);

/// A virtio-vfio-user function, bound to a driver or not.
struct FunctionInfo {
    std::string address;        ///< "0000:00:04.0"
    std::string driver;         ///< empty: none
    std::string iommu_group;    ///< empty: in none
    std::optional<Uuid> uuid;   ///< known only if the function can be opened and has one
    std::uint64_t window_size;  ///< bytes
    std::string state;          ///< "ready", or why it cannot be used
};

/// Every virtio-vfio-user function, in the order of addresses. `sysfs`: where sysfs is mounted.
[[nodiscard]] std::vector<FunctionInfo> list_functions(const std::string &sysfs = "/sys");

/// Opens the function with this PCI address ("0000:00:04.0" or "00:04.0") or this UUID. Each Error is one line that
/// names the remedy.
[[nodiscard]] Result<std::unique_ptr<Transport>> open_vfio_transport(std::string_view address,
                                                                     const std::string &sysfs = "/sys");
[[nodiscard]] Result<std::unique_ptr<Transport>> open_vfio_transport(const Uuid &uuid,
                                                                     const std::string &sysfs = "/sys");

}  // namespace vvfu::guest
