// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "queues.hpp"
#include "spec.hpp"
#include "vvfu/base/expected.hpp"

namespace vvfu::nvme {

/// NVMe 5.14.1.
enum class LogId : std::uint8_t { error = 0x01, smart = 0x02, firmware_slot = 0x03, commands_supported = 0x05 };

inline constexpr std::size_t kErrorLogEntries = 64;             ///< ELPE + 1
inline constexpr const char *kFirmwareRevision = VVFU_VERSION;  ///< FR, padded with spaces: the project's version

/// NVMe 5.14.1.1: the last errors, newest first.
class ErrorLog {
public:
    /// `command` null: an error of no command.
    void add(const Command *command, Status status);
    [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
    [[nodiscard]] std::vector<std::byte> page() const;

private:
    struct Entry {
        std::uint64_t count = 0;
        std::uint16_t sq_id = 0xffff, command_id = 0xffff, status = 0, location = 0xffff;
        std::uint64_t lba = 0;
        std::uint32_t nsid = 0;
    };
    std::uint64_t count_ = 0;
    std::deque<Entry> entries_;
};

/// Counters of the SMART page (NVMe 5.14.1.2); they live as long as the process.
struct HealthCounters {
    std::uint64_t blocks_read = 0, blocks_written = 0;  ///< 512 bytes each
    std::uint64_t reads = 0, writes = 0;                ///< commands
    std::uint64_t power_cycles = 1;  ///< the start of the process, and each function reset of a controller in use
    std::uint64_t unsafe_shutdowns = 0;
    std::uint64_t media_errors = 0;
    bool reliability_degraded = false;  ///< a flush has failed
    // Not in the page; see Controller::counters().
    std::uint64_t read_errors = 0, write_errors = 0, flush_errors = 0, no_space = 0;
    std::uint64_t controller_resets = 0, function_resets = 0, fatal_states = 0;
    std::chrono::steady_clock::time_point power_on = std::chrono::steady_clock::now();
};

/// `critical_warning`: the byte of that name.
[[nodiscard]] std::vector<std::byte> smart_page(const HealthCounters &counters, std::uint8_t critical_warning,
                                                std::uint64_t error_count);
[[nodiscard]] std::vector<std::byte> firmware_slot_page();
[[nodiscard]] std::vector<std::byte> commands_supported_page();

/// Fields of a Get Log Page command (NVMe 5.14).
struct LogRequest {
    LogId id{};
    bool retain_event = false;
    std::uint64_t offset = 0;  ///< bytes
    std::uint64_t size = 0;    ///< bytes
};
[[nodiscard]] Expected<LogRequest, Status> parse_log_request(const SubmissionEntry &command);

/// The bytes that a request asks for; zeroes behind the end of the page.
[[nodiscard]] Expected<std::vector<std::byte>, Status> slice_log(const std::vector<std::byte> &page,
                                                                 const LogRequest &request);

}  // namespace vvfu::nvme
