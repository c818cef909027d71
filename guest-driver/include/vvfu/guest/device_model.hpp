// SPDX-License-Identifier: BSD-3-Clause
//
// The seam between device models and everything that hosts them. A device model sees this header,
// dma_space.hpp and executor.hpp (most derive from PciDevice in pci_device.hpp); it runs unchanged in a
// device VM, in the loopback port and in a unit test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vvfu/guest/counters.hpp"
#include "vvfu/guest/dma_space.hpp"
#include "vvfu/guest/executor.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu::guest {

/// Interrupts towards the driver guest. Vectors are numbered per VFIO IRQ index (control::kIrq*). Executor's thread
/// only.
class IrqSink {
public:
    virtual ~IrqSink() = default;
    /// Rings the doorbell of a vector. Never blocks. Everything the device wrote to the peer's memory before is visible
    /// to the peer first.
    virtual void trigger(std::uint32_t index, std::uint32_t vector) = 0;
    /// Takes back what was triggered by message and is not sent yet: the vectors of `index`. For when the function may
    /// not interrupt any more; what was sent is waited for (VVFU-RESET-8).
    [[nodiscard]] virtual std::vector<std::uint32_t> withdraw(std::uint32_t index) = 0;
    /// A trigger is latched because the vector has no target.
    [[nodiscard]] virtual bool pending(std::uint32_t index, std::uint32_t vector) = 0;
};

/// What a device model may use; all of it outlives the model. Executor's thread only unless said otherwise.
struct DeviceServices {
    Executor &executor;
    Workers &workers;
    DmaSpace &dma;
    IrqSink &irqs;
    /// Region memory: what the model puts here, the peer may map (DeviceInfo areas). Page-aligned; may be empty.
    std::span<std::byte> region_memory;
    /// UUID of the function, which is as unique and as lasting as whoever configured it made it.
    std::optional<Uuid> uuid = std::nullopt;
};

class DeviceModel {
public:
    virtual ~DeviceModel() = default;

    /// Identity, regions and IRQ counts, as offered in DEVICE_INFO(ADD). Constant for the model's life.
    [[nodiscard]] virtual control::DeviceInfo describe() const = 0;

    /// Register accesses in the order of the peer. [offset, offset + size) is inside the region as described and
    /// size is not 0; any size and alignment is possible. Reads must fill all of `out` before they return.
    virtual void region_read(std::uint32_t region, std::uint64_t offset, std::span<std::byte> out) = 0;
    virtual void region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data) = 0;

    /// IRQ_INFO from the device VMM.
    virtual void irq_info(const control::IrqInfo &info) = 0;

    /// Back to the power-on state, stored data excepted. `done` runs when no DMA and no interrupt of the time before
    /// can happen any more; it may run inside the call. No region access arrives in between.
    virtual void reset(std::function<void()> done) = 0;

    /// The session is over: as reset() (the next peer starts from power-on state), and the DMA space is empty already.
    virtual void peer_gone(std::function<void()> done) { reset(std::move(done)); }

    /// Adds what the model counted.
    virtual void counters(Counters &) const {}

    /// The program's last request: what the peer was told is written becomes durable. `done(false)`: some of it may be
    /// lost. It may run inside the call. If storage hangs, peer_gone() has not ended yet.
    virtual void make_durable(std::function<void(bool durable)> done) { done(true); }
    /// Work for storage that has not ended, in words for a line that a person reads: "16 requests to backing
    /// \"disk.img\""; empty: none. Any thread, while the model lives.
    [[nodiscard]] virtual std::string unfinished() const { return {}; }
};

}  // namespace vvfu::guest
