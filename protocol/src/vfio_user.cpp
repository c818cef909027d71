// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::vfio_user {

std::string_view name(Command command) noexcept
{
    switch (command) {
        case Command::version: return "VERSION";
        case Command::dma_map: return "DMA_MAP";
        case Command::dma_unmap: return "DMA_UNMAP";
        case Command::device_get_info: return "DEVICE_GET_INFO";
        case Command::device_get_region_info: return "DEVICE_GET_REGION_INFO";
        case Command::device_get_region_io_fds: return "DEVICE_GET_REGION_IO_FDS";
        case Command::device_get_irq_info: return "DEVICE_GET_IRQ_INFO";
        case Command::device_set_irqs: return "DEVICE_SET_IRQS";
        case Command::region_read: return "REGION_READ";
        case Command::region_write: return "REGION_WRITE";
        case Command::dma_read: return "DMA_READ";
        case Command::dma_write: return "DMA_WRITE";
        case Command::device_reset: return "DEVICE_RESET";
        case Command::region_write_multi: return "REGION_WRITE_MULTI";
        case Command::device_feature: return "DEVICE_FEATURE";
        case Command::mig_data_read: return "MIG_DATA_READ";
        case Command::mig_data_write: return "MIG_DATA_WRITE";
    }
    return "UNKNOWN";
}

Decoded<Header> decode_header(Bytes bytes)
{
    return decode_prefix<Header>(bytes);
}

void append_bytes(Buffer &out, Bytes data)
{
    out.insert(out.end(), data.begin(), data.end());
}

void begin_command(Buffer &out, Command command, std::uint16_t message_id, std::uint32_t flags)
{
    out.clear();
    append(out, Header{message_id, static_cast<std::uint16_t>(command), kHeaderSize, kTypeCommand | flags, 0});
}

void begin_reply(Buffer &out, const Header &request)
{
    out.clear();
    append(out, Header{request.message_id, request.command, kHeaderSize, kTypeReply, 0});
}

void finish(Buffer &out)
{
    const auto size = static_cast<std::uint32_t>(out.size());
    std::memcpy(out.data() + offsetof(Header, size), &size, sizeof size);
}

void encode_error(Buffer &out, const Header &request, int error)
{
    out.clear();
    append(out, Header{request.message_id, request.command, kHeaderSize, kTypeReply | kFlagError,
                       static_cast<std::uint32_t>(error)});
}

Decoded<RegionData> decode_region_data(Bytes payload)
{
    const auto access = decode_prefix<RegionAccess>(payload);
    if (!access) {
        return make_unexpected(access.error());
    }
    const auto data = payload.subspan(sizeof(RegionAccess));
    if (data.size() != access->count) {
        return make_unexpected(DecodeError::bad_count);
    }
    return RegionData{*access, data};
}

Decoded<DmaData> decode_dma_write(Bytes payload)
{
    const auto access = decode_prefix<DmaAccess>(payload);
    if (!access) {
        return make_unexpected(access.error());
    }
    const auto data = payload.subspan(sizeof(DmaAccess));
    if (data.size() != access->count) {
        return make_unexpected(DecodeError::bad_count);
    }
    return DmaData{*access, data};
}

namespace {

/// The fixed part of a DMA reply in front of `data_size` bytes: which layout it is follows from the size alone.
/// Returns the size of the fixed part.
Decoded<std::size_t> check_dma_reply(Bytes payload, std::size_t data_size, const DmaAccess &request)
{
    DmaAccess access;
    std::size_t fixed = sizeof access;
    if (payload.size() == sizeof access + data_size) {
        std::memcpy(&access, payload.data(), sizeof access);
    } else if (payload.size() == kShortDmaAccessSize + data_size) {
        std::uint32_t count = 0;
        std::memcpy(&access.address, payload.data(), sizeof access.address);
        std::memcpy(&count, payload.data() + sizeof access.address, sizeof count);
        access.count = count;
        fixed = kShortDmaAccessSize;
    } else {
        return make_unexpected(DecodeError::length_mismatch);
    }
    if (access != request) {
        return make_unexpected(DecodeError::bad_value);
    }
    return fixed;
}

}  // namespace

Decoded<Bytes> decode_dma_read_reply(Bytes payload, const DmaAccess &request)
{
    return check_dma_reply(payload, static_cast<std::size_t>(request.count), request).map([&](std::size_t fixed) {
        return payload.subspan(fixed);
    });
}

Decoded<void> decode_dma_write_reply(Bytes payload, const DmaAccess &request)
{
    if (payload.empty()) {
        return {};
    }
    const auto fixed = check_dma_reply(payload, 0, request);
    if (!fixed) {
        return make_unexpected(fixed.error());
    }
    return {};
}

Decoded<std::vector<MultiWrite>> decode_multi_write(Bytes payload)
{
    const auto count = decode_prefix<std::uint64_t>(payload);
    if (!count) {
        return make_unexpected(count.error());
    }
    auto rest = payload.subspan(sizeof *count);
    if (rest.size() % sizeof(MultiWrite) != 0 || rest.size() / sizeof(MultiWrite) != *count) {
        return make_unexpected(DecodeError::bad_count);
    }
    std::vector<MultiWrite> writes(static_cast<std::size_t>(*count));
    if (!rest.empty()) {
        std::memcpy(writes.data(), rest.data(), rest.size());
    }
    return writes;
}

Decoded<IrqRequest> decode_set_irqs(Bytes payload)
{
    const auto set = decode_argsz<IrqSet>(payload);
    if (!set) {
        return make_unexpected(set.error());
    }
    IrqRequest request{*set, {}};
    if ((set->flags & kIrqDataMask) == kIrqDataBool) {
        request.bools = payload.subspan(sizeof(IrqSet));
        if (request.bools.size() != set->count) {
            return make_unexpected(DecodeError::bad_count);
        }
    }
    return request;
}

Decoded<RegionInfoReply> decode_region_info_reply(Bytes payload)
{
    const auto info = decode_argsz<RegionInfo>(payload);
    if (!info) {
        return make_unexpected(info.error());
    }
    RegionInfoReply reply{*info, {}};
    if ((info->flags & kRegionFlagCaps) == 0) {
        return reply;
    }
    if (info->cap_offset < sizeof(RegionInfo) || info->cap_offset > payload.size()) {
        return make_unexpected(DecodeError::bad_value);
    }
    auto rest = payload.subspan(info->cap_offset);
    const auto cap = decode_prefix<SparseCap>(rest);
    if (!cap) {
        return make_unexpected(cap.error());
    }
    rest = rest.subspan(sizeof(SparseCap));
    if (rest.size() / sizeof(SparseArea) < cap->nr_areas) {
        return make_unexpected(DecodeError::bad_count);
    }
    reply.areas.resize(cap->nr_areas);
    if (cap->nr_areas != 0) {
        std::memcpy(reply.areas.data(), rest.data(), cap->nr_areas * sizeof(SparseArea));
    }
    return reply;
}

}  // namespace vvfu::vfio_user
