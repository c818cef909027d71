// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "spec.hpp"

namespace vvfu::nvme {

/// Offsets of controller registers in BAR 0 (NVMe 3.1).
namespace reg {
inline constexpr std::uint32_t kCap = 0x00, kVs = 0x08, kIntms = 0x0c, kIntmc = 0x10, kCc = 0x14, kCsts = 0x1c,
                               kAqa = 0x24, kAsq = 0x28, kAcq = 0x30, kDoorbells = 0x1000;
inline constexpr std::uint32_t kEnd = 0x38;  ///< first byte behind what this controller implements
}  // namespace reg

enum class ShutdownStatus : std::uint8_t { normal = 0, occurring = 1, complete = 2 };

/// The registers as stored values. Host writes and the controller's own changes are different functions.
class Registers {
public:
    /// Reads any bytes in front of reg::kEnd; everything else reads as 0.
    void read(std::uint64_t offset, std::span<std::byte> out) const;
    /// A host write of an aligned dword. Registers that are read-only, reserved or absent keep their value.
    void write(std::uint64_t offset, std::uint32_t value);

    // ---- CC (NVMe 3.1.5) ----
    [[nodiscard]] bool enable() const noexcept { return (cc_ & 1) != 0; }
    [[nodiscard]] std::uint32_t page_shift() const noexcept { return kMinPageShift + (cc_ >> 7 & 0xf); }
    [[nodiscard]] std::uint32_t shutdown_notification() const noexcept { return cc_ >> 14 & 3; }
    /// IOSQES and IOCQES name the entry sizes that this controller has.
    [[nodiscard]] bool entry_sizes_set() const noexcept { return (cc_ >> 16 & 0xff) == 0x46; }
    /// The settings allow CC.EN: command set, arbitration and page size that exist, admin queues of a legal size that
    /// start with a page.
    [[nodiscard]] bool can_enable() const noexcept;

    // ---- admin queues (NVMe 3.1.8 to 3.1.10) ----
    [[nodiscard]] std::uint32_t asq_entries() const noexcept { return (aqa_ & 0xfff) + 1; }
    [[nodiscard]] std::uint32_t acq_entries() const noexcept { return (aqa_ >> 16 & 0xfff) + 1; }
    [[nodiscard]] std::uint64_t asq() const noexcept { return asq_; }
    [[nodiscard]] std::uint64_t acq() const noexcept { return acq_; }

    // ---- INTMS and INTMC; of use without MSI-X only (NVMe 3.1.3) ----
    [[nodiscard]] std::uint32_t interrupt_mask() const noexcept { return interrupt_mask_; }
    [[nodiscard]] bool masked(std::uint16_t vector) const noexcept
    {
        return vector < 32 && (interrupt_mask_ >> vector & 1) != 0;
    }

    // ---- CSTS (NVMe 3.1.6) ----
    [[nodiscard]] bool ready() const noexcept { return ready_; }
    void set_ready(bool ready) noexcept { ready_ = ready; }
    void set_fatal() noexcept { fatal_ = true; }
    [[nodiscard]] bool fatal() const noexcept { return fatal_; }
    [[nodiscard]] ShutdownStatus shutdown_status() const noexcept { return shutdown_; }
    void set_shutdown_status(ShutdownStatus status) noexcept { shutdown_ = status; }

    /// CC.EN went from 1 to 0 (NVMe 7.3.2): everything but AQA, ASQ, ACQ and the rest of CC.
    void controller_reset() noexcept;

private:
    [[nodiscard]] std::uint32_t csts() const noexcept;

    std::uint32_t interrupt_mask_ = 0, cc_ = 0, aqa_ = 0;
    std::uint64_t asq_ = 0, acq_ = 0;
    bool ready_ = false, fatal_ = false;
    ShutdownStatus shutdown_ = ShutdownStatus::normal;
};

}  // namespace vvfu::nvme
