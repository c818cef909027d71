// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <mutex>

namespace vvfu::nvme {

/// Memory for the data of commands. Some of what was used before is kept, because memory that comes fresh from the
/// kernel costs more than the copy into it. Any thread.
class BufferPool {
public:
    static constexpr std::size_t kKept = 4u * 1024 * 1024;  ///< bytes at most

    BufferPool() = default;
    BufferPool(const BufferPool &) = delete;
    BufferPool &operator=(const BufferPool &) = delete;
    ~BufferPool();

    /// At least `size` bytes with any contents, which come back to the pool with the last reference; nullptr: there is
    /// no memory.
    [[nodiscard]] static std::shared_ptr<std::byte[]> take(const std::shared_ptr<BufferPool> &pool, std::size_t size);
    [[nodiscard]] std::size_t kept() const;  ///< bytes

private:
    static constexpr std::size_t kSmallest = 4096;
    static constexpr unsigned kSizes = 8;  // each twice the one before; up to kMaxTransfer

    [[nodiscard]] std::byte *pop(unsigned size);
    void give_back(std::byte *buffer, unsigned size) noexcept;

    mutable std::mutex mutex_;
    std::array<std::byte *, kSizes> free_{};  // lists of buffers, the next one's address in the first bytes of each
    std::size_t kept_ = 0;
};

}  // namespace vvfu::nvme
