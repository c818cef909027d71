// SPDX-License-Identifier: BSD-3-Clause
#include "shadow_doorbells.hpp"

#include <atomic>
#include <span>

namespace vvfu::nvme {

using guest::DmaAddress;
using guest::DmaDirection;
using guest::DmaError;

Status ShadowDoorbells::configure(DmaAddress shadow, DmaAddress event_index, std::uint64_t page_size)
{
    if (raw(shadow) % page_size != 0 || raw(event_index) % page_size != 0) {
        return Status::invalid_field;
    }
    for (const auto &[page, direction] : {std::pair{shadow, DmaDirection::from_peer},
                                          {shadow, DmaDirection::to_peer},
                                          {event_index, DmaDirection::to_peer}}) {
        if (const auto status = check(page, page_size, direction); status != Status::success) {
            return status;
        }
    }
    shadow_ = shadow;
    event_index_ = event_index;
    return Status::success;
}

/// Message-only memory would make each look at a doorbell slower than the register write that it saves.
Status ShadowDoorbells::check(DmaAddress page, std::uint64_t page_size, DmaDirection direction)
{
    const guest::DmaSegment segment{page, page_size};
    const auto status = std::make_shared<Status>(Status::internal_error);
    dma_.map({&segment, 1}, direction, [status](Expected<guest::DmaMapping, DmaError> mapping) {
        if (!mapping) {
            *status = Status::data_transfer_error;
        } else if (!mapping->bounced()) {
            *status = Status::success;
        }
    });
    return *status;
}

/// An access that does not end inside its call goes to memory that is no longer in the window.
bool ShadowDoorbells::finish(bool done)
{
    if (!done) {
        access_ = std::make_shared<Access>();
        shadow_.reset();
        unreachable_();
    }
    return done;
}

std::optional<std::uint32_t> ShadowDoorbells::read(std::uint32_t index)
{
    if (!shadow_) {
        return std::nullopt;  // they have become unreachable, and the controller is in a fatal state
    }
    access_->done = false;
    dma_.read(*shadow_ + std::uint64_t{4} * index, std::as_writable_bytes(std::span(&access_->value, 1)),
              [access = access_](Expected<void, DmaError> result) { access->done = result.has_value(); });
    if (!finish(access_->done)) {
        return std::nullopt;
    }
    // Queue entries behind the new value must not be read before it.
    std::atomic_thread_fence(std::memory_order_acquire);
    return access_->value & 0xffff;
}

std::optional<std::uint32_t> ShadowDoorbells::arm(std::uint32_t index, std::uint32_t value)
{
    if (!shadow_ || !store(event_index_, index, value)) {
        return std::nullopt;
    }
    // Pairs with the host's barrier between its write of the doorbell and its look at EventIdx (NVMe 7.13): one of the
    // two sees what the other wrote.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return read(index);
}

void ShadowDoorbells::initialise(std::uint32_t index, std::uint32_t value)
{
    if (shadow_ && store(*shadow_, index, value)) {
        store(event_index_, index, value);
    }
}

bool ShadowDoorbells::store(DmaAddress base, std::uint32_t index, std::uint32_t value)
{
    access_->done = false;
    access_->value = value;
    dma_.write(base + std::uint64_t{4} * index, std::as_bytes(std::span(&access_->value, 1)),
               [access = access_](Expected<void, DmaError> result) { access->done = result.has_value(); });
    return finish(access_->done);
}

}  // namespace vvfu::nvme
