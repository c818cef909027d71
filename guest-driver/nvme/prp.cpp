// SPDX-License-Identifier: BSD-3-Clause
#include "prp.hpp"

#include <algorithm>

namespace vvfu::nvme {
namespace {

constexpr std::uint64_t kDwordMask = 3, kQwordMask = 7;
constexpr std::uint64_t kEntrySize = sizeof(Le64);

}  // namespace

PrpWalk::PrpWalk(std::uint64_t prp1, std::uint64_t prp2, std::uint64_t bytes, std::uint32_t page_shift)
    : page_shift_(page_shift), left_(bytes)
{
    // NVMe 4.3: the offset of the first data entry is a multiple of four.
    if ((prp1 & kDwordMask) != 0) {
        fail(Status::invalid_prp_offset);
        return;
    }
    append(prp1, std::min(left_, page_size() - offset_in_page(prp1)));
    if (left_ == 0) {
        return;  // PRP2 is reserved
    }
    if (left_ <= page_size()) {
        append_page(prp2);
        return;
    }
    expect_list(prp2);
}

void PrpWalk::feed(std::span<const Le64> entries)
{
    const auto list = *list_;
    list_.reset();
    const auto pages = (left_ + page_size() - 1) >> page_shift_;
    const bool chained = pages > list.entries;
    for (std::size_t i = 0; i < list.entries; ++i) {
        if (chained && i + 1 == list.entries) {
            // NVMe 4.3: only the first list may start inside its page.
            if (offset_in_page(entries[i]) != 0) {
                fail(Status::invalid_prp_offset);
            } else {
                expect_list(entries[i]);
            }
            return;
        }
        if (!append_page(entries[i])) {
            return;
        }
    }
}

void PrpWalk::append(std::uint64_t address, std::uint64_t size)
{
    left_ -= size;
    if (!segments_.empty()) {
        auto &last = segments_.back();
        if (raw(last.address) + last.size == address && address != 0) {
            last.size += size;
            return;
        }
    }
    segments_.push_back({guest::DmaAddress{address}, size});
}

bool PrpWalk::append_page(std::uint64_t entry)
{
    if (offset_in_page(entry) != 0) {
        fail(Status::invalid_prp_offset);
        return false;
    }
    append(entry, std::min(left_, page_size()));
    return true;
}

void PrpWalk::expect_list(std::uint64_t pointer)
{
    if ((pointer & kQwordMask) != 0) {
        fail(Status::invalid_prp_offset);
        return;
    }
    const auto room = (page_size() - offset_in_page(pointer)) / kEntrySize;
    const auto pages = (left_ + page_size() - 1) >> page_shift_;
    list_ = List{guest::DmaAddress{pointer}, static_cast<std::uint32_t>(std::min(room, pages))};
}

void PrpWalk::fail(Status status)
{
    status_ = status;
    list_.reset();
}

}  // namespace vvfu::nvme
