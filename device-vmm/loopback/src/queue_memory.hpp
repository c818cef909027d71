// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "vvfu/guest/error.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::loopback {

/// A memfd, mapped. Move-only; the size never changes.
class SharedMemory {
public:
    /// `size` is a multiple of 4096 and not 0. Fails with a line that says why.
    static guest::Result<SharedMemory> create(const char *name, std::uint64_t size);
    SharedMemory() = default;
    SharedMemory(SharedMemory &&other) noexcept;
    SharedMemory &operator=(SharedMemory &&other) noexcept;
    ~SharedMemory();

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

private:
    std::span<std::byte> bytes_;
};

/// Memory of the "device guest" that its driver allocates from and that queue addresses refer to. Pages that nobody
/// touched cost nothing.
class QueueMemory {
public:
    static constexpr std::uint64_t kSize = 64u * 1024 * 1024;
    /// Device address of the first byte: not 0, so that a forgotten address is noticed.
    static constexpr std::uint64_t kBase = 0x100000;

    static guest::Result<QueueMemory> create();

    /// Page-aligned and never freed. Driver's thread.
    guest::Result<guest::SharedBuffer> allocate(std::size_t bytes);
    /// Host view of a device range, empty if any of it is outside. Any thread.
    [[nodiscard]] std::span<std::byte> translate(std::uint64_t address, std::uint64_t length) const noexcept;

private:
    SharedMemory memory_;
    std::uint64_t used_ = 0;
};

}  // namespace vvfu::loopback
