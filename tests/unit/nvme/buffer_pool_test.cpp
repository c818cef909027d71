// SPDX-License-Identifier: BSD-3-Clause
#include "buffer_pool.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "spec.hpp"

namespace vvfu::nvme {
namespace {

TEST(BufferPool, GivesOutWhatCameBack)
{
    const auto pool = std::make_shared<BufferPool>();
    auto buffer = BufferPool::take(pool, 5000);
    const auto *address = buffer.get();
    EXPECT_EQ(pool->kept(), 0u);
    buffer.reset();
    EXPECT_EQ(pool->kept(), 8192u);
    const auto small = BufferPool::take(pool, 4096), large = BufferPool::take(pool, 8193);
    EXPECT_EQ(pool->kept(), 8192u) << "neither is of that size";
    buffer = BufferPool::take(pool, 8192);
    EXPECT_EQ(buffer.get(), address);
    EXPECT_EQ(pool->kept(), 0u);
}

TEST(BufferPool, KeepsNoMoreThanItMay)
{
    const auto pool = std::make_shared<BufferPool>();
    std::vector<std::shared_ptr<std::byte[]>> buffers;
    for (std::size_t bytes = 0; bytes < 2 * BufferPool::kKept; bytes += kMaxTransfer) {
        buffers.push_back(BufferPool::take(pool, kMaxTransfer));
        std::memset(buffers.back().get(), 1, kMaxTransfer);
    }
    buffers.push_back(BufferPool::take(pool, 2 * kMaxTransfer));
    buffers.clear();
    EXPECT_EQ(pool->kept(), BufferPool::kKept);
}

TEST(BufferPool, BuffersOutliveTheirOwnerAndComeBackFromAnyThread)
{
    auto pool = std::make_shared<BufferPool>();
    auto buffer = BufferPool::take(pool, 1);
    std::thread other{[&pool] {
        for (int i = 0; i < 1000; ++i) {
            static_cast<void>(BufferPool::take(pool, 4096));
        }
    }};
    for (int i = 0; i < 1000; ++i) {
        static_cast<void>(BufferPool::take(pool, 4096));
    }
    other.join();
    EXPECT_LE(pool->kept(), 2 * 4096u);
    pool.reset();
    buffer[4095] = std::byte{1};  // the address sanitizer watches
    buffer.reset();
}

}  // namespace
}  // namespace vvfu::nvme
