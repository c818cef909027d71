// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <vector>

#include "spec.hpp"
#include "vvfu/base/expected.hpp"

namespace vvfu::nvme {

/// NVMe 5.21.1.
enum class FeatureId : std::uint8_t {
    arbitration = 0x01,
    power_management = 0x02,
    temperature_threshold = 0x04,
    error_recovery = 0x05,
    volatile_write_cache = 0x06,
    number_of_queues = 0x07,
    interrupt_coalescing = 0x08,
    interrupt_vector_configuration = 0x09,
    write_atomicity_normal = 0x0a,
    async_event_configuration = 0x0b,
};

/// Temperatures in kelvin (NVMe 5.14.1.2). The controller has no sensor and reports a constant.
inline constexpr std::uint16_t kTemperature = 310, kWarningTemperature = 343, kCriticalTemperature = 353;

/// What Set Features and Get Features keep. Values are those of Command Dword 11.
class Features {
public:
    struct Limits {
        std::uint32_t namespaces = 1;
        std::uint16_t queue_pairs = 1;  ///< I/O queue pairs
        std::uint16_t vectors = 1;      ///< interrupt vectors
        bool volatile_cache = false;
    };

    explicit Features(const Limits &limits);

    using Result = Expected<std::uint32_t, Status>;  ///< Dword 0 of the completion

    [[nodiscard]] Result get(const SubmissionEntry &command) const;
    /// `io_queues_exist`: the number of queues can no longer be changed.
    [[nodiscard]] Result set(const SubmissionEntry &command, bool io_queues_exist);
    /// Controller level reset: back to the defaults.
    void reset() { *this = Features(limits_); }

    // ---- the values in use ----

    [[nodiscard]] std::uint32_t arbitration_burst() const noexcept;  ///< commands
    [[nodiscard]] bool write_cache_enabled() const noexcept { return write_cache_; }
    /// Takes the disabling back: it could not be carried out.
    void enable_write_cache() noexcept { write_cache_ = true; }
    /// Completions without interrupt, at most, and for how long (100 us units); 0: not coalesced.
    [[nodiscard]] std::uint32_t coalescing_threshold(std::uint16_t vector) const noexcept;
    [[nodiscard]] std::uint32_t coalescing_time() const noexcept { return (coalescing_ >> 8) & 0xff; }
    [[nodiscard]] std::uint32_t async_events() const noexcept { return async_events_; }
    /// Bit 1 of Critical Warning: the temperature is outside the thresholds.
    [[nodiscard]] bool temperature_warning() const noexcept;

private:
    [[nodiscard]] Result current(const SubmissionEntry &command) const;
    [[nodiscard]] Result capabilities(FeatureId feature) const;
    [[nodiscard]] bool supported(FeatureId feature) const noexcept;
    [[nodiscard]] Status check_scope(FeatureId feature, std::uint32_t nsid) const noexcept;
    [[nodiscard]] Result set_power(std::uint32_t value);
    [[nodiscard]] Result set_temperature(std::uint32_t value);
    [[nodiscard]] Result temperature(std::uint32_t selector) const;
    [[nodiscard]] Result set_error_recovery(std::uint32_t nsid, std::uint32_t value);
    [[nodiscard]] Result set_queues(std::uint32_t value, bool io_queues_exist) const;
    [[nodiscard]] Result set_vector(std::uint32_t value);
    [[nodiscard]] std::uint32_t allocated_queues() const noexcept;

    Limits limits_;
    std::uint32_t arbitration_ = 4;  // bursts of 16, as many as one fetch reads
    std::uint32_t power_ = 0;
    std::uint16_t over_temperature_ = kWarningTemperature, under_temperature_ = 0;
    std::vector<std::uint32_t> error_recovery_;  // by namespace
    bool write_cache_;
    std::uint32_t coalescing_ = 0;
    std::vector<bool> coalescing_disabled_;  // by vector
    std::uint32_t write_atomicity_ = 0;
    std::uint32_t async_events_ = 0;
};

}  // namespace vvfu::nvme
