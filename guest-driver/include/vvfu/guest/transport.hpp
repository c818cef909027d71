// SPDX-License-Identifier: BSD-3-Clause
//
// One virtio-vfio-user function as its driver sees it, without saying how it is reached. Two
// implementations: VirtioPciTransport (over VFIO, in a device guest) and the loopback port.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vvfu/guest/error.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu::guest {

/// Memory that both the driver and the device reach.
struct SharedBuffer {
    std::span<std::byte> host;         ///< zeroed, page-aligned
    std::uint64_t device_address = 0;  ///< what descriptors and queue addresses carry
};

/// Addresses of a split virtqueue's three areas (VIRTIO 2.7), as the device sees them.
struct QueueAddresses {
    std::uint16_t size = 0;
    std::uint64_t descriptors = 0, driver_area = 0, device_area = 0;
};

/// Executor's thread only, except ring_doorbell(). Fds returned are owned by the transport.
class Transport {
public:
    virtual ~Transport() = default;

    /// A name for logs: "0000:00:04.0" or "loopback".
    [[nodiscard]] virtual const char *name() const = 0;

    /// Device status back to 0; waits until the device has taken it (VIRTIO 3.1.1 step 1).
    virtual void reset() = 0;
    /// Steps 2 to 5: ACKNOWLEDGE, DRIVER, features, FEATURES_OK. `wanted` bits that the device does not offer are left
    /// out; fails when a bit of `required` is missing or the device rejects the set. Returns the accepted set.
    virtual Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required) = 0;
    [[nodiscard]] virtual DeviceConfig config() = 0;

    /// Lives until the transport is destroyed.
    virtual Result<SharedBuffer> allocate(std::size_t bytes) = 0;
    /// Largest size of a queue; 0: it does not exist.
    virtual std::uint16_t queue_size_max(unsigned queue) = 0;
    /// Step 7 for one queue: addresses, interrupt, enable.
    virtual Result<void> setup_queue(unsigned queue, const QueueAddresses &addresses) = 0;
    /// Step 8: DRIVER_OK.
    virtual Result<void> driver_ok() = 0;
    /// Available Buffer Notification (driver to device).
    virtual void notify(unsigned queue) = 0;
    /// Eventfd that becomes readable when the device notifies the queue (Used Buffer Notification).
    [[nodiscard]] virtual int queue_event(unsigned queue) const = 0;
    /// Eventfd for configuration changes: look at needs_reset() then.
    [[nodiscard]] virtual int config_event() const = 0;
    /// DEVICE_NEEDS_RESET is set.
    [[nodiscard]] virtual bool needs_reset() = 0;

    /// Eventfd that becomes readable when the function is to be released, because it is being unplugged; -1: never.
    [[nodiscard]] virtual int removal_event() const { return -1; }
    /// Eventfd that becomes readable when the function has reported an uncorrectable error; -1: never.
    [[nodiscard]] virtual int error_event() const { return -1; }

    /// shmid 0 and shmid 1, mapped read-write. Holes of the window must not be relied upon.
    [[nodiscard]] virtual std::span<std::byte> window() = 0;
    [[nodiscard]] virtual std::span<std::byte> region_memory() = 0;

    /// Any thread. `index` < config().doorbells.
    virtual void ring_doorbell(std::uint32_t index) = 0;
    [[nodiscard]] virtual bool doorbell_pending(std::uint32_t index) = 0;

    /// Eventfd that fires with notification `index`, connected to a vector; -1: not available, the
    /// device then reports it by message. At most config().notifications.
    [[nodiscard]] virtual int notification_event(std::uint32_t index) = 0;
};

}  // namespace vvfu::guest
