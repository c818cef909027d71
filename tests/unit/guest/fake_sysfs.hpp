// SPDX-License-Identifier: BSD-3-Clause
//
// A directory that looks like the parts of /sys that PciSysfs reads.
#pragma once

#include <fmt/format.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <stdlib.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "vvfu/protocol/device_config.hpp"

namespace vvfu::guest::test {

/// Configuration space with a list of vendor capabilities.
inline std::vector<std::byte> config_with(const std::vector<PciCap> &caps)
{
    std::vector<std::byte> config(256);
    config[PCI_STATUS] = std::byte{PCI_STATUS_CAP_LIST};
    std::size_t link = PCI_CAPABILITY_LIST, at = 0x40;
    for (const auto &cap : caps) {
        std::array<std::byte, kPciCap64Size> bytes{};
        const auto size = encode_pci_cap(cap, bytes);
        std::memcpy(&config[at], bytes.data(), size);
        config[link] = static_cast<std::byte>(at);
        link = at + 1;
        at += (size + 3) & ~std::size_t{3};
    }
    return config;
}

/// What a virtio-vfio-user function has.
inline std::vector<PciCap> vfio_user_caps()
{
    return {{VIRTIO_PCI_CAP_COMMON_CFG, 4, 0, 0, 0x1000, 0},
            {VIRTIO_PCI_CAP_ISR_CFG, 4, 0, 0x1000, 0x1000, 0},
            {VIRTIO_PCI_CAP_DEVICE_CFG, 4, 0, 0x2000, 0x1000, 0},
            {VIRTIO_PCI_CAP_NOTIFY_CFG, 4, 0, 0x3000, 0x1000, 4},
            {kCapDoorbell, 0, 0, 0, 0x100, 4},
            {kCapNotification, 0, 0, 0x1000, 4, 0},
            {kCapSharedMemory, 2, kShmidWindow, 0, std::uint64_t{8} << 30, 0}};
}

class FakeSysfs {
public:
    struct Function {
        std::string address;
        std::uint16_t vendor = 0, device = 0;
        std::string driver;
        std::optional<unsigned> group;
        std::vector<std::byte> config;
    };

    FakeSysfs()
    {
        std::string pattern = std::filesystem::temp_directory_path() / "vvfu-sysfs-XXXXXX";
        root_ = ::mkdtemp(pattern.data());
        std::filesystem::create_directories(root_ / "bus/pci/devices");
    }
    ~FakeSysfs() { std::filesystem::remove_all(root_); }
    FakeSysfs(const FakeSysfs &) = delete;
    FakeSysfs &operator=(const FakeSysfs &) = delete;

    [[nodiscard]] std::string root() const { return root_; }

    void add(const Function &function)
    {
        namespace fs = std::filesystem;
        const auto directory = root_ / "bus/pci/devices" / function.address;
        fs::create_directories(directory);
        std::ofstream{directory / "vendor"} << fmt::format("{:#06x}\n", function.vendor);
        std::ofstream{directory / "device"} << fmt::format("{:#06x}\n", function.device);
        std::ofstream{directory / "config", std::ios::binary}.write(
            reinterpret_cast<const char *>(function.config.data()),
            static_cast<std::streamsize>(function.config.size()));
        if (!function.driver.empty()) {
            fs::create_symlink("../../../drivers/" + function.driver, directory / "driver");
        }
        if (function.group) {
            const auto group = root_ / "kernel/iommu_groups" / std::to_string(*function.group) / "devices";
            fs::create_directories(group);
            fs::create_directory(group / function.address);
            fs::create_symlink(group.parent_path(), directory / "iommu_group");
        }
    }

private:
    std::filesystem::path root_;
};

}  // namespace vvfu::guest::test
