// SPDX-License-Identifier: BSD-3-Clause
//
// Memory order. Two pairs of release and acquire, and two of sequentially consistent accesses:
//
//   barrier pair [A]  driver publishes avail.idx after the ring entry, descriptors and data; device reads it first
//   barrier pair [B]  device publishes used.idx after the used element and data; driver reads it first
//   barrier pair [C]  driver: avail.idx written, then used.flags read. Device: used.flags written, then avail.idx read
//   barrier pair [D]  device: used.idx written, then avail.flags read. Driver: avail.flags written, then used.idx read
//
// In [C] and [D] each side writes one word and reads the other's; sequential consistency of all four makes sure that at
// least one side sees the other's write, so that no notification is lost (VIRTIO 2.7.7.1, 2.7.10, 2.7.14). Stores to
// the indices are therefore seq_cst, which covers [A] and [B] as well.
#include "vvfu/controlq/split_queue.hpp"

#include <algorithm>
#include <atomic>
#include <boost/endian/conversion.hpp>
#include <cstring>
#include <utility>

namespace vvfu::controlq {
namespace {

using boost::endian::little_to_native;
using boost::endian::native_to_little;

// VIRTIO 2.7.5, 2.7.6, 2.7.8: offsets and bits.
constexpr std::size_t kDescriptorSize = 16, kDescriptorLength = 8, kDescriptorFlags = 12, kDescriptorNext = 14;
constexpr std::uint16_t kDescFNext = 1, kDescFWrite = 2, kDescFIndirect = 4;
constexpr std::size_t kFlags = 0, kIdx = 2, kRing = 4;
constexpr std::size_t kAvailElement = 2, kUsedElement = 8;
constexpr std::uint16_t kAvailFNoInterrupt = 1, kUsedFNoNotify = 1;

/// The word is shared with the other side, so every access is atomic.
std::uint16_t load_shared(const std::byte *at, std::memory_order order) noexcept
{
    auto *word = reinterpret_cast<std::uint16_t *>(const_cast<std::byte *>(at));
    return little_to_native(std::atomic_ref<std::uint16_t>{*word}.load(order));
}

void store_shared(std::byte *at, std::uint16_t value, std::memory_order order) noexcept
{
    std::atomic_ref<std::uint16_t>{*reinterpret_cast<std::uint16_t *>(at)}.store(native_to_little(value), order);
}

template <typename T>
T load(const std::byte *at) noexcept
{
    T value;
    std::memcpy(&value, at, sizeof value);
    return little_to_native(value);
}

template <typename T>
void store(std::byte *at, T value) noexcept
{
    value = native_to_little(value);
    std::memcpy(at, &value, sizeof value);
}

bool valid_size(std::uint16_t size) noexcept
{
    return size != 0 && size <= 32768 && (size & (size - 1)) == 0;
}

std::size_t total(const std::vector<std::span<std::byte>> &parts) noexcept
{
    std::size_t bytes = 0;
    for (const auto &part : parts) {
        bytes += part.size();
    }
    return bytes;
}

}  // namespace

const char *describe(QueueError error) noexcept
{
    switch (error) {
        case QueueError::bad_index: return "index moved by more than the queue size";
        case QueueError::bad_head: return "descriptor index beyond the queue size";
        case QueueError::loop: return "descriptor chain longer than the queue";
        case QueueError::bad_address: return "address outside shared memory";
        case QueueError::bad_order: return "device-readable descriptor after a device-writable one";
        case QueueError::bad_id: return "used element names a chain that is not outstanding";
        case QueueError::bad_length: return "used length exceeds the writable part";
        case QueueError::indirect: return "indirect descriptor without negotiation";
    }
    return "unknown queue error";
}

// ---- driver side ------------------------------------------------------------------------------

DriverQueue::DriverQueue(std::uint16_t size, std::byte *descriptors, std::byte *driver_area, std::byte *device_area)
    : size_(size),
      descriptors_(descriptors),
      driver_area_(driver_area),
      device_area_(device_area),
      free_count_(size),
      chains_(size),
      next_(size)
{
    for (std::uint16_t i = 0; i < size; ++i) {
        next_[i] = static_cast<std::uint16_t>(i + 1);
    }
}

bool DriverQueue::add(std::span<const DeviceBuffer> readable, std::span<const DeviceBuffer> writable,
                      std::uint64_t token)
{
    const auto count = readable.size() + writable.size();
    if (count == 0 || count > free_count_) {
        return false;
    }
    const std::uint16_t head = free_head_;
    std::uint16_t index = head;
    std::uint32_t writable_bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const bool write = i >= readable.size();
        const auto &buffer = write ? writable[i - readable.size()] : readable[i];
        writable_bytes += write ? buffer.length : 0;
        const bool last = i + 1 == count;
        std::byte *descriptor = descriptors_ + kDescriptorSize * index;
        store<std::uint64_t>(descriptor, buffer.address);
        store<std::uint32_t>(descriptor + kDescriptorLength, buffer.length);
        store<std::uint16_t>(descriptor + kDescriptorFlags,
                             static_cast<std::uint16_t>((write ? kDescFWrite : 0) | (last ? 0 : kDescFNext)));
        store<std::uint16_t>(descriptor + kDescriptorNext, last ? std::uint16_t{0} : next_[index]);
        free_head_ = next_[index];
        index = next_[index];
    }
    free_count_ -= static_cast<unsigned>(count);
    chains_[head] = {token, writable_bytes, static_cast<std::uint16_t>(count)};

