// SPDX-License-Identifier: BSD-3-Clause
#include "pci_sysfs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace vvfu::guest {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kConfigSize = 256;  // the part that has the PCI capabilities

/// Takes a hexadecimal number that `end` (or the end of the text) follows off the front of `text`.
std::optional<std::uint32_t> take_hex(std::string_view &text, char end, std::uint32_t max)
{
    std::uint32_t value = 0;
    const auto [next, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    const auto used = static_cast<std::size_t>(next - text.data());
    if (error != std::errc{} || value > max) {
        return std::nullopt;
    }
    if (end == '\0') {
        return used == text.size() ? std::optional{value} : std::nullopt;
    }
    if (used == text.size() || text[used] != end) {
        return std::nullopt;
    }
    text.remove_prefix(used + 1);
    return value;
}

std::vector<PciAddress> addresses_in(const fs::path &directory)
{
    std::vector<PciAddress> found;
    std::error_code error;
    for (fs::directory_iterator it{directory, error}, end; !error && it != end; it.increment(error)) {
        if (const auto address = parse_pci_address(it->path().filename().string())) {
            found.push_back(*address);
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

std::string link_name(const fs::path &link)
{
    std::error_code error;
    const auto target = fs::read_symlink(link, error);
    return error ? std::string{} : target.filename().string();
}

}  // namespace

std::string to_string(const PciAddress &address)
{
    return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", address.domain, address.bus, address.device, address.function);
}

std::optional<PciAddress> parse_pci_address(std::string_view text)
{
    const bool has_domain = std::count(text.begin(), text.end(), ':') == 2;
    const auto domain = has_domain ? take_hex(text, ':', 0xffffffff) : std::optional<std::uint32_t>{0};
    const auto bus = domain ? take_hex(text, ':', 0xff) : std::nullopt;
    const auto device = bus ? take_hex(text, '.', 0x1f) : std::nullopt;
    const auto function = device ? take_hex(text, '\0', 7) : std::nullopt;
    if (!function) {
        return std::nullopt;
    }
    return PciAddress{*domain, static_cast<std::uint8_t>(*bus), static_cast<std::uint8_t>(*device),
                      static_cast<std::uint8_t>(*function)};
}

std::string PciSysfs::path(const PciAddress &address, std::string_view file) const
{
    return fmt::format("{}/bus/pci/devices/{}/{}", root_, to_string(address), file);
}

std::vector<PciAddress> PciSysfs::functions() const
{
    return addresses_in(root_ + "/bus/pci/devices");
}

bool PciSysfs::exists(const PciAddress &address) const
{
    std::error_code error;
    return fs::exists(path(address, "vendor"), error);
}

std::uint16_t PciSysfs::read_id(const PciAddress &address, std::string_view file) const
{
    std::ifstream in{path(address, file)};
    unsigned value = 0;
    in >> std::hex >> value;
    return in ? static_cast<std::uint16_t>(value) : std::uint16_t{0};
}

std::uint16_t PciSysfs::vendor_id(const PciAddress &address) const
{
    return read_id(address, "vendor");
}

std::uint16_t PciSysfs::device_id(const PciAddress &address) const
{
    return read_id(address, "device");
}

std::string PciSysfs::driver(const PciAddress &address) const
{
    return link_name(path(address, "driver"));
}

std::optional<unsigned> PciSysfs::iommu_group(const PciAddress &address) const
{
    const auto name = link_name(path(address, "iommu_group"));
    unsigned group = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), group);
    if (name.empty() || error != std::errc{} || end != name.data() + name.size()) {
        return std::nullopt;
    }
    return group;
}

std::vector<PciAddress> PciSysfs::group_members(unsigned group) const
{
    return addresses_in(fmt::format("{}/kernel/iommu_groups/{}/devices", root_, group));
}

std::vector<std::byte> PciSysfs::config(const PciAddress &address) const
{
    std::ifstream in{path(address, "config"), std::ios::binary};
    std::vector<char> text(kConfigSize);
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    std::vector<std::byte> bytes(static_cast<std::size_t>(in.gcount()));
    std::transform(text.begin(), text.begin() + in.gcount(), bytes.begin(),
                   [](char c) { return static_cast<std::byte>(c); });
    return bytes;
}

}  // namespace vvfu::guest
