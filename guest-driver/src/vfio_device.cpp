// SPDX-License-Identifier: BSD-3-Clause
#include "vfio_device.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

namespace vvfu::guest {
namespace {

constexpr const char *kContainerPath = "/dev/vfio/vfio";
constexpr const char *kRunAsRoot = ": run as root, or give this user access to it";
constexpr std::uint32_t kMaxReply = 64 * 1024;  // of an ioctl with a capability chain

/// T at `offset` of a reply; zeroes where the reply is too short.
template <typename T>
T read_at(std::span<const std::byte> reply, std::size_t offset)
{
    T value{};
    if (offset <= reply.size() && sizeof value <= reply.size() - offset) {
        std::memcpy(&value, reply.data() + offset, sizeof value);
    }
    return value;
}

/// Calls `visit(header, offset)` for each capability of a chain that starts at `first` (0: none).
template <typename F>
void for_each_capability(std::span<const std::byte> reply, std::uint32_t first, F visit)
{
    // Each capability lies behind the one before, so that a damaged chain ends.
    for (std::uint32_t at = first, previous = 0; at > previous && at < reply.size();) {
        const auto header = read_at<vfio_info_cap_header>(reply, at);
        visit(header, at);
        previous = at;
        at = header.next;
    }
}

/// An ioctl whose reply may be longer than T; calls it again with the size it asks for. Empty: it failed (errno).
template <typename T>
std::vector<std::byte> info_ioctl(int fd, unsigned long request, T info)
{
    info.argsz = sizeof info;
    if (::ioctl(fd, request, &info) < 0) {
        return {};
    }
    const auto size = std::clamp<std::uint32_t>(info.argsz, sizeof info, kMaxReply);
    std::vector<std::byte> reply(size);
    info.argsz = size;
    std::memcpy(reply.data(), &info, sizeof info);
    if (size > sizeof info && ::ioctl(fd, request, reply.data()) < 0) {
        return {};
    }
    return reply;
}

std::string error_text()
{
    return std::strerror(errno);
}

std::string members_text(const PciSysfs &sysfs, const std::vector<PciAddress> &members)
{
    std::string text;
    for (const auto &member : members) {
        const auto driver = sysfs.driver(member);
        text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", to_string(member),
                            driver.empty() ? "no driver" : driver);
    }
    return text;
}

std::string group_path(unsigned number)
{
    return fmt::format("/dev/vfio/{}", number);
}

Result<Fd> open_container()
{
    Fd container{::open(kContainerPath, O_RDWR | O_CLOEXEC)};
    if (!container) {
        return failure(explain_container_error(errno));
    }
    if (::ioctl(container.get(), VFIO_GET_API_VERSION) != VFIO_API_VERSION ||
        ::ioctl(container.get(), VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) != 1) {
        return failure("VFIO has no type 1 v2 IOMMU: load the module vfio_iommu_type1");
    }
    return container;
}

Result<Fd> open_group(const PciSysfs &sysfs, const std::string &name, unsigned number)
{
    Fd group{::open(group_path(number).c_str(), O_RDWR | O_CLOEXEC)};
    if (!group) {
        return failure(explain_group_error(name, number, errno));
    }
    vfio_group_status status{.argsz = sizeof status, .flags = 0};
    if (::ioctl(group.get(), VFIO_GROUP_GET_STATUS, &status) < 0) {
        return failure(fmt::format("{}: status of IOMMU group {}: {}", name, number, error_text()));
    }
    if ((status.flags & VFIO_GROUP_FLAGS_VIABLE) == 0) {
        return failure(
            fmt::format("{}: IOMMU group {} is not viable: every function in it must be bound to vfio-pci or "
                        "to no driver: {}",
                        name, number, members_text(sysfs, sysfs.group_members(number))));
    }
    return group;
}

Result<void> attach(const std::string &name, const Fd &container, const Fd &group)
{
    const int container_fd = container.get();
    if (::ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &container_fd) < 0) {
        return failure(fmt::format("{}: cannot add its IOMMU group to a container: {}", name, error_text()));
    }
    if (::ioctl(container.get(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) < 0) {
        return failure(explain_iommu_error(name, errno));
    }
    return {};
}

}  // namespace

