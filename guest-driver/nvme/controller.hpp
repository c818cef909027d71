// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <functional>

#include "activity.hpp"
#include "admin_commands.hpp"
#include "data_transfer.hpp"
#include "features.hpp"
#include "identify.hpp"
#include "identity.hpp"
#include "interrupts.hpp"
#include "io_commands.hpp"
#include "namespaces.hpp"
#include "queue_engine.hpp"
#include "registers.hpp"
#include "reports.hpp"
#include "vvfu/guest/pci_device.hpp"

namespace vvfu::nvme {

/// An NVMe 1.4 controller on the PCI device API: register file, life cycle, interrupts. Commands are elsewhere.
class Controller final : public guest::PciDevice, private QueueEngineClient, private AdminContext {
public:
    struct Config {
        DiskIdentity identity;
        std::uint16_t queue_pairs = 1;
        Namespaces namespaces;  ///< at least one
        guest::InterruptKind interrupts = guest::InterruptKind::msix;
    };

    Controller(Config config, guest::DeviceServices services);

    void make_durable(std::function<void(bool durable)> done) override;
    [[nodiscard]] std::string unfinished() const override;
    void counters(guest::Counters &counters) const override;

protected:
    void bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out) override;
    void bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) override;
    void function_reset(std::function<void()> done) override;
    void bus_master_changed() override;

private:
    // ---- registers ----
    void write_dword(std::uint64_t offset, std::uint32_t value);
    void doorbell(std::uint64_t index, std::uint32_t value);
    void invalid_doorbell(const AsyncEvent &event);
    void follow_head(CompletionQueue &cq);

    // ---- life cycle: brings CSTS to where CC wants it, one transition at a time ----
    void reconcile();
    void enable();
    void disable();
    void shut_down();
    /// Controller Fatal Status, with a line that says why.
    void fatal(const std::string &reason);
    void finish_function_reset();
    /// Stops and forgets everything that belongs to the enabled controller; nothing may be under way.
    void clear();
    [[nodiscard]] bool shutdown_requested() const noexcept;

    // ---- QueueEngineClient ----
    void execute(const CommandPtr &command) override;
    bool command_failed(const Command &command, Status status) override;
    void entries_posted(CompletionQueue &cq) override;
    void fatal() override { fatal("the memory of a queue cannot be reached"); }
    void invalid_doorbell_value() override { invalid_doorbell(kInvalidDoorbellValue); }

    // ---- AdminContext ----
    [[nodiscard]] std::uint16_t queue_pairs() const override { return queue_pairs_; }
    [[nodiscard]] std::uint16_t vectors() const override { return interrupt_vectors(); }
    [[nodiscard]] bool entry_sizes_set() const override { return registers_.entry_sizes_set(); }
    [[nodiscard]] std::uint32_t page_shift() const override { return registers_.page_shift(); }
    void flush_all(std::function<void(Status)> done) override { io_.flush_all(std::move(done)); }

    /// `cq` has completions that the host has not acknowledged, interrupts for them, and is not masked: what sets a
    /// bit of the interrupt status (NVMe 7.5.1), to which only MSI-X pays no heed.
    [[nodiscard]] bool interrupting(const CompletionQueue &cq) const;
    /// Sends the message of a vector, unless INTMS masks it.
    void signal(std::uint16_t vector);
    void interrupt_mask_written(std::uint32_t before);
    /// INTA# is level triggered: high while a completion queue interrupts.
    void update_intx();

    std::uint16_t queue_pairs_;
    Namespaces namespaces_;
    ControllerIdentity identity_;
    Registers registers_;
    Activity activity_;
    QueueEngine engine_;
    DataTransfer transfer_;
    Features features_;
    ErrorLog errors_;
    HealthCounters health_;
    Reports reports_;
    AdminCommands admin_;
    IoCommands io_;
    Interrupts interrupts_;

    bool enabled_ = false;     // CC.EN as the controller has acted on it
    bool transition_ = false;  // waiting for work to end; reconcile() runs again afterwards
    bool intx_ = false;
    std::function<void()> reset_done_;
};

}  // namespace vvfu::nvme
