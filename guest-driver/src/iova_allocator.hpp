// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace vvfu::guest {

/// An inclusive range of IO virtual addresses.
struct IovaRange {
    std::uint64_t first = 0, last = 0;
};

/// Hands out IOVAs inside the ranges that the IOMMU allows, in ascending order and never again: the driver's memory
/// lives as long as the driver.
class IovaAllocator {
public:
    /// `ranges` are ascending and disjoint; `page` is a power of two.
    IovaAllocator(std::vector<IovaRange> ranges, std::uint64_t page);

    /// First address of `size` bytes (a multiple of the page size, not 0); nullopt: no room.
    [[nodiscard]] std::optional<std::uint64_t> allocate(std::uint64_t size);

private:
    std::vector<IovaRange> ranges_;
    std::uint64_t page_;
    std::uint64_t next_;
};

}  // namespace vvfu::guest
