// SPDX-License-Identifier: BSD-3-Clause
#include "buffer_pool.hpp"

#include <cstring>
#include <new>

#include "spec.hpp"

namespace vvfu::nvme {

BufferPool::~BufferPool()
{
    for (unsigned size = 0; size < kSizes; ++size) {
        while (free_[size] != nullptr) {
            delete[] pop(size);
        }
    }
}

std::shared_ptr<std::byte[]> BufferPool::take(const std::shared_ptr<BufferPool> &pool, std::size_t size)
{
    static_assert(kSmallest << (kSizes - 1) == kMaxTransfer);
    unsigned index = 0;
    while (index < kSizes && kSmallest << index < size) {
        ++index;
    }
    if (index == kSizes) {
        return std::shared_ptr<std::byte[]>{new (std::nothrow) std::byte[size]};
    }
    std::byte *buffer = nullptr;
    {
        const std::lock_guard lock{pool->mutex_};
        buffer = pool->pop(index);
    }
    if (buffer == nullptr) {
        buffer = new (std::nothrow) std::byte[kSmallest << index];
    }
    if (buffer == nullptr) {
        return nullptr;
    }
    return {buffer, [pool, index](std::byte *bytes) { pool->give_back(bytes, index); }};
}

/// The mutex is held, or nobody else has the pool.
std::byte *BufferPool::pop(unsigned size)
{
    auto *buffer = free_[size];
    if (buffer != nullptr) {
        std::memcpy(&free_[size], buffer, sizeof(buffer));
        kept_ -= kSmallest << size;
    }
    return buffer;
}

void BufferPool::give_back(std::byte *buffer, unsigned size) noexcept
{
    {
        const std::lock_guard lock{mutex_};
        if (kept_ + (kSmallest << size) <= kKept) {
            std::memcpy(buffer, &free_[size], sizeof(buffer));
            free_[size] = buffer;
            kept_ += kSmallest << size;
            return;
        }
    }
    delete[] buffer;
}

std::size_t BufferPool::kept() const
{
    const std::lock_guard lock{mutex_};
    return kept_;
}

}  // namespace vvfu::nvme
