// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/control.hpp"

#include <gtest/gtest.h>

#include <array>
#include <random>

namespace vvfu::control {
namespace {

/// Values for fields, the same on every run.
class Values {
public:
    std::uint64_t u64() { return generator_(); }
    std::uint32_t u32() { return static_cast<std::uint32_t>(generator_()); }
    std::uint16_t u16() { return static_cast<std::uint16_t>(generator_()); }
    std::uint32_t below(std::uint32_t limit) { return u32() % limit; }
    Buffer bytes(std::size_t count)
    {
        Buffer out(count);
        for (auto &byte : out) {
            byte = static_cast<std::byte>(generator_());
        }
        return out;
    }

private:
    std::mt19937_64 generator_{20240229};
};

constexpr int kRounds = 500;

template <typename... Parts>
Buffer encoded(const Parts &...parts)
{
    Buffer out;
    append(out, parts...);
    return out;
}

/// Every shorter payload and one that is a byte longer are refused.
template <typename Decode>
void expect_exact(const Buffer &payload, const Decode &decode)
{
    EXPECT_TRUE(decode(payload).has_value());
    for (std::size_t size = 0; size < payload.size(); ++size) {
        EXPECT_FALSE(decode(Bytes{payload}.first(size)).has_value()) << size << " of " << payload.size();
    }
    auto longer = payload;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(decode(longer).has_value());
}

DeviceInfo random_device(Values &values)
{
    DeviceInfo info;
    info.op = values.below(2) == 0 ? DeviceInfoOp::add : DeviceInfoOp::del;
    info.flags = values.u32();
    info.features = values.u64();
    info.vendor_id = values.u16();
    info.device_id = values.u16();
    info.subsystem_vendor_id = values.u16();
    info.subsystem_id = values.u16();
    info.class_revision = values.u32();
    for (auto i = values.below(5); i > 0; --i) {
        RegionInfo region{values.u32(), values.u32(), values.u64(), values.u64(), {}};
        for (auto k = values.below(4); k > 0; --k) {
            region.areas.push_back({values.u64(), values.u64()});
        }
        info.regions.push_back(region);
    }
    for (auto i = values.below(5); i > 0; --i) {
        info.irqs.push_back({values.u32(), values.u32()});
    }
    return info;
}

TEST(ControlHeader, SurvivesARoundTrip)
{
    Values values;
    for (int i = 0; i < kRounds; ++i) {
        const auto flags = static_cast<std::uint16_t>(values.below(4));
        const Header header{
            Type{values.u16()}, flags,        0,
            values.u64(),       values.u32(), (flags & kFlagReply) != 0 ? Status{values.u32()} : Status::ok};
        Buffer out = values.bytes(7);  // begin() clears what was there
        begin(out, header);
        const auto payload = values.bytes(values.below(100));
        out.insert(out.end(), payload.begin(), payload.end());
        finish(out);
        const auto decoded = decode_header(out);
        ASSERT_TRUE(decoded.has_value());
        EXPECT_EQ(decoded->type, header.type);
        EXPECT_EQ(decoded->flags, header.flags);
        EXPECT_EQ(decoded->length, out.size());
        EXPECT_EQ(decoded->request_id, header.request_id);
        EXPECT_EQ(decoded->epoch, header.epoch);
        EXPECT_EQ(decoded->status, header.status);
        EXPECT_EQ(decoded->is_reply(), (header.flags & 1) != 0);
        EXPECT_EQ(decoded->is_posted(), (header.flags & 2) != 0);
    }
}

TEST(ControlHeader, RefusesWrongLengthsUndefinedFlagsAndReservedBits)
{
    Buffer good;
    begin(good, {Type::peer, 0, 0, 1, 1, Status::ok});
    finish(good);
    const auto changed = [&](std::size_t offset, unsigned value) {
        auto out = good;
        out.at(offset) = static_cast<std::byte>(value);
        return decode_header(out);
    };
    EXPECT_EQ(decode_header(Bytes{good}.first(31)).error(), DecodeError::too_short);
    EXPECT_EQ(decode_header({}).error(), DecodeError::too_short);
    EXPECT_EQ(changed(4, 31).error(), DecodeError::length_mismatch);
    EXPECT_EQ(changed(4, 33).error(), DecodeError::length_mismatch);
    EXPECT_EQ(changed(7, 1).error(), DecodeError::length_mismatch);
    EXPECT_EQ(changed(2, 4).error(), DecodeError::bad_value);
    EXPECT_EQ(changed(3, 0x80).error(), DecodeError::bad_value);
    for (std::size_t offset = 24; offset < 32; ++offset) {
        EXPECT_EQ(changed(offset, 1).error(), DecodeError::bad_value) << offset;
    }
    EXPECT_EQ(changed(20, 1).error(), DecodeError::bad_value) << "a request has no status";
    EXPECT_EQ(changed(23, 1).error(), DecodeError::bad_value);
    EXPECT_TRUE(changed(0, 0xff).has_value()) << "types are not the header's business";
}

TEST(ControlDeviceInfo, SurvivesARoundTripAndIsRefusedAtAnyOtherLength)
{
    Values values;
    for (int i = 0; i < kRounds; ++i) {
        auto info = random_device(values);
        info.op = DeviceInfoOp::add;
        const auto payload = encoded(info);
        const auto decoded = decode_device_info(payload);
        ASSERT_TRUE(decoded.has_value());
        EXPECT_EQ(*decoded, info);
        if (i < 20) {
            expect_exact(payload, decode_device_info);
        }
    }
}

//= VVFU-DEVICE-5
//= type=test
TEST(ControlDeviceInfo, OfDelOnlyTheOperationCounts)
{
    Values values;
    for (int i = 0; i < kRounds; ++i) {
        auto info = random_device(values);
        info.op = DeviceInfoOp::del;
        auto payload = encoded(info);
        const auto more = values.bytes(values.below(100));
        payload.insert(payload.end(), more.begin(), more.end());
        const auto decoded = decode_device_info(payload);
        ASSERT_TRUE(decoded.has_value());
        EXPECT_EQ(decoded->op, DeviceInfoOp::del);
        EXPECT_TRUE(decoded->regions.empty());
        EXPECT_EQ(decode_device_info(Bytes{payload}.first(31)).error(), DecodeError::too_short);
    }
}

TEST(ControlDeviceInfo, RefusesCountsThatTheMessageDoesNotHold)
{
    DeviceInfo info;
    info.regions = {{0, 0, 4096, 0, {{0, 4096}}}};
    auto payload = encoded(info);
    const auto with = [&](std::size_t offset, unsigned value) {
        auto out = payload;
        out.at(offset) = static_cast<std::byte>(value);
        return decode_device_info(out);
    };
    EXPECT_EQ(with(28, 2).error(), DecodeError::bad_count) << "regions";
    EXPECT_EQ(with(29, 0xff).error(), DecodeError::bad_count) << "65281 regions";
    EXPECT_EQ(with(30, 3).error(), DecodeError::bad_count) << "interrupts";
    EXPECT_EQ(with(32 + 24, 2).error(), DecodeError::bad_count) << "areas";
    EXPECT_EQ(with(32 + 27, 0xff).error(), DecodeError::bad_count) << "4278190081 areas";
    EXPECT_EQ(with(0, 0).error(), DecodeError::bad_value) << "operation";
    EXPECT_EQ(with(0, 3).error(), DecodeError::bad_value) << "operation";
}

TEST(ControlMessages, FixedPayloadsSurviveARoundTripAndAreRefusedAtAnyOtherLength)
{
    Values v;
    for (int i = 0; i < kRounds; ++i) {
        const Peer peer{i % 2 == 0 ? PeerOp::up : PeerOp::down,
                        DownReason{v.u32()},
                        v.u16(),
                        v.u16(),
                        v.u32(),
                        v.u64(),
                        v.u32(),
                        v.u32(),
                        v.u32()};
        EXPECT_EQ(decode_peer(encoded(peer)), peer);
        const FeatureBits bits{v.u64()};
        EXPECT_EQ(decode_feature_bits(encoded(bits)), bits);
        const MemoryInfo memory{i % 2 == 0 ? MemoryOp::add : MemoryOp::del, v.u32(), v.u64(), v.u64(), v.u64()};
        EXPECT_EQ(decode_memory_info(encoded(memory)), memory);
        const RegionAccess access{v.u64(), v.u32(), v.u32()};
        EXPECT_EQ(decode_region_access(encoded(access)), access);
        const IrqInfo irq{v.u32(), v.u32(), v.u32(), IrqAction{1 + v.below(5)}};
        EXPECT_EQ(decode_irq_info(encoded(irq)), irq);
        const IrqTrigger trigger{v.u32(), v.u32()};
        EXPECT_EQ(decode_irq_trigger(encoded(trigger)), trigger);
        const DmaAccess dma{v.u64(), v.u64()};
        EXPECT_EQ(decode_dma_access(encoded(dma)), dma);
    }
    expect_exact(encoded(Peer{}), decode_peer);
    expect_exact(encoded(FeatureBits{}), decode_feature_bits);
    expect_exact(encoded(MemoryInfo{}), decode_memory_info);
    expect_exact(encoded(RegionAccess{}), decode_region_access);
    expect_exact(encoded(IrqInfo{}), decode_irq_info);
    expect_exact(encoded(IrqTrigger{}), decode_irq_trigger);
    expect_exact(encoded(DmaAccess{}), decode_dma_access);
}

TEST(ControlMessages, RefuseUndefinedOperationsAndActions)
{
    const auto with_operation = [](Buffer payload, std::size_t offset, unsigned value) {
        payload.at(offset) = static_cast<std::byte>(value);
        return payload;
    };
    for (const unsigned value : {0u, 3u, 255u}) {
        EXPECT_EQ(decode_peer(with_operation(encoded(Peer{}), 0, value)).error(), DecodeError::bad_value);
        EXPECT_EQ(decode_memory_info(with_operation(encoded(MemoryInfo{}), 0, value)).error(), DecodeError::bad_value);
    }
    for (const unsigned value : {0u, 6u, 255u}) {
        EXPECT_EQ(decode_irq_info(with_operation(encoded(IrqInfo{}), 12, value)).error(), DecodeError::bad_value);
    }
}

TEST(ControlData, CarriesExactlyAsManyBytesAsItSays)
{
    Values values;
    for (const std::uint32_t count : {0u, 1u, 4u, 4096u}) {
        const auto data = values.bytes(count);
        const RegionAccess access{values.u64(), values.u32(), count};
        const auto region = encoded(access, Bytes{data});
        const auto decoded = decode_region_data(region);
        ASSERT_TRUE(decoded.has_value());
        EXPECT_EQ(decoded->access, access);
        EXPECT_EQ(Buffer(decoded->data.begin(), decoded->data.end()), data);
        const DmaAccess dma{values.u64(), count};
        const auto transfer = encoded(dma, Bytes{data});
        const auto decoded_dma = decode_dma_data(transfer);
        ASSERT_TRUE(decoded_dma.has_value());
        EXPECT_EQ(decoded_dma->access, dma);
        EXPECT_EQ(Buffer(decoded_dma->data.begin(), decoded_dma->data.end()), data);
        if (count <= 4) {
            expect_exact(region, decode_region_data);
            expect_exact(transfer, decode_dma_data);
        }
    }
    EXPECT_EQ(decode_dma_data(encoded(DmaAccess{0, std::uint64_t{1} << 32})).error(), DecodeError::bad_count)
        << "the count is not cut to 32 bits";
}

TEST(ControlMultiWrite, SurvivesARoundTripAndRefusesBadCounts)
{
    Values values;
    std::vector<MultiWrite> writes;
    for (std::uint32_t count = 1; count <= 8; ++count) {
        MultiWrite write{{values.u64(), values.u32(), count}, {}};
        const auto data = values.bytes(8);
        std::copy(data.begin(), data.end(), write.data);
        writes.push_back(write);
    }
    const auto payload = encoded(std::span<const MultiWrite>{writes});
    const auto decoded = decode_multi_write(payload);
    ASSERT_TRUE(decoded.has_value());
    ASSERT_EQ(decoded->size(), writes.size());
    for (std::size_t i = 0; i < writes.size(); ++i) {
        EXPECT_EQ((*decoded)[i].access, writes[i].access);
        EXPECT_TRUE(std::equal(std::begin(writes[i].data), std::end(writes[i].data), (*decoded)[i].data));
    }
    expect_exact(payload, decode_multi_write);
    auto bad = payload;
    bad[7] = std::byte{0x15};  // 2^56 times as many entries: the product with 24 must not wrap
    EXPECT_EQ(decode_multi_write(bad).error(), DecodeError::bad_count);
    for (const unsigned count : {0u, 9u}) {
        bad = payload;
        bad[8 + 12] = static_cast<std::byte>(count);
        EXPECT_EQ(decode_multi_write(bad).error(), DecodeError::bad_value);
    }
}

//= VVFU-MSG-8
//= VVFU-MSG-9
//= type=test
TEST(ControlText, IsCutAndHarmless)
{
    Buffer out;
    append_text(out, std::string(1000, 'x'));
    EXPECT_EQ(out.size(), 256u);
    EXPECT_EQ(decode_text(out), std::string(256, 'x'));
    out.clear();
    append_text(out, "a\x1b[2J\n\r\t\x7f\x01z\xc3\xa9");
    EXPECT_EQ(decode_text(out), "a?[2J?????z\xc3\xa9");
    EXPECT_EQ(decode_text({}), "");
    EXPECT_EQ(decode_text(Buffer(5000, std::byte{'y'})).size(), 256u);
}

TEST(ControlNames, EveryValueHasItsOwnName)
{
    EXPECT_EQ(name(Type::region_write_multi), "REGION_WRITE_MULTI");
    EXPECT_EQ(name(Type{0}), "UNKNOWN");
    EXPECT_EQ(name(Status::not_connected), "NOT_CONNECTED");
    EXPECT_EQ(name(Status{12}), "UNKNOWN");
    EXPECT_EQ(name(DownReason::guest_closed), "closed by the device guest");
    EXPECT_EQ(name(DownReason{99}), "unknown");
    EXPECT_EQ(describe(DecodeError::bad_count), "count disagrees with message size");
}

TEST(ControlDecoders, SurviveAnyBytes)
{
    Values values;
    for (int i = 0; i < 20'000; ++i) {
        const auto bytes = values.bytes(values.below(200));
        static_cast<void>(decode_header(bytes));
        static_cast<void>(decode_device_info(bytes));
        static_cast<void>(decode_peer(bytes));
        static_cast<void>(decode_memory_info(bytes));
        static_cast<void>(decode_region_data(bytes));
        static_cast<void>(decode_multi_write(bytes));
        static_cast<void>(decode_irq_info(bytes));
        static_cast<void>(decode_dma_data(bytes));
        EXPECT_LE(decode_text(bytes).size(), kTextMax);
    }
}

}  // namespace
}  // namespace vvfu::control
