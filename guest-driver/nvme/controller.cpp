// SPDX-License-Identifier: BSD-3-Clause
#include "controller.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace vvfu::nvme {
namespace {

constexpr std::uint64_t kBarSize = 16 * 1024;
constexpr std::uint32_t kMsixTableOffset = 0x2000, kMsixPbaOffset = 0x3000;
constexpr std::uint32_t kClassNvmExpress = 0x010802;  // NVMe 2.1.5

guest::PciFunction describe_function(guest::InterruptKind interrupts, std::uint16_t queue_pairs)
{
    guest::PciFunction function;
    function.identity = {kPciVendorId, kPciDeviceId, kPciVendorId, kPciSubsystemId, kClassNvmExpress, 1};
    function.bars[0].size = kBarSize;
    function.bars[0].is_64bit = true;
    function.offer(interrupts, static_cast<std::uint16_t>(queue_pairs + 1));
    function.msix_bar = 0;
    function.msix_table_offset = kMsixTableOffset;
    function.msix_pba_offset = kMsixPbaOffset;
    return function;
}

ControllerIdentity describe_controller(DiskIdentity disk, const Namespaces &namespaces)
{
    ControllerIdentity identity;
    identity.disk = std::move(disk);
    for (const auto &ns : namespaces) {
        const auto &ids = identity.disk.namespaces.at(identity.namespaces.size());
        identity.namespaces.push_back({ns.blocks(), ns.read_only, ns.backing->discard_zeroes(), ids});
        identity.volatile_cache = identity.volatile_cache || ns.backing->volatile_cache();
    }
    return identity;
}

/// A host asks what there is, and is told: no error that anybody should be alarmed by.
bool probes(const Command &command, Status status)
{
    if (!command.admin()) {
        return false;
    }
    if (status == Status::invalid_opcode) {
        return true;
    }
    switch (static_cast<AdminOpcode>(command.entry.opcode)) {
        case AdminOpcode::identify:
        case AdminOpcode::get_log_page:
        case AdminOpcode::get_features:
        case AdminOpcode::set_features:
            return status == Status::invalid_field || status == Status::invalid_namespace ||
                   status == Status::invalid_log_page || status == Status::feature_not_saveable ||
                   status == Status::feature_not_namespace_specific;
        default: return false;
    }
}

Features::Limits limits(const ControllerIdentity &identity, std::uint16_t queue_pairs, std::uint16_t vectors)
{
    return {static_cast<std::uint32_t>(identity.namespaces.size()), queue_pairs, vectors, identity.volatile_cache};
}

}  // namespace

Controller::Controller(Config config, guest::DeviceServices services)
    : PciDevice(describe_function(config.interrupts, config.queue_pairs), services),
      queue_pairs_(config.queue_pairs),
      namespaces_(std::move(config.namespaces)),
      identity_(describe_controller(std::move(config.identity), namespaces_)),
      engine_(services, activity_, *this),
      transfer_(services.dma, activity_),
      features_(limits(identity_, queue_pairs_, interrupt_vectors())),
      admin_(*this, identity_, engine_, transfer_, features_, errors_, health_),
      io_(namespaces_, engine_, transfer_, activity_, features_, health_, reports_,
          [this] { admin_.announce_warnings(); }),
      interrupts_(interrupt_vectors(), features_, services.executor, activity_,
                  [this](std::uint16_t vector) { signal(vector); })
{
}

void Controller::make_durable(std::function<void(bool durable)> done)
{
    io_.flush_all([done = std::move(done)](Status status) { done(status == Status::success); });
}

/// Any thread: the namespaces stay as they are.
std::string Controller::unfinished() const
{
    std::string text;
    for (const auto &ns : namespaces_) {
        const auto requests = ns.backing->unfinished();
        text += (text.empty() || requests.empty() ? "" : ", ") + requests;
    }
    return text;
}

void Controller::counters(guest::Counters &counters) const
{
    const guest::Counter all[] = {
        {"read_commands", health_.reads},
        {"write_commands", health_.writes},
        {"blocks_read", health_.blocks_read},
        {"blocks_written", health_.blocks_written},
        {"read_errors", health_.read_errors},
        {"write_errors", health_.write_errors},
        {"flush_errors", health_.flush_errors},
        {"no_space_errors", health_.no_space},
        {"media_errors", health_.media_errors},
        {"error_log_entries", errors_.count()},
        {"controller_resets", health_.controller_resets},
        {"function_resets", health_.function_resets},
        {"unsafe_shutdowns", health_.unsafe_shutdowns},
        {"fatal_states", health_.fatal_states},
    };
    counters.insert(counters.end(), std::begin(all), std::end(all));
}

