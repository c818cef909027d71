// SPDX-License-Identifier: BSD-3-Clause
//
// vfio-user messages as bytes and as values, both directions. Reference: QEMU's docs/interop/vfio-user.rst.
// All fields have the host's byte order, so the structures below are the wire layout; they are copied, never cast.
//
// Decoders take a private copy of a payload (the bytes after the header) and check every length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "vvfu/base/expected.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::vfio_user {

using Bytes = std::span<const std::byte>;
using Buffer = std::vector<std::byte>;
using control::Decoded;
using control::DecodeError;

enum class Command : std::uint16_t {
    version = 1,
    dma_map = 2,
    dma_unmap = 3,
    device_get_info = 4,
    device_get_region_info = 5,
    device_get_region_io_fds = 6,
    device_get_irq_info = 7,
    device_set_irqs = 8,
    region_read = 9,
    region_write = 10,
    dma_read = 11,   // server to client
    dma_write = 12,  // server to client
    device_reset = 13,
    region_write_multi = 15,  // 14 was DIRTY_PAGES
    device_feature = 16,
    mig_data_read = 17,
    mig_data_write = 18,
};
/// The specification's name of a command, for logs; "UNKNOWN" for values outside the enum.
[[nodiscard]] std::string_view name(Command command) noexcept;

// ---- header -----------------------------------------------------------------------------------

inline constexpr std::uint32_t kTypeMask = 0xf, kTypeCommand = 0, kTypeReply = 1;
inline constexpr std::uint32_t kFlagNoReply = 1u << 4;
inline constexpr std::uint32_t kFlagError = 1u << 5;

struct Header {
    std::uint16_t message_id = 0;  ///< chosen by the sender of the command
    std::uint16_t command = 0;
    std::uint32_t size = 0;  ///< bytes of the whole message, header included
    std::uint32_t flags = 0;
    std::uint32_t error = 0;  ///< errno, with kFlagError

    [[nodiscard]] std::uint32_t type() const noexcept { return flags & kTypeMask; }
    [[nodiscard]] bool no_reply() const noexcept { return (flags & kFlagNoReply) != 0; }
    [[nodiscard]] bool is_error() const noexcept { return (flags & kFlagError) != 0; }
    [[nodiscard]] Command kind() const noexcept { return Command{command}; }
    friend bool operator==(const Header &, const Header &) = default;
};
static_assert(sizeof(Header) == 16 && offsetof(Header, size) == 4 && offsetof(Header, error) == 12);
inline constexpr std::size_t kHeaderSize = sizeof(Header);

/// Largest data of one message, and largest message: data and the longest fixed part in front of it.
inline constexpr std::uint32_t kMaxDataXferSize = 1024 * 1024;
inline constexpr std::uint32_t kMaxMessageSize = kMaxDataXferSize + 4096;

/// The first 16 bytes of `bytes`, unchecked but for their number.
[[nodiscard]] Decoded<Header> decode_header(Bytes bytes);

// ---- structures -------------------------------------------------------------------------------

inline constexpr std::uint32_t kDmaRead = 1u << 0, kDmaWrite = 1u << 1;  // DmaMap::flags

struct DmaMap {
    std::uint32_t argsz = 0, flags = 0;
    std::uint64_t offset = 0;   ///< in the file
    std::uint64_t address = 0;  ///< DMA address
    std::uint64_t size = 0;
    friend bool operator==(const DmaMap &, const DmaMap &) = default;
};
static_assert(sizeof(DmaMap) == 32 && offsetof(DmaMap, offset) == 8 && offsetof(DmaMap, size) == 24);

inline constexpr std::uint32_t kUnmapGetDirtyBitmap = 1u << 0, kUnmapAll = 1u << 1;  // DmaUnmap::flags

struct DmaUnmap {
    std::uint32_t argsz = 0, flags = 0;
    std::uint64_t address = 0, size = 0;
    friend bool operator==(const DmaUnmap &, const DmaUnmap &) = default;
};
static_assert(sizeof(DmaUnmap) == 24 && offsetof(DmaUnmap, address) == 8);

/// Follows DmaUnmap with kUnmapGetDirtyBitmap.
struct Bitmap {
    std::uint64_t pgsize = 0, size = 0;
    friend bool operator==(const Bitmap &, const Bitmap &) = default;
};
static_assert(sizeof(Bitmap) == 16);

inline constexpr std::uint32_t kDeviceFlagReset = 1u << 0, kDeviceFlagPci = 1u << 1;  // DeviceInfo::flags

struct DeviceInfo {
    std::uint32_t argsz = 0, flags = 0, num_regions = 0, num_irqs = 0;
    friend bool operator==(const DeviceInfo &, const DeviceInfo &) = default;
};
static_assert(sizeof(DeviceInfo) == 16);

