// SPDX-License-Identifier: BSD-3-Clause
#include "buffer_pool.hpp"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "spec.hpp"

namespace vvfu::nvme {

BufferPool::BufferPool()
{
    for (std::size_t index = 0; index < kSizes; ++index) {
        free_[index].reserve(kKept / (kSmallest << index));
    }
}

std::shared_ptr<std::byte[]> BufferPool::take(const std::shared_ptr<BufferPool> &pool, std::size_t size)
{
    static_assert(kSmallest << (kSizes - 1) == kMaxTransfer);
    const auto index = static_cast<std::size_t>(std::bit_width((std::max<std::size_t>(size, 1) - 1) / kSmallest));
    if (index >= kSizes) {
        return std::shared_ptr<std::byte[]>{new (std::nothrow) std::byte[size]};
    }
    auto buffer = pool->pop(index);
    if (!buffer) {
        buffer.reset(new (std::nothrow) std::byte[kSmallest << index]);
    }
    if (!buffer) {
        return nullptr;
    }
    return {buffer.release(), [pool, index](std::byte *bytes) { pool->give_back(Buffer{bytes}, index); }};
}

BufferPool::Buffer BufferPool::pop(std::size_t index)
{
    const std::lock_guard lock{mutex_};
    auto &free = free_[index];
    if (free.empty()) {
        return nullptr;
    }
    auto buffer = std::move(free.back());
    free.pop_back();
    kept_ -= kSmallest << index;
    return buffer;
}

/// What is over the limit is freed.
void BufferPool::give_back(Buffer buffer, std::size_t index) noexcept
{
    const std::lock_guard lock{mutex_};
    const auto size = kSmallest << index;
    if (kept_ + size <= kKept) {
        free_[index].push_back(std::move(buffer));
        kept_ += size;
    }
}

std::size_t BufferPool::kept() const
{
    const std::lock_guard lock{mutex_};
    return kept_;
}

}  // namespace vvfu::nvme
