// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string_view>

#include "backing.hpp"

namespace vvfu::nvme {

/// Anonymous memory, allocated page by page when first written. Every operation completes inside the call.
class MemoryBacking final : public Backing {
public:
    /// `size`: bytes, not 0.
    [[nodiscard]] static guest::Result<std::unique_ptr<Backing>> create(std::uint64_t size);
    ~MemoryBacking() override;
    MemoryBacking(const MemoryBacking &) = delete;
    MemoryBacking &operator=(const MemoryBacking &) = delete;

    [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }
    [[nodiscard]] bool volatile_cache() const noexcept override { return false; }
    [[nodiscard]] bool discard_zeroes() const noexcept override { return true; }
    void read(ByteRange range, ReadDone done) override;
    void write(std::uint64_t offset, std::span<const iovec> data, Done done) override;
    void write_zeroes(ByteRange range, bool deallocate, Done done) override;
    void discard(std::vector<ByteRange> ranges, Done done) override;

protected:
    void sync(Done done) override { done(0); }

private:
    MemoryBacking(std::byte *data, std::uint64_t size) noexcept : data_(data), size_(size) {}
    int zero(ByteRange range);

    std::byte *data_;
    std::uint64_t size_;
};

/// "256M" and the like as bytes: digits and an optional suffix K, M, G or T (powers of 1024, either case).
[[nodiscard]] guest::Result<std::uint64_t> parse_size(std::string_view text);

}  // namespace vvfu::nvme
