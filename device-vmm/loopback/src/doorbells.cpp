// SPDX-License-Identifier: BSD-3-Clause
#include "doorbells.hpp"

#include <utility>

#include "eventfd.hpp"

namespace vvfu::loopback {

Doorbells::Doorbells(unsigned count, std::function<void(unsigned index)> unconnected)
    : count_(count), doorbells_(std::make_unique<Doorbell[]>(count)), unconnected_(std::move(unconnected))
{
}

void Doorbells::set(unsigned index, int fd)
{
    if (index >= count_) {
        return;
    }
    auto &doorbell = doorbells_[index];
    //= VVFU-DOORBELL-8
    //# The device MUST NOT signal an eventfd of the peer after the peer has de-assigned or masked its vector.
    const std::lock_guard lock{doorbell.mutex};
    doorbell.fd = fd;
}

void Doorbells::ring(unsigned index)
{
    //= VVFU-DOORBELL-7
    //# The device MUST ignore writes to, and return 0 for reads of, doorbells whose number is `doorbells` or more.
    if (index >= count_) {
        return;
    }
    auto &doorbell = doorbells_[index];
    // Held across the write: the target must stay open, and the latch must not miss a connection made meanwhile.
    const std::lock_guard lock{doorbell.mutex};
    if (doorbell.fd < 0) {
        unconnected_(index);
    } else {
        signal_eventfd(doorbell.fd);
    }
}

}  // namespace vvfu::loopback
