// SPDX-License-Identifier: BSD-3-Clause
//
// One PCI function through VFIO (type 1 v2, group and container): regions, interrupts as eventfds, DMA memory. Knows
// nothing of virtio.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device_access.hpp"
#include "iova_allocator.hpp"
#include "pci_sysfs.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// A part of a region that may be mapped, in bytes from its start.
struct MappableArea {
    std::uint64_t offset = 0, size = 0;
};

/// What VFIO_DEVICE_GET_REGION_INFO said.
struct VfioRegion {
    std::uint64_t size = 0;         ///< 0: absent
    std::uint64_t file_offset = 0;  ///< of the region in the device file
    std::vector<MappableArea> mappable;
};

/// Decode replies of VFIO_DEVICE_GET_REGION_INFO and VFIO_IOMMU_GET_INFO, capability chains included.
[[nodiscard]] VfioRegion decode_region_info(std::span<const std::byte> reply);
struct VfioIommuInfo {
    std::uint64_t page_size = 4096;  ///< smallest that the IOMMU maps
    std::vector<IovaRange> ranges;   ///< allowed IOVAs
};
[[nodiscard]] VfioIommuInfo decode_iommu_info(std::span<const std::byte> reply);

/// The argument of VFIO_DEVICE_SET_IRQS that makes `eventfds` the targets of an index's interrupts, from the first on.
[[nodiscard]] std::vector<std::byte> eventfd_request(unsigned index, std::span<const int> eventfds);

/// Whether a function could be opened, and if not, why: one line that names the remedy.
[[nodiscard]] Result<unsigned> check_vfio_binding(const PciSysfs &sysfs, const PciAddress &address);

/// What an errno means when set-up fails, each one line that names the remedy: opening the container, opening the
/// group, VFIO_SET_IOMMU, and VFIO_IOMMU_MAP_DMA of `size` bytes with RLIMIT_MEMLOCK at `limit` bytes.
[[nodiscard]] std::string explain_container_error(int error);
[[nodiscard]] std::string explain_group_error(const std::string &name, unsigned group, int error);
[[nodiscard]] std::string explain_iommu_error(const std::string &name, int error);
[[nodiscard]] std::string explain_map_error(const std::string &name, std::size_t size, std::uint64_t limit, int error);

class VfioDevice final : public DeviceAccess {
public:
    /// Opens container, group and device, and enables memory decoding and bus mastering.
    static Result<std::unique_ptr<VfioDevice>> open(const PciSysfs &sysfs, const PciAddress &address);
    ~VfioDevice() override;
    VfioDevice(const VfioDevice &) = delete;
    VfioDevice &operator=(const VfioDevice &) = delete;

    [[nodiscard]] const std::string &name() const noexcept override { return name_; }
    [[nodiscard]] Result<std::vector<std::byte>> config() const override;
    Result<std::span<std::byte>> map_bar(unsigned bar, std::uint64_t offset, std::uint64_t size) override;
    [[nodiscard]] unsigned msix_vectors() const override;
    Result<void> enable_msix(std::span<const int> eventfds) override;
    [[nodiscard]] int removal_event() const noexcept override { return removal_event_.get(); }
    [[nodiscard]] int error_event() const noexcept override { return error_event_.get(); }
    Result<SharedBuffer> allocate(std::size_t bytes) override;

private:
    struct Mapping {
        void *address = nullptr;
        std::size_t size = 0;
    };
    struct DmaMemory {
        Mapping memory;
        std::uint64_t iova = 0;
    };
    VfioDevice(std::string name, Fd container, Fd group, Fd device);
    Result<void> prepare();
    Result<void> set_command_bits(std::uint16_t bits) const;
    Fd enable_event(unsigned index) const;
    [[nodiscard]] VfioRegion region(unsigned index) const;

    std::string name_;
    Fd container_, group_, device_;
    Fd removal_event_, error_event_;
    std::vector<Mapping> mappings_;
    std::vector<DmaMemory> dma_;
    std::optional<IovaAllocator> iova_;
    std::uint64_t page_size_ = 4096;
    bool msix_enabled_ = false;
};

}  // namespace vvfu::guest
