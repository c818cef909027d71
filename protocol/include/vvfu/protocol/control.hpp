// SPDX-License-Identifier: BSD-3-Clause
//
// Control messages between the device VMM and the device guest, as bytes and as values.
// Normative text: docs/spec/virtio-vfio-user.md, section "Control messages". All fields are little-endian.
//
// Decoders read a private copy of the message (never shared memory), check every length, and return
// values; they never allocate more than the message holds. Encoders append to a vector that callers reuse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vvfu/base/expected.hpp"

namespace vvfu::control {

using Bytes = std::span<const std::byte>;
using Buffer = std::vector<std::byte>;

enum class Type : std::uint16_t {
    device_info = 1,         // guest -> device
    peer = 2,                // device -> guest
    feature_bits = 3,        // device -> guest
    memory_info = 4,         // device -> guest
    region_read = 5,         // device -> guest
    region_write = 6,        // device -> guest
    region_write_multi = 7,  // device -> guest
    irq_info = 8,            // device -> guest
    device_reset = 9,        // device -> guest
    device_feature = 10,     // device -> guest; reserved: no device of this version sends it
    migration_data = 11,     // device -> guest; reserved: no device of this version sends it
    dma_read = 12,           // guest -> device
    dma_write = 13,          // guest -> device
    irq_trigger = 14,        // guest -> device
    peer_close = 15,         // guest -> device
};

/// The specification's name of a type, for logs ("REGION_READ"); "UNKNOWN" for values outside the enum.
[[nodiscard]] std::string_view name(Type type) noexcept;

enum HeaderFlag : std::uint16_t {
    kFlagReply = 1u << 0,   ///< the message answers a request
    kFlagPosted = 1u << 1,  ///< the requester wants no reply; legal on REGION_WRITE and REGION_WRITE_MULTI only
};

/// Protocol errors, carried in replies. Values are fixed by the specification.
enum class Status : std::uint32_t {
    ok = 0,
    stale = 1,          ///< the message belongs to an ended session; it had no effect
    invalid = 2,        ///< a field has a value that the specification forbids
    unsupported = 3,    ///< the receiver does not implement the message or a feature that it asks for
    busy = 4,           ///< it exists already, or cannot be done in this state
    not_found = 5,      ///< no such device, range, vector or session
    fault = 6,          ///< a DMA address outside the peer's memory
    permission = 7,     ///< the memory or register does not allow this access
    timeout = 8,        ///< the peer did not answer in time
    no_space = 9,       ///< a limit is exhausted
    io = 10,            ///< the peer or the host failed to carry it out
    not_connected = 11  ///< there is no session
};
[[nodiscard]] std::string_view name(Status status) noexcept;

/// Every message starts with this; 32 bytes.
struct Header {
    Type type{};
    std::uint16_t flags = 0;
    std::uint32_t length = 0;  ///< bytes of the whole message, header included
    std::uint64_t request_id = 0;
    std::uint32_t epoch = 0;
    Status status = Status::ok;  ///< replies only; 0 in requests

