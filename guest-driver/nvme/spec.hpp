// SPDX-License-Identifier: BSD-3-Clause
//
// NVM Express Base Specification 1.4: registers, queue entries, opcodes and status codes, in the
// specification's names. "NVMe n.n" in comments is a section of it. Multi-byte fields are little-endian.
#pragma once

#include <boost/endian/arithmetic.hpp>
#include <cstddef>
#include <cstdint>

namespace vvfu::nvme {

using Le16 = boost::endian::little_uint16_t;
using Le32 = boost::endian::little_uint32_t;
using Le64 = boost::endian::little_uint64_t;

inline constexpr std::uint32_t kBlockShift = 9;  ///< the one LBA format: 512 bytes, no metadata
inline constexpr std::uint32_t kBlockSize = 1u << kBlockShift;
inline constexpr std::uint32_t kVersion = 0x0001'0400;  // NVMe 3.1.2: 1.4.0

/// Smallest page and unit of MDTS (CAP.MPSMIN = 0).
inline constexpr std::uint32_t kMinPageShift = 12;
inline constexpr std::uint32_t kMaxPageShift = 16;
inline constexpr std::uint32_t kMdts = 7;  ///< power of two of minimum pages
inline constexpr std::uint32_t kMaxTransfer = 1u << (kMinPageShift + kMdts);

inline constexpr std::uint32_t kMaxQueueEntries = 4096;  ///< CAP.MQES + 1
inline constexpr std::uint32_t kTransitionTimeout = 30;  ///< seconds that a flush may take: CAP.TO, RTD3E
inline constexpr std::uint32_t kBroadcastNsid = 0xffff'ffff;

/// NVMe 4.2: submission queue entry, common command format.
struct SubmissionEntry {
    std::uint8_t opcode = 0;
    std::uint8_t flags = 0;  ///< FUSE in bits 1:0, PSDT in bits 7:6
    Le16 command_id = 0;
    Le32 nsid = 0;
    Le64 reserved = 0;
    Le64 metadata = 0;
    Le64 prp1 = 0;
    Le64 prp2 = 0;
    Le32 cdw10 = 0;
    Le32 cdw11 = 0;
    Le32 cdw12 = 0;
    Le32 cdw13 = 0;
    Le32 cdw14 = 0;
    Le32 cdw15 = 0;
};
static_assert(sizeof(SubmissionEntry) == 64 && alignof(SubmissionEntry) == 1);
static_assert(offsetof(SubmissionEntry, nsid) == 4 && offsetof(SubmissionEntry, prp1) == 24);
static_assert(offsetof(SubmissionEntry, cdw10) == 40);

/// NVMe 4.6: completion queue entry.
struct CompletionEntry {
    Le32 dw0 = 0;
    Le32 dw1 = 0;
    Le16 sq_head = 0;
    Le16 sq_id = 0;
    Le16 command_id = 0;
    Le16 status = 0;  ///< phase tag in bit 0
};
static_assert(sizeof(CompletionEntry) == 16 && offsetof(CompletionEntry, command_id) == 12);

/// NVMe 4.6.1: status code type in bits 10:8, status code in bits 7:0.
enum class Status : std::uint16_t {
    success = 0x000,
    invalid_opcode = 0x001,
    invalid_field = 0x002,
    data_transfer_error = 0x004,
    internal_error = 0x006,
    abort_requested = 0x007,
    aborted_sq_deletion = 0x008,
    invalid_namespace = 0x00b,
    command_sequence_error = 0x00c,
    invalid_prp_offset = 0x013,
    namespace_write_protected = 0x020,
    lba_out_of_range = 0x080,
    capacity_exceeded = 0x081,

    completion_queue_invalid = 0x100,
    invalid_queue_identifier = 0x101,
    invalid_queue_size = 0x102,
    async_event_limit_exceeded = 0x105,
    invalid_interrupt_vector = 0x108,
    invalid_log_page = 0x109,
    invalid_queue_deletion = 0x10c,
    feature_not_saveable = 0x10d,
    feature_not_namespace_specific = 0x10f,

    write_fault = 0x280,
    unrecovered_read_error = 0x281,
    compare_failure = 0x285,

    /// Write Fault that no repetition mends: what had been acknowledged is lost. Do Not Retry is part of the value.
    write_lost = 0x4280,
};

/// Whether the same command could succeed later: decides the Do Not Retry bit.
[[nodiscard]] constexpr bool retryable(Status status) noexcept
{
    return status == Status::data_transfer_error || status == Status::internal_error ||
           status == Status::abort_requested || status == Status::aborted_sq_deletion ||
           status == Status::capacity_exceeded || status == Status::write_fault ||
           status == Status::unrecovered_read_error;
}

/// Status field of a completion as NVMe 4.6.1 lays it out, without the phase tag (bit 0 is 0).
[[nodiscard]] constexpr std::uint16_t status_field(Status status, bool more) noexcept
{
    const auto field = static_cast<std::uint16_t>(static_cast<unsigned>(status) << 1);
    if (status == Status::success) {
        return field;
    }
    constexpr unsigned kMore = 1u << 14, kDoNotRetry = 1u << 15;
    return static_cast<std::uint16_t>(field | (more ? kMore : 0) | (retryable(status) ? 0 : kDoNotRetry));
}

/// NVMe 5: admin commands.
enum class AdminOpcode : std::uint8_t {
    delete_io_sq = 0x00,
    create_io_sq = 0x01,
    get_log_page = 0x02,
    delete_io_cq = 0x04,
    create_io_cq = 0x05,
    identify = 0x06,
    abort = 0x08,
    set_features = 0x09,
    get_features = 0x0a,
    async_event_request = 0x0c,
    doorbell_buffer_config = 0x7c,
};

/// NVMe 6: NVM commands.
enum class IoOpcode : std::uint8_t {
    flush = 0x00,
    write = 0x01,
    read = 0x02,
    compare = 0x05,
    write_zeroes = 0x08,
    dataset_management = 0x09,
};

}  // namespace vvfu::nvme
