// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "spec.hpp"
#include "vvfu/guest/dma_space.hpp"

namespace vvfu::nvme {

/// NVMe 4.3: turns the PRP entries of a command into DMA segments. Does no I/O itself: it says which part of a PRP
/// list it needs next and is fed the copy. A transfer of kMaxTransfer bytes needs at most three lists.
class PrpWalk {
public:
    /// A (part of a) PRP list to read: `entries` little-endian 64-bit entries.
    struct List {
        guest::DmaAddress address{};
        std::uint32_t entries = 0;
    };

    /// `bytes`: length of the data, not 0. `page_shift`: 12 + CC.MPS.
    PrpWalk(std::uint64_t prp1, std::uint64_t prp2, std::uint64_t bytes, std::uint32_t page_shift);

    /// Not success: the entries so far are wrong, and the walk is over.
    [[nodiscard]] Status status() const noexcept { return status_; }
    /// The list to read next; nullopt: the walk is over.
    [[nodiscard]] std::optional<List> next_list() const noexcept { return list_; }
    /// Takes the entries of next_list(), all of them.
    void feed(std::span<const Le64> entries);
    /// The data, complete when the walk is over with success. Neighbours are merged.
    [[nodiscard]] const std::vector<guest::DmaSegment> &segments() const noexcept { return segments_; }

private:
    [[nodiscard]] std::uint64_t page_size() const noexcept { return std::uint64_t{1} << page_shift_; }
    [[nodiscard]] std::uint64_t offset_in_page(std::uint64_t entry) const noexcept { return entry & (page_size() - 1); }
    void append(std::uint64_t address, std::uint64_t size);
    /// An entry that must be the start of a page.
    bool append_page(std::uint64_t entry);
    void expect_list(std::uint64_t pointer);
    void fail(Status status);

    std::uint32_t page_shift_;
    std::uint64_t left_;  // bytes that no entry covers yet
    Status status_ = Status::success;
    std::optional<List> list_;
    std::vector<guest::DmaSegment> segments_;
};

}  // namespace vvfu::nvme
