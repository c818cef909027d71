// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/pci_device.hpp"

#include <linux/pci_regs.h>

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>

namespace vvfu::guest {
namespace {

constexpr std::size_t kConfigSize = 4096;
constexpr std::uint64_t kPage = 4096;

// Where the capabilities are. Clients take the distance to the next one for the size of a capability.
constexpr std::uint32_t kPmCap = 0x40, kPcieCap = 0x50, kMsixCap = 0x90, kMsiCap = 0xa0;
// struct of the PCI Express capability, version 2
constexpr std::uint32_t kPcieCapSize = 0x3c;
static_assert(kPmCap + PCI_PM_SIZEOF <= kPcieCap && kPcieCap + kPcieCapSize <= kMsixCap &&
              kMsixCap + PCI_CAP_MSIX_SIZEOF <= kMsiCap);

constexpr int kMsiMmcShift = std::countr_zero(unsigned{PCI_MSI_FLAGS_QMASK}),
              kMsiMmeShift = std::countr_zero(unsigned{PCI_MSI_FLAGS_QSIZE});

constexpr std::uint16_t kCommandRw =
    PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE;
constexpr std::uint16_t kStatusW1c = PCI_STATUS_PARITY | PCI_STATUS_SIG_TARGET_ABORT | PCI_STATUS_REC_TARGET_ABORT |
                                     PCI_STATUS_REC_MASTER_ABORT | PCI_STATUS_SIG_SYSTEM_ERROR |
                                     PCI_STATUS_DETECTED_PARITY;
constexpr std::uint32_t kMsixMaxVectors = 2048;

[[noreturn]] void reject(const std::string &why)
{
    throw std::invalid_argument("PCI function: " + why);
}

void require(bool condition, const char *why)
{
    if (!condition) {
        reject(why);
    }
}

/// [a, a + a_size) and [b, b + b_size) share a byte.
bool overlap(std::uint64_t a, std::uint64_t a_size, std::uint64_t b, std::uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

void check_areas(const PciBar &bar, std::uint64_t region_memory)
{
    std::uint64_t end = 0;
    for (const auto &area : bar.areas) {
        require(area.size > 0 && area.offset % kPage == 0 && area.size % kPage == 0, "area not page-aligned");
        require(area.offset >= end, "areas not ascending and disjoint");
        require(area.offset <= bar.size && area.size <= bar.size - area.offset, "area outside its BAR");
        end = area.offset + area.size;
    }
    if (end > 0) {
        require(bar.region_memory_offset % kPage == 0, "region memory offset not page-aligned");
        require(end <= region_memory && bar.region_memory_offset <= region_memory - end,
                "areas do not fit region memory");
    }
}

}  // namespace

void PciFunction::offer(InterruptKind kind, std::uint16_t vectors)
{
    msix_vectors = kind == InterruptKind::msix ? vectors : std::uint16_t{0};
    msi_vectors = kind == InterruptKind::msi ? std::bit_ceil(std::min(vectors, kMsiMaxVectors)) : std::uint16_t{0};
    intx = true;
}

std::uint16_t PciFunction::vectors() const noexcept
{
    return std::max({msix_vectors, msi_vectors, std::uint16_t{intx}});
}

PciDevice::PciDevice(PciFunction function, DeviceServices services)
    : services_(services),
      function_(std::move(function)),
      config_(kConfigSize, std::byte{0}),  // reserved configuration registers read as 0 (PCI 3.0 6.1)
      msix_table_(PciFunction::msix_table_size(function_.msix_vectors)),
      self_(std::make_shared<PciDevice *>(this))
{
    check_function();
    build_config();
    build_bars();
    build_capabilities();
    update_gate();
}

void PciDevice::check_function() const
{
    require(function_.identity.class_code <= 0xffffff, "class code wider than 24 bits");
    for (unsigned i = 0; i < function_.bars.size(); ++i) {
        const auto &bar = function_.bars[i];
        if (bar.size == 0) {
            continue;
        }
        require(std::has_single_bit(bar.size) && bar.size >= 16, "BAR size not a power of two of at least 16");
        require(bar.is_64bit || bar.size <= (std::uint64_t{1} << 31), "32-bit BAR too large");
        require(!bar.is_64bit || (i + 1 < function_.bars.size() && function_.bars[i + 1].size == 0),
                "64-bit BAR without a free BAR after it");
        check_areas(bar, services_.region_memory.size());
    }
    require(function_.msi_vectors == 0 ||
                (std::has_single_bit(function_.msi_vectors) && function_.msi_vectors <= PciFunction::kMsiMaxVectors),
            "MSI vectors not a power of two of at most 32");
    if (function_.msix_vectors == 0) {
        return;
    }
    require(function_.msix_vectors <= kMsixMaxVectors, "more than 2048 MSI-X vectors");
    require(function_.msix_bar < function_.bars.size(), "MSI-X in a BAR that cannot exist");
    const auto &bar = function_.bars[function_.msix_bar];
    const std::uint64_t table = function_.msix_table_offset, pba = function_.msix_pba_offset;
    const auto table_size = PciFunction::msix_table_size(function_.msix_vectors);
    const auto pba_size = PciFunction::msix_pba_size(function_.msix_vectors);
    require(table % 8 == 0 && pba % 8 == 0, "MSI-X table or PBA not 8-byte aligned");
    require(table + table_size <= bar.size && pba + pba_size <= bar.size, "MSI-X table or PBA outside its BAR");
    require(!overlap(table, table_size, pba, pba_size), "MSI-X table and PBA overlap");
    for (const auto &area : bar.areas) {
        require(!overlap(area.offset, area.size, table, table_size) && !overlap(area.offset, area.size, pba, pba_size),
                "MSI-X table or PBA in a mappable area");
    }
}

// Type 0 header, PCI 3.0 6.1.
void PciDevice::build_config()
{
    const auto &id = function_.identity;
    const Register header[] = {
        {"Vendor ID", PCI_VENDOR_ID, 2, id.vendor_id},
        {"Device ID", PCI_DEVICE_ID, 2, id.device_id},
        {"Command", PCI_COMMAND, 2, 0, kCommandRw},
        {"Status", PCI_STATUS, 2, PCI_STATUS_CAP_LIST, 0, kStatusW1c},
        {"Revision ID", PCI_REVISION_ID, 1, id.revision},
        {"Class Code", PCI_CLASS_PROG, 3, id.class_code},
        {"Cache Line Size", PCI_CACHE_LINE_SIZE, 1, 0, 0xff},
        {"Header Type", PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_NORMAL},
        {"Subsystem Vendor ID", PCI_SUBSYSTEM_VENDOR_ID, 2, id.subsystem_vendor_id},
        {"Subsystem ID", PCI_SUBSYSTEM_ID, 2, id.subsystem_id},
        {"Capabilities Pointer", PCI_CAPABILITY_LIST, 1, kPmCap},
        {"Interrupt Line", PCI_INTERRUPT_LINE, 1, 0, 0xff},
        {"Interrupt Pin", PCI_INTERRUPT_PIN, 1, function_.intx ? 1u : 0u},
    };
    config_.add(header);
}

// Sizing works by the masks alone: address bits below the size are hard-wired to 0 (PCI 3.0 6.2.5.1).
void PciDevice::build_bars()
{
    for (unsigned i = 0; i < function_.bars.size(); ++i) {
        const auto &bar = function_.bars[i];
        if (bar.size == 0) {
            continue;
        }
        const std::uint64_t type = (bar.is_64bit ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0u) |
                                   (bar.prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0u);
        const std::uint64_t mask = ~(bar.size - 1);
        const std::uint32_t offset = PCI_BASE_ADDRESS_0 + 4 * i;
        if (bar.is_64bit) {
            config_.add({"64-bit BAR", offset, 8, type, mask});
        } else {
            config_.add({"BAR", offset, 4, type, mask & 0xffffffff});
        }
    }
}

void PciDevice::build_capabilities()
{
    const bool msix = function_.msix_vectors > 0, msi = function_.msi_vectors > 0;
    const std::uint32_t after_msix = msi ? kMsiCap : 0, after_pcie = msix ? kMsixCap : after_msix;
    const Register pm[] = {
        {"PM capability ID", kPmCap, 1, PCI_CAP_ID_PM},
        {"PM next", kPmCap + PCI_CAP_LIST_NEXT, 1, kPcieCap},
        {"PM Capabilities", kPmCap + PCI_PM_PMC, 2, 3},  // version 1.2; no PME, no D1, no D2
        {"PM Control/Status", kPmCap + PCI_PM_CTRL, 2, PCI_PM_CTRL_NO_SOFT_RESET, PCI_PM_CTRL_STATE_MASK},
    };
    // PCIe 5.0 7.5.3: an endpoint behind an x1 link of 2.5 GT/s, as the least that every driver accepts.
    const Register pcie[] = {
        {"PCIe capability ID", kPcieCap, 1, PCI_CAP_ID_EXP},
        {"PCIe next", kPcieCap + PCI_CAP_LIST_NEXT, 1, after_pcie},
        {"PCIe Capabilities", kPcieCap + PCI_EXP_FLAGS, 2, 2 | (PCI_EXP_TYPE_ENDPOINT << 4)},
        {"Device Capabilities", kPcieCap + PCI_EXP_DEVCAP, 4, PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR},
        // Initiate FLR always reads as 0; config_write() acts on it.
        {"Device Control", kPcieCap + PCI_EXP_DEVCTL, 2,
         PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ_512B,
         PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE | PCI_EXP_DEVCTL_URRE |
             PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_PAYLOAD | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ},
        {"Device Status", kPcieCap + PCI_EXP_DEVSTA, 2, 0, 0,
         PCI_EXP_DEVSTA_CED | PCI_EXP_DEVSTA_NFED | PCI_EXP_DEVSTA_FED | PCI_EXP_DEVSTA_URD},
        {"Link Capabilities", kPcieCap + PCI_EXP_LNKCAP, 4, PCI_EXP_LNKCAP_SLS_2_5GB | (1u << 4)},
        {"Link Control", kPcieCap + PCI_EXP_LNKCTL, 2, 0,
         PCI_EXP_LNKCTL_ASPMC | PCI_EXP_LNKCTL_RCB | PCI_EXP_LNKCTL_CCC | PCI_EXP_LNKCTL_ES},
        {"Link Status", kPcieCap + PCI_EXP_LNKSTA, 2, PCI_EXP_LNKSTA_CLS_2_5GB | PCI_EXP_LNKSTA_NLW_X1},
    };
    // PCIe 5.0 7.7.1. An endpoint has 64-bit addresses.
    const Register msi_capability[] = {
        {"MSI capability ID", kMsiCap, 1, PCI_CAP_ID_MSI},
        {"MSI next", kMsiCap + PCI_CAP_LIST_NEXT, 1, 0},
        {"Message Control", kMsiCap + PCI_MSI_FLAGS, 2,
         PCI_MSI_FLAGS_64BIT | static_cast<unsigned>(std::countr_zero(function_.msi_vectors)) << kMsiMmcShift,
         PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE},
        {"Message Address", kMsiCap + PCI_MSI_ADDRESS_LO, 8, 0, ~std::uint64_t{3}},
        {"Message Data", kMsiCap + PCI_MSI_DATA_64, 2, 0, 0xffff},
    };
    const Register msix_capability[] = {
        {"MSI-X capability ID", kMsixCap, 1, PCI_CAP_ID_MSIX},
        {"MSI-X next", kMsixCap + PCI_CAP_LIST_NEXT, 1, after_msix},
        {"Message Control", kMsixCap + PCI_MSIX_FLAGS, 2, function_.msix_vectors - 1u,
         PCI_MSIX_FLAGS_MASKALL | PCI_MSIX_FLAGS_ENABLE},
        {"Table Offset/BIR", kMsixCap + PCI_MSIX_TABLE, 4, function_.msix_table_offset | function_.msix_bar},
        {"PBA Offset/BIR", kMsixCap + PCI_MSIX_PBA, 4, function_.msix_pba_offset | function_.msix_bar},
    };
    config_.add(pm).add(pcie);
    if (msi) {
        config_.add(msi_capability);
    }
    if (msix) {
        config_.add(msix_capability);
    }
    for (std::size_t entry = 0; entry < msix_table_.size(); entry += PCI_MSIX_ENTRY_SIZE) {
        msix_table_[entry + PCI_MSIX_ENTRY_VECTOR_CTRL] = std::byte{PCI_MSIX_ENTRY_CTRL_MASKBIT};
    }
}

control::DeviceInfo PciDevice::describe() const
{
    control::DeviceInfo info;
    const auto &id = function_.identity;
    info.flags = control::kDeviceReset | control::kDeviceQuiesce;
    info.features = control::kFeatureWriteMultiple;
    info.vendor_id = id.vendor_id;
    info.device_id = id.device_id;
    info.subsystem_vendor_id = id.subsystem_vendor_id;
    info.subsystem_id = id.subsystem_id;
    info.class_revision = (id.class_code << 8) | id.revision;
    constexpr std::uint32_t access = control::kRegionRead | control::kRegionWrite;
    for (std::uint32_t i = 0; i < function_.bars.size(); ++i) {
        const auto &bar = function_.bars[i];
        if (bar.size > 0) {
            const auto flags = access | (bar.areas.empty() ? 0u : std::uint32_t{control::kRegionMmap});
            info.regions.push_back({i, flags, bar.size, bar.areas.empty() ? 0 : bar.region_memory_offset, bar.areas});
        }
    }
    info.regions.push_back({control::kRegionConfig, access, kConfigSize, 0, {}});
    if (function_.intx) {
        info.irqs.push_back({control::kIrqIntx, 1});
    }
    if (function_.msi_vectors > 0) {
        info.irqs.push_back({control::kIrqMsi, function_.msi_vectors});
    }
    if (function_.msix_vectors > 0) {
        info.irqs.push_back({control::kIrqMsix, function_.msix_vectors});
    }
    return info;
}

PciDevice::Route PciDevice::route(unsigned bar, std::uint64_t offset, std::uint64_t size) const
{
    Route result{Target::model, offset, size};
    if (function_.msix_vectors == 0 || bar != function_.msix_bar) {
        return result;
    }
    const auto consider = [&](Target target, std::uint64_t start, std::uint64_t length) {
        if (offset >= start && offset < start + length) {
            result = {target, offset - start, std::min(size, start + length - offset)};
        } else if (offset < start) {
            result.size = std::min(result.size, start - offset);
        }
    };
    consider(Target::msix_table, function_.msix_table_offset, PciFunction::msix_table_size(function_.msix_vectors));
    consider(Target::msix_pba, function_.msix_pba_offset, PciFunction::msix_pba_size(function_.msix_vectors));
    return result;
}

void PciDevice::region_read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> out)
{
    if (resetting_ || (region > control::kRegionBar5 && region != control::kRegionConfig)) {
        std::fill(out.begin(), out.end(), std::byte{0xff});
        return;
    }
    if (region == control::kRegionConfig) {
        config_.read(offset, out);
        return;
    }
    if (!in_d0()) {  // PM 1.2 5.4.1: only configuration space answers
        std::fill(out.begin(), out.end(), std::byte{0xff});
        return;
    }
    while (!out.empty()) {
        const auto part = route(region, offset, out.size());
        const auto piece = out.first(part.size);
        switch (part.target) {
            case Target::model: bar_read(region, part.offset, piece); break;
            case Target::msix_table:
                std::copy_n(msix_table_.begin() + static_cast<std::ptrdiff_t>(part.offset), part.size, piece.begin());
                break;
            case Target::msix_pba: pba_read(part.offset, piece); break;
        }
        offset += part.size;
        out = out.subspan(part.size);
    }
}

void PciDevice::region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data)
{
    if (region == control::kRegionConfig && !resetting_) {
        config_write(offset, data);
    }
    // A write may start a reset: what is left of it must not reach the model.
    while (!data.empty() && region <= control::kRegionBar5 && !resetting_ && in_d0()) {
        const auto part = route(region, offset, data.size());
        const auto piece = data.first(part.size);
        if (part.target == Target::model) {
            bar_write(region, part.offset, piece);
        } else if (part.target == Target::msix_table) {
            std::copy(piece.begin(), piece.end(), msix_table_.begin() + static_cast<std::ptrdiff_t>(part.offset));
        }  // PBA: read-only
        offset += part.size;
        data = data.subspan(part.size);
    }
}

