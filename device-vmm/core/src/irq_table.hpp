// SPDX-License-Identifier: BSD-3-Clause
//
// Interrupt vectors of the emulated device: the eventfds that the peer assigned, mask state, and the doorbells
// connected to them (docs/spec/virtio-vfio-user.md 6.3).
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "vvfu/base/fd.hpp"
#include "vvfu/core/port.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::core {

/// Vectors per VFIO IRQ index.
using IrqCounts = std::array<std::uint32_t, control::kIrqIndexCount>;

class IrqTable {
public:
    IrqTable(Port &port, unsigned doorbells);

    /// A device was registered: doorbells are numbered INTx, MSI, MSI-X. All vectors are free and unmasked.
    void configure(const IrqCounts &counts);
    [[nodiscard]] const IrqCounts &counts() const noexcept { return counts_; }

    // The peer's changes. Ranges are inside counts(); the caller checked them.

    /// Gives vector (index, start + i) the target fds[i].
    void assign(std::uint32_t index, std::uint32_t start, std::span<Fd> fds);
    void deassign(std::uint32_t index, std::uint32_t start, std::uint32_t count);
    void mask(std::uint32_t index, std::uint32_t start, std::uint32_t count);
    /// A pending doorbell of an unmasked vector with a target is signalled.
    void unmask(std::uint32_t index, std::uint32_t start, std::uint32_t count);
    /// Forgets targets, masks and pending states of an index.
    void disable(std::uint32_t index);
    /// Resample eventfd of INTx, notification 0; an invalid Fd removes it.
    void set_resample(Fd fd);

    enum class Trigger { done, no_such_vector };
    /// As a write to the doorbell of the vector (VVFU-TRIGGER-1), also for ERR and REQ, which have none.
    Trigger trigger(std::uint32_t index, std::uint32_t vector);

    /// DEVICE_RESET: pending states are forgotten, targets stay.
    void clear_pending();
    /// No target is signalled any more, whoever rings, until resume() or release(). Targets and masks go on changing.
    void hold();
    /// What was rung meanwhile is forgotten.
    void resume();
    /// The session ended: forgets everything but the counts.
    void release();

    // Any thread.
    void doorbell_written(unsigned doorbell) noexcept;
    [[nodiscard]] bool doorbell_pending(unsigned doorbell) const noexcept;

private:
    struct Vector {
        Fd target;
        bool masked = false;
        bool pending = false;  // of ERR and REQ; that of other vectors is in doorbells_
    };

    [[nodiscard]] std::optional<unsigned> doorbell(std::uint32_t index, std::uint32_t vector) const;
    void connect(unsigned doorbell, int fd);
    void disconnect(unsigned doorbell);
    /// Connects or disconnects the doorbell as target, mask and hold() say.
    void update(std::uint32_t index, std::uint32_t vector);
    void update_all();
    void clear_pending(std::uint32_t index);

    Port &port_;
    IrqCounts counts_{};
    bool held_ = false;
    std::array<std::vector<Vector>, control::kIrqIndexCount> vectors_;
    Fd resample_;

    // What doorbell_written() shares with the core's thread. Port calls that change a doorbell are made
    // without the lock, so that a port may hold a lock of its own around doorbell_written().
    struct Doorbell {
        int fd = -1;  // borrowed from vectors_; valid while the lock is held
        bool pending = false;
    };
    mutable std::mutex mutex_;
    std::vector<Doorbell> doorbells_;
};

}  // namespace vvfu::core
