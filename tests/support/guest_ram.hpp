// SPDX-License-Identifier: BSD-3-Clause
//
// RAM of a pretended driver guest: a memfd, mapped here, offered to the server by DMA_MAP.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/base/fd.hpp"

namespace vvfu::test {

class GuestRam {
public:
    enum class Seal { no_shrink, none };

    /// `size` bytes, a multiple of 4096, that appear at DMA address `address`. Throws std::system_error.
    GuestRam(std::uint64_t address, std::size_t size, Seal seal = Seal::no_shrink);
    GuestRam(const GuestRam &) = delete;
    GuestRam &operator=(const GuestRam &) = delete;
    ~GuestRam();

    [[nodiscard]] int fd() const { return fd_.get(); }
    [[nodiscard]] std::uint64_t address() const { return address_; }
    [[nodiscard]] std::size_t size() const { return bytes_.size(); }
    [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
    /// The host view of [address, address + size); throws std::out_of_range outside the RAM.
    [[nodiscard]] std::span<std::byte> at(std::uint64_t address, std::size_t size) const;

private:
    std::uint64_t address_;
    Fd fd_;
    std::span<std::byte> bytes_;
};

}  // namespace vvfu::test