// ---- registers ----

void Controller::bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out)
{
    if (bar == 0) {
        registers_.read(offset, out);  // doorbells read as 0 (NVMe 3.1.24: not defined)
    } else {
        std::fill(out.begin(), out.end(), std::byte{0xff});
    }
}

/// NVMe 3.1: dword accesses, or quadwords to 64-bit registers; a host that does anything else gets nothing done.
void Controller::bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data)
{
    if (bar != 0 || offset % 4 != 0 || data.size() % 4 != 0) {
        return;
    }
    for (; !data.empty(); data = data.subspan(4), offset += 4) {
        Le32 value;
        std::memcpy(&value, data.data(), sizeof(value));
        write_dword(offset, value);
    }
}

void Controller::write_dword(std::uint64_t offset, std::uint32_t value)
{
    if (offset >= reg::kDoorbells) {
        doorbell((offset - reg::kDoorbells) / 4, value);
        return;
    }
    const auto mask_before = registers_.interrupt_mask();
    registers_.write(offset, value);
    if (offset == reg::kCc) {
        reconcile();
    } else if (offset == reg::kIntms || offset == reg::kIntmc) {
        interrupt_mask_written(mask_before);
    }
}

/// NVMe 3.1.24, 3.1.25: submission queue y is doorbell 2y, completion queue y is 2y + 1.
void Controller::doorbell(std::uint64_t index, std::uint32_t value)
{
    if (!engine_.running()) {
        return;
    }
    const auto id = static_cast<std::uint16_t>(index / 2);
    value &= 0xffff;  // the rest is reserved
    const auto sq = index % 2 == 0 ? engine_.find_sq(id) : nullptr;
    const auto cq = index % 2 == 1 ? engine_.find_cq(id) : nullptr;
    if (!sq && !cq) {
        invalid_doorbell(kInvalidDoorbellRegister);
        return;
    }
    if (sq ? !engine_.sq_doorbell(sq, value) : !engine_.cq_doorbell(*cq, value)) {
        invalid_doorbell(kInvalidDoorbellValue);
        return;
    }
    engine_.kick();
    if (cq) {
        follow_head(*cq);
    }
}

/// The level of INTA# follows the head, so with shadow doorbells every move of it must be announced.
void Controller::follow_head(CompletionQueue &cq)
{
    if (interrupts() == guest::InterruptKind::intx) {
        engine_.refresh_head(cq);
    }
    update_intx();
}

void Controller::invalid_doorbell(const AsyncEvent &event)
{
    errors_.add(nullptr, Status::success);
    admin_.events().raise(event);
}

// ---- life cycle ----

bool Controller::shutdown_requested() const noexcept
{
    return registers_.shutdown_notification() != 0 && registers_.shutdown_status() == ShutdownStatus::normal;
}

void Controller::reconcile()
{
    if (transition_) {
        if (!registers_.enable()) {
            engine_.stop();  // what the transition waits for ends sooner
        }
        return;
    }
    if (reset_done_) {
        finish_function_reset();
    } else if (enabled_ && !registers_.enable()) {
        disable();
    } else if (!enabled_ && registers_.enable()) {
        enable();
    } else if (shutdown_requested()) {
        shut_down();
    } else if (!enabled_ && registers_.shutdown_notification() == 0) {
        registers_.set_shutdown_status(ShutdownStatus::normal);  // what a reset would do, but there is nothing to reset
    }
}

void Controller::enable()
{
    enabled_ = true;
    registers_.set_shutdown_status(ShutdownStatus::normal);
    if (!registers_.can_enable()) {
        fatal("the settings of CC, AQA, ASQ and ACQ cannot be enabled");
        return;
    }
    auto cq = std::make_shared<CompletionQueue>();
    cq->base = guest::DmaAddress{registers_.acq()};
    cq->ring.size = registers_.acq_entries();
    cq->interrupts = true;
    auto sq = std::make_shared<SubmissionQueue>();
    sq->base = guest::DmaAddress{registers_.asq()};
    sq->ring.size = registers_.asq_entries();
    sq->cq = cq;
    engine_.create_cq(std::move(cq));
    engine_.create_sq(std::move(sq));
    transfer_.set_page_shift(registers_.page_shift());
    engine_.start();
    registers_.set_ready(true);
    reconcile();
}

/// NVMe 7.3.2. CSTS.RDY tells the host that none of its memory is used any more.
void Controller::disable()
{
    transition_ = true;
    ++health_.controller_resets;
    reports_.report(Reports::Kind::reset, spdlog::level::info, "the host resets the controller");
    engine_.stop();
    activity_.when_idle([this] {
        clear();
        registers_.controller_reset();
        transition_ = false;
        reconcile();
    });
}

