// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/control.hpp"

#include <algorithm>
#include <boost/endian/buffers.hpp>
#include <cstring>
#include <type_traits>

namespace vvfu::control {
namespace {

using boost::endian::little_uint16_buf_t;
using boost::endian::little_uint32_buf_t;
using boost::endian::little_uint64_buf_t;

// Wire layouts: one struct per message, sizes pinned. Members have alignment 1.

struct HeaderWire {
    little_uint16_buf_t type;
    little_uint16_buf_t flags;
    little_uint32_buf_t length;
    little_uint64_buf_t request_id;
    little_uint32_buf_t epoch;
    little_uint32_buf_t status;
    little_uint64_buf_t reserved;
};
static_assert(sizeof(HeaderWire) == kHeaderSize && offsetof(HeaderWire, request_id) == 8 &&
              offsetof(HeaderWire, epoch) == 16 && offsetof(HeaderWire, reserved) == 24);

struct DeviceInfoWire {
    little_uint32_buf_t op;
    little_uint32_buf_t flags;
    little_uint64_buf_t features;
    little_uint16_buf_t vendor_id;
    little_uint16_buf_t device_id;
    little_uint16_buf_t subsystem_vendor_id;
    little_uint16_buf_t subsystem_id;
    little_uint32_buf_t class_revision;
    little_uint16_buf_t region_count;
    little_uint16_buf_t irq_count;
};
static_assert(sizeof(DeviceInfoWire) == 32 && offsetof(DeviceInfoWire, region_count) == 28);

struct RegionInfoWire {
    little_uint32_buf_t index;
    little_uint32_buf_t flags;
    little_uint64_buf_t size;
    little_uint64_buf_t region_memory_offset;
    little_uint32_buf_t area_count;
    little_uint32_buf_t reserved;
};
static_assert(sizeof(RegionInfoWire) == 32 && offsetof(RegionInfoWire, area_count) == 24);

struct AreaWire {
    little_uint64_buf_t offset;
    little_uint64_buf_t size;
};
static_assert(sizeof(AreaWire) == 16);

struct IrqCountWire {
    little_uint32_buf_t index;
    little_uint32_buf_t count;
};
static_assert(sizeof(IrqCountWire) == 8);

struct PeerWire {
    little_uint32_buf_t op;
    little_uint32_buf_t reason;
    little_uint16_buf_t major;
    little_uint16_buf_t minor;
    little_uint32_buf_t max_msg_fds;
    little_uint64_buf_t max_data_xfer_size;
    little_uint32_buf_t pid;
    little_uint32_buf_t uid;
    little_uint32_buf_t gid;
    little_uint32_buf_t reserved;
};
static_assert(sizeof(PeerWire) == 40 && offsetof(PeerWire, pid) == 24);

struct FeatureBitsWire {
    little_uint64_buf_t features;
};
static_assert(sizeof(FeatureBitsWire) == 8);

struct MemoryInfoWire {
    little_uint32_buf_t op;
    little_uint32_buf_t flags;
    little_uint64_buf_t address;
    little_uint64_buf_t size;
    little_uint64_buf_t window_offset;
};
static_assert(sizeof(MemoryInfoWire) == 32);

struct RegionAccessWire {
    little_uint64_buf_t offset;
    little_uint32_buf_t region;
    little_uint32_buf_t count;
};
static_assert(sizeof(RegionAccessWire) == kRegionAccessSize);

struct MultiWriteHeaderWire {
    little_uint64_buf_t count;
};
struct MultiWriteWire {
    RegionAccessWire access;
    std::byte data[8];
};
static_assert(sizeof(MultiWriteWire) == 24);

struct IrqInfoWire {
    little_uint32_buf_t index;
    little_uint32_buf_t start;
    little_uint32_buf_t count;
    little_uint32_buf_t action;
};
static_assert(sizeof(IrqInfoWire) == 16);

struct IrqTriggerWire {
    little_uint32_buf_t index;
    little_uint32_buf_t vector;
};
static_assert(sizeof(IrqTriggerWire) == 8);

struct DmaAccessWire {
    little_uint64_buf_t address;
    little_uint64_buf_t count;
};
static_assert(sizeof(DmaAccessWire) == kDmaAccessSize);

template <typename Wire>
void append_wire(Buffer &out, const Wire &wire)
{
    static_assert(std::is_trivially_copyable_v<Wire> && alignof(Wire) == 1);
    const auto bytes = std::as_bytes(std::span{&wire, 1});
    out.insert(out.end(), bytes.begin(), bytes.end());
}

/// Bounds-checked reading position in a private copy of a message.
class Cursor {
public:
    explicit Cursor(Bytes bytes) : rest_(bytes) {}

