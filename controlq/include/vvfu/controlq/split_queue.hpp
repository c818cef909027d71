// SPDX-License-Identifier: BSD-3-Clause
//
// Split virtqueue, both sides (VIRTIO 2.7), without event index, indirect descriptors or packed layout: none is
// offered on this device's queues.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vvfu/base/expected.hpp"

namespace vvfu::controlq {

/// Bytes of each area of a queue of `size` entries (a power of two, 1..32768), and their alignment (VIRTIO 2.7).
struct QueueLayout {
    static constexpr std::size_t descriptors(std::uint16_t size) { return std::size_t{16} * size; }
    static constexpr std::size_t driver_area(std::uint16_t size) { return 6 + std::size_t{2} * size; }
    static constexpr std::size_t device_area(std::uint16_t size) { return 6 + std::size_t{8} * size; }
};

/// A buffer as the driver names it to the device.
struct DeviceBuffer {
    std::uint64_t address = 0;  ///< device address
    std::uint32_t length = 0;   ///< bytes
};

enum class QueueError {
    bad_index,    ///< avail/used index moved by more than the queue size
    bad_head,     ///< a descriptor index is not below the queue size
    loop,         ///< a chain is longer than the queue
    bad_address,  ///< a buffer is outside shared memory
    bad_order,    ///< a device-readable descriptor after a device-writable one
    bad_id,       ///< a used element names a chain that is not outstanding
    bad_length,   ///< a used length exceeds the writable bytes of the chain
    indirect,     ///< INDIRECT was not negotiated
};
[[nodiscard]] const char *describe(QueueError error) noexcept;

/// Driver side. The caller owns the memory of the three areas (host view) and keeps it zeroed before construction. Not
/// thread-safe.
class DriverQueue {
public:
    struct Used {
        std::uint64_t token = 0;   ///< as given to add()
        std::uint32_t length = 0;  ///< bytes the device wrote
    };

    DriverQueue(std::uint16_t size, std::byte *descriptors, std::byte *driver_area, std::byte *device_area);

    /// Descriptors free for new chains.
    [[nodiscard]] unsigned free_descriptors() const noexcept { return free_count_; }
    /// Makes a chain available: readable parts, then writable parts. False when descriptors do not suffice.
    bool add(std::span<const DeviceBuffer> readable, std::span<const DeviceBuffer> writable, std::uint64_t token);
    /// After add()s: whether the device wants an Available Buffer Notification.
    [[nodiscard]] bool should_notify() const noexcept;
    /// Next used chain; nullopt: none. An error is a broken device: the queue must not be used any more.
    Expected<std::optional<Used>, QueueError> poll_used();
    /// Whether poll_used() would find something.
    [[nodiscard]] bool has_used() const noexcept;
    /// Asks the device to send Used Buffer Notifications (the initial state) or not; it may send them all the same.
    /// After asking for them the caller must look at has_used() once more before it sleeps.
    void want_notifications(bool wanted) noexcept;

private:
    std::uint16_t size_;
    std::byte *descriptors_, *driver_area_, *device_area_;
    std::uint16_t next_avail_ = 0, next_used_ = 0;
    std::uint16_t free_head_ = 0;
    unsigned free_count_;
    struct Chain {
        std::uint64_t token = 0;
        std::uint32_t writable = 0;
        std::uint16_t descriptors = 0;  // 0: not outstanding
    };
    std::vector<Chain> chains_;        // by head
    std::vector<std::uint16_t> next_;  // our own copy of the links: the device could change shared ones
};

/// Device side. Memory is reached through `translate`, which returns the host span of a device range or an empty
/// span. Everything read from shared memory is copied once and validated. Not thread-safe.
class DeviceQueue {
public:
    using Translate = std::function<std::span<std::byte>(std::uint64_t address, std::uint64_t length)>;

    struct Element {
        std::uint16_t head = 0;
        std::vector<std::span<std::byte>> readable, writable;
        [[nodiscard]] std::size_t readable_bytes() const noexcept;
        [[nodiscard]] std::size_t writable_bytes() const noexcept;
        /// Copies out of the readable part / into the writable part; returns bytes copied.
        std::size_t read(std::span<std::byte> out) const;
        std::size_t write(std::span<const std::byte> data) const;
    };

    /// Fails with bad_address when an area is outside shared memory or misaligned, or size is no power of two.
    static Expected<DeviceQueue, QueueError> create(std::uint16_t size, std::uint64_t descriptors,
                                                    std::uint64_t driver_area, std::uint64_t device_area,
                                                    Translate translate);

    /// Next available chain; nullopt: none. An error is a broken driver: the queue must not be used any more.
    Expected<std::optional<Element>, QueueError> pop();
    /// As above into an element whose vectors are reused; false: none.
    Expected<bool, QueueError> pop(Element &element);
    [[nodiscard]] bool empty() const noexcept;
    /// Asks the driver to send Available Buffer Notifications (the initial state) or not; it may send them all the
    /// same. After asking for them the caller must look at empty() once more before it sleeps.
    void want_notifications(bool wanted) noexcept;
    /// Gives a chain back with `written` bytes of its writable part filled.
    void push(const Element &element, std::uint32_t written);
    /// After push()es: whether the driver wants a Used Buffer Notification.
    [[nodiscard]] bool should_notify() const noexcept;

private:
    DeviceQueue() = default;
    Expected<void, QueueError> read_chain(Element &element);
    Expected<void, QueueError> add_part(Element &element, std::uint64_t address, std::uint32_t length, bool writable);
    std::uint16_t size_ = 0;
    std::byte *descriptors_ = nullptr, *driver_area_ = nullptr, *device_area_ = nullptr;
    std::uint16_t next_avail_ = 0, next_used_ = 0;
    Translate translate_;
};

}  // namespace vvfu::controlq