void PciDevice::config_write(std::size_t offset, std::span<const std::byte> data)
{
    constexpr std::size_t flr_byte = kPcieCap + PCI_EXP_DEVCTL + 1;
    constexpr auto flr_bit = static_cast<std::byte>(PCI_EXP_DEVCTL_BCR_FLR >> 8);
    const auto power_before = config_.get(kPmCap + PCI_PM_CTRL, 2);
    const bool bus_master_before = bus_master();
    config_.write(offset, data);

    // PM 1.2 3.2.4: a write of a state that is not supported (D1, D2) is discarded.
    const auto state = config_.get(kPmCap + PCI_PM_CTRL, 2) & PCI_PM_CTRL_STATE_MASK;
    if (state == 1 || state == 2) {
        config_.set(kPmCap + PCI_PM_CTRL, 2, power_before);
    }
    // PCIe 5.0 7.7.1.2: more vectors than the function has are not defined; it takes what it has.
    if (function_.msi_vectors > 0) {
        const auto control = config_.get(kMsiCap + PCI_MSI_FLAGS, 2);
        const auto capable = (control & PCI_MSI_FLAGS_QMASK) >> kMsiMmcShift;
        const auto allowed = std::min((control & PCI_MSI_FLAGS_QSIZE) >> kMsiMmeShift, capable);
        config_.set(kMsiCap + PCI_MSI_FLAGS, 2,
                    (control & ~std::uint64_t{PCI_MSI_FLAGS_QSIZE}) | allowed << kMsiMmeShift);
    }
    if (offset <= flr_byte && flr_byte - offset < data.size() && (data[flr_byte - offset] & flr_bit) != std::byte{0}) {
        reset([] {});
        return;
    }
    intx_evaluate();
    if (bus_master() != bus_master_before) {
        update_gate();
        bus_master_changed();
    }
    send_pending();
}