    store<std::uint16_t>(driver_area_ + kRing + kAvailElement * (next_avail_ % size_), head);
    ++next_avail_;
    //= VVFU-ORDER-2
    store_shared(driver_area_ + kIdx, next_avail_, std::memory_order_seq_cst);  // barrier pairs [A], [C]
    return true;
}

bool DriverQueue::should_notify() const noexcept
{
    // barrier pair [C]
    return (load_shared(device_area_ + kFlags, std::memory_order_seq_cst) & kUsedFNoNotify) == 0;
}

bool DriverQueue::has_used() const noexcept
{
    return load_shared(device_area_ + kIdx, std::memory_order_seq_cst) != next_used_;  // barrier pair [D]
}

void DriverQueue::want_notifications(bool wanted) noexcept
{
    // barrier pair [D]
    store_shared(driver_area_ + kFlags, wanted ? std::uint16_t{0} : kAvailFNoInterrupt, std::memory_order_seq_cst);
}

Expected<std::optional<DriverQueue::Used>, QueueError> DriverQueue::poll_used()
{
    const auto idx = load_shared(device_area_ + kIdx, std::memory_order_acquire);  // barrier pair [B]
    const auto ready = static_cast<std::uint16_t>(idx - next_used_);
    if (ready == 0) {
        return std::nullopt;
    }
    if (ready > size_) {
        return make_unexpected(QueueError::bad_index);
    }
    const std::byte *element = device_area_ + kRing + kUsedElement * (next_used_ % size_);
    const auto id = load<std::uint32_t>(element);
    const auto length = load<std::uint32_t>(element + 4);
    if (id >= size_ || chains_[id].descriptors == 0) {
        return make_unexpected(QueueError::bad_id);
    }
    const Chain chain = std::exchange(chains_[id], Chain{});
    if (length > chain.writable) {
        return make_unexpected(QueueError::bad_length);
    }
    std::uint16_t last = static_cast<std::uint16_t>(id);
    for (unsigned i = 1; i < chain.descriptors; ++i) {
        last = next_[last];
    }
    next_[last] = free_head_;
    free_head_ = static_cast<std::uint16_t>(id);
    free_count_ += chain.descriptors;
    ++next_used_;
    return Used{chain.token, length};
}

// ---- device side ------------------------------------------------------------------------------

std::size_t DeviceQueue::Element::readable_bytes() const noexcept
{
    return total(readable);
}

std::size_t DeviceQueue::Element::writable_bytes() const noexcept
{
    return total(writable);
}

std::size_t DeviceQueue::Element::read(std::span<std::byte> out) const
{
    std::size_t done = 0;
    for (const auto &part : readable) {
        const auto bytes = std::min(part.size(), out.size() - done);
        if (bytes == 0) {
            continue;
        }
        std::memcpy(out.data() + done, part.data(), bytes);
        done += bytes;
    }
    return done;
}

std::size_t DeviceQueue::Element::write(std::span<const std::byte> data) const
{
    std::size_t done = 0;
    for (const auto &part : writable) {
        const auto bytes = std::min(part.size(), data.size() - done);
        if (bytes == 0) {
            continue;
        }
        std::memcpy(part.data(), data.data() + done, bytes);
        done += bytes;
    }
    return done;
}