    template <typename Wire>
    [[nodiscard]] bool read(Wire &wire)
    {
        static_assert(std::is_trivially_copyable_v<Wire>);
        if (rest_.size() < sizeof(Wire)) {
            return false;
        }
        std::memcpy(&wire, rest_.data(), sizeof(Wire));
        rest_ = rest_.subspan(sizeof(Wire));
        return true;
    }
    [[nodiscard]] Bytes rest() const { return rest_; }

private:
    Bytes rest_;
};

template <typename T>
Decoded<T> fail(DecodeError error)
{
    return make_unexpected(error);
}

/// A payload that consists of one fixed structure. Longer is an error: the receiver would ignore fields.
template <typename Wire>
Decoded<Wire> exact(Bytes payload)
{
    Wire wire{};
    Cursor cursor{payload};
    if (!cursor.read(wire)) {
        return fail<Wire>(DecodeError::too_short);
    }
    if (!cursor.rest().empty()) {
        return fail<Wire>(DecodeError::length_mismatch);
    }
    return wire;
}

RegionAccess value(const RegionAccessWire &wire)
{
    return {wire.offset.value(), wire.region.value(), wire.count.value()};
}

RegionAccessWire wire(const RegionAccess &access)
{
    RegionAccessWire w{};
    w.offset = access.offset;
    w.region = access.region;
    w.count = access.count;
    return w;
}

}  // namespace

std::string_view name(Type type) noexcept
{
    switch (type) {
        case Type::device_info: return "DEVICE_INFO";
        case Type::peer: return "PEER";
        case Type::feature_bits: return "FEATURE_BITS";
        case Type::memory_info: return "MEMORY_INFO";
        case Type::region_read: return "REGION_READ";
        case Type::region_write: return "REGION_WRITE";
        case Type::region_write_multi: return "REGION_WRITE_MULTI";
        case Type::irq_info: return "IRQ_INFO";
        case Type::device_reset: return "DEVICE_RESET";
        case Type::device_feature: return "DEVICE_FEATURE";
        case Type::migration_data: return "MIGRATION_DATA";
        case Type::dma_read: return "DMA_READ";
        case Type::dma_write: return "DMA_WRITE";
        case Type::irq_trigger: return "IRQ_TRIGGER";
        case Type::peer_close: return "PEER_CLOSE";
    }
    return "UNKNOWN";
}

std::string_view name(Status status) noexcept
{
    switch (status) {
        case Status::ok: return "OK";
        case Status::stale: return "STALE";
        case Status::invalid: return "INVALID";
        case Status::unsupported: return "UNSUPPORTED";
        case Status::busy: return "BUSY";
        case Status::not_found: return "NOT_FOUND";
        case Status::fault: return "FAULT";
        case Status::permission: return "PERMISSION";
        case Status::timeout: return "TIMEOUT";
        case Status::no_space: return "NO_SPACE";
        case Status::io: return "IO";
        case Status::not_connected: return "NOT_CONNECTED";
    }
    return "UNKNOWN";
}

std::string_view name(DownReason reason) noexcept
{
    switch (reason) {
        case DownReason::none: return "none";
        case DownReason::peer_closed: return "peer closed the connection";
        case DownReason::protocol_error: return "protocol error";
        case DownReason::guest_closed: return "closed by the device guest";
        case DownReason::device_deleted: return "device withdrawn";
        case DownReason::host_error: return "host error";
    }
    return "unknown";
}

std::string_view describe(DecodeError error) noexcept
{
    switch (error) {
        case DecodeError::too_short: return "message too short";
        case DecodeError::length_mismatch: return "length field and message size differ";
        case DecodeError::bad_value: return "undefined value in a field";
        case DecodeError::bad_count: return "count disagrees with message size";
    }
    return "unknown";
}

Decoded<Header> decode_header(Bytes message)
{
    HeaderWire wire{};
    Cursor cursor{message};
    if (!cursor.read(wire)) {
        return fail<Header>(DecodeError::too_short);
    }
    if (wire.length.value() != message.size()) {
        return fail<Header>(DecodeError::length_mismatch);
    }
    const auto flags = wire.flags.value();
    const bool status_in_request = (flags & kFlagReply) == 0 && wire.status.value() != 0;
    if ((flags & ~unsigned{kFlagReply | kFlagPosted}) != 0 || wire.reserved.value() != 0 || status_in_request) {
        return fail<Header>(DecodeError::bad_value);
    }
    return Header{Type{wire.type.value()},    flags, wire.length.value(), wire.request_id.value(), wire.epoch.value(),
                  Status{wire.status.value()}};
}

void begin(Buffer &out, const Header &header)
{
    HeaderWire wire{};
    wire.type = static_cast<std::uint16_t>(header.type);
    wire.flags = header.flags;
    wire.length = kHeaderSize;
    wire.request_id = header.request_id;
    wire.epoch = header.epoch;
    wire.status = static_cast<std::uint32_t>(header.status);
    wire.reserved = 0;
    out.clear();
    append_wire(out, wire);
}

//= VVFU-MSG-1
void finish(Buffer &out)
{
    little_uint32_buf_t length;
    length = static_cast<std::uint32_t>(out.size());
    std::memcpy(out.data() + offsetof(HeaderWire, length), &length, sizeof length);
}

void append(Buffer &out, const DeviceInfo &info)
{
    DeviceInfoWire w{};
    w.op = static_cast<std::uint32_t>(info.op);
    w.flags = info.flags;
    w.features = info.features;
    w.vendor_id = info.vendor_id;
    w.device_id = info.device_id;
    w.subsystem_vendor_id = info.subsystem_vendor_id;
    w.subsystem_id = info.subsystem_id;
    w.class_revision = info.class_revision;
    w.region_count = static_cast<std::uint16_t>(info.regions.size());
    w.irq_count = static_cast<std::uint16_t>(info.irqs.size());
    append_wire(out, w);
    for (const auto &region : info.regions) {
        RegionInfoWire r{};
        r.index = region.index;
        r.flags = region.flags;
        r.size = region.size;
        r.region_memory_offset = region.region_memory_offset;
        r.area_count = static_cast<std::uint32_t>(region.areas.size());
        r.reserved = 0;
        append_wire(out, r);
    }
    for (const auto &irq : info.irqs) {
        IrqCountWire i{};
        i.index = irq.index;
        i.count = irq.count;
        append_wire(out, i);
    }
    for (const auto &region : info.regions) {
        for (const auto &area : region.areas) {
            AreaWire a{};
            a.offset = area.offset;
            a.size = area.size;
            append_wire(out, a);
        }
    }
}

Decoded<DeviceInfo> decode_device_info(Bytes payload)
{
    Cursor cursor{payload};
    DeviceInfoWire w{};
    if (!cursor.read(w)) {
        return fail<DeviceInfo>(DecodeError::too_short);
    }
    const auto op = w.op.value();
    if (op != static_cast<std::uint32_t>(DeviceInfoOp::add) && op != static_cast<std::uint32_t>(DeviceInfoOp::del)) {
        return fail<DeviceInfo>(DecodeError::bad_value);
    }
    DeviceInfo info;
    info.op = DeviceInfoOp{op};
    //= VVFU-DEVICE-5
    if (info.op == DeviceInfoOp::del) {
        return info;  // nothing else is significant
    }
    info.flags = w.flags.value();
    info.features = w.features.value();
    info.vendor_id = w.vendor_id.value();
    info.device_id = w.device_id.value();
    info.subsystem_vendor_id = w.subsystem_vendor_id.value();
    info.subsystem_id = w.subsystem_id.value();
    info.class_revision = w.class_revision.value();

    std::vector<std::uint32_t> area_counts;
    std::uint64_t areas = 0;
    for (unsigned i = 0; i < w.region_count.value(); ++i) {
        RegionInfoWire r{};
        if (!cursor.read(r)) {
            return fail<DeviceInfo>(DecodeError::bad_count);
        }
        info.regions.push_back({r.index.value(), r.flags.value(), r.size.value(), r.region_memory_offset.value(), {}});
        area_counts.push_back(r.area_count.value());
        areas += r.area_count.value();
    }
    for (unsigned i = 0; i < w.irq_count.value(); ++i) {
        IrqCountWire irq{};
        if (!cursor.read(irq)) {
            return fail<DeviceInfo>(DecodeError::bad_count);
        }
        info.irqs.push_back({irq.index.value(), irq.count.value()});
    }
    if (cursor.rest().size() != areas * sizeof(AreaWire)) {
        return fail<DeviceInfo>(DecodeError::bad_count);
    }
    for (std::size_t i = 0; i < info.regions.size(); ++i) {
        for (std::uint32_t k = 0; k < area_counts[i]; ++k) {
            AreaWire a{};
            if (!cursor.read(a)) {
                return fail<DeviceInfo>(DecodeError::bad_count);
            }
            info.regions[i].areas.push_back({a.offset.value(), a.size.value()});
        }
    }
    return info;
}

void append(Buffer &out, const Peer &peer)
{
    PeerWire w{};
    w.op = static_cast<std::uint32_t>(peer.op);
    w.reason = static_cast<std::uint32_t>(peer.reason);
    w.major = peer.major;
    w.minor = peer.minor;
    w.max_msg_fds = peer.max_msg_fds;
    w.max_data_xfer_size = peer.max_data_xfer_size;
    w.pid = peer.pid;
    w.uid = peer.uid;
    w.gid = peer.gid;
    w.reserved = 0;
    append_wire(out, w);
}

Decoded<Peer> decode_peer(Bytes payload)
{
    const auto w = exact<PeerWire>(payload);
    if (!w) {
        return fail<Peer>(w.error());
    }
    const auto op = w->op.value();
    if (op != static_cast<std::uint32_t>(PeerOp::up) && op != static_cast<std::uint32_t>(PeerOp::down)) {
        return fail<Peer>(DecodeError::bad_value);
    }
    return Peer{PeerOp{op},
                DownReason{w->reason.value()},
                w->major.value(),
                w->minor.value(),
                w->max_msg_fds.value(),
                w->max_data_xfer_size.value(),
                w->pid.value(),
                w->uid.value(),
                w->gid.value()};
}

void append(Buffer &out, const FeatureBits &bits)
{
    FeatureBitsWire w{};
    w.features = bits.features;
    append_wire(out, w);
}

Decoded<FeatureBits> decode_feature_bits(Bytes payload)
{
    return exact<FeatureBitsWire>(payload).map([](const auto &w) { return FeatureBits{w.features.value()}; });
}

void append(Buffer &out, const MemoryInfo &info)
{
    MemoryInfoWire w{};
    w.op = static_cast<std::uint32_t>(info.op);
    w.flags = info.flags;
    w.address = info.address;
    w.size = info.size;
    w.window_offset = info.window_offset;
    append_wire(out, w);
}

Decoded<MemoryInfo> decode_memory_info(Bytes payload)
{
    const auto w = exact<MemoryInfoWire>(payload);
    if (!w) {
        return fail<MemoryInfo>(w.error());
    }
    const auto op = w->op.value();
    if (op != static_cast<std::uint32_t>(MemoryOp::add) && op != static_cast<std::uint32_t>(MemoryOp::del)) {
        return fail<MemoryInfo>(DecodeError::bad_value);
    }
    return MemoryInfo{MemoryOp{op}, w->flags.value(), w->address.value(), w->size.value(), w->window_offset.value()};
}

void append(Buffer &out, const RegionAccess &access)
{
    append_wire(out, wire(access));
}

void append(Buffer &out, const RegionAccess &access, Bytes data)
{
    append(out, access);
    out.insert(out.end(), data.begin(), data.end());
}

Decoded<RegionAccess> decode_region_access(Bytes payload)
{
    return exact<RegionAccessWire>(payload).map([](const auto &w) { return value(w); });
}

Decoded<RegionData> decode_region_data(Bytes payload)
{
    Cursor cursor{payload};
    RegionAccessWire w{};
    if (!cursor.read(w)) {
        return fail<RegionData>(DecodeError::too_short);
    }
    if (cursor.rest().size() != w.count.value()) {
        return fail<RegionData>(DecodeError::bad_count);
    }
    return RegionData{value(w), cursor.rest()};
}

void append(Buffer &out, std::span<const MultiWrite> writes)
{
    MultiWriteHeaderWire header{};
    header.count = writes.size();
    append_wire(out, header);
    for (const auto &write : writes) {
        MultiWriteWire w{};
        w.access = wire(write.access);
        std::memcpy(w.data, write.data, sizeof w.data);
        append_wire(out, w);
    }
}

Decoded<std::vector<MultiWrite>> decode_multi_write(Bytes payload)
{
    using Writes = std::vector<MultiWrite>;
    Cursor cursor{payload};
    MultiWriteHeaderWire header{};
    if (!cursor.read(header)) {
        return fail<Writes>(DecodeError::too_short);
    }
    const auto count = header.count.value();
    if (cursor.rest().size() % sizeof(MultiWriteWire) != 0 || cursor.rest().size() / sizeof(MultiWriteWire) != count) {
        return fail<Writes>(DecodeError::bad_count);
    }
    Writes writes;
    writes.reserve(static_cast<std::size_t>(count));
    MultiWriteWire w{};
    while (cursor.read(w)) {
        MultiWrite write;
        write.access = value(w.access);
        if (write.access.count == 0 || write.access.count > sizeof write.data) {
            return fail<Writes>(DecodeError::bad_value);
        }
        std::memcpy(write.data, w.data, sizeof write.data);
        writes.push_back(write);
    }
    return writes;
}

void append(Buffer &out, const IrqInfo &info)
{
    IrqInfoWire w{};
    w.index = info.index;
    w.start = info.start;
    w.count = info.count;
    w.action = static_cast<std::uint32_t>(info.action);
    append_wire(out, w);
}

Decoded<IrqInfo> decode_irq_info(Bytes payload)
{
    const auto w = exact<IrqInfoWire>(payload);
    if (!w) {
        return fail<IrqInfo>(w.error());
    }
    const auto action = w->action.value();
    if (action < static_cast<std::uint32_t>(IrqAction::assign) ||
        action > static_cast<std::uint32_t>(IrqAction::disable)) {
        return fail<IrqInfo>(DecodeError::bad_value);
    }
    return IrqInfo{w->index.value(), w->start.value(), w->count.value(), IrqAction{action}};
}

void append(Buffer &out, const IrqTrigger &trigger)
{
    IrqTriggerWire w{};
    w.index = trigger.index;
    w.vector = trigger.vector;
    append_wire(out, w);
}

Decoded<IrqTrigger> decode_irq_trigger(Bytes payload)
{
    return exact<IrqTriggerWire>(payload).map([](const auto &w) {
        return IrqTrigger{w.index.value(), w.vector.value()};
    });
}

void append(Buffer &out, const DmaAccess &access)
{
    DmaAccessWire w{};
    w.address = access.address;
    w.count = access.count;
    append_wire(out, w);
}

void append(Buffer &out, const DmaAccess &access, Bytes data)
{
    append(out, access);
    out.insert(out.end(), data.begin(), data.end());
}

Decoded<DmaAccess> decode_dma_access(Bytes payload)
{
    return exact<DmaAccessWire>(payload).map([](const auto &w) {
        return DmaAccess{w.address.value(), w.count.value()};
    });
}

Decoded<DmaData> decode_dma_data(Bytes payload)
{
    Cursor cursor{payload};
    DmaAccessWire w{};
    if (!cursor.read(w)) {
        return fail<DmaData>(DecodeError::too_short);
    }
    if (cursor.rest().size() != w.count.value()) {
        return fail<DmaData>(DecodeError::bad_count);
    }
    return DmaData{{w.address.value(), w.count.value()}, cursor.rest()};
}

void append_text(Buffer &out, std::string_view text)
{
    //= VVFU-MSG-8
    const auto bytes = std::as_bytes(std::span{text.substr(0, kTextMax)});
    out.insert(out.end(), bytes.begin(), bytes.end());
}

std::string decode_text(Bytes payload)
{
    const auto size = std::min(payload.size(), kTextMax);
    std::string text(size, '\0');
    //= VVFU-MSG-9
    std::transform(payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(size), text.begin(), [](std::byte b) {
        const auto c = static_cast<unsigned char>(b);
        return c < 0x20 || c == 0x7f ? '?' : static_cast<char>(c);
    });
    return text;
}

}  // namespace vvfu::control