inline constexpr std::uint32_t kRegionFlagRead = 1u << 0, kRegionFlagWrite = 1u << 1, kRegionFlagMmap = 1u << 2,
                               kRegionFlagCaps = 1u << 3;  // RegionInfo::flags

struct RegionInfo {
    std::uint32_t argsz = 0, flags = 0, index = 0, cap_offset = 0;
    std::uint64_t size = 0;
    std::uint64_t offset = 0;  ///< of byte 0 of the region in the file that comes with the reply
    friend bool operator==(const RegionInfo &, const RegionInfo &) = default;
};
static_assert(sizeof(RegionInfo) == 32 && offsetof(RegionInfo, size) == 16);

/// VFIO_REGION_INFO_CAP_SPARSE_MMAP: this, then nr_areas times SparseArea.
struct SparseCap {
    std::uint16_t id = 1, version = 1;
    std::uint32_t next = 0;
    std::uint32_t nr_areas = 0, reserved = 0;
    friend bool operator==(const SparseCap &, const SparseCap &) = default;
};
static_assert(sizeof(SparseCap) == 16 && offsetof(SparseCap, nr_areas) == 8);
struct SparseArea {
    std::uint64_t offset = 0, size = 0;
    friend bool operator==(const SparseArea &, const SparseArea &) = default;
};
static_assert(sizeof(SparseArea) == 16);

/// Request and fixed part of the reply of DEVICE_GET_REGION_IO_FDS.
struct RegionIoFds {
    std::uint32_t argsz = 0, flags = 0, index = 0, count = 0;
    friend bool operator==(const RegionIoFds &, const RegionIoFds &) = default;
};
static_assert(sizeof(RegionIoFds) == 16);

/// One sub-region of that reply in the specification's layout (libvfio-user's differs).
struct SubRegion {
    std::uint64_t offset = 0, size = 0;
    std::uint32_t fd_index = 0;
    std::uint32_t type = 0;  ///< 0 ioeventfd, 1 ioregionfd
    std::uint32_t flags = 0, padding = 0;
    std::uint64_t datamatch = 0;  ///< ioregionfd: user_data
    friend bool operator==(const SubRegion &, const SubRegion &) = default;
};
static_assert(sizeof(SubRegion) == 40 && offsetof(SubRegion, datamatch) == 32);

inline constexpr std::uint32_t kIrqFlagEventfd = 1u << 0;  // IrqInfo::flags

struct IrqInfo {
    std::uint32_t argsz = 0, flags = 0, index = 0, count = 0;
    friend bool operator==(const IrqInfo &, const IrqInfo &) = default;
};
static_assert(sizeof(IrqInfo) == 16);

// IrqSet::flags: one of each group.
inline constexpr std::uint32_t kIrqDataNone = 1u << 0, kIrqDataBool = 1u << 1, kIrqDataEventfd = 1u << 2,
                               kIrqDataMask = 7u;
inline constexpr std::uint32_t kIrqActionMask = 1u << 3, kIrqActionUnmask = 1u << 4, kIrqActionTrigger = 1u << 5,
                               kIrqActionTypeMask = 7u << 3;

struct IrqSet {
    std::uint32_t argsz = 0, flags = 0, index = 0, start = 0, count = 0;
    friend bool operator==(const IrqSet &, const IrqSet &) = default;
};
static_assert(sizeof(IrqSet) == 20);

struct RegionAccess {
    std::uint64_t offset = 0;
    std::uint32_t region = 0, count = 0;
    friend bool operator==(const RegionAccess &, const RegionAccess &) = default;
};
static_assert(sizeof(RegionAccess) == 16);

struct DmaAccess {
    std::uint64_t address = 0, count = 0;
    friend bool operator==(const DmaAccess &, const DmaAccess &) = default;
};
static_assert(sizeof(DmaAccess) == 16);

/// DMA_READ and DMA_WRITE replies of QEMU up to 10.2.2 carry a 32-bit count: the data starts 4 bytes earlier.
inline constexpr std::size_t kShortDmaAccessSize = 12;

struct MultiWrite {
    std::uint64_t offset = 0;
    std::uint32_t region = 0, count = 0;
    std::byte data[8] = {};
};
static_assert(sizeof(MultiWrite) == 24 && offsetof(MultiWrite, data) == 16);

inline constexpr std::uint32_t kFeatureGet = 1u << 16, kFeatureSet = 1u << 17, kFeatureProbe = 1u << 18,
                               kFeatureNumberMask = 0xffff;  // DeviceFeature::flags

struct DeviceFeature {
    std::uint32_t argsz = 0, flags = 0;
    friend bool operator==(const DeviceFeature &, const DeviceFeature &) = default;
};
static_assert(sizeof(DeviceFeature) == 8);