VfioRegion decode_region_info(std::span<const std::byte> reply)
{
    const auto info = read_at<vfio_region_info>(reply, 0);
    VfioRegion region{info.size, info.offset, {}};
    if ((info.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) {
        return region;
    }
    bool sparse = false;
    for_each_capability(reply, (info.flags & VFIO_REGION_INFO_FLAG_CAPS) != 0 ? info.cap_offset : 0,
                        [&](const vfio_info_cap_header &header, std::size_t at) {
                            if (header.id != VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
                                return;
                            }
                            sparse = true;
                            const auto cap = read_at<vfio_region_info_cap_sparse_mmap>(reply, at);
                            for (std::uint32_t i = 0; i < cap.nr_areas; ++i) {
                                const auto offset = at + sizeof cap + i * sizeof(vfio_region_sparse_mmap_area);
                                if (offset >= reply.size()) {
                                    break;
                                }
                                const auto area = read_at<vfio_region_sparse_mmap_area>(reply, offset);
                                region.mappable.push_back({area.offset, area.size});
                            }
                        });
    if (!sparse) {
        region.mappable.push_back({0, info.size});
    }
    return region;
}

VfioIommuInfo decode_iommu_info(std::span<const std::byte> reply)
{
    const auto info = read_at<vfio_iommu_type1_info>(reply, 0);
    VfioIommuInfo result;
    if ((info.flags & VFIO_IOMMU_INFO_PGSIZES) != 0 && info.iova_pgsizes != 0) {
        result.page_size = std::uint64_t{1} << std::countr_zero(info.iova_pgsizes);
    }
    for_each_capability(reply, (info.flags & VFIO_IOMMU_INFO_CAPS) != 0 ? info.cap_offset : 0,
                        [&](const vfio_info_cap_header &header, std::size_t at) {
                            if (header.id != VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) {
                                return;
                            }
                            const auto cap = read_at<vfio_iommu_type1_info_cap_iova_range>(reply, at);
                            for (std::uint32_t i = 0; i < cap.nr_iovas; ++i) {
                                const auto offset = at + sizeof cap + i * sizeof(vfio_iova_range);
                                if (offset >= reply.size()) {
                                    break;
                                }
                                const auto range = read_at<vfio_iova_range>(reply, offset);
                                result.ranges.push_back({range.start, range.end});
                            }
                        });
    if (result.ranges.empty()) {
        // Kernels without the capability: below the interrupt range of x86, which is never usable for DMA.
        result.ranges.push_back({0, 0xfedfffff});
    }
    return result;
}

Result<unsigned> check_vfio_binding(const PciSysfs &sysfs, const PciAddress &address)
{
    const auto name = to_string(address);
    const auto group = sysfs.iommu_group(address);
    if (!group) {
        return failure(name +
                       ": is in no IOMMU group: start the VM with -device intel-iommu,intremap=on and its kernel with "
                       "intel_iommu=on");
    }
    const auto driver = sysfs.driver(address);
    if (driver != "vfio-pci") {
        const auto directory = "/sys/bus/pci/devices/" + name;
        const auto unbind =
            driver.empty() ? std::string{} : fmt::format(" echo {} > {}/driver/unbind;", name, directory);
        return failure(
            fmt::format("{}: is bound to {}, not to vfio-pci: run: modprobe vfio-pci; echo vfio-pci > "
                        "{}/driver_override;{} echo {} > /sys/bus/pci/drivers_probe",
                        name, driver.empty() ? "no driver" : driver, directory, unbind, name));
    }
    return *group;
}

std::string explain_container_error(int error)
{
    std::string remedy;
    if (error == ENOENT || error == ENODEV) {
        remedy = ": load the modules vfio, vfio_iommu_type1 and vfio-pci";
    } else if (error == EACCES || error == EPERM) {
        remedy = kRunAsRoot;
    }
    return fmt::format("cannot open {}: {}{}", kContainerPath, std::strerror(error), remedy);
}

std::string explain_group_error(const std::string &name, unsigned group, int error)
{
    std::string remedy;
    if (error == ENOENT) {
        // With enable_unsafe_noiommu_mode the file has another name.
        remedy =
            ": no-IOMMU mode is not enough: start the VM with -device intel-iommu,intremap=on and its kernel with "
            "intel_iommu=on";
    } else if (error == EACCES || error == EPERM) {
        remedy = kRunAsRoot;
    } else if (error == EBUSY) {
        remedy = ": another program uses it: end that first";
    }
    return fmt::format("{}: cannot open {}: {}{}", name, group_path(group), std::strerror(error), remedy);
}

std::string explain_iommu_error(const std::string &name, int error)
{
    const char *remedy =
        error == EPERM ? ": there is no interrupt remapping: start the VM with -device intel-iommu,intremap=on" : "";
    return fmt::format("{}: cannot use the IOMMU: {}{}", name, std::strerror(error), remedy);
}

std::string explain_map_error(const std::string &name, std::size_t size, std::uint64_t limit, int error)
{
    if (error == ENOMEM && limit != RLIM_INFINITY) {
        return fmt::format(
            "{}: cannot lock {} bytes of memory for DMA (limit {} bytes): raise it with ulimit -l or LimitMEMLOCK=",
            name, size, limit);
    }
    return fmt::format("{}: cannot map {} bytes for DMA: {}", name, size, std::strerror(error));
}

std::vector<std::byte> eventfd_request(unsigned index, std::span<const int> eventfds)
{
    std::vector<std::byte> request(sizeof(vfio_irq_set) + eventfds.size_bytes());
    const vfio_irq_set header{.argsz = static_cast<std::uint32_t>(request.size()),
                              .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                              .index = index,
                              .start = 0,
                              .count = static_cast<std::uint32_t>(eventfds.size())};
    std::memcpy(request.data(), &header, sizeof header);
    std::memcpy(request.data() + sizeof header, eventfds.data(), eventfds.size_bytes());
    return request;
}

VfioDevice::VfioDevice(std::string name, Fd container, Fd group, Fd device)
    : name_(std::move(name)), container_(std::move(container)), group_(std::move(group)), device_(std::move(device))
{
}

Result<std::unique_ptr<VfioDevice>> VfioDevice::open(const PciSysfs &sysfs, const PciAddress &address)
{
    const auto name = to_string(address);
    const auto number = check_vfio_binding(sysfs, address);
    if (!number) {
        return make_unexpected(number.error());
    }
    auto container = open_container();
    if (!container) {
        return make_unexpected(container.error());
    }
    auto group = open_group(sysfs, name, *number);
    if (!group) {
        return make_unexpected(group.error());
    }
    if (auto attached = attach(name, *container, *group); !attached) {
        return make_unexpected(attached.error());
    }
    Fd device{::ioctl(group->get(), VFIO_GROUP_GET_DEVICE_FD, name.c_str())};
    if (!device) {
        return failure(fmt::format("{}: VFIO does not give it out: {}", name, error_text()));
    }
    std::unique_ptr<VfioDevice> result{
        new VfioDevice(name, std::move(*container), std::move(*group), std::move(device))};
    if (auto prepared = result->prepare(); !prepared) {
        return make_unexpected(prepared.error());
    }
    return result;
}

Result<void> VfioDevice::prepare()
{
    const auto reply = info_ioctl(container_.get(), VFIO_IOMMU_GET_INFO, vfio_iommu_type1_info{});
    if (reply.empty()) {
        return failure(fmt::format("{}: IOMMU information: {}", name_, error_text()));
    }
    auto info = decode_iommu_info(reply);
    page_size_ = std::max<std::uint64_t>(info.page_size, static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
    iova_.emplace(std::move(info.ranges), page_size_);
    removal_event_ = enable_event(VFIO_PCI_REQ_IRQ_INDEX);
    error_event_ = enable_event(VFIO_PCI_ERR_IRQ_INDEX);
    return set_command_bits(PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

VfioDevice::~VfioDevice()
{
    if (msix_enabled_) {
        vfio_irq_set off{.argsz = sizeof off,
                         .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                         .index = VFIO_PCI_MSIX_IRQ_INDEX,
                         .start = 0,
                         .count = 0};
        ::ioctl(device_.get(), VFIO_DEVICE_SET_IRQS, &off);
    }
    for (const auto &dma : dma_) {
        vfio_iommu_type1_dma_unmap unmap{.argsz = sizeof unmap, .flags = 0, .iova = dma.iova, .size = dma.memory.size};
        ::ioctl(container_.get(), VFIO_IOMMU_UNMAP_DMA, &unmap);
        ::munmap(dma.memory.address, dma.memory.size);
    }
    for (const auto &mapping : mappings_) {
        ::munmap(mapping.address, mapping.size);
    }
}

/// Without the first of them the kernel's removal of the function waits for us for ever. Kernels and functions that
/// lack one of them exist; none: no event.
Fd VfioDevice::enable_event(unsigned index) const
{
    vfio_irq_info info{.argsz = sizeof info, .flags = 0, .index = index, .count = 0};
    Fd event{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!event || ::ioctl(device_.get(), VFIO_DEVICE_GET_IRQ_INFO, &info) < 0 || info.count == 0) {
        return {};
    }
    const auto request = eventfd_request(index, {{event.get()}});
    return ::ioctl(device_.get(), VFIO_DEVICE_SET_IRQS, request.data()) < 0 ? Fd{} : std::move(event);
}

VfioRegion VfioDevice::region(unsigned index) const
{
    vfio_region_info request{};
    request.index = index;
    return decode_region_info(info_ioctl(device_.get(), VFIO_DEVICE_GET_REGION_INFO, request));
}

Result<void> VfioDevice::set_command_bits(std::uint16_t bits) const
{
    const auto offset = static_cast<off_t>(region(VFIO_PCI_CONFIG_REGION_INDEX).file_offset + PCI_COMMAND);
    std::uint16_t command = 0;
    if (::pread(device_.get(), &command, sizeof command, offset) != sizeof command) {
        return failure(fmt::format("{}: cannot read its configuration space: {}", name_, error_text()));
    }
    command = static_cast<std::uint16_t>(command | bits);
    if (::pwrite(device_.get(), &command, sizeof command, offset) != sizeof command) {
        return failure(fmt::format("{}: cannot enable bus mastering: {}", name_, error_text()));
    }
    return {};
}

Result<std::vector<std::byte>> VfioDevice::config() const
{
    std::vector<std::byte> bytes(256);
    const auto offset = static_cast<off_t>(region(VFIO_PCI_CONFIG_REGION_INDEX).file_offset);
    if (::pread(device_.get(), bytes.data(), bytes.size(), offset) != static_cast<ssize_t>(bytes.size())) {
        return failure(fmt::format("{}: cannot read its configuration space: {}", name_, error_text()));
    }
    return bytes;
}

Result<std::span<std::byte>> VfioDevice::map_bar(unsigned bar, std::uint64_t offset, std::uint64_t size)
{
    const auto info = region(bar);
    if (size == 0 || offset > info.size || size > info.size - offset) {
        return failure(
            fmt::format("{}: BAR {} is too small: it has {:#x} bytes, {:#x} bytes at offset {:#x} are needed", name_,
                        bar, info.size, size, offset));
    }
    const auto in_page = offset % page_size_;
    const auto first = offset - in_page;
    const auto length = (in_page + size + page_size_ - 1) / page_size_ * page_size_;
    const bool mappable = std::any_of(info.mappable.begin(), info.mappable.end(), [&](const MappableArea &area) {
        return first >= area.offset && first - area.offset <= area.size && length <= area.size - (first - area.offset);
    });
    if (!mappable) {
        return failure(fmt::format("{}: VFIO does not let bytes {:#x} to {:#x} of BAR {} be mapped", name_, first,
                                   first + length, bar));
    }
    void *address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, device_.get(),
                           static_cast<off_t>(info.file_offset + first));
    if (address == MAP_FAILED) {
        return failure(fmt::format("{}: cannot map BAR {}: {}", name_, bar, error_text()));
    }
    mappings_.push_back({address, length});
    return std::span{static_cast<std::byte *>(address) + in_page, static_cast<std::size_t>(size)};
}

unsigned VfioDevice::msix_vectors() const
{
    vfio_irq_info info{.argsz = sizeof info, .flags = 0, .index = VFIO_PCI_MSIX_IRQ_INDEX, .count = 0};
    return ::ioctl(device_.get(), VFIO_DEVICE_GET_IRQ_INFO, &info) < 0 ? 0 : info.count;
}

Result<void> VfioDevice::enable_msix(std::span<const int> eventfds)
{
    // All at once: adding a vector later means disabling the others for a moment.
    const auto request = eventfd_request(VFIO_PCI_MSIX_IRQ_INDEX, eventfds);
    if (::ioctl(device_.get(), VFIO_DEVICE_SET_IRQS, request.data()) < 0) {
        return failure(fmt::format("{}: cannot enable {} MSI-X vectors: {}", name_, eventfds.size(), error_text()));
    }
    msix_enabled_ = true;
    return {};
}

Result<SharedBuffer> VfioDevice::allocate(std::size_t bytes)
{
    const auto size = (std::max<std::size_t>(bytes, 1) + page_size_ - 1) / page_size_ * page_size_;
    void *address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) {
        return failure(fmt::format("{}: cannot allocate {} bytes: {}", name_, size, error_text()));
    }
    const auto iova = iova_->allocate(size);
    vfio_iommu_type1_dma_map map{.argsz = sizeof map,
                                 .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                 .vaddr = reinterpret_cast<std::uintptr_t>(address),
                                 .iova = iova.value_or(0),
                                 .size = size};
    if (!iova || ::ioctl(container_.get(), VFIO_IOMMU_MAP_DMA, &map) < 0) {
        const int error = iova ? errno : ENOSPC;
        ::munmap(address, size);
        rlimit limit{};
        ::getrlimit(RLIMIT_MEMLOCK, &limit);
        return failure(explain_map_error(name_, size, limit.rlim_cur, error));
    }
    dma_.push_back({{address, size}, *iova});
    return SharedBuffer{{static_cast<std::byte *>(address), bytes}, *iova};
}

}  // namespace vvfu::guest