/// NVMe 7.6.2: commands under way complete first, so that the flush covers them. Complete means that the power may go;
/// when the flush failed that is never said.
void Controller::shut_down()
{
    transition_ = true;
    registers_.set_shutdown_status(ShutdownStatus::occurring);
    activity_.when_idle([this] {
        io_.flush_all([this](Status status) {
            if (status == Status::success) {
                registers_.set_shutdown_status(ShutdownStatus::complete);
            } else {
                fatal("the shutdown cannot complete, because what was written is not durable");
            }
            transition_ = false;
            reconcile();
        });
    });
}

void Controller::function_reset(std::function<void()> done)
{
    reset_done_ = std::move(done);
    engine_.stop();
    if (enabled_) {
        ++health_.power_cycles;
        ++health_.function_resets;
        reports_.report(Reports::Kind::reset, spdlog::level::info, "function reset, or end of the session");
    }
    if (enabled_ && registers_.shutdown_status() != ShutdownStatus::complete) {
        ++health_.unsafe_shutdowns;
    }
    reconcile();
}

void Controller::bus_master_changed()
{
    if (!bus_master() || !engine_.running()) {
        return;
    }
    // The host may have moved heads in its memory meanwhile, and INTA# follows them.
    for (const auto &[id, cq] : engine_.cqs()) {
        follow_head(*cq);
    }
    engine_.resume();
}

void Controller::finish_function_reset()
{
    transition_ = true;
    activity_.when_idle([this] {
        clear();
        registers_ = Registers{};
        transition_ = false;
        std::exchange(reset_done_, nullptr)();
    });
}

void Controller::clear()
{
    engine_.stop();
    engine_.clear();
    admin_.reset();
    interrupts_.reset();
    enabled_ = false;
    update_intx();
}

// ---- commands and interrupts ----

void Controller::execute(const CommandPtr &command)
{
    // NVMe 4.2: no fused operations (FUSES), and SGLs are not for PRP-only controllers (SGLS).
    constexpr std::uint8_t kFuseOrSgl = 0xc3;
    if ((command->entry.flags & kFuseOrSgl) != 0) {
        engine_.complete(command, Status::invalid_field);
    } else if (command->admin()) {
        admin_.execute(command);
    } else {
        io_.execute(command);
    }
}

bool Controller::command_failed(const Command &command, Status status)
{
    if (status == Status::abort_requested || status == Status::aborted_sq_deletion) {
        return false;
    }
    if (probes(command, status)) {
        return false;
    }
    errors_.add(&command, status);
    return true;
}

void Controller::entries_posted(CompletionQueue &cq)
{
    if (cq.interrupts && interrupts() != guest::InterruptKind::intx) {
        interrupts_.completions(cq.vector, cq.unsignalled);
    }
    follow_head(cq);
}

void Controller::fatal(const std::string &reason)
{
    engine_.stop();
    registers_.set_fatal();
    ++health_.fatal_states;
    reports_.report(Reports::Kind::fatal, spdlog::level::err, "fatal controller status: " + reason);
}

bool Controller::interrupting(const CompletionQueue &cq) const
{
    return cq.interrupts && cq.ring.used() > 0 && !registers_.masked(cq.vector);
}

void Controller::signal(std::uint16_t vector)
{
    if (interrupts() == guest::InterruptKind::msix || !registers_.masked(vector)) {
        trigger(vector);
    }
}

/// A vector that is unmasked while completions of it wait for the host gets its message now (NVMe 7.5.1).
void Controller::interrupt_mask_written(std::uint32_t before)
{
    update_intx();
    const auto unmasked = before & ~registers_.interrupt_mask();
    if (unmasked == 0 || interrupts() != guest::InterruptKind::msi) {
        return;
    }
    std::uint32_t due = 0;
    for (const auto &[id, cq] : engine_.cqs()) {
        if (interrupting(*cq)) {
            engine_.refresh_head(*cq);
            due |= interrupting(*cq) ? 1u << cq->vector : 0u;
        }
    }
    for (std::uint16_t vector = 0; vector < 32; ++vector) {
        if ((due & unmasked & 1u << vector) != 0) {
            signal(vector);
        }
    }
}

void Controller::update_intx()
{
    const auto &cqs = engine_.cqs();
    const bool level = interrupts() == guest::InterruptKind::intx &&
                       std::any_of(cqs.begin(), cqs.end(), [this](const auto &cq) { return interrupting(*cq.second); });
    if (level != intx_) {
        intx_ = level;
        intx_set(level);
    }
}

}  // namespace vvfu::nvme
