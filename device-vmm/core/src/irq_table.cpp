// SPDX-License-Identifier: BSD-3-Clause
#include "irq_table.hpp"

#include <utility>

#include "vvfu/protocol/device_config.hpp"

namespace vvfu::core {

IrqTable::IrqTable(Port &port, unsigned doorbells) : port_(port), doorbells_(doorbells) {}

void IrqTable::configure(const IrqCounts &counts)
{
    release();
    counts_ = counts;
    for (std::size_t i = 0; i < vectors_.size(); ++i) {
        vectors_[i] = std::vector<Vector>(counts[i]);
    }
}

std::optional<unsigned> IrqTable::doorbell(std::uint32_t index, std::uint32_t vector) const
{
    switch (index) {
        case control::kIrqIntx: return vector;
        case control::kIrqMsi: return counts_[control::kIrqIntx] + vector;
        case control::kIrqMsix: return counts_[control::kIrqIntx] + counts_[control::kIrqMsi] + vector;
        default: return std::nullopt;
    }
}

void IrqTable::connect(unsigned doorbell, int fd)
{
    port_.doorbell_set(doorbell, fd);
    bool pending = false;
    {
        const std::lock_guard lock{mutex_};
        doorbells_[doorbell].fd = fd;
        pending = std::exchange(doorbells_[doorbell].pending, false);
    }
    //= VVFU-DOORBELL-4
    //# The device MUST signal the target once and clear the pending state when a pending doorbell gets a target.
    if (pending) {
        port_.signal_eventfd(fd);
    }
}

void IrqTable::disconnect(unsigned doorbell)
{
    //= VVFU-DOORBELL-8
    port_.doorbell_set(doorbell, -1);
    const std::lock_guard lock{mutex_};
    doorbells_[doorbell].fd = -1;
}

void IrqTable::update(std::uint32_t index, std::uint32_t vector)
{
    const auto number = doorbell(index, vector);
    auto &state = vectors_[index][vector];
    if (!number) {
        if (state.target && !held_ && std::exchange(state.pending, false)) {
            port_.signal_eventfd(state.target.get());
        }
        return;
    }
    const int wanted = state.masked || held_ ? -1 : state.target.get();
    const int current = doorbells_[*number].fd;  // written by this thread only
    if (wanted == current) {
        return;
    }
    if (wanted < 0) {
        disconnect(*number);
    } else {
        connect(*number, wanted);
    }
}

void IrqTable::assign(std::uint32_t index, std::uint32_t start, std::span<Fd> fds)
{
    for (std::uint32_t i = 0; i < fds.size(); ++i) {
        auto &state = vectors_[index][start + i];
        // The old target closes only after the doorbell left it.
        const Fd old = std::exchange(state.target, std::move(fds[i]));
        update(index, start + i);
    }
}

void IrqTable::deassign(std::uint32_t index, std::uint32_t start, std::uint32_t count)
{
    for (std::uint32_t i = 0; i < count; ++i) {
        const Fd old = std::exchange(vectors_[index][start + i].target, Fd{});
        update(index, start + i);
    }
}

void IrqTable::mask(std::uint32_t index, std::uint32_t start, std::uint32_t count)
{
    for (std::uint32_t i = 0; i < count; ++i) {
        vectors_[index][start + i].masked = true;
        update(index, start + i);
    }
}

void IrqTable::unmask(std::uint32_t index, std::uint32_t start, std::uint32_t count)
{
    for (std::uint32_t i = 0; i < count; ++i) {
        vectors_[index][start + i].masked = false;
        update(index, start + i);
    }
}

void IrqTable::disable(std::uint32_t index)
{
    const auto count = static_cast<std::uint32_t>(vectors_[index].size());
    deassign(index, 0, count);
    unmask(index, 0, count);
    if (index == control::kIrqIntx) {
        set_resample({});
    }
    clear_pending(index);
}

void IrqTable::set_resample(Fd fd)
{
    if (!fd && !resample_) {
        return;
    }
    const Fd old = std::exchange(resample_, std::move(fd));
    port_.notification_set(kNotificationIntxUnmask, resample_.get());
}

IrqTable::Trigger IrqTable::trigger(std::uint32_t index, std::uint32_t vector)
{
    if (index >= vectors_.size() || vector >= vectors_[index].size()) {
        return Trigger::no_such_vector;
    }
    if (const auto number = doorbell(index, vector)) {
        doorbell_written(*number);
    } else {
        vectors_[index][vector].pending = true;
        update(index, vector);
    }
    return Trigger::done;
}

//= VVFU-DOORBELL-5
void IrqTable::clear_pending(std::uint32_t index)
{
    const std::lock_guard lock{mutex_};
    for (std::uint32_t i = 0; i < vectors_[index].size(); ++i) {
        vectors_[index][i].pending = false;
        if (const auto number = doorbell(index, i)) {
            doorbells_[*number].pending = false;
        }
    }
}

void IrqTable::clear_pending()
{
    for (std::uint32_t index = 0; index < vectors_.size(); ++index) {
        clear_pending(index);
    }
    // Those that are no vector of the device, too.
    const std::lock_guard lock{mutex_};
    for (auto &entry : doorbells_) {
        entry.pending = false;
    }
}

void IrqTable::update_all()
{
    for (std::uint32_t index = 0; index < vectors_.size(); ++index) {
        for (std::uint32_t vector = 0; vector < vectors_[index].size(); ++vector) {
            update(index, vector);
        }
    }
}

//= VVFU-DOORBELL-10
void IrqTable::hold()
{
    held_ = true;
    update_all();
}

void IrqTable::resume()
{
    clear_pending();
    held_ = false;
    update_all();
}

void IrqTable::release()
{
    held_ = false;
    for (std::uint32_t index = 0; index < vectors_.size(); ++index) {
        disable(index);
    }
    clear_pending();
}

void IrqTable::doorbell_written(unsigned doorbell) noexcept
{
    if (doorbell >= doorbells_.size()) {
        return;
    }
    const std::lock_guard lock{mutex_};
    // Connected in the meantime: the port saw the doorbell disconnected just before.
    if (doorbells_[doorbell].fd >= 0) {
        //= VVFU-DOORBELL-1
        port_.signal_eventfd(doorbells_[doorbell].fd);
    } else {
        //= VVFU-DOORBELL-2
        doorbells_[doorbell].pending = true;
    }
}

bool IrqTable::doorbell_pending(unsigned doorbell) const noexcept
{
    if (doorbell >= doorbells_.size()) {
        return false;
    }
    const std::lock_guard lock{mutex_};
    //= VVFU-DOORBELL-3
    return doorbells_[doorbell].pending;
}

}  // namespace vvfu::core
