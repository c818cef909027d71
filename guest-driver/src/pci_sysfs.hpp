// SPDX-License-Identifier: BSD-3-Clause
//
// PCI functions as Linux shows them in /sys/bus/pci.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vvfu::guest {

struct PciAddress {
    std::uint32_t domain = 0;
    std::uint8_t bus = 0, device = 0, function = 0;
    friend auto operator<=>(const PciAddress &, const PciAddress &) = default;
};
/// "0000:00:04.0"
[[nodiscard]] std::string to_string(const PciAddress &address);
/// Takes "0000:00:04.0", and "00:04.0" for domain 0.
[[nodiscard]] std::optional<PciAddress> parse_pci_address(std::string_view text);

class PciSysfs {
public:
    /// `root`: where sysfs is mounted.
    explicit PciSysfs(std::string root = "/sys") : root_(std::move(root)) {}

    /// Every function, in ascending order.
    [[nodiscard]] std::vector<PciAddress> functions() const;
    [[nodiscard]] bool exists(const PciAddress &address) const;
    /// 0 when it cannot be read.
    [[nodiscard]] std::uint16_t vendor_id(const PciAddress &address) const;
    [[nodiscard]] std::uint16_t device_id(const PciAddress &address) const;
    /// Name of the bound driver; empty: none.
    [[nodiscard]] std::string driver(const PciAddress &address) const;
    /// Number of the IOMMU group; nullopt: in none.
    [[nodiscard]] std::optional<unsigned> iommu_group(const PciAddress &address) const;
    /// The functions of a group, in ascending order.
    [[nodiscard]] std::vector<PciAddress> group_members(unsigned group) const;
    /// First bytes of configuration space: 256 or more for root, 64 for others.
    [[nodiscard]] std::vector<std::byte> config(const PciAddress &address) const;

private:
    [[nodiscard]] std::string path(const PciAddress &address, std::string_view file) const;
    [[nodiscard]] std::uint16_t read_id(const PciAddress &address, std::string_view file) const;

    std::string root_;
};

}  // namespace vvfu::guest
