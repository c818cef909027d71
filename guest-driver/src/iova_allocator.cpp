// SPDX-License-Identifier: BSD-3-Clause
#include "iova_allocator.hpp"

#include <algorithm>
#include <utility>

namespace vvfu::guest {
namespace {

// IOVA 0 is left alone: a queue address of 0 means "not set up" to some devices.
constexpr std::uint64_t kLowest = 0x100000;

}  // namespace

IovaAllocator::IovaAllocator(std::vector<IovaRange> ranges, std::uint64_t page)
    : ranges_(std::move(ranges)), page_(page), next_(kLowest)
{
}

std::optional<std::uint64_t> IovaAllocator::allocate(std::uint64_t size)
{
    for (const auto &range : ranges_) {
        const auto first = std::max(range.first, next_);
        const auto aligned = (first + page_ - 1) & ~(page_ - 1);
        if (aligned < first || aligned > range.last || size - 1 > range.last - aligned) {
            continue;
        }
        // Saturates: the top of the address space is never handed out twice.
        next_ = aligned + size < aligned ? ~std::uint64_t{0} : aligned + size;
        return aligned;
    }
    return std::nullopt;
}

}  // namespace vvfu::guest
