// SPDX-License-Identifier: BSD-3-Clause
#include "window_allocator.hpp"

#include <iterator>
#include <utility>

namespace vvfu::core {
namespace {

constexpr std::uint64_t kHuge2M = std::uint64_t{2} << 20;
constexpr std::uint64_t kHuge1G = std::uint64_t{1} << 30;

/// First offset at or after `from` that is congruent to `file_offset` modulo `alignment` (a power of two).
std::uint64_t align_like(std::uint64_t from, std::uint64_t file_offset, std::uint64_t alignment)
{
    return from + ((file_offset - from) & (alignment - 1));
}

}  // namespace

WindowAllocator::WindowAllocator(std::uint64_t size) : holes_{{0, size}}, free_bytes_(size) {}

std::optional<std::uint64_t> WindowAllocator::allocate(std::uint64_t size, std::uint64_t file_offset,
                                                       std::uint64_t alignment)
{
    //= VVFU-WINDOW-10
    for (const auto huge : {kHuge1G, kHuge2M}) {
        if (size < huge || huge <= alignment) {
            continue;
        }
        if (const auto offset = allocate_congruent(size, file_offset, huge)) {
            return offset;
        }
    }
    return allocate_congruent(size, file_offset, alignment);
}

std::optional<std::uint64_t> WindowAllocator::allocate_congruent(std::uint64_t size, std::uint64_t file_offset,
                                                                 std::uint64_t alignment)
{
    // Best fit: small ranges do not nibble at the holes that large ones need.
    auto best = holes_.end();
    for (auto it = holes_.begin(); it != holes_.end(); ++it) {
        const auto skip = align_like(it->first, file_offset, alignment) - it->first;
        const bool fits = skip <= it->second && size <= it->second - skip;
        if (fits && (best == holes_.end() || it->second < best->second)) {
            best = it;
        }
    }
    if (best == holes_.end()) {
        return std::nullopt;
    }
    //= VVFU-WINDOW-8
    const auto [hole, hole_size] = *best;
    const auto offset = align_like(hole, file_offset, alignment);
    const auto before = offset - hole;
    const auto after = hole_size - before - size;
    Ranges made;  // before anything changes: there may be no memory for it
    made.emplace(offset, size);
    if (after != 0) {
        made.emplace(offset + size, after);
    }
    if (before != 0) {
        best->second = before;
    } else {
        holes_.erase(best);
    }
    used_.insert(made.extract(offset));
    holes_.merge(made);
    free_bytes_ -= size;
    return offset;
}

void WindowAllocator::release(std::uint64_t offset) noexcept
{
    make_hole(used_.extract(offset));
}

void WindowAllocator::release_retired() noexcept
{
    while (!retired_.empty()) {
        make_hole(retired_.extract(retired_.begin()));
    }
}

void WindowAllocator::release_retired(std::uint64_t offset) noexcept
{
    make_hole(retired_.extract(offset));
}

void WindowAllocator::make_hole(Ranges::node_type range) noexcept
{
    free_bytes_ += range.mapped();
    auto next = holes_.lower_bound(range.key());
    if (next != holes_.end() && range.key() + range.mapped() == next->first) {
        range.mapped() += next->second;
        next = holes_.erase(next);
    }
    if (next != holes_.begin()) {
        auto previous = std::prev(next);
        if (previous->first + previous->second == range.key()) {
            previous->second += range.mapped();
            return;
        }
    }
    holes_.insert(std::move(range));
}

}  // namespace vvfu::core
