// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/vfio_transport.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "pci_sysfs.hpp"
#include "vfio_device.hpp"
#include "virtio_capabilities.hpp"
#include "virtio_pci_transport.hpp"

namespace vvfu::guest {
namespace {

/// What sysfs shows of configuration space to a process without CAP_SYS_ADMIN. The capabilities come behind it.
constexpr std::size_t kConfigHeader = 64;

std::string describe_ids(const PciSysfs &sysfs, const PciAddress &address)
{
    return fmt::format("{:04x}:{:04x}", sysfs.vendor_id(address), sysfs.device_id(address));
}

bool has_virtio_id(const PciSysfs &sysfs, const PciAddress &address)
{
    return sysfs.vendor_id(address) == kPciVendorVirtio && sysfs.device_id(address) >= kPciDeviceVirtioBase;
}

//= VVFU-ID-3
//# The driver MUST NOT drive a function that lacks a doorbell capability or a shared memory capability for the
//# window.
Result<void> check_identity(const PciSysfs &sysfs, const PciAddress &address)
{
    const auto name = to_string(address);
    if (!sysfs.exists(address)) {
        return failure(name + ": there is no such PCI function; `vvfu-guest list` shows the usable ones");
    }
    if (!has_virtio_id(sysfs, address)) {
        return failure(
            fmt::format("{}: is not a virtio-vfio-user function: its PCI ID is {}, not {:04x}:{:04x} or "
                        "above",
                        name, describe_ids(sysfs, address), kPciVendorVirtio, kPciDeviceVirtioBase));
    }
    const auto config = sysfs.config(address);
    if (config.size() <= kConfigHeader) {
        return {};  // VFIO shows more, and VirtioPciTransport looks at it
    }
    const auto caps = find_virtio_capabilities(config);
    if (!caps.is_vfio_user()) {
        return failure(
            fmt::format("{}: is not a virtio-vfio-user function: the virtio function {} has no {} capability", name,
                        describe_ids(sysfs, address), caps.doorbell ? "shared memory (type 8)" : "doorbell (type 6)"));
    }
    return {};
}

std::vector<PciAddress> find_candidates(const PciSysfs &sysfs)
{
    auto found = sysfs.functions();
    std::erase_if(found, [&](const PciAddress &address) {
        const bool unknown = sysfs.config(address).size() <= kConfigHeader;
        return !check_identity(sysfs, address) || (unknown && sysfs.driver(address) != "vfio-pci");
    });
    return found;
}

Result<std::unique_ptr<VirtioPciTransport>> open_function(const PciSysfs &sysfs, const PciAddress &address)
{
    if (auto identity = check_identity(sysfs, address); !identity) {
        return make_unexpected(identity.error());
    }
    auto device = VfioDevice::open(sysfs, address);
    if (!device) {
        return make_unexpected(device.error());
    }
    return VirtioPciTransport::create(std::move(*device));
}

FunctionInfo inspect(const PciSysfs &sysfs, const PciAddress &address)
{
    FunctionInfo info{to_string(address), sysfs.driver(address), "", std::nullopt, 0, "ready"};
    if (const auto group = sysfs.iommu_group(address)) {
        info.iommu_group = std::to_string(*group);
    }
    const auto caps = find_virtio_capabilities(sysfs.config(address));
    info.window_size = caps.window ? caps.window->length : 0;
    auto transport = open_function(sysfs, address);
    if (!transport) {
        // The table has the address already.
        const auto &message = transport.error().message;
        const auto prefix = info.address + ": ";
        info.state = message.starts_with(prefix) ? message.substr(prefix.size()) : message;
        return info;
    }
    const auto config = (*transport)->config();
    if (config.uuid != Uuid{}) {  // all zero: none
        info.uuid = config.uuid;
    }
    info.window_size = config.window_size;
    return info;
}

/// RFC 4122 3: characters, and which of them are dashes.
constexpr std::size_t kUuidText = 36;
constexpr std::size_t kUuidDashes[] = {8, 13, 18, 23};

int hex_digit(char c)
{
    constexpr std::string_view digits = "0123456789abcdef";
    const auto lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    const auto at = digits.find(lower);
    return at == std::string_view::npos ? -1 : static_cast<int>(at);
}

}  // namespace

bool is_pci_address(std::string_view text)
{
    return parse_pci_address(text).has_value();
}

std::optional<Uuid> parse_uuid(std::string_view text)
{
    std::string digits{text};
    if (text.size() == kUuidText) {
        for (const auto dash : kUuidDashes) {
            if (text[dash] != '-') {
                return std::nullopt;
            }
        }
        std::erase(digits, '-');
    }
    Uuid uuid{};
    if (digits.size() != 2 * uuid.size()) {
        return std::nullopt;
    }
    for (std::size_t i = 0; i < uuid.size(); ++i) {
        const int high = hex_digit(digits[2 * i]), low = hex_digit(digits[2 * i + 1]);
        if (high < 0 || low < 0) {
            return std::nullopt;
        }
        uuid[i] = static_cast<std::uint8_t>(high * 16 + low);
    }
    return uuid;
}

std::string to_string(const Uuid &uuid)
{
    std::string text;
    for (std::size_t i = 0; i < uuid.size(); ++i) {
        text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
    return text;
}

std::vector<FunctionInfo> list_functions(const std::string &sysfs_root)
{
    const PciSysfs sysfs{sysfs_root};
    std::vector<FunctionInfo> functions;
    for (const auto &address : find_candidates(sysfs)) {
        functions.push_back(inspect(sysfs, address));
    }
    return functions;
}

Result<std::unique_ptr<Transport>> open_vfio_transport(std::string_view text, const std::string &sysfs_root)
{
    const auto address = parse_pci_address(text);
    if (!address) {
        return failure(fmt::format("'{}' is not a PCI address of the form 0000:00:04.0", text));
    }
    return open_function(PciSysfs{sysfs_root}, *address).map([](auto transport) {
        return std::unique_ptr<Transport>{std::move(transport)};
    });
}

Result<std::unique_ptr<Transport>> open_vfio_transport(const Uuid &uuid, const std::string &sysfs_root)
{
    const PciSysfs sysfs{sysfs_root};
    std::string unusable;
    for (const auto &address : find_candidates(sysfs)) {
        auto transport = open_function(sysfs, address);
        if (!transport) {
            unusable += "; not looked at: " + transport.error().message;
        } else if ((*transport)->config().uuid == uuid) {
            return std::unique_ptr<Transport>{std::move(*transport)};
        }
    }
    return failure("no usable virtio-vfio-user function has UUID " + to_string(uuid) + unusable);
}

}  // namespace vvfu::guest