void PciDevice::update_gate()
{
    if (bus_master()) {
        services_.dma.open();
        return;
    }
    services_.dma.close();
    //= VVFU-RESET-8
    for (const auto index : {control::kIrqMsi, control::kIrqMsix}) {
        for (const auto vector : services_.irqs.withdraw(index)) {
            pending_.emplace(index, vector);
        }
    }
}

/// Messages that waited until the function may send them; not those that have been disabled meanwhile.
void PciDevice::send_pending()
{
    std::erase_if(pending_, [on = messages()](const auto &message) {
        return message.first != on.index || message.second >= on.vectors;
    });
    if (bus_master()) {
        for (const auto &[index, vector] : std::exchange(pending_, {})) {
            services_.irqs.trigger(index, vector);
        }
    }
}

bool PciDevice::in_d0() const noexcept
{
    return (config_.get(kPmCap + PCI_PM_CTRL, 2) & PCI_PM_CTRL_STATE_MASK) == 0;
}

// A pending bit is a message that waits for bus mastering, or a doorbell write that is latched because the vector has
// no target.
void PciDevice::pba_read(std::size_t offset, std::span<std::byte> out)
{
    for (std::size_t i = 0; i < out.size(); ++i) {
        unsigned bits = 0;
        for (unsigned bit = 0; bit < 8; ++bit) {
            const auto vector = static_cast<std::uint32_t>((offset + i) * 8 + bit);
            if (vector < function_.msix_vectors &&
                (pending_.contains({control::kIrqMsix, vector}) || services_.irqs.pending(control::kIrqMsix, vector))) {
                bits |= 1u << bit;
            }
        }
        out[i] = static_cast<std::byte>(bits);
    }
}