Expected<DeviceQueue, QueueError> DeviceQueue::create(std::uint16_t size, std::uint64_t descriptors,
                                                      std::uint64_t driver_area, std::uint64_t device_area,
                                                      Translate translate)
{
    if (!valid_size(size)) {
        return make_unexpected(QueueError::bad_address);
    }
    // The host address counts too: shared memory may be mapped anywhere, and index accesses are atomic.
    const auto area = [&translate](std::uint64_t address, std::size_t bytes, std::size_t alignment) -> std::byte * {
        const auto span = address % alignment == 0 ? translate(address, bytes) : std::span<std::byte>{};
        const bool usable = span.size() == bytes && reinterpret_cast<std::uintptr_t>(span.data()) % alignment == 0;
        return usable ? span.data() : nullptr;
    };
    DeviceQueue queue;
    queue.size_ = size;
    queue.descriptors_ = area(descriptors, QueueLayout::descriptors(size), 16);
    queue.driver_area_ = area(driver_area, QueueLayout::driver_area(size), 2);
    queue.device_area_ = area(device_area, QueueLayout::device_area(size), 4);
    if (queue.descriptors_ == nullptr || queue.driver_area_ == nullptr || queue.device_area_ == nullptr) {
        return make_unexpected(QueueError::bad_address);
    }
    queue.translate_ = std::move(translate);
    return queue;
}

bool DeviceQueue::empty() const noexcept
{
    return load_shared(driver_area_ + kIdx, std::memory_order_seq_cst) == next_avail_;  // barrier pair [C]
}

void DeviceQueue::want_notifications(bool wanted) noexcept
{
    // barrier pair [C]
    store_shared(device_area_ + kFlags, wanted ? std::uint16_t{0} : kUsedFNoNotify, std::memory_order_seq_cst);
}

Expected<std::optional<DeviceQueue::Element>, QueueError> DeviceQueue::pop()
{
    Element element;
    const auto found = pop(element);
    if (!found) {
        return make_unexpected(found.error());
    }
    return *found ? std::optional<Element>{std::move(element)} : std::nullopt;
}

Expected<bool, QueueError> DeviceQueue::pop(Element &element)
{
    const auto idx = load_shared(driver_area_ + kIdx, std::memory_order_acquire);  // barrier pair [A]
    const auto ready = static_cast<std::uint16_t>(idx - next_avail_);
    if (ready == 0) {
        return false;
    }
    if (ready > size_) {
        return make_unexpected(QueueError::bad_index);
    }
    element.head = load<std::uint16_t>(driver_area_ + kRing + kAvailElement * (next_avail_ % size_));
    if (const auto chain = read_chain(element); !chain) {
        return make_unexpected(chain.error());
    }
    ++next_avail_;
    return true;
}

Expected<void, QueueError> DeviceQueue::read_chain(Element &element)
{
    element.readable.clear();
    element.writable.clear();
    std::uint16_t index = element.head;
    for (unsigned budget = size_; budget > 0; --budget) {
        if (index >= size_) {
            return make_unexpected(QueueError::bad_head);
        }
        std::byte descriptor[kDescriptorSize];  // one private copy: the driver may change the shared one at any time
        std::memcpy(descriptor, descriptors_ + kDescriptorSize * index, sizeof descriptor);
        const auto flags = load<std::uint16_t>(descriptor + kDescriptorFlags);
        if ((flags & kDescFIndirect) != 0) {
            return make_unexpected(QueueError::indirect);
        }
        const auto added = add_part(element, load<std::uint64_t>(descriptor),
                                    load<std::uint32_t>(descriptor + kDescriptorLength), (flags & kDescFWrite) != 0);
        if (!added) {
            return added;
        }
        if ((flags & kDescFNext) == 0) {
            return {};
        }
        index = load<std::uint16_t>(descriptor + kDescriptorNext);
    }
    return make_unexpected(QueueError::loop);
}

Expected<void, QueueError> DeviceQueue::add_part(Element &element, std::uint64_t address, std::uint32_t length,
                                                 bool writable)
{
    if (!writable && !element.writable.empty()) {
        return make_unexpected(QueueError::bad_order);
    }
    const auto part = translate_(address, length);
    if (part.size() != length) {
        return make_unexpected(QueueError::bad_address);
    }
    (writable ? element.writable : element.readable).push_back(part);
    return {};
}

void DeviceQueue::push(const Element &element, std::uint32_t written)
{
    std::byte *used = device_area_ + kRing + kUsedElement * (next_used_ % size_);
    store<std::uint32_t>(used, element.head);
    store<std::uint32_t>(used + 4, written);
    ++next_used_;
    //= VVFU-ORDER-1
    store_shared(device_area_ + kIdx, next_used_, std::memory_order_seq_cst);  // barrier pairs [B], [D]
}

bool DeviceQueue::should_notify() const noexcept
{
    // barrier pair [D]
    return (load_shared(driver_area_ + kFlags, std::memory_order_seq_cst) & kAvailFNoInterrupt) == 0;
}

}  // namespace vvfu::controlq
