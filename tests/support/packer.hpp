// SPDX-License-Identifier: BSD-3-Clause
//
// Messages field by field, for tests: written without protocol/, so that a mistake there cannot hide here. vfio-user
// uses host byte order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace vvfu::test {

using Bytes = std::vector<std::byte>;

/// Appends fields: `Packer().u32(32).u32(0).take()`.
class Packer {
public:
    Packer &u8(std::uint8_t value) { return raw(value); }
    Packer &u16(std::uint16_t value) { return raw(value); }
    Packer &u32(std::uint32_t value) { return raw(value); }
    Packer &u64(std::uint64_t value) { return raw(value); }
    Packer &bytes(std::span<const std::byte> data)
    {
        bytes_.insert(bytes_.end(), data.begin(), data.end());
        return *this;
    }
    Packer &text(std::string_view text) { return bytes(std::as_bytes(std::span(text))); }
    Packer &zeros(std::size_t count)
    {
        bytes_.resize(bytes_.size() + count);
        return *this;
    }
    [[nodiscard]] const Bytes &view() const { return bytes_; }
    [[nodiscard]] Bytes take() { return std::move(bytes_); }

private:
    template <typename T>
    Packer &raw(T value)
    {
        return bytes(std::as_bytes(std::span(&value, 1)));
    }
    Bytes bytes_;
};

/// The value at byte `offset`; throws std::out_of_range beyond the end.
template <typename T>
T field(std::span<const std::byte> bytes, std::size_t offset)
{
    static_assert(std::is_trivially_copyable_v<T>);
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
        throw std::out_of_range("field beyond the end of the message");
    }
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

/// `count` bytes that follow a pattern of their own for each seed.
inline Bytes pattern(std::size_t count, std::uint32_t seed)
{
    Bytes bytes(count);
    std::uint32_t state = seed * 2654435761u + 1;
    for (auto &byte : bytes) {
        state = state * 1664525u + 1013904223u;
        byte = static_cast<std::byte>(state >> 24);
    }
    return bytes;
}

}  // namespace vvfu::test
