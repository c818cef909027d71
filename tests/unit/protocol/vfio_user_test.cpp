// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/vfio_user.hpp"

#include <gtest/gtest.h>

#include <random>

namespace vvfu::vfio_user {
namespace {

Buffer bytes(std::initializer_list<unsigned> values)
{
    Buffer out;
    for (const auto value : values) {
        out.push_back(static_cast<std::byte>(value));
    }
    return out;
}

template <typename T>
Buffer encoded(const T &value)
{
    Buffer out;
    append(out, value);
    return out;
}

Header header_of(const Buffer &message)
{
    const auto header = decode_header(message);
    EXPECT_TRUE(header.has_value());
    return header.value_or(Header{});
}

TEST(VfioUser, ACommandHasTheLayoutOfTheSpecification)
{
    Buffer message;
    begin_command(message, Command::region_read, 0x0102, kFlagNoReply);
    append(message, RegionAccess{0x1122334455667788, 7, 4});
    finish(message);
    const auto expected = bytes({0x02, 0x01, 9,    0,    32,   0,    0,    0,    0x10, 0, 0, 0, 0, 0, 0, 0,
                                 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 7,    0, 0, 0, 4, 0, 0, 0});
    EXPECT_EQ(expected, message);
}

TEST(VfioUser, RepliesRepeatIdAndCommand)
{
    const Header request{5, 3, 40, kFlagNoReply, 0};
    Buffer message;
    begin_reply(message, request);
    append(message, std::uint64_t{1});
    finish(message);
    EXPECT_EQ((Header{5, 3, 24, kTypeReply, 0}), header_of(message));
    encode_error(message, request, 22);
    EXPECT_EQ((Header{5, 3, 16, kTypeReply | kFlagError, 22}), header_of(message));
    EXPECT_EQ(16u, message.size());
}

TEST(VfioUser, HeaderAccessors)
{
    const Header header{1, 11, 16, kTypeReply | kFlagError, 14};
    EXPECT_EQ(kTypeReply, header.type());
    EXPECT_TRUE(header.is_error());
    EXPECT_FALSE(header.no_reply());
    EXPECT_EQ(Command::dma_read, header.kind());
    EXPECT_FALSE(decode_header(bytes({1, 2, 3})).has_value());
}

template <typename T>
void expect_round_trip(const T &value)
{
    auto wire = encoded(value);
    EXPECT_EQ(value, *decode_prefix<T>(wire));
    wire.push_back(std::byte{0});
    EXPECT_EQ(value, *decode_prefix<T>(wire));
    wire.resize(sizeof(T) - 1);
    EXPECT_EQ(DecodeError::too_short, decode_prefix<T>(wire).error());
}

TEST(VfioUser, StructuresRoundTrip)
{
    expect_round_trip(DmaMap{32, 3, 0x1000, 0x100000000, 0x200000});
    expect_round_trip(DmaUnmap{24, 2, 0, 0});
    expect_round_trip(Bitmap{4096, 8});
    expect_round_trip(DeviceInfo{16, 3, 9, 5});
    expect_round_trip(RegionInfo{64, 15, 2, 32, 0x4000, 0x1000});
    expect_round_trip(SparseCap{1, 1, 0, 3, 0});
    expect_round_trip(SparseArea{4096, 8192});
    expect_round_trip(RegionIoFds{16, 0, 1, 0});
    expect_round_trip(SubRegion{8, 4, 1, 0, 0, 0, 99});
    expect_round_trip(IrqInfo{16, 1, 2, 33});
    expect_round_trip(IrqSet{20, 0x24, 2, 1, 7});
    expect_round_trip(RegionAccess{0x10, 0, 4});
    expect_round_trip(DmaAccess{0x1000, 512});
    expect_round_trip(DeviceFeature{8, kFeatureGet | 1});
    expect_round_trip(MigData{8, 100});
}

TEST(VfioUser, ArgszBelowTheStructureIsABadValue)
{
    EXPECT_TRUE(decode_argsz<DmaMap>(encoded(DmaMap{32, 0, 0, 0, 0})));
    EXPECT_TRUE(decode_argsz<DmaMap>(encoded(DmaMap{99, 0, 0, 0, 0})));
    EXPECT_EQ(DecodeError::bad_value, decode_argsz<DmaMap>(encoded(DmaMap{31, 0, 0, 0, 0})).error());
    EXPECT_EQ(DecodeError::too_short, decode_argsz<DmaMap>(bytes({32, 0, 0, 0})).error());
}

TEST(VfioUser, RegionDataMustHaveAsManyBytesAsItSays)
{
    auto wire = encoded(RegionAccess{8, 1, 3});
    append_bytes(wire, bytes({1, 2, 3}));
    const auto decoded = decode_region_data(wire);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ((RegionAccess{8, 1, 3}), decoded->access);
    EXPECT_EQ(std::byte{2}, decoded->data[1]);
    wire.pop_back();
    EXPECT_EQ(DecodeError::bad_count, decode_region_data(wire).error());
    EXPECT_EQ(DecodeError::too_short, decode_region_data(bytes({0})).error());
}

TEST(VfioUser, DmaWriteRequest)
{
    auto wire = encoded(DmaAccess{8, 2});
    append_bytes(wire, bytes({1, 2}));
    EXPECT_EQ((DmaAccess{8, 2}), decode_dma_write(wire)->access);
    wire.push_back(std::byte{0});
    EXPECT_EQ(DecodeError::bad_count, decode_dma_write(wire).error());
    EXPECT_EQ(DecodeError::too_short, decode_dma_write({}).error());
}

Buffer short_access(std::uint64_t address, std::uint32_t count)
{
    Buffer out;
    append(out, address);
    append(out, count);
    return out;
}

TEST(VfioUser, DmaRepliesComeInTwoLayouts)
{
    const DmaAccess request{0x1000, 4};
    const auto data = bytes({1, 2, 3, 4});
    auto wide = encoded(request);
    append_bytes(wide, data);
    auto narrow = short_access(0x1000, 4);
    append_bytes(narrow, data);
    for (const auto &wire : {wide, narrow}) {
        const auto decoded = decode_dma_read_reply(wire, request);
        ASSERT_TRUE(decoded.has_value());
        EXPECT_TRUE(std::equal(data.begin(), data.end(), decoded->begin(), decoded->end()));
    }
    EXPECT_TRUE(decode_dma_write_reply(encoded(request), request));
    EXPECT_TRUE(decode_dma_write_reply(short_access(0x1000, 4), request));
    EXPECT_TRUE(decode_dma_write_reply({}, request));
}

TEST(VfioUser, DmaRepliesMustNameTheirRequest)
{
    const DmaAccess request{0x1000, 4};
    auto other_address = encoded(DmaAccess{0x1001, 4});
    append_bytes(other_address, bytes({1, 2, 3, 4}));
    EXPECT_EQ(DecodeError::bad_value, decode_dma_read_reply(other_address, request).error());
    auto other_count = short_access(0x1000, 5);
    append_bytes(other_count, bytes({1, 2, 3, 4}));
    EXPECT_EQ(DecodeError::bad_value, decode_dma_read_reply(other_count, request).error());
    const DmaAccess longer{0x1000, 5};
    EXPECT_EQ(DecodeError::length_mismatch, decode_dma_read_reply(encoded(longer), longer).error());
    EXPECT_EQ(DecodeError::bad_value, decode_dma_write_reply(encoded(DmaAccess{1, 4}), request).error());
    EXPECT_EQ(DecodeError::length_mismatch, decode_dma_write_reply(bytes({1}), request).error());
}

TEST(VfioUser, MultiWrite)
{
    Buffer wire;
    append(wire, std::uint64_t{2});
    vfio_user::MultiWrite write;
    write.offset = 4;
    write.count = 8;
    write.data[7] = std::byte{9};
    append(wire, write);
    append(wire, write);
    const auto decoded = decode_multi_write(wire);
    ASSERT_TRUE(decoded.has_value());
    ASSERT_EQ(2u, decoded->size());
    EXPECT_EQ(std::byte{9}, (*decoded)[1].data[7]);
    wire.pop_back();
    EXPECT_EQ(DecodeError::bad_count, decode_multi_write(wire).error());
    EXPECT_EQ(DecodeError::bad_count, decode_multi_write(encoded(std::uint64_t{1} << 61)).error());
    EXPECT_EQ(DecodeError::too_short, decode_multi_write(bytes({1})).error());
    EXPECT_TRUE(decode_multi_write(encoded(std::uint64_t{0}))->empty());
}

TEST(VfioUser, SetIrqsHasOneBoolPerVector)
{
    auto wire = encoded(IrqSet{22, kIrqDataBool | kIrqActionTrigger, 2, 0, 2});
    append_bytes(wire, bytes({1, 0}));
    const auto decoded = decode_set_irqs(wire);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(2u, decoded->bools.size());
    wire.push_back(std::byte{0});
    EXPECT_EQ(DecodeError::bad_count, decode_set_irqs(wire).error());
    EXPECT_TRUE(decode_set_irqs(encoded(IrqSet{20, kIrqDataNone | kIrqActionTrigger, 2, 0, 2}))->bools.empty());
    EXPECT_EQ(DecodeError::bad_value, decode_set_irqs(encoded(IrqSet{19, 0x21, 2, 0, 0})).error());
}

TEST(VfioUser, RegionInfoReplyWithAndWithoutSparseAreas)
{
    EXPECT_TRUE(decode_region_info_reply(encoded(RegionInfo{32, 3, 0, 0, 4096, 0}))->areas.empty());
    auto wire = encoded(RegionInfo{64, 15, 0, 32, 0x4000, 0});
    SparseCap cap;
    cap.nr_areas = 1;
    append(wire, cap);
    append(wire, SparseArea{0x1000, 0x1000});
    const auto decoded = decode_region_info_reply(wire);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ((std::vector<SparseArea>{{0x1000, 0x1000}}), decoded->areas);
    wire.pop_back();
    EXPECT_EQ(DecodeError::bad_count, decode_region_info_reply(wire).error());
    EXPECT_EQ(DecodeError::bad_value, decode_region_info_reply(encoded(RegionInfo{64, 8, 0, 31, 0, 0})).error());
    EXPECT_EQ(DecodeError::bad_value, decode_region_info_reply(encoded(RegionInfo{64, 8, 0, 33, 0, 0})).error());
    EXPECT_EQ(DecodeError::too_short, decode_region_info_reply(encoded(RegionInfo{64, 8, 0, 32, 0, 0})).error());
}

TEST(VfioUser, EveryCommandHasItsName)
{
    for (unsigned command = 0; command <= 19; ++command) {
        const bool known = command != 0 && command != 14 && command != 19;
        EXPECT_EQ(known, name(Command{static_cast<std::uint16_t>(command)}) != "UNKNOWN") << command;
    }
}

TEST(VfioUser, DecodersTakeAnyBytes)
{
    std::mt19937 random{7};
    for (int round = 0; round < 20000; ++round) {
        Buffer wire(random() % 80);
        for (auto &byte : wire) {
            byte = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 3);
        }
        (void)decode_region_data(wire);
        (void)decode_dma_write(wire);
        (void)decode_dma_read_reply(wire, DmaAccess{0, wire.size() / 2});
        (void)decode_dma_write_reply(wire, DmaAccess{0, 1});
        (void)decode_multi_write(wire);
        (void)decode_set_irqs(wire);
        (void)decode_region_info_reply(wire);
        (void)decode_version(wire);
    }
}

}  // namespace
}  // namespace vvfu::vfio_user
