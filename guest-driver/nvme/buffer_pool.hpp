// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace vvfu::nvme {

/// Memory for the data of commands. Some of what was used before is kept, because memory that comes fresh from the
/// kernel costs more than the copy into it. Any thread.
class BufferPool {
public:
    static constexpr std::size_t kKept = 4u * 1024 * 1024;  ///< bytes at most

    BufferPool();
    BufferPool(const BufferPool &) = delete;
    BufferPool &operator=(const BufferPool &) = delete;

    /// At least `size` bytes with any contents, which come back to the pool with the last reference; nullptr: there is
    /// no memory.
    [[nodiscard]] static std::shared_ptr<std::byte[]> take(const std::shared_ptr<BufferPool> &pool, std::size_t size);
    [[nodiscard]] std::size_t kept() const;  ///< bytes

private:
    static constexpr std::size_t kSmallest = 4096;
    static constexpr std::size_t kSizes = 8;  // each twice the one before; up to kMaxTransfer
    using Buffer = std::unique_ptr<std::byte[]>;

    [[nodiscard]] Buffer pop(std::size_t index);
    void give_back(Buffer buffer, std::size_t index) noexcept;

    mutable std::mutex mutex_;
    std::array<std::vector<Buffer>, kSizes> free_;  // with room for all that may be kept
    std::size_t kept_ = 0;
};

}  // namespace vvfu::nvme
