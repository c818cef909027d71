// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/register_bank.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace vvfu::guest {
namespace {

std::byte byte_of(std::uint64_t value, unsigned index)
{
    return static_cast<std::byte>(value >> (8 * index));
}

[[noreturn]] void reject(const Register &r, const char *why)
{
    throw std::invalid_argument(std::string("register ") + r.name + ": " + why);
}

}  // namespace

RegisterBank::RegisterBank(std::size_t size, std::byte unclaimed)
    : value_(size, unclaimed), reset_(size, unclaimed), rw_(size), w1c_(size), claimed_(size)
{
}

RegisterBank &RegisterBank::add(const Register &r)
{
    if (r.width < 1 || r.width > 8) {
        reject(r, "width is not 1..8");
    }
    if (r.offset > size() || r.width > size() - r.offset) {
        reject(r, "outside the bank");
    }
    const auto valid = r.width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * r.width)) - 1;
    if (((r.reset | r.rw | r.w1c) & ~valid) != 0) {
        reject(r, "mask or reset value wider than the register");
    }
    if ((r.rw & r.w1c) != 0) {
        reject(r, "a bit is both RW and W1C");
    }
    for (unsigned i = 0; i < r.width; ++i) {
        const auto at = r.offset + i;
        if (claimed_[at]) {
            reject(r, "overlaps another register");
        }
        claimed_[at] = true;
        value_[at] = reset_[at] = byte_of(r.reset, i);
        rw_[at] = byte_of(r.rw, i);
        w1c_[at] = byte_of(r.w1c, i);
    }
    return *this;
}

RegisterBank &RegisterBank::add(std::span<const Register> descriptions)
{
    for (const auto &description : descriptions) {
        add(description);
    }
    return *this;
}

void RegisterBank::read(std::size_t offset, std::span<std::byte> out) const
{
    std::copy_n(value_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
}

void RegisterBank::write(std::size_t offset, std::span<const std::byte> data)
{
    for (std::size_t i = 0; i < data.size(); ++i) {
        auto &value = value_[offset + i];
        const auto rw = rw_[offset + i];
        value = ((value & ~rw) | (data[i] & rw)) & ~(data[i] & w1c_[offset + i]);
    }
}

std::uint64_t RegisterBank::get(std::size_t offset, unsigned width) const
{
    std::uint64_t value = 0;
    for (unsigned i = 0; i < width; ++i) {
        value |= std::to_integer<std::uint64_t>(value_[offset + i]) << (8 * i);
    }
    return value;
}

void RegisterBank::set(std::size_t offset, unsigned width, std::uint64_t value)
{
    for (unsigned i = 0; i < width; ++i) {
        value_[offset + i] = byte_of(value, i);
    }
}

void RegisterBank::reset()
{
    value_ = reset_;
}

}  // namespace vvfu::guest
