// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "vvfu/controlq/split_queue.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

/// Buffers of one size in shared memory.
class BufferArray {
public:
    /// `size` is per buffer. Fails when the transport cannot allocate.
    static Result<BufferArray> allocate(Transport &transport, std::size_t count, std::size_t size);

    [[nodiscard]] std::span<std::byte> host(std::size_t index) const
    {
        return memory_.host.subspan(index * stride_, size_);
    }
    [[nodiscard]] std::uint64_t device_address(std::size_t index) const
    {
        return memory_.device_address + index * stride_;
    }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    SharedBuffer memory_;
    std::size_t size_ = 0, stride_ = 0;
};

/// The driver's end of one virtqueue of a transport. Its memory is allocated once and used again after a device reset.
class TransportQueue {
public:
    static constexpr std::uint16_t kMaxSize = 256;

    /// Fails when the queue does not exist or memory is short.
    static Result<TransportQueue> allocate(Transport &transport, unsigned index);

    /// Empties the rings and gives them to the device (VIRTIO 3.1.1 step 7). After a device reset.
    Result<void> bring_up();
    /// Available Buffer Notification, if the device wants one.
    void notify();

    [[nodiscard]] controlq::DriverQueue &ring() noexcept { return *ring_; }
    [[nodiscard]] std::uint16_t size() const noexcept { return size_; }
    [[nodiscard]] unsigned index() const noexcept { return index_; }
    [[nodiscard]] int event() const { return transport_->queue_event(index_); }

private:
    Transport *transport_ = nullptr;
    unsigned index_ = 0;
    std::uint16_t size_ = 0;
    SharedBuffer memory_;
    std::optional<controlq::DriverQueue> ring_;
};

}  // namespace vvfu::guest
