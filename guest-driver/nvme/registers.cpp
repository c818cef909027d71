// SPDX-License-Identifier: BSD-3-Clause
#include "registers.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace vvfu::nvme {
namespace {

/// NVMe 3.1.1. Doorbell stride 0 (four bytes), no memory buffers, no subsystem reset, round robin only.
constexpr std::uint64_t kCapValue = (kMaxQueueEntries - 1)    // MQES, 0's based
                                    | std::uint64_t{1} << 16  // CQR: contiguous queues required
                                    | std::uint64_t{kTransitionTimeout * 2}
                                          << 24               // TO, the backing may have much to flush
                                    | std::uint64_t{1} << 37  // CSS: NVM command set
                                    | std::uint64_t{0} << 48  // MPSMIN: 4 KiB
                                    | std::uint64_t{kMaxPageShift - kMinPageShift} << 52;  // MPSMAX

constexpr std::uint32_t kCcMask = 0x00ff'fff1;  // the rest is reserved
constexpr std::uint32_t kAqaMask = 0x0fff'0fff;
constexpr std::uint64_t kQueueAddressMask = ~std::uint64_t{0xfff};

template <typename T>
void put(std::array<std::byte, reg::kEnd> &image, std::uint32_t offset, T value)
{
    std::memcpy(&image[offset], &value, sizeof(value));
}

std::uint64_t with_low(std::uint64_t old, std::uint32_t low)
{
    return ((old & 0xffff'ffff'0000'0000) | low) & kQueueAddressMask;
}

std::uint64_t with_high(std::uint64_t old, std::uint32_t high)
{
    return (old & 0xffff'ffff) | std::uint64_t{high} << 32;
}

}  // namespace

void Registers::read(std::uint64_t offset, std::span<std::byte> out) const
{
    std::array<std::byte, reg::kEnd> image{};
    put(image, reg::kCap, Le64{kCapValue});
    put(image, reg::kVs, Le32{kVersion});
    put(image, reg::kIntms, Le32{interrupt_mask_});
    put(image, reg::kIntmc, Le32{interrupt_mask_});
    put(image, reg::kCc, Le32{cc_});
    put(image, reg::kCsts, Le32{csts()});
    put(image, reg::kAqa, Le32{aqa_});
    put(image, reg::kAsq, Le64{asq_});
    put(image, reg::kAcq, Le64{acq_});
    std::fill(out.begin(), out.end(), std::byte{0});
    if (offset < image.size()) {
        std::memcpy(out.data(), &image[offset], std::min<std::size_t>(out.size(), image.size() - offset));
    }
}

void Registers::write(std::uint64_t offset, std::uint32_t value)
{
    switch (offset) {
        case reg::kIntms: interrupt_mask_ |= value; break;
        case reg::kIntmc: interrupt_mask_ &= ~value; break;
        case reg::kCc: cc_ = value & kCcMask; break;
        case reg::kAqa: aqa_ = value & kAqaMask; break;
        case reg::kAsq: asq_ = with_low(asq_, value); break;
        case reg::kAsq + 4: asq_ = with_high(asq_, value); break;
        case reg::kAcq: acq_ = with_low(acq_, value); break;
        case reg::kAcq + 4: acq_ = with_high(acq_, value); break;
        default: break;
    }
}

bool Registers::can_enable() const noexcept
{
    const auto command_set = cc_ >> 4 & 7, arbitration = cc_ >> 11 & 7;
    const auto offset_in_page = (asq_ | acq_) & ((std::uint64_t{1} << page_shift()) - 1);
    return command_set == 0 && arbitration == 0 && page_shift() <= kMaxPageShift && asq_entries() >= 2 &&
           acq_entries() >= 2 && offset_in_page == 0;
}

void Registers::controller_reset() noexcept
{
    interrupt_mask_ = 0;
    ready_ = false;
    fatal_ = false;
    shutdown_ = ShutdownStatus::normal;
}

std::uint32_t Registers::csts() const noexcept
{
    return (ready_ ? 1u : 0u) | (fatal_ ? 2u : 0u) | static_cast<std::uint32_t>(shutdown_) << 2;
}

}  // namespace vvfu::nvme