/// MIG_DATA_READ and MIG_DATA_WRITE.
struct MigData {
    std::uint32_t argsz = 0, size = 0;
    friend bool operator==(const MigData &, const MigData &) = default;
};
static_assert(sizeof(MigData) == 8);

// ---- encoding ---------------------------------------------------------------------------------

template <typename T>
void append(Buffer &out, const T &value)
{
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
    const auto bytes = std::as_bytes(std::span{&value, 1});
    out.insert(out.end(), bytes.begin(), bytes.end());
}
void append_bytes(Buffer &out, Bytes data);

/// Clear `out` and start a message in it; finish() sets its size.
void begin_command(Buffer &out, Command command, std::uint16_t message_id, std::uint32_t flags = 0);
void begin_reply(Buffer &out, const Header &request);
void finish(Buffer &out);
/// A whole error reply: a header only. `error` is a positive errno.
void encode_error(Buffer &out, const Header &request, int error);

// ---- decoding ---------------------------------------------------------------------------------

/// The structure at the start of a payload; what follows it is the caller's (clients may send more than they need to).
template <typename T>
[[nodiscard]] Decoded<T> decode_prefix(Bytes payload)
{
    static_assert(std::is_trivially_copyable_v<T>);
    if (payload.size() < sizeof(T)) {
        return make_unexpected(DecodeError::too_short);
    }
    T value;
    std::memcpy(&value, payload.data(), sizeof(T));
    return value;
}

/// Like decode_prefix, for structures with argsz: argsz below the size of the structure is bad_value.
template <typename T>
[[nodiscard]] Decoded<T> decode_argsz(Bytes payload)
{
    auto value = decode_prefix<T>(payload);
    if (value && value->argsz < sizeof(T)) {
        return make_unexpected(DecodeError::bad_value);
    }
    return value;
}

struct RegionData {
    RegionAccess access;
    Bytes data;  ///< view into the payload, access.count bytes
};
/// REGION_WRITE request, REGION_READ reply: exactly `count` bytes follow.
[[nodiscard]] Decoded<RegionData> decode_region_data(Bytes payload);

struct DmaData {
    DmaAccess access;
    Bytes data;
};
/// DMA_WRITE request: exactly `count` bytes follow.
[[nodiscard]] Decoded<DmaData> decode_dma_write(Bytes payload);
/// Reply to a DMA_READ of `request`, in either layout; the address and count must be those of the request.
[[nodiscard]] Decoded<Bytes> decode_dma_read_reply(Bytes payload, const DmaAccess &request);
/// Reply to a DMA_WRITE of `request`: either layout, or nothing after the header.
[[nodiscard]] Decoded<void> decode_dma_write_reply(Bytes payload, const DmaAccess &request);

/// REGION_WRITE_MULTI request; exactly as many entries as it says. Counts are not checked against 1..8.
[[nodiscard]] Decoded<std::vector<MultiWrite>> decode_multi_write(Bytes payload);

struct IrqRequest {
    IrqSet set;
    Bytes bools;  ///< with DATA_BOOL: exactly set.count bytes
};
[[nodiscard]] Decoded<IrqRequest> decode_set_irqs(Bytes payload);

struct RegionInfoReply {
    RegionInfo info;
    std::vector<SparseArea> areas;  ///< of the sparse mmap capability, if there is one
};
[[nodiscard]] Decoded<RegionInfoReply> decode_region_info_reply(Bytes payload);

// ---- VERSION ----------------------------------------------------------------------------------

inline constexpr std::uint16_t kVersionMajor = 0, kVersionMinor = 2;
inline constexpr std::uint32_t kMaxMsgFds = 16;         ///< cloud-hypervisor sends 16 whatever it is told
inline constexpr std::uint32_t kMaxMsgFdsLimit = 1024;  ///< a peer that claims more is refused, as libvfio-user does
inline constexpr std::uint32_t kMaxDmaMaps = 65535;
inline constexpr std::uint64_t kPageSize = 4096;
/// Longest reply JSON, terminator excluded, that fits QEMU 11.1's buffer, which has the size of its own request.
inline constexpr std::size_t kMaxVersionJson = 193;

struct Capabilities {
    std::optional<std::uint64_t> max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes;
    std::optional<bool> write_multiple;
    friend bool operator==(const Capabilities &, const Capabilities &) = default;
};

struct Version {
    std::uint16_t major = 0, minor = 0;
    bool has_json = false;  ///< decoding: the optional text was there
    Capabilities capabilities;
};
/// Payload of a VERSION command or reply. The text is optional; where it is there it must be JSON with the types and
/// ranges of the specification, without duplicate keys, at most 8 levels deep, and NUL-terminated.
[[nodiscard]] Decoded<Version> decode_version(Bytes payload);
/// Appends a VERSION payload with the capabilities that have a value.
void append_version(Buffer &out, const Version &version);

}  // namespace vvfu::vfio_user
