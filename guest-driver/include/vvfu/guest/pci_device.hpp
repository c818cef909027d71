// SPDX-License-Identifier: BSD-3-Clause
//
// Base of PCI device models: configuration space and capabilities, BAR routing, MSI-X, MSI and INTx.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/register_bank.hpp"

namespace vvfu::guest {

struct PciIdentity {
    std::uint16_t vendor_id = 0, device_id = 0, subsystem_vendor_id = 0, subsystem_id = 0;
    std::uint32_t class_code = 0;  ///< 24 bits: base class, subclass, programming interface
    std::uint8_t revision = 0;
};

struct PciBar {
    std::uint64_t size = 0;  ///< bytes, a power of two, at least 16; 0: the BAR does not exist
    bool is_64bit = false;   ///< takes the next BAR too
    bool prefetchable = false;
    std::vector<control::Area> areas;        ///< parts that the peer may map; they live in region memory
    std::uint64_t region_memory_offset = 0;  ///< with areas: where byte 0 of the BAR is in region memory
};

/// How a function interrupts: by messages of one kind, or by the level of INTA#.
enum class InterruptKind : std::uint8_t { intx, msi, msix };

/// Describes the function; PciDevice's constructor turns it into configuration space.
struct PciFunction {
    PciIdentity identity;
    std::array<PciBar, 6> bars;
    std::uint16_t msix_vectors = 0;  ///< 0: no MSI-X. Table and PBA then need room in a BAR:
    std::uint8_t msix_bar = 0;
    std::uint32_t msix_table_offset = 0, msix_pba_offset = 0;  ///< 8-byte aligned, disjoint, inside the BAR
    std::uint16_t msi_vectors = 0;                             ///< 0: no MSI. A power of two, at most kMsiMaxVectors
    bool intx = false;                                         ///< INTA#

    static constexpr std::uint16_t kMsiMaxVectors = 32;

    /// Offers messages of `kind` with at least `vectors` vectors (MSI: as many as it has), and INTA# for drivers that
    /// enable none of them.
    void offer(InterruptKind kind, std::uint16_t vectors);
    /// Interrupt vectors that the function has; INTA# counts as one.
    [[nodiscard]] std::uint16_t vectors() const noexcept;

    /// Bytes of the MSI-X table and PBA.
    static constexpr std::uint32_t msix_table_size(std::uint16_t vectors) { return 16u * vectors; }
    static constexpr std::uint32_t msix_pba_size(std::uint16_t vectors) { return (vectors + 63u) / 64u * 8u; }
};

/// PCI Express endpoint with a 4 KiB configuration space (PM, PCIe with FLR, MSI-X and MSI capabilities).
///
/// The MSI-X table is kept by the driver VMM and never reaches the device; the table here is plain storage for clients
/// that do forward it. Its mask bits, and Function Mask, have no effect: QEMU and Cloud Hypervisor obey those of their
/// own table, and a vector that is masked by SET_IRQS has no doorbell target. The PBA shows the messages that wait
/// for bus mastering, and the pending state of the doorbells. MSI has no mask bits (they are optional); clients keep
/// its address and data, too.
class PciDevice : public DeviceModel {
public:
    /// Throws std::invalid_argument when `function` is not realisable (that is a bug in the model).
    PciDevice(PciFunction function, DeviceServices services);

    [[nodiscard]] control::DeviceInfo describe() const override;
    void region_read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> out) final;
    void region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data) final;
    void irq_info(const control::IrqInfo &info) final;
    /// Also what Initiate Function Level Reset does. Until it is done, reads give all-ones (Linux then waits and tries
    /// again) and writes are dropped; a second reset() in between completes together with the first.
    void reset(std::function<void()> done) final;
    void peer_gone(std::function<void()> done) final;

protected:
    // ---- for models to implement ----

    /// As DeviceModel::region_read, for the BARs, without the parts that PciDevice serves (MSI-X table, PBA).
    virtual void bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out) = 0;
    virtual void bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) = 0;
    /// Stops everything, forgets everything but stored data, then calls `done` (see DeviceModel::reset). Also used for
    /// FLR and at the end of a session.
    virtual void function_reset(std::function<void()> done) = 0;
    /// What bus_master() says has changed. Not called by a reset, which clears it.
    virtual void bus_master_changed() {}

    // ---- for models to use: executor's thread only, else std::logic_error is thrown ----

    [[nodiscard]] DeviceServices &services() noexcept { return services_; }
    /// What trigger() sends by; intx: no messages are enabled. MSI-X or MSI is enabled by its Enable bit, or because
    /// the peer connected vectors: with VFIO the latter is what enables them.
    [[nodiscard]] InterruptKind interrupts() const noexcept { return messages().kind; }
    [[nodiscard]] std::uint16_t interrupt_vectors() const noexcept { return function_.vectors(); }
    /// Bus Master Enable of Command, in power state D0. Without it the function does no DMA and sends no MSI or MSI-X
    /// message: DmaSpace's gate is closed, and messages wait, before the write that cleared it is answered.
    [[nodiscard]] bool bus_master() const noexcept;
    /// Sends message `vector` by whatever is enabled. Edge. Dropped while no messages are enabled, and if the driver
    /// allowed the function fewer vectors (MSI: Multiple Message Enable). Without bus_master() it is pending, once per
    /// vector, until the function may send it, or a reset.
    void trigger(std::uint16_t vector);
    /// Drives INTA#. Level: asserted again after each unmask by the peer while it stays high. Has no effect
    /// while messages are enabled or Interrupt Disable of Command is set, beyond remembering the level.
    void intx_set(bool level);

private:
    void check_function() const;
    void build_config();
    void build_bars();
    void build_capabilities();
    void config_write(std::size_t offset, std::span<const std::byte> data);
    [[nodiscard]] bool in_d0() const noexcept;
    void update_gate();
    void send_pending();
    void pba_read(std::size_t offset, std::span<std::byte> out);
    void intx_evaluate();
    /// The messages that are enabled, and how many vectors of them the driver allows.
    struct Messages {
        InterruptKind kind = InterruptKind::intx;
        std::uint32_t index = control::kIrqIntx;  ///< IRQ index of the kind
        std::uint32_t vectors = 0;
    };
    [[nodiscard]] Messages messages() const noexcept;
    /// A part of a BAR as it is routed.
    enum class Target { model, msix_table, msix_pba };
    struct Route {
        Target target;
        std::uint64_t offset;  ///< in the target
        std::uint64_t size;    ///< bytes up to the next boundary
    };
    [[nodiscard]] Route route(unsigned bar, std::uint64_t offset, std::uint64_t size) const;

    DeviceServices services_;
    PciFunction function_;
    RegisterBank config_;
    std::vector<std::byte> msix_table_;
    /// Messages that wait until bus_master(): IRQ index and vector.
    std::set<std::pair<std::uint32_t, std::uint32_t>> pending_;
    std::uint32_t msix_assigned_ = 0, msi_assigned_ = 0;  ///< vectors up to the highest that was connected
    bool intx_level_ = false;
    bool intx_masked_ = false;  ///< automasked: signalled, and the peer has not unmasked since
    bool resetting_ = false;
    std::vector<std::function<void()>> reset_waiters_;
    std::shared_ptr<PciDevice *> self_;  ///< expires with the device: a late reset completion finds out
};

}  // namespace vvfu::guest
