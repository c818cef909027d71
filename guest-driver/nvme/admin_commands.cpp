// SPDX-License-Identifier: BSD-3-Clause
#include "admin_commands.hpp"

#include <algorithm>
#include <memory>
#include <utility>

namespace vvfu::nvme {
namespace {

// NVMe 5.3, 5.4: Create I/O Completion Queue, Create I/O Submission Queue.
constexpr std::uint32_t kPhysicallyContiguous = 1u << 0;
constexpr std::uint32_t kInterruptsEnabled = 1u << 1;

// NVMe 5.14.1.2: Critical Warning; NVMe 5.21.1.11 has the same bits.
constexpr std::uint8_t kTemperatureWarning = 1u << 1, kReliabilityWarning = 1u << 2;

std::uint16_t queue_id(const SubmissionEntry &entry)
{
    return static_cast<std::uint16_t>(entry.cdw10 & 0xffff);
}

std::uint32_t queue_size(const SubmissionEntry &entry)
{
    return (entry.cdw10 >> 16) + 1;
}

/// Interrupt vector of a new completion queue; completion queue of a new submission queue.
std::uint16_t upper_half(const SubmissionEntry &entry)
{
    return static_cast<std::uint16_t>(entry.cdw11 >> 16);
}

}  // namespace

AdminCommands::AdminCommands(AdminContext &context, const ControllerIdentity &identity, QueueEngine &engine,
                             DataTransfer &transfer, Features &features, ErrorLog &errors, HealthCounters &health)
    : context_(context),
      identity_(identity),
      engine_(engine),
      transfer_(transfer),
      features_(features),
      errors_(errors),
      health_(health),
      events_([this](const CommandPtr &request, std::uint32_t dword0) {
          engine_.complete(request, Status::success, dword0);
      })
{
}

void AdminCommands::reset()
{
    events_.reset();
    features_.reset();
    announced_ = 0;
    engine_.set_arbitration_burst(features_.arbitration_burst());
}

void AdminCommands::execute(const CommandPtr &command)
{
    switch (static_cast<AdminOpcode>(command->entry.opcode)) {
        case AdminOpcode::delete_io_sq: delete_sq(command); return;
        case AdminOpcode::create_io_sq: create_sq(command); return;
        case AdminOpcode::get_log_page: get_log_page(command); return;
        case AdminOpcode::delete_io_cq: delete_cq(command); return;
        case AdminOpcode::create_io_cq: create_cq(command); return;
        case AdminOpcode::identify: identify_command(command); return;
        case AdminOpcode::abort: abort(command); return;
        case AdminOpcode::set_features: set_features(command); return;
        case AdminOpcode::get_features: get_features(command); return;
        case AdminOpcode::async_event_request: async_event_request(command); return;
        case AdminOpcode::doorbell_buffer_config: doorbell_buffer_config(command); return;
    }
    engine_.complete(command, Status::invalid_opcode);
}

// ---- queues ----

/// What NVMe 5.3.1 and 5.4.1 have in common.
Status AdminCommands::check_new_queue(const SubmissionEntry &entry) const
{
    if (queue_id(entry) == 0 || queue_id(entry) > context_.queue_pairs()) {
        return Status::invalid_queue_identifier;
    }
    if (queue_size(entry) < 2 || queue_size(entry) > kMaxQueueEntries || !context_.entry_sizes_set()) {
        return Status::invalid_queue_size;
    }
    if ((entry.cdw11 & kPhysicallyContiguous) == 0) {
        return Status::invalid_field;  // CAP.CQR
    }
    if ((entry.prp1 & ((std::uint64_t{1} << context_.page_shift()) - 1)) != 0) {
        return Status::invalid_prp_offset;
    }
    return Status::success;
}

Status AdminCommands::check_new_cq(const SubmissionEntry &entry) const
{
    if (const auto status = check_new_queue(entry); status != Status::success) {
        return status;
    }
    if (engine_.find_cq(queue_id(entry))) {
        return Status::invalid_queue_identifier;
    }
    // NVMe 5.3: compared with what the controller supports; messages may be enabled later. The vector counts only with
    // interrupts enabled, but an impossible one is an error either way.
    return upper_half(entry) < context_.vectors() ? Status::success : Status::invalid_interrupt_vector;
}

Status AdminCommands::check_new_sq(const SubmissionEntry &entry) const
{
    // NVMe 5.4.1: Completion Queue Invalid is for a queue that could exist and does not.
    const auto cq_id = upper_half(entry);
    if (cq_id == 0 || cq_id > context_.queue_pairs()) {
        return Status::invalid_queue_identifier;
    }
    if (!engine_.find_cq(cq_id)) {
        return Status::completion_queue_invalid;
    }
    if (const auto status = check_new_queue(entry); status != Status::success) {
        return status;
    }
    return engine_.find_sq(queue_id(entry)) ? Status::invalid_queue_identifier : Status::success;
}

void AdminCommands::create_cq(const CommandPtr &command)
{
    const auto &entry = command->entry;
    const auto status = check_new_cq(entry);
    if (status == Status::success) {
        auto cq = std::make_shared<CompletionQueue>();
        cq->id = queue_id(entry);
        cq->base = guest::DmaAddress{std::uint64_t{entry.prp1}};
        cq->ring.size = queue_size(entry);
        cq->interrupts = (entry.cdw11 & kInterruptsEnabled) != 0;
        cq->vector = upper_half(entry);
        engine_.create_cq(std::move(cq));
    }
    engine_.complete(command, status);
}

void AdminCommands::create_sq(const CommandPtr &command)
{
    const auto &entry = command->entry;
    const auto status = check_new_sq(entry);
    if (status == Status::success) {
        auto sq = std::make_shared<SubmissionQueue>();
        sq->id = queue_id(entry);
        sq->base = guest::DmaAddress{std::uint64_t{entry.prp1}};
        sq->ring.size = queue_size(entry);
        sq->cq = engine_.find_cq(upper_half(entry));
        engine_.create_sq(std::move(sq));
    }
    engine_.complete(command, status);
}

void AdminCommands::delete_cq(const CommandPtr &command)
{
    const auto cq = engine_.find_cq(queue_id(command->entry));
    if (!cq || cq->id == 0) {
        engine_.complete(command, Status::invalid_queue_identifier);
        return;
    }
    if (cq->submission_queues > 0) {
        engine_.complete(command, Status::invalid_queue_deletion);
        return;
    }
    engine_.delete_cq(cq);
    engine_.complete(command, Status::success);
}

void AdminCommands::delete_sq(const CommandPtr &command)
{
    const auto sq = engine_.find_sq(queue_id(command->entry));
    if (!sq || sq->id == 0) {
        engine_.complete(command, Status::invalid_queue_identifier);
        return;
    }
    engine_.delete_sq(sq, [this, command] { engine_.complete(command, Status::success); });
}

// ---- data structures ----

void AdminCommands::identify_command(const CommandPtr &command)
{
    auto page = identify(identity_, command->entry);
    if (!page) {
        engine_.complete(command, page.error());
        return;
    }
    transfer_.send(command, std::move(*page), [this, command](Status status) { engine_.complete(command, status); });
}

Expected<std::vector<std::byte>, Status> AdminCommands::log_page(const SubmissionEntry &entry, LogId id) const
{
    switch (id) {
        case LogId::error: return errors_.page();
        case LogId::smart:
            // LPA bit 0 is 0: there is no page per namespace.
            if (entry.nsid != 0 && entry.nsid != kBroadcastNsid) {
                return make_unexpected(Status::invalid_field);
            }
            return smart_page(health_, critical_warning(), errors_.count());
        case LogId::firmware_slot: return firmware_slot_page();
        case LogId::commands_supported: return commands_supported_page();
    }
    return make_unexpected(Status::invalid_log_page);
}

void AdminCommands::get_log_page(const CommandPtr &command)
{
    const auto request = parse_log_request(command->entry);
    if (!request) {
        engine_.complete(command, request.error());
        return;
    }
    auto data = log_page(command->entry, request->id).and_then([&](const std::vector<std::byte> &page) {
        return slice_log(page, *request);
    });
    if (!data) {
        engine_.complete(command, data.error());
        return;
    }
    transfer_.send(command, std::move(*data), [this, command, request = *request](Status status) {
        engine_.complete(command, status);
        if (status == Status::success && !request.retain_event) {
            events_.log_read(request.id);
        }
    });
}

// ---- abort, features, events ----

/// NVMe 5.1: success in any case; bit 0 of Dword 0 is set when the command was not aborted.
void AdminCommands::abort(const CommandPtr &command)
{
    const auto sq_id = queue_id(command->entry);
    const auto command_id = static_cast<std::uint16_t>(command->entry.cdw10 >> 16);
    engine_.complete(command, Status::success, abort_one(sq_id, command_id) ? 0 : 1);
}

bool AdminCommands::abort_one(std::uint16_t sq_id, std::uint16_t command_id)
{
    const auto sq = engine_.find_sq(sq_id);
    if (!sq) {
        return false;
    }
    const auto it = std::find_if(sq->commands.begin(), sq->commands.end(), [&](const CommandPtr &candidate) {
        return candidate->entry.command_id == command_id && !candidate->executing &&
               (sq_id != 0 || candidate->entry.opcode == static_cast<std::uint8_t>(AdminOpcode::async_event_request));
    });
    if (it == sq->commands.end()) {
        return false;
    }
    const CommandPtr victim = *it;
    if (sq_id == 0 && !events_.abort(victim)) {
        return false;
    }
    engine_.complete(victim, Status::abort_requested);
    return true;
}

void AdminCommands::get_features(const CommandPtr &command)
{
    const auto value = features_.get(command->entry);
    engine_.complete(command, value ? Status::success : value.error(), value.value_or(0));
}

void AdminCommands::set_features(const CommandPtr &command)
{
    const bool cached = features_.write_cache_enabled();
    const auto value = features_.set(command->entry, engine_.has_io_queues());
    if (cached && !features_.write_cache_enabled()) {
        disable_write_cache(command);
    } else {
        finish_set_features(command, value);
    }
}

/// Writes are durable from now on; the command completes when those before are, too (NVMe 5.21.1.6).
void AdminCommands::disable_write_cache(const CommandPtr &command)
{
    context_.flush_all([this, command](Status status) {
        if (status != Status::success) {
            features_.enable_write_cache();
            engine_.complete(command, status);
            return;
        }
        finish_set_features(command, 0u);
    });
}

void AdminCommands::finish_set_features(const CommandPtr &command, const Features::Result &result)
{
    engine_.complete(command, result ? Status::success : result.error(), result.value_or(0));
    engine_.set_arbitration_burst(features_.arbitration_burst());
    announce_warnings();
}

std::uint8_t AdminCommands::critical_warning() const noexcept
{
    return static_cast<std::uint8_t>((features_.temperature_warning() ? kTemperatureWarning : 0) |
                                     (health_.reliability_degraded ? kReliabilityWarning : 0));
}

/// NVMe 5.2: once, when the warning begins, or when the event is enabled after that.
void AdminCommands::announce_warnings()
{
    const auto wanted = static_cast<std::uint8_t>(critical_warning() & features_.async_events());
    const auto fresh = wanted & ~announced_;
    announced_ = wanted;
    if ((fresh & kReliabilityWarning) != 0) {
        events_.raise(kReliabilityEvent);
    }
    if ((fresh & kTemperatureWarning) != 0) {
        events_.raise(kTemperatureEvent);
    }
}

void AdminCommands::async_event_request(const CommandPtr &command)
{
    if (!events_.request(command)) {
        engine_.complete(command, Status::async_event_limit_exceeded);
    }
}

void AdminCommands::doorbell_buffer_config(const CommandPtr &command)
{
    const auto &entry = command->entry;
    const auto page_size = std::uint64_t{1} << context_.page_shift();
    const guest::DmaAddress shadow{std::uint64_t{entry.prp1}}, event_index{std::uint64_t{entry.prp2}};
    engine_.complete(command, engine_.use_shadow_doorbells(shadow, event_index, page_size));
}

}  // namespace vvfu::nvme
