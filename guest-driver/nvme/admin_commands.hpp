// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <functional>

#include "async_events.hpp"
#include "data_transfer.hpp"
#include "features.hpp"
#include "identify.hpp"
#include "log_pages.hpp"
#include "queue_engine.hpp"

namespace vvfu::nvme {

/// What admin commands need to know of the controller.
class AdminContext {
public:
    virtual ~AdminContext() = default;
    /// Largest I/O queue identifier.
    [[nodiscard]] virtual std::uint16_t queue_pairs() const = 0;
    /// Interrupt vectors that the controller has.
    [[nodiscard]] virtual std::uint16_t vectors() const = 0;
    /// CC.IOSQES and CC.IOCQES have the sizes of our entries.
    [[nodiscard]] virtual bool entry_sizes_set() const = 0;
    [[nodiscard]] virtual std::uint32_t page_shift() const = 0;
    /// Makes everything written so far durable; `done` gets success or write_lost.
    virtual void flush_all(std::function<void(Status)> done) = 0;
};

/// The admin command set (NVMe 5).
class AdminCommands {
public:
    AdminCommands(AdminContext &context, const ControllerIdentity &identity, QueueEngine &engine,
                  DataTransfer &transfer, Features &features, ErrorLog &errors, HealthCounters &health);

    void execute(const CommandPtr &command);
    [[nodiscard]] AsyncEvents &events() noexcept { return events_; }
    void reset();
    /// A critical warning may have begun: sends the event if the host wants it.
    void announce_warnings();

private:
    void create_cq(const CommandPtr &command);
    void create_sq(const CommandPtr &command);
    void delete_cq(const CommandPtr &command);
    void delete_sq(const CommandPtr &command);
    [[nodiscard]] Status check_new_queue(const SubmissionEntry &entry) const;
    [[nodiscard]] Status check_new_cq(const SubmissionEntry &entry) const;
    [[nodiscard]] Status check_new_sq(const SubmissionEntry &entry) const;
    void identify_command(const CommandPtr &command);
    void get_log_page(const CommandPtr &command);
    [[nodiscard]] Expected<std::vector<std::byte>, Status> log_page(const SubmissionEntry &entry, LogId id) const;
    void abort(const CommandPtr &command);
    [[nodiscard]] bool abort_one(std::uint16_t sq_id, std::uint16_t command_id);
    void get_features(const CommandPtr &command);
    void set_features(const CommandPtr &command);
    void finish_set_features(const CommandPtr &command, const Features::Result &result);
    void disable_write_cache(const CommandPtr &command);
    void async_event_request(const CommandPtr &command);
    void doorbell_buffer_config(const CommandPtr &command);
    [[nodiscard]] std::uint8_t critical_warning() const noexcept;

    AdminContext &context_;
    const ControllerIdentity &identity_;
    QueueEngine &engine_;
    DataTransfer &transfer_;
    Features &features_;
    ErrorLog &errors_;
    HealthCounters &health_;
    AsyncEvents events_;
    std::uint8_t announced_ = 0;  ///< critical warnings that hold, and that the host wants to hear of
};

}  // namespace vvfu::nvme