    [[nodiscard]] bool is_reply() const noexcept { return (flags & kFlagReply) != 0; }
    [[nodiscard]] bool is_posted() const noexcept { return (flags & kFlagPosted) != 0; }
};
inline constexpr std::size_t kHeaderSize = 32;

enum class DecodeError {
    too_short,        ///< fewer bytes than the fixed part of the message
    length_mismatch,  ///< header.length is not the number of bytes received
    bad_value,        ///< a field has a value that no version defines
    bad_count,        ///< a count does not agree with the bytes that follow
};
[[nodiscard]] std::string_view describe(DecodeError error) noexcept;

template <typename T>
using Decoded = Expected<T, DecodeError>;

/// Header checks: size, length == message.size(), known flags, reserved zero, status zero in a request. The type is not
/// checked against the enum (an unknown request gets Status::unsupported, not a broken device).
[[nodiscard]] Decoded<Header> decode_header(Bytes message);

/// Starts a message: clears `out` and writes the header. `finish` sets header.length.
void begin(Buffer &out, const Header &header);
void finish(Buffer &out);

// ---- DEVICE_INFO ------------------------------------------------------------------------------

enum class DeviceInfoOp : std::uint32_t { add = 1, del = 2 };

enum DeviceFlag : std::uint32_t {
    kDeviceReset = 1u << 0,    ///< DEVICE_RESET is supported
    kDeviceQuiesce = 1u << 1,  ///< acknowledges MEMORY_INFO(DEL) only when its DMA to the range is over
    kDeviceRetain = 1u << 2,   ///< wants the session kept across a restart; refused by this version
};

/// VFIO PCI region indices (linux/vfio.h VFIO_PCI_*_REGION_INDEX) and IRQ indices (VFIO_PCI_*_IRQ_INDEX).
inline constexpr std::uint32_t kRegionBar0 = 0, kRegionBar5 = 5, kRegionRom = 6, kRegionConfig = 7, kRegionVga = 8,
                               kRegionCount = 9;
inline constexpr std::uint32_t kIrqIntx = 0, kIrqMsi = 1, kIrqMsix = 2, kIrqErr = 3, kIrqReq = 4, kIrqIndexCount = 5;

enum RegionFlag : std::uint32_t {
    kRegionRead = 1u << 0,
    kRegionWrite = 1u << 1,
    kRegionMmap = 1u << 2,  ///< `areas` of it live in region memory and the peer may map them
};

/// A range of a region, in bytes from the start of the region; page-aligned, inside the region, disjoint.
struct Area {
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    friend bool operator==(const Area &, const Area &) = default;
};

struct RegionInfo {
    std::uint32_t index = 0;
    std::uint32_t flags = 0;
    std::uint64_t size = 0;
    /// With kRegionMmap: region-memory offset of byte 0 of this region; area `a` is at this + a.offset.
    std::uint64_t region_memory_offset = 0;
    std::vector<Area> areas;
    friend bool operator==(const RegionInfo &, const RegionInfo &) = default;
};

struct IrqCount {
    std::uint32_t index = 0;
    std::uint32_t count = 0;
    friend bool operator==(const IrqCount &, const IrqCount &) = default;
};

struct DeviceInfo {
    DeviceInfoOp op = DeviceInfoOp::add;
    std::uint32_t flags = 0;
    std::uint64_t features = 0;  ///< Feature bits that the guest's device can use
    std::uint16_t vendor_id = 0, device_id = 0, subsystem_vendor_id = 0, subsystem_id = 0;
    std::uint32_t class_revision = 0;  ///< as the dword at configuration offset 8
    std::vector<RegionInfo> regions;   ///< absent regions have size 0
    std::vector<IrqCount> irqs;        ///< absent indices have count 0
    friend bool operator==(const DeviceInfo &, const DeviceInfo &) = default;
};
void append(Buffer &out, const DeviceInfo &info);
/// Of DEL only `op` is looked at.
[[nodiscard]] Decoded<DeviceInfo> decode_device_info(Bytes payload);

// ---- PEER -------------------------------------------------------------------------------------

enum class PeerOp : std::uint32_t { up = 1, down = 2 };

enum class DownReason : std::uint32_t {
    none = 0,
    peer_closed = 1,     ///< end of file or connection reset
    protocol_error = 2,  ///< the peer broke the protocol beyond repair
    guest_closed = 3,    ///< PEER_CLOSE
    device_deleted = 4,  ///< DEVICE_INFO(DEL)
    host_error = 5,      ///< the device VMM could not go on (out of fds, I/O error)
};
[[nodiscard]] std::string_view name(DownReason reason) noexcept;

struct Peer {
    PeerOp op = PeerOp::up;
    DownReason reason = DownReason::none;  ///< DOWN only
    std::uint16_t major = 0, minor = 0;    ///< protocol version that the peer proposed
    std::uint32_t max_msg_fds = 0;
    std::uint64_t max_data_xfer_size = 0;     ///< bytes
    std::uint32_t pid = 0, uid = 0, gid = 0;  ///< SO_PEERCRED, in the device VMM's namespaces
    friend bool operator==(const Peer &, const Peer &) = default;
};
void append(Buffer &out, const Peer &peer);
[[nodiscard]] Decoded<Peer> decode_peer(Bytes payload);

// ---- FEATURE_BITS -----------------------------------------------------------------------------

/// Features of the emulated device's session, offered by peer and device VMM, accepted by the guest.
enum Feature : std::uint64_t {
    kFeatureWriteMultiple = std::uint64_t{1} << 0,  ///< the peer may send REGION_WRITE_MULTI
    kFeatureMigration = std::uint64_t{1} << 1,      ///< reserved; never offered by this version
};

struct FeatureBits {
    std::uint64_t features = 0;  ///< request: offered; reply: accepted (a subset)
    friend bool operator==(const FeatureBits &, const FeatureBits &) = default;
};
void append(Buffer &out, const FeatureBits &bits);
[[nodiscard]] Decoded<FeatureBits> decode_feature_bits(Bytes payload);

// ---- MEMORY_INFO ------------------------------------------------------------------------------

enum class MemoryOp : std::uint32_t { add = 1, del = 2 };

enum MemoryFlag : std::uint32_t {
    kMemoryRead = 1u << 0,
    kMemoryWrite = 1u << 1,
    kMemoryMessageOnly = 1u << 2,  ///< not in the window: DMA_READ and DMA_WRITE only
};

struct MemoryInfo {
    MemoryOp op = MemoryOp::add;
    std::uint32_t flags = 0;
    std::uint64_t address = 0;        ///< DMA address in the peer's address space
    std::uint64_t size = 0;           ///< bytes, not 0; address + size - 1 does not wrap
    std::uint64_t window_offset = 0;  ///< from the start of shmid 0; 0 with kMemoryMessageOnly
    friend bool operator==(const MemoryInfo &, const MemoryInfo &) = default;
};
void append(Buffer &out, const MemoryInfo &info);
[[nodiscard]] Decoded<MemoryInfo> decode_memory_info(Bytes payload);

// ---- REGION_READ, REGION_WRITE, REGION_WRITE_MULTI --------------------------------------------

struct RegionAccess {
    std::uint64_t offset = 0;  ///< bytes from the start of the region
    std::uint32_t region = 0;
    std::uint32_t count = 0;  ///< bytes
    friend bool operator==(const RegionAccess &, const RegionAccess &) = default;
};
inline constexpr std::size_t kRegionAccessSize = 16;
void append(Buffer &out, const RegionAccess &access);
void append(Buffer &out, const RegionAccess &access, Bytes data);

struct RegionData {
    RegionAccess access;
    Bytes data;  ///< view into the payload; access.count bytes in a write request or a read reply
};
/// The fixed part only (read requests, write replies).
[[nodiscard]] Decoded<RegionAccess> decode_region_access(Bytes payload);
/// Fixed part and exactly `count` bytes (write requests, successful read replies).
[[nodiscard]] Decoded<RegionData> decode_region_data(Bytes payload);

struct MultiWrite {
    RegionAccess access;  ///< count 1..8
    std::byte data[8] = {};
};
void append(Buffer &out, std::span<const MultiWrite> writes);
[[nodiscard]] Decoded<std::vector<MultiWrite>> decode_multi_write(Bytes payload);

// ---- IRQ_INFO, IRQ_TRIGGER --------------------------------------------------------------------

enum class IrqAction : std::uint32_t {
    assign = 1,    ///< vectors [start, start + count) have a target now
    deassign = 2,  ///< ... have none any more
    mask = 3,
    unmask = 4,   ///< for INTx also: the peer saw the interrupt, re-evaluate the line
    disable = 5,  ///< the whole index; start and count are 0
};

struct IrqInfo {
    std::uint32_t index = 0, start = 0, count = 0;
    IrqAction action = IrqAction::assign;
    friend bool operator==(const IrqInfo &, const IrqInfo &) = default;
};
void append(Buffer &out, const IrqInfo &info);
[[nodiscard]] Decoded<IrqInfo> decode_irq_info(Bytes payload);

struct IrqTrigger {
    std::uint32_t index = 0, vector = 0;
    friend bool operator==(const IrqTrigger &, const IrqTrigger &) = default;
};
void append(Buffer &out, const IrqTrigger &trigger);
[[nodiscard]] Decoded<IrqTrigger> decode_irq_trigger(Bytes payload);

// ---- DMA_READ, DMA_WRITE ----------------------------------------------------------------------

struct DmaAccess {
    std::uint64_t address = 0;
    std::uint64_t count = 0;  ///< bytes
    friend bool operator==(const DmaAccess &, const DmaAccess &) = default;
};
inline constexpr std::size_t kDmaAccessSize = 16;
void append(Buffer &out, const DmaAccess &access);
void append(Buffer &out, const DmaAccess &access, Bytes data);

struct DmaData {
    DmaAccess access;
    Bytes data;
};
/// The fixed part only (read requests, write replies).
[[nodiscard]] Decoded<DmaAccess> decode_dma_access(Bytes payload);
/// Fixed part and exactly `count` bytes (write requests, successful read replies).
[[nodiscard]] Decoded<DmaData> decode_dma_data(Bytes payload);

// ---- PEER_CLOSE and error texts ---------------------------------------------------------------

/// PEER_CLOSE's payload, and the payload of every reply whose status is not ok: UTF-8 text, at most
/// 256 bytes, no terminator, for people to read.
inline constexpr std::size_t kTextMax = 256;
void append_text(Buffer &out, std::string_view text);
/// Control characters become '?', and what is over kTextMax is cut.
[[nodiscard]] std::string decode_text(Bytes payload);

}  // namespace vvfu::control
