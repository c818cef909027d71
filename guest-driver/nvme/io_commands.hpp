// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "data_transfer.hpp"
#include "features.hpp"
#include "log_pages.hpp"
#include "namespaces.hpp"
#include "queue_engine.hpp"
#include "reports.hpp"
#include "vvfu/base/expected.hpp"

namespace vvfu::nvme {

/// The NVM command set (NVMe 6). `lost` is called when a flush has failed for the first time.
class IoCommands {
public:
    IoCommands(Namespaces &namespaces, QueueEngine &engine, DataTransfer &transfer, Activity &activity,
               const Features &features, HealthCounters &health, Reports &reports, std::function<void()> lost)
        : namespaces_(namespaces),
          engine_(engine),
          transfer_(transfer),
          activity_(activity),
          features_(features),
          health_(health),
          reports_(reports),
          lost_(std::move(lost))
    {
    }

    void execute(const CommandPtr &command);
    /// Makes everything written so far durable, then calls `done` with success or write_lost.
    void flush_all(std::function<void(Status)> done);

private:
    /// The logical blocks of a command, checked.
    struct Extent {
        Namespace *ns = nullptr;
        ByteRange range;
    };
    enum class Access { read, write };

    [[nodiscard]] Namespace *find(std::uint32_t nsid) noexcept;
    [[nodiscard]] Expected<Extent, Status> checked_extent(const SubmissionEntry &entry, Access access);
    [[nodiscard]] bool durable(const SubmissionEntry &entry) const noexcept;
    void flush(const CommandPtr &command);
    void read(const CommandPtr &command);
    /// Goes on with `next(data)`, what was written before being durable first if the command asks for it (FUA).
    template <typename F>
    void read_backing(const CommandPtr &command, const Extent &extent, F next);
    void write(const CommandPtr &command);
    /// Ends a command that has written, now or when what it wrote is durable.
    void finish_write(const CommandPtr &command, Namespace &ns);
    void compare(const CommandPtr &command);
    void write_zeroes(const CommandPtr &command);
    void dataset_management(const CommandPtr &command);
    void deallocate(const CommandPtr &command, Namespace &ns);

    /// What commands with one extent and its data have in common: checks the extent, maps the data, and goes on with
    /// `work(extent)`, or ends the command.
    template <typename F>
    void transfer(const CommandPtr &command, Access access, guest::DmaDirection direction, F work);

    /// Continuation of a transfer step: goes on with `next`, or ends the command.
    template <typename F>
    [[nodiscard]] auto on_success(const CommandPtr &command, F next);
    /// Continuation of a backing operation.
    template <typename F>
    [[nodiscard]] auto on_backing(const CommandPtr &command, const Namespace &ns, Access access, F next);
    [[nodiscard]] auto complete_with(const CommandPtr &command);
    [[nodiscard]] Status backing_status(int error, const Namespace &ns, Access access);
    void count(Access access, const Extent &extent) noexcept;
    /// Every flush goes through here. `then` gets success or write_lost.
    template <typename F>
    void make_durable(Namespace &ns, F then);
    void storage_lost(Namespace &ns, int error);

    Namespaces &namespaces_;
    QueueEngine &engine_;
    DataTransfer &transfer_;
    Activity &activity_;
    const Features &features_;
    HealthCounters &health_;
    Reports &reports_;
    std::function<void()> lost_;
};

}  // namespace vvfu::nvme
