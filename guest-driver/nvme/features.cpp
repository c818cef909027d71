// SPDX-License-Identifier: BSD-3-Clause
#include "features.hpp"

#include <algorithm>

#include "queues.hpp"

namespace vvfu::nvme {
namespace {

/// NVMe 5.15.1: Select.
enum class Select : std::uint8_t { current = 0, default_value = 1, saved = 2, capabilities = 3 };

constexpr std::uint32_t kSave = 1u << 31;  // NVMe 5.21: SV
constexpr std::uint32_t kNoBurstLimit = 7;
constexpr std::uint32_t kDulbe = 1u << 16;
constexpr std::uint32_t kCoalescingDisable = 1u << 16;
/// NVMe 5.21.1.11: SMART critical warnings; no other event is supported (OAES is 0).
constexpr std::uint32_t kAsyncEventMask = 0x1f;

FeatureId feature_id(const SubmissionEntry &command)
{
    return static_cast<FeatureId>(command.cdw10 & 0xff);
}

auto fail(Status status)
{
    return make_unexpected(status);
}

}  // namespace

Features::Features(const Limits &limits)
    : limits_(limits),
      error_recovery_(limits.namespaces, 0),
      write_cache_(limits.volatile_cache),
      coalescing_disabled_(limits.vectors, false)
{
}

bool Features::supported(FeatureId feature) const noexcept
{
    switch (feature) {
        case FeatureId::arbitration:
        case FeatureId::power_management:
        case FeatureId::temperature_threshold:
        case FeatureId::error_recovery:
        case FeatureId::number_of_queues:
        case FeatureId::interrupt_coalescing:
        case FeatureId::interrupt_vector_configuration:
        case FeatureId::write_atomicity_normal:
        case FeatureId::async_event_configuration: return true;
        case FeatureId::volatile_write_cache: return limits_.volatile_cache;
    }
    return false;
}

Features::Result Features::get(const SubmissionEntry &command) const
{
    const auto feature = feature_id(command);
    if (!supported(feature)) {
        return fail(Status::invalid_field);
    }
    const auto select = (command.cdw10 >> 8) & 7;
    switch (static_cast<Select>(select)) {
        case Select::current: return current(command);
        case Select::default_value:
        case Select::saved:  // nothing is saved: the default (NVMe 7.8)
            return Features(limits_).current(command);
        case Select::capabilities: return capabilities(feature);
    }
    return fail(Status::invalid_field);
}

/// NVMe 5.15.2: bit 0 saveable, bit 1 namespace specific, bit 2 changeable.
Features::Result Features::capabilities(FeatureId feature) const
{
    return 4u | (feature == FeatureId::error_recovery ? 2u : 0u);
}

Features::Result Features::current(const SubmissionEntry &command) const
{
    switch (feature_id(command)) {
        case FeatureId::arbitration: return arbitration_;
        case FeatureId::power_management: return power_;
        case FeatureId::temperature_threshold: return temperature(command.cdw11);
        case FeatureId::error_recovery:
            if (command.nsid == 0 || command.nsid > limits_.namespaces) {
                return fail(Status::invalid_namespace);
            }
            return error_recovery_[command.nsid - 1];
        case FeatureId::volatile_write_cache: return write_cache_ ? 1u : 0u;
        case FeatureId::number_of_queues: return allocated_queues();
        case FeatureId::interrupt_coalescing: return coalescing_;
        case FeatureId::interrupt_vector_configuration: {
            const std::uint32_t vector = command.cdw11 & 0xffff;
            if (vector >= limits_.vectors) {
                return fail(Status::invalid_field);
            }
            return vector | (coalescing_disabled_[vector] || vector == 0 ? kCoalescingDisable : 0);
        }
        case FeatureId::write_atomicity_normal: return write_atomicity_;
        case FeatureId::async_event_configuration: return async_events_;
    }
    return fail(Status::invalid_field);
}

/// NVMe 7.8: a controller-wide feature cannot be set for one namespace.
Status Features::check_scope(FeatureId feature, std::uint32_t nsid) const noexcept
{
    if (nsid == 0 || nsid == kBroadcastNsid) {
        return feature == FeatureId::error_recovery && nsid == 0 ? Status::invalid_namespace : Status::success;
    }
    if (nsid > limits_.namespaces) {
        return Status::invalid_namespace;
    }
    return feature == FeatureId::error_recovery ? Status::success : Status::feature_not_namespace_specific;
}

Features::Result Features::set(const SubmissionEntry &command, bool io_queues_exist)
{
    const auto feature = feature_id(command);
    if (!supported(feature)) {
        return fail(Status::invalid_field);
    }
    if ((command.cdw10 & kSave) != 0) {
        return fail(Status::feature_not_saveable);
    }
    if (const auto status = check_scope(feature, command.nsid); status != Status::success) {
        return fail(status);
    }
    const std::uint32_t value = command.cdw11;
    switch (feature) {
        case FeatureId::arbitration: arbitration_ = value; return 0u;
        case FeatureId::power_management: return set_power(value);
        case FeatureId::temperature_threshold: return set_temperature(value);
        case FeatureId::error_recovery: return set_error_recovery(command.nsid, value);
        case FeatureId::volatile_write_cache: write_cache_ = (value & 1) != 0; return 0u;
        case FeatureId::number_of_queues: return set_queues(value, io_queues_exist);
        case FeatureId::interrupt_coalescing: coalescing_ = value & 0xffff; return 0u;
        case FeatureId::interrupt_vector_configuration: return set_vector(value);
        case FeatureId::write_atomicity_normal: write_atomicity_ = value & 1; return 0u;
        case FeatureId::async_event_configuration: async_events_ = value & kAsyncEventMask; return 0u;
    }
    return fail(Status::invalid_field);
}

Features::Result Features::set_power(std::uint32_t value)
{
    if ((value & 0x1f) != 0) {
        return fail(Status::invalid_field);  // there is one power state
    }
    power_ = value & 0xe0;  // the workload hint
    return 0u;
}

/// NVMe 5.21.1.4: threshold type in bits 21:20, sensor in bits 19:16 (0: composite, 15: all).
Features::Result Features::set_temperature(std::uint32_t value)
{
    const auto sensor = (value >> 16) & 0xf, type = (value >> 20) & 3;
    if ((sensor != 0 && sensor != 0xf) || type > 1) {
        return fail(Status::invalid_field);
    }
    (type == 0 ? over_temperature_ : under_temperature_) = static_cast<std::uint16_t>(value);
    return 0u;
}

Features::Result Features::temperature(std::uint32_t selector) const
{
    const auto sensor = (selector >> 16) & 0xf, type = (selector >> 20) & 3;
    if (sensor != 0 || type > 1) {
        return fail(Status::invalid_field);
    }
    return type == 0 ? over_temperature_ : under_temperature_;
}

bool Features::temperature_warning() const noexcept
{
    return kTemperature >= over_temperature_ || kTemperature <= under_temperature_;
}

Features::Result Features::set_error_recovery(std::uint32_t nsid, std::uint32_t value)
{
    if ((value & kDulbe) != 0) {
        return fail(Status::invalid_field);  // NSFEAT does not offer it
    }
    if (nsid == kBroadcastNsid) {
        std::fill(error_recovery_.begin(), error_recovery_.end(), value & 0xffff);
    } else {
        error_recovery_[nsid - 1] = value & 0xffff;
    }
    return 0u;
}

std::uint32_t Features::allocated_queues() const noexcept
{
    const std::uint32_t zero_based = limits_.queue_pairs - 1u;
    return zero_based << 16 | zero_based;
}

/// NVMe 5.21.1.7: the controller may allocate more than asked for; this one always allocates all.
Features::Result Features::set_queues(std::uint32_t value, bool io_queues_exist) const
{
    if (io_queues_exist) {
        return fail(Status::command_sequence_error);
    }
    if ((value & 0xffff) == 0xffff || value >> 16 == 0xffff) {
        return fail(Status::invalid_field);
    }
    return allocated_queues();
}

Features::Result Features::set_vector(std::uint32_t value)
{
    const auto vector = value & 0xffff;
    if (vector >= limits_.vectors) {
        return fail(Status::invalid_field);
    }
    coalescing_disabled_[vector] = (value & kCoalescingDisable) != 0;
    return 0u;
}

std::uint32_t Features::arbitration_burst() const noexcept
{
    const auto exponent = arbitration_ & 7;
    return exponent == kNoBurstLimit ? kFetchBatch : 1u << exponent;
}

std::uint32_t Features::coalescing_threshold(std::uint16_t vector) const noexcept
{
    // NVMe 5.21.1.8: the admin queue's interrupts are not coalesced.
    if (vector == 0 || coalescing_disabled_[vector] || coalescing_time() == 0) {
        return 0;
    }
    return coalescing_ & 0xff;
}

}  // namespace vvfu::nvme
