// SPDX-License-Identifier: BSD-3-Clause
#include "log_pages.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>

#include "features.hpp"

namespace vvfu::nvme {
namespace {

template <typename T>
std::vector<std::byte> bytes_of(const T &page)
{
    const auto bytes = std::as_bytes(std::span(&page, 1));
    return {bytes.begin(), bytes.end()};
}

/// NVMe 5.14.1.1: Error Information Log Entry.
struct ErrorLogEntry {
    Le64 error_count = 0;
    Le16 sq_id = 0;
    Le16 command_id = 0;
    Le16 status = 0;  // without phase tag
    Le16 parameter_error_location = 0;
    Le64 lba = 0;
    Le32 nsid = 0;
    std::uint8_t vendor_log = 0, transport_type = 0;
    std::uint8_t reserved[2] = {};
    Le64 command_specific = 0;
    std::uint8_t reserved40[24] = {};
};
static_assert(sizeof(ErrorLogEntry) == 64 && offsetof(ErrorLogEntry, lba) == 16);

/// 128-bit counter; the upper half stays 0 for longer than anyone will look.
struct Counter128 {
    Le64 low = 0, high = 0;
};

/// NVMe 5.14.1.2: SMART / Health Information.
struct SmartPage {
    std::uint8_t critical_warning = 0;
    Le16 composite_temperature = 0;
    std::uint8_t available_spare = 100, available_spare_threshold = 10, percentage_used = 0;
    std::uint8_t endurance_warning = 0;
    std::uint8_t reserved7[25] = {};
    Counter128 data_units_read, data_units_written, host_reads, host_writes, busy_time, power_cycles, power_on_hours,
        unsafe_shutdowns, media_errors, error_log_entries;
    std::uint8_t reserved192[320] = {};
};
static_assert(sizeof(SmartPage) == 512 && offsetof(SmartPage, data_units_read) == 32);
static_assert(offsetof(SmartPage, error_log_entries) == 176);

/// NVMe 5.14.1.3: Firmware Slot Information.
struct FirmwareSlotPage {
    std::uint8_t active = 1;  // slot 1
    std::uint8_t reserved1[7] = {};
    char revisions[7][8] = {};
    std::uint8_t reserved64[448] = {};
};
static_assert(sizeof(FirmwareSlotPage) == 512);

/// NVMe 5.14.1.5: Commands Supported and Effects.
struct EffectsPage {
    Le32 admin[256] = {};
    Le32 io[256] = {};
    std::uint8_t reserved[2048] = {};
};
static_assert(sizeof(EffectsPage) == 4096);
constexpr std::uint32_t kSupported = 1u << 0, kChangesContent = 1u << 1;

/// Units of 1000 blocks of 512 bytes, rounded up.
std::uint64_t data_units(std::uint64_t blocks)
{
    return (blocks + 999) / 1000;
}

}  // namespace

void ErrorLog::add(const Command *command, Status status)
{
    Entry entry;
    entry.count = ++count_;
    entry.status = status_field(status, false);
    if (command != nullptr) {
        entry.sq_id = command->sq->id;
        entry.command_id = command->entry.command_id;
        entry.nsid = command->entry.nsid;
        entry.lba = command->admin() ? 0 : command->entry.cdw10 | std::uint64_t{command->entry.cdw11} << 32;
    }
    entries_.push_front(entry);
    if (entries_.size() > kErrorLogEntries) {
        entries_.pop_back();
    }
}

std::vector<std::byte> ErrorLog::page() const
{
    std::vector<std::byte> page(kErrorLogEntries * sizeof(ErrorLogEntry));
    auto *to = page.data();
    for (const auto &entry : entries_) {
        ErrorLogEntry bytes;
        bytes.error_count = entry.count;
        bytes.sq_id = entry.sq_id;
        bytes.command_id = entry.command_id;
        bytes.status = entry.status;
        bytes.parameter_error_location = entry.location;
        bytes.lba = entry.lba;
        bytes.nsid = entry.nsid;
        std::memcpy(to, &bytes, sizeof(bytes));
        to += sizeof(bytes);
    }
    return page;
}

std::vector<std::byte> smart_page(const HealthCounters &counters, std::uint8_t critical_warning,
                                  std::uint64_t error_count)
{
    SmartPage page;
    page.critical_warning = critical_warning;
    page.composite_temperature = kTemperature;
    page.data_units_read.low = data_units(counters.blocks_read);
    page.data_units_written.low = data_units(counters.blocks_written);
    page.host_reads.low = counters.reads;
    page.host_writes.low = counters.writes;
    page.power_cycles.low = counters.power_cycles;
    const auto on = std::chrono::steady_clock::now() - counters.power_on;
    page.power_on_hours.low = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::hours>(on).count());
    page.unsafe_shutdowns.low = counters.unsafe_shutdowns;
    page.media_errors.low = counters.media_errors;
    page.error_log_entries.low = error_count;
    return bytes_of(page);
}

std::vector<std::byte> firmware_slot_page()
{
    FirmwareSlotPage page;
    std::memset(page.revisions[0], ' ', sizeof(page.revisions[0]));
    std::memcpy(page.revisions[0], kFirmwareRevision, std::strlen(kFirmwareRevision));
    return bytes_of(page);
}

std::vector<std::byte> commands_supported_page()
{
    EffectsPage page;
    using enum AdminOpcode;
    for (const auto opcode :
         {delete_io_sq, create_io_sq, get_log_page, delete_io_cq, create_io_cq, identify, AdminOpcode::abort,
          set_features, get_features, async_event_request, doorbell_buffer_config}) {
        page.admin[static_cast<std::uint8_t>(opcode)] = kSupported;
    }
    for (const auto opcode : {IoOpcode::flush, IoOpcode::read, IoOpcode::compare}) {
        page.io[static_cast<std::uint8_t>(opcode)] = kSupported;
    }
    for (const auto opcode : {IoOpcode::write, IoOpcode::write_zeroes, IoOpcode::dataset_management}) {
        page.io[static_cast<std::uint8_t>(opcode)] = kSupported | kChangesContent;
    }
    return bytes_of(page);
}

Expected<LogRequest, Status> parse_log_request(const SubmissionEntry &command)
{
    LogRequest request;
    request.id = static_cast<LogId>(command.cdw10 & 0xff);
    request.retain_event = (command.cdw10 >> 15 & 1) != 0;
    const auto dwords = (std::uint64_t{command.cdw11 & 0xffff} << 16 | command.cdw10 >> 16) + 1;
    request.size = dwords * 4;
    request.offset = command.cdw12 | std::uint64_t{command.cdw13} << 32;
    if (request.size > kMaxTransfer || request.offset % 4 != 0) {
        return make_unexpected(Status::invalid_field);
    }
    return request;
}

Expected<std::vector<std::byte>, Status> slice_log(const std::vector<std::byte> &page, const LogRequest &request)
{
    if (request.offset > page.size()) {
        return make_unexpected(Status::invalid_field);
    }
    std::vector<std::byte> slice(request.size);
    const auto available = std::min<std::uint64_t>(request.size, page.size() - request.offset);
    std::copy_n(page.begin() + static_cast<std::ptrdiff_t>(request.offset), available, slice.begin());
    return slice;
}

}  // namespace vvfu::nvme
