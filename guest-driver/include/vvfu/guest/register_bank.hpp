// SPDX-License-Identifier: BSD-3-Clause
//
// Registers described once, accessed bytewise: a table of (name, offset, width, access, reset value) drives
// every access of the guest, whatever its size and alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vvfu::guest {

/// One little-endian register. A bit in neither mask is read-only for the guest.
struct Register {
    const char *name = "";
    std::uint32_t offset = 0;
    std::uint8_t width = 4;   ///< bytes: 1..8
    std::uint64_t reset = 0;  ///< value after reset()
    std::uint64_t rw = 0;     ///< bits the guest may write
    std::uint64_t w1c = 0;    ///< bits the guest clears by writing 1
};

class RegisterBank {
public:
    /// `size` bytes; those that no register claims read as `unclaimed` and ignore writes.
    explicit RegisterBank(std::size_t size, std::byte unclaimed = std::byte{0xff});

    /// Throws std::invalid_argument when a register overlaps another, leaves the bank, has a bad width or a mask
    /// or reset value that is wider than the register (bugs in the description).
    RegisterBank &add(const Register &description);
    RegisterBank &add(std::span<const Register> descriptions);

    /// Accesses by the guest; [offset, offset + size) is inside the bank.
    void read(std::size_t offset, std::span<std::byte> out) const;
    void write(std::size_t offset, std::span<const std::byte> data);

    /// Accesses by the device itself: masks do not apply. 1 to 8 bytes, little-endian, inside the bank.
    [[nodiscard]] std::uint64_t get(std::size_t offset, unsigned width) const;
    void set(std::size_t offset, unsigned width, std::uint64_t value);

    /// Every register to its reset value.
    void reset();
    [[nodiscard]] std::size_t size() const noexcept { return value_.size(); }

private:
    std::vector<std::byte> value_, reset_, rw_, w1c_;
    std::vector<bool> claimed_;
};

}  // namespace vvfu::guest
