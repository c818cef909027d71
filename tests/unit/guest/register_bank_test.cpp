// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/register_bank.hpp"

#include <gmock/gmock.h>

#include <stdexcept>

namespace vvfu::guest {
namespace {

using testing::ElementsAre;

std::vector<std::byte> bytes(std::initializer_list<int> values)
{
    std::vector<std::byte> out;
    for (const int value : values) {
        out.push_back(static_cast<std::byte>(value));
    }
    return out;
}

std::vector<std::byte> read(const RegisterBank &bank, std::size_t offset, std::size_t size)
{
    std::vector<std::byte> out(size);
    bank.read(offset, out);
    return out;
}

TEST(RegisterBank, UnclaimedBytesReadAsGivenAndIgnoreWrites)
{
    RegisterBank bank(16);
    bank.add({"r", 4, 4, 0x11223344, 0xffffffff});
    EXPECT_EQ(read(bank, 2, 8), bytes({0xff, 0xff, 0x44, 0x33, 0x22, 0x11, 0xff, 0xff}));
    bank.write(0, bytes({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
    EXPECT_EQ(read(bank, 2, 8), bytes({0xff, 0xff, 5, 6, 7, 8, 0xff, 0xff}));
    EXPECT_EQ(read(RegisterBank(4, std::byte{0}), 0, 4), bytes({0, 0, 0, 0}));
}

TEST(RegisterBank, GuestWritesObserveMasks)
{
    RegisterBank bank(8);
    bank.add({"mixed", 0, 4, 0xff00ff00, 0x0000ffff, 0x00ff0000});
    bank.set(0, 4, 0xffffffff);
    bank.write(0, bytes({0x12, 0x34, 0x0f, 0x00}));
    EXPECT_EQ(bank.get(0, 4), 0xfff03412u) << "high byte read-only, third byte write-1-to-clear, low half writable";
}

TEST(RegisterBank, WritesCrossRegisters)
{
    RegisterBank bank(8);
    bank.add({"a", 0, 2, 0, 0xffff}).add({"b", 2, 2, 0xbeef}).add({"c", 4, 4, 0, 0xffffffff});
    bank.write(1, bytes({0xaa, 0, 0, 0xcc}));
    EXPECT_EQ(bank.get(0, 2), 0xaa00u);
    EXPECT_EQ(bank.get(2, 2), 0xbeefu);
    EXPECT_EQ(bank.get(4, 4), 0xccu);
}

TEST(RegisterBank, DeviceWritesIgnoreMasksAndResetRestores)
{
    RegisterBank bank(8);
    bank.add({"ro", 0, 8, 0x0102030405060708});
    bank.set(0, 8, ~0ull);
    EXPECT_EQ(bank.get(0, 8), ~0ull);
    bank.set(3, 1, 0);
    EXPECT_EQ(bank.get(0, 4), 0x00ffffffu);
    bank.reset();
    EXPECT_EQ(bank.get(0, 8), 0x0102030405060708u);
}

TEST(RegisterBank, BadDescriptionsAreRejected)
{
    RegisterBank bank(8);
    bank.add({"r", 2, 4});
    EXPECT_THROW(bank.add({"overlap", 4, 4}), std::invalid_argument);
    EXPECT_THROW(bank.add({"outside", 6, 4}), std::invalid_argument);
    EXPECT_THROW(bank.add({"far", 0xfffffff0, 4}), std::invalid_argument);
    EXPECT_THROW(bank.add({"width", 0, 0}), std::invalid_argument);
    EXPECT_THROW(bank.add({"wide", 0, 1, 0x100}), std::invalid_argument);
    EXPECT_THROW(bank.add({"both", 0, 1, 0, 1, 1}), std::invalid_argument);
}

}  // namespace
}  // namespace vvfu::guest