void PciDevice::irq_info(const control::IrqInfo &info)
{
    using control::IrqAction;
    if (info.index == control::kIrqMsix || info.index == control::kIrqMsi) {
        auto &assigned = info.index == control::kIrqMsix ? msix_assigned_ : msi_assigned_;
        if (info.action == IrqAction::assign) {
            assigned = std::max(assigned, info.start + info.count);
        } else if (info.action == IrqAction::disable) {
            assigned = 0;
        }
        send_pending();
    } else if (info.index == control::kIrqIntx) {
        // A new or no target forgets the automask: VFIO's mask state belongs to the connection of the line.
        intx_masked_ = info.action == IrqAction::mask;
    }
    const bool line_gone =
        info.index == control::kIrqIntx && (info.action == IrqAction::deassign || info.action == IrqAction::disable);
    if (!line_gone) {
        intx_evaluate();
    }
}

void PciDevice::reset(std::function<void()> done)
{
    reset_waiters_.push_back(std::move(done));
    if (resetting_) {
        return;
    }
    resetting_ = true;
    config_.reset();
    //= VVFU-RESET-1
    update_gate();  // Bus Master Enable is clear
    pending_.clear();
    static_cast<void>(services_.irqs.withdraw(control::kIrqIntx));
    intx_level_ = false;
    intx_masked_ = false;
    for (std::size_t i = 0; i < msix_table_.size(); ++i) {
        const bool control = i % PCI_MSIX_ENTRY_SIZE == PCI_MSIX_ENTRY_VECTOR_CTRL;
        msix_table_[i] = control ? std::byte{PCI_MSIX_ENTRY_CTRL_MASKBIT} : std::byte{0};
    }
    function_reset([weak = std::weak_ptr<PciDevice *>(self_)] {
        const auto self = weak.lock();
        if (!self) {
            return;
        }
        auto &device = **self;
        device.intx_set(false);
        device.resetting_ = false;
        for (const auto &waiter : std::exchange(device.reset_waiters_, {})) {
            waiter();
        }
    });
}

