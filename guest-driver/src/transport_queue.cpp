// SPDX-License-Identifier: BSD-3-Clause
#include "transport_queue.hpp"

#include <algorithm>
#include <cstring>
#include <string>

namespace vvfu::guest {
namespace {

using controlq::QueueLayout;

constexpr std::size_t kCacheLine = 64;

constexpr std::size_t driver_area_offset(std::uint16_t size)
{
    return QueueLayout::descriptors(size);
}

/// The two sides write different areas: kept on different cache lines.
constexpr std::size_t device_area_offset(std::uint16_t size)
{
    return (driver_area_offset(size) + QueueLayout::driver_area(size) + kCacheLine - 1) & ~(kCacheLine - 1);
}

constexpr std::size_t ring_bytes(std::uint16_t size)
{
    return device_area_offset(size) + QueueLayout::device_area(size);
}

}  // namespace

Result<BufferArray> BufferArray::allocate(Transport &transport, std::size_t count, std::size_t size)
{
    BufferArray array;
    array.size_ = size;
    // Headers a power of two apart would all compete for the same few cache sets.
    array.stride_ = ((size + kCacheLine - 1) & ~(kCacheLine - 1)) + kCacheLine;
    auto memory = transport.allocate(count * array.stride_);
    if (!memory) {
        return make_unexpected(memory.error());
    }
    array.memory_ = *memory;
    return array;
}

Result<TransportQueue> TransportQueue::allocate(Transport &transport, unsigned index)
{
    TransportQueue queue;
    queue.transport_ = &transport;
    queue.index_ = index;
    std::uint16_t size = kMaxSize;
    while (size > transport.queue_size_max(index)) {
        size = static_cast<std::uint16_t>(size / 2);
    }
    if (size < 2) {
        return failure("the device has no queue " + std::to_string(index));
    }
    queue.size_ = size;
    auto memory = transport.allocate(ring_bytes(size));
    if (!memory) {
        return make_unexpected(memory.error());
    }
    queue.memory_ = *memory;
    return queue;
}

Result<void> TransportQueue::bring_up()
{
    std::byte *host = memory_.host.data();
    std::memset(host, 0, ring_bytes(size_));
    ring_.emplace(size_, host, host + driver_area_offset(size_), host + device_area_offset(size_));
    const auto address = memory_.device_address;
    return transport_->setup_queue(
        index_, {size_, address, address + driver_area_offset(size_), address + device_area_offset(size_)});
}

void TransportQueue::notify()
{
    if (ring_->should_notify()) {
        transport_->notify(index_);
    }
}

}  // namespace vvfu::guest