void PciDevice::peer_gone(std::function<void()> done)
{
    msix_assigned_ = 0;
    msi_assigned_ = 0;
    reset(std::move(done));
}

PciDevice::Messages PciDevice::messages() const noexcept
{
    const auto enabled = [this](std::uint32_t control, std::uint64_t bit) {
        return (config_.get(control, 2) & bit) != 0;
    };
    if (function_.msix_vectors > 0 &&
        (msix_assigned_ > 0 || enabled(kMsixCap + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE))) {
        return {InterruptKind::msix, control::kIrqMsix, function_.msix_vectors};
    }
    if (function_.msi_vectors > 0 && enabled(kMsiCap + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE)) {
        const auto allowed = (config_.get(kMsiCap + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_QSIZE) >> kMsiMmeShift;
        return {InterruptKind::msi, control::kIrqMsi, 1u << allowed};
    }
    if (msi_assigned_ > 0) {
        return {InterruptKind::msi, control::kIrqMsi, std::min<std::uint32_t>(msi_assigned_, function_.msi_vectors)};
    }
    return {};
}

bool PciDevice::bus_master() const noexcept
{
    return (config_.get(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) != 0 && in_d0();
}

void PciDevice::trigger(std::uint16_t vector)
{
    // Its interrupt state and the gate are: elsewhere, a message could be sent after both were closed.
    services_.executor.require_current();
    const auto on = messages();
    if (resetting_ || vector >= on.vectors) {
        return;
    }
    if (bus_master()) {
        services_.irqs.trigger(on.index, vector);
    } else {
        pending_.emplace(on.index, vector);
    }
}

void PciDevice::intx_set(bool level)
{
    services_.executor.require_current();
    intx_level_ = level && function_.intx;
    // Interrupt Status shows the level whatever Interrupt Disable says (PCI 3.0 6.2.3).
    const auto status = config_.get(PCI_STATUS, 2) & ~std::uint64_t{PCI_STATUS_INTERRUPT};
    config_.set(PCI_STATUS, 2, status | (intx_level_ ? PCI_STATUS_INTERRUPT : 0u));
    intx_evaluate();
}

void PciDevice::intx_evaluate()
{
    const bool disabled = (config_.get(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE) != 0;
    if (!intx_level_ || intx_masked_ || disabled || resetting_ || !in_d0() || interrupts() != InterruptKind::intx) {
        return;
    }
    intx_masked_ = true;
    services_.irqs.trigger(control::kIrqIntx, 0);
}

}  // namespace vvfu::guest
