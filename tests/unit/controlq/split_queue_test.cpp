// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/controlq/split_queue.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <thread>

namespace vvfu::controlq {
namespace {

constexpr std::uint64_t kBase = 0x10000;  // device address of byte 0: differs from the host address

/// A queue and a data area in plain memory, with both sides.
class Memory {
public:
    static constexpr std::size_t kBytes = 1u << 18;

    explicit Memory(std::uint16_t size) : size_(size), bytes_(new (std::align_val_t{4096}) std::byte[kBytes]{})
    {
        descriptors = 0;
        driver_area = QueueLayout::descriptors(size);
        device_area = (driver_area + QueueLayout::driver_area(size) + 3) & ~std::size_t{3};
        data = (device_area + QueueLayout::device_area(size) + 63) & ~std::size_t{63};
    }
    ~Memory() { ::operator delete[](bytes_, std::align_val_t{4096}); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    std::byte *at(std::size_t offset) { return bytes_ + offset; }
    template <typename T>
    void put(std::size_t offset, T value)
    {
        std::memcpy(at(offset), &value, sizeof value);
    }
    DriverQueue driver() { return {size_, at(descriptors), at(driver_area), at(device_area)}; }
    DeviceQueue::Translate translate()
    {
        return [this](std::uint64_t address, std::uint64_t length) -> std::span<std::byte> {
            if (address < kBase || address - kBase > kBytes || length > kBytes - (address - kBase)) {
                return {};
            }
            return {at(address - kBase), length};
        };
    }
    Expected<DeviceQueue, QueueError> try_device()
    {
        return DeviceQueue::create(size_, kBase + descriptors, kBase + driver_area, kBase + device_area, translate());
    }
    DeviceQueue device() { return std::move(*try_device()); }
    [[nodiscard]] DeviceBuffer buffer(std::size_t offset, std::uint32_t length) const
    {
        return {kBase + data + offset, length};
    }
    /// Writes one descriptor as a hostile driver might.
    void descriptor(unsigned index, std::uint64_t address, std::uint32_t length, std::uint16_t flags,
                    std::uint16_t next)
    {
        const auto base = descriptors + 16u * index;
        put(base, address);
        put(base + 8, length);
        put(base + 12, flags);
        put(base + 14, next);
    }
    void offer(std::uint16_t head)
    {
        put<std::uint16_t>(driver_area + 4, head);
        put<std::uint16_t>(driver_area + 2, 1);
    }
    void use(std::uint32_t id, std::uint32_t length)
    {
        put(device_area + 4, id);
        put(device_area + 8, length);
        put<std::uint16_t>(device_area + 2, 1);
    }

    std::size_t descriptors, driver_area, device_area, data;

private:
    std::uint16_t size_;
    std::byte *bytes_;
};

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed)
{
    std::vector<std::byte> out(bytes);
    for (std::size_t i = 0; i < bytes; ++i) {
        out[i] = static_cast<std::byte>(seed * 31 + i * 7);
    }
    return out;
}

TEST(SplitQueue, CarriesAReadableChainToTheDeviceAndItsReplyBack)
{
    Memory memory{8};
    auto driver = memory.driver();
    auto device = memory.device();
    const auto request = pattern(100, 1);
    std::memcpy(memory.at(memory.data), request.data(), 100);
    const DeviceBuffer readable[] = {memory.buffer(0, 60), memory.buffer(60, 40)};
    const DeviceBuffer writable[] = {memory.buffer(1000, 10), memory.buffer(2000, 20)};
    ASSERT_TRUE(driver.add(readable, writable, 77));
    EXPECT_EQ(driver.free_descriptors(), 4u);
    EXPECT_FALSE(device.empty());

    auto element = device.pop();
    ASSERT_TRUE(element && *element);
    EXPECT_EQ((*element)->readable_bytes(), 100u);
    EXPECT_EQ((*element)->writable_bytes(), 30u);
    std::vector<std::byte> got(100);
    EXPECT_EQ((*element)->read(got), 100u);
    EXPECT_EQ(got, request);
    const auto reply = pattern(25, 9);
    EXPECT_EQ((*element)->write(reply), 25u);
    device.push(**element, 25);
    EXPECT_TRUE(device.empty());

    const auto used = driver.poll_used();
    ASSERT_TRUE(used && *used);
    EXPECT_EQ((*used)->token, 77u);
    EXPECT_EQ((*used)->length, 25u);
    EXPECT_EQ(std::memcmp(memory.at(memory.data + 1000), reply.data(), 10), 0);
    EXPECT_EQ(std::memcmp(memory.at(memory.data + 2000), reply.data() + 10, 15), 0);
    EXPECT_EQ(driver.free_descriptors(), 8u);
    EXPECT_FALSE(driver.poll_used()->has_value());
}

TEST(SplitQueue, CopiesNoMoreThanTheBuffersHold)
{
    Memory memory{4};
    auto driver = memory.driver();
    auto device = memory.device();
    const DeviceBuffer readable[] = {memory.buffer(0, 8)};
    const DeviceBuffer writable[] = {memory.buffer(64, 8)};
    ASSERT_TRUE(driver.add(readable, writable, 0));
    auto element = device.pop();
    std::vector<std::byte> small(3), large(30);
    EXPECT_EQ((*element)->read(small), 3u);
    EXPECT_EQ((*element)->read(large), 8u);
    EXPECT_EQ((*element)->write(large), 8u);
}

TEST(SplitQueue, RefusesAChainWhenDescriptorsDoNotSuffice)
{
    Memory memory{2};
    auto driver = memory.driver();
    const DeviceBuffer three[] = {memory.buffer(0, 1), memory.buffer(1, 1), memory.buffer(2, 1)};
    EXPECT_FALSE(driver.add(three, {}, 1));
    EXPECT_FALSE(driver.add({}, {}, 1));
    EXPECT_EQ(driver.free_descriptors(), 2u);
    EXPECT_TRUE(driver.add(std::span{three}.first(2), {}, 1));
    EXPECT_FALSE(driver.add(std::span{three}.first(1), {}, 2));
}

TEST(SplitQueue, NotificationsAreSuppressedOnRequestOfEitherSide)
{
    Memory memory{4};
    auto driver = memory.driver();
    auto device = memory.device();
    EXPECT_TRUE(driver.should_notify());
    EXPECT_TRUE(device.should_notify());
    device.want_notifications(false);
    driver.want_notifications(false);
    EXPECT_FALSE(driver.should_notify());
    EXPECT_FALSE(device.should_notify());
    device.want_notifications(true);
    driver.want_notifications(true);
    EXPECT_TRUE(driver.should_notify());
    EXPECT_TRUE(device.should_notify());
}

TEST(SplitQueue, AgreesWithANaiveQueueOverRandomOperations)
{
    for (unsigned seed = 0; seed < 20; ++seed) {
        std::mt19937 random{seed};
        const auto size = static_cast<std::uint16_t>(1u << (random() % 6));
        Memory memory{size};
        auto driver = memory.driver();
        auto device = memory.device();
        struct Model {
            std::uint64_t token;
            std::size_t readable, writable;
        };
        std::deque<Model> available;
        std::vector<std::pair<DeviceQueue::Element, Model>> taken;
        std::deque<std::pair<std::uint64_t, std::uint32_t>> used;
        std::size_t in_flight = 0;
        for (std::uint64_t step = 0; step < 40000; ++step) {
            switch (random() % 4) {
                case 0: {
                    const auto parts = 1 + random() % 4;
                    std::vector<DeviceBuffer> readable, writable;
                    Model model{step, 0, 0};
                    for (unsigned i = 0; i < parts; ++i) {
                        const auto length = static_cast<std::uint32_t>(random() % 50);
                        const bool write = i >= parts / 2;
                        (write ? writable : readable).push_back(memory.buffer(random() % 1000, length));
                        (write ? model.writable : model.readable) += length;
                    }
                    const bool fits = in_flight + parts <= size;
                    ASSERT_EQ(driver.add(readable, writable, step), fits);
                    if (fits) {
                        in_flight += parts;
                        available.push_back(model);
                    }
                    break;
                }
                case 1: {
                    auto element = device.pop();
                    ASSERT_TRUE(element);
                    ASSERT_EQ(element->has_value(), !available.empty());
                    if (*element) {
                        EXPECT_EQ((*element)->readable_bytes(), available.front().readable);
                        EXPECT_EQ((*element)->writable_bytes(), available.front().writable);
                        taken.emplace_back(std::move(**element), available.front());
                        available.pop_front();
                    }
                    break;
                }
                case 2: {  // completed in any order
                    if (taken.empty()) {
                        break;
                    }
                    const auto at = random() % taken.size();
                    const auto length = static_cast<std::uint32_t>(random() % (taken[at].second.writable + 1));
                    device.push(taken[at].first, length);
                    used.emplace_back(taken[at].second.token, length);
                    taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(at));
                    break;
                }
                default: {
                    ASSERT_EQ(driver.has_used(), !used.empty());
                    const auto got = driver.poll_used();
                    ASSERT_TRUE(got);
                    ASSERT_EQ(got->has_value(), !used.empty());
                    if (*got) {
                        EXPECT_EQ((*got)->token, used.front().first);
                        EXPECT_EQ((*got)->length, used.front().second);
                        used.pop_front();
                        in_flight = size - driver.free_descriptors();
                    }
                }
            }
            ASSERT_EQ(device.empty(), available.empty());
        }
    }
}

// ---- hostile driver ----

QueueError pop_error(Memory &memory)
{
    auto device = memory.device();
    const auto element = device.pop();
    EXPECT_FALSE(element);
    return element ? QueueError::bad_id : element.error();
}

constexpr std::uint16_t kNext = 1, kWrite = 2, kIndirect = 4;

TEST(SplitQueueDevice, RejectsAnAvailIndexThatJumps)
{
    Memory memory{4};
    memory.put<std::uint16_t>(memory.driver_area + 2, 5);
    EXPECT_EQ(pop_error(memory), QueueError::bad_index);
}

TEST(SplitQueueDevice, RejectsAHeadBeyondTheQueue)
{
    Memory memory{4};
    memory.offer(4);
    EXPECT_EQ(pop_error(memory), QueueError::bad_head);
}

TEST(SplitQueueDevice, RejectsANextIndexBeyondTheQueue)
{
    Memory memory{4};
    memory.descriptor(0, kBase, 1, kNext, 9);
    memory.offer(0);
    EXPECT_EQ(pop_error(memory), QueueError::bad_head);
}

TEST(SplitQueueDevice, RejectsALoop)
{
    Memory memory{4};
    memory.descriptor(0, kBase, 1, kNext, 1);
    memory.descriptor(1, kBase, 1, kNext, 0);
    memory.offer(0);
    EXPECT_EQ(pop_error(memory), QueueError::loop);
}

TEST(SplitQueueDevice, RejectsABufferOutsideSharedMemory)
{
    for (const auto &[address, length] : {std::pair<std::uint64_t, std::uint32_t>{0, 16},
                                          {kBase + Memory::kBytes - 8, 16},
                                          {~std::uint64_t{0} - 4, 16},
                                          {kBase, 0xffffffffu}}) {
        Memory memory{4};
        memory.descriptor(0, address, length, 0, 0);
        memory.offer(0);
        EXPECT_EQ(pop_error(memory), QueueError::bad_address) << address << " " << length;
    }
}

TEST(SplitQueueDevice, RejectsReadableAfterWritable)
{
    Memory memory{4};
    memory.descriptor(0, kBase, 1, kNext | kWrite, 1);
    memory.descriptor(1, kBase, 1, 0, 0);
    memory.offer(0);
    EXPECT_EQ(pop_error(memory), QueueError::bad_order);
}

TEST(SplitQueueDevice, RejectsIndirectDescriptors)
{
    Memory memory{4};
    memory.descriptor(0, kBase, 16, kIndirect, 0);
    memory.offer(0);
    EXPECT_EQ(pop_error(memory), QueueError::indirect);
}

TEST(SplitQueueDevice, CreationRejectsBadAreas)
{
    Memory memory{4};
    const auto create = [&](std::uint16_t size, std::uint64_t d, std::uint64_t a, std::uint64_t u) {
        return DeviceQueue::create(size, d, a, u, memory.translate()).has_value();
    };
    EXPECT_TRUE(create(4, kBase, kBase + 64, kBase + 128));
    EXPECT_FALSE(create(0, kBase, kBase + 64, kBase + 128));
    EXPECT_FALSE(create(3, kBase, kBase + 64, kBase + 128));
    EXPECT_FALSE(create(4, kBase + 8, kBase + 64, kBase + 128)) << "descriptors are aligned to 16";
    EXPECT_FALSE(create(4, kBase, kBase + 65, kBase + 128)) << "driver area is aligned to 2";
    EXPECT_FALSE(create(4, kBase, kBase + 64, kBase + 130)) << "device area is aligned to 4";
    EXPECT_FALSE(create(4, kBase, kBase + 64, kBase + Memory::kBytes - 8)) << "device area leaves shared memory";
    EXPECT_FALSE(create(4, 0, kBase + 64, kBase + 128));
}

// ---- hostile device ----

QueueError poll_error(Memory &memory, DriverQueue &driver)
{
    const auto used = driver.poll_used();
    EXPECT_FALSE(used);
    static_cast<void>(memory);
    return used ? QueueError::loop : used.error();
}

TEST(SplitQueueDriver, RejectsAUsedIndexThatJumps)
{
    Memory memory{4};
    auto driver = memory.driver();
    memory.put<std::uint16_t>(memory.device_area + 2, 5);
    EXPECT_EQ(poll_error(memory, driver), QueueError::bad_index);
}

TEST(SplitQueueDriver, RejectsAnIdThatIsNotOutstanding)
{
    for (const std::uint32_t id : {1u, 4u, 0x10000u, 0xffffffffu}) {
        Memory memory{4};
        auto driver = memory.driver();
        const DeviceBuffer buffers[] = {memory.buffer(0, 8)};
        ASSERT_TRUE(driver.add({}, buffers, 1));
        memory.use(id, 0);
        EXPECT_EQ(poll_error(memory, driver), QueueError::bad_id) << id;
    }
}

TEST(SplitQueueDriver, RejectsTheMiddleOfAChainAsId)
{
    Memory memory{4};
    auto driver = memory.driver();
    const DeviceBuffer buffers[] = {memory.buffer(0, 8), memory.buffer(8, 8)};
    ASSERT_TRUE(driver.add({}, buffers, 1));
    memory.use(1, 0);
    EXPECT_EQ(poll_error(memory, driver), QueueError::bad_id);
}

TEST(SplitQueueDriver, RejectsALengthBeyondTheWritablePart)
{
    Memory memory{4};
    auto driver = memory.driver();
    const DeviceBuffer readable[] = {memory.buffer(0, 100)};
    const DeviceBuffer writable[] = {memory.buffer(100, 8)};
    ASSERT_TRUE(driver.add(readable, writable, 1));
    memory.use(0, 9);
    EXPECT_EQ(poll_error(memory, driver), QueueError::bad_length);
}

TEST(SplitQueueDriver, KeepsItsFreeListWhenTheDeviceChangesDescriptors)
{
    Memory memory{4};
    auto driver = memory.driver();
    auto device = memory.device();
    const DeviceBuffer two[] = {memory.buffer(0, 8), memory.buffer(8, 8)};
    for (int i = 0; i < 10; ++i) {
        ASSERT_TRUE(driver.add(two, {}, 1));
        ASSERT_TRUE(driver.add(two, {}, 2));
        for (int n = 0; n < 2; ++n) {
            auto element = device.pop();
            ASSERT_TRUE(element && *element);
            EXPECT_EQ((*element)->readable.size(), 2u);
            device.push(**element, 0);
        }
        for (unsigned d = 0; d < 4; ++d) {
            memory.descriptor(d, ~std::uint64_t{0}, ~0u, kNext, 3);
        }
        for (int n = 0; n < 2; ++n) {
            ASSERT_TRUE(driver.poll_used()->has_value());
        }
        EXPECT_EQ(driver.free_descriptors(), 4u);
    }
}

TEST(SplitQueueDevice, EveryErrorHasAText)
{
    for (int error = 0; error <= static_cast<int>(QueueError::indirect); ++error) {
        EXPECT_STRNE(describe(static_cast<QueueError>(error)), "unknown queue error");
    }
}

// ---- two threads ----

TEST(SplitQueue, DataAndOrderSurviveTwoThreads)
{
    constexpr unsigned kMessages = 20000;
    Memory memory{16};
    auto driver = memory.driver();
    auto device = memory.device();
    std::thread device_thread{[&device] {
        DeviceQueue::Element element;
        for (unsigned received = 0; received < kMessages;) {
            const auto found = device.pop(element);
            ASSERT_TRUE(found);
            if (!*found) {
                std::this_thread::yield();
                continue;
            }
            std::uint32_t value = 0;
            ASSERT_EQ(element.read(std::as_writable_bytes(std::span{&value, 1})), 4u);
            ASSERT_EQ(value, received);
            value = ~value;
            ASSERT_EQ(element.write(std::as_bytes(std::span{&value, 1})), 4u);
            device.push(element, 4);
            ++received;
        }
    }};
    unsigned sent = 0, done = 0;
    while (done < kMessages) {
        if (sent < kMessages && sent - done < 8) {
            const auto offset = std::size_t{8} * (sent % 8);
            memory.put<std::uint32_t>(memory.data + offset, sent);
            const DeviceBuffer readable[] = {memory.buffer(offset, 4)};
            const DeviceBuffer writable[] = {memory.buffer(offset + 4, 4)};
            ASSERT_TRUE(driver.add(readable, writable, sent));
            ++sent;
        }
        const auto used = driver.poll_used();
        ASSERT_TRUE(used);
        if (*used) {
            ASSERT_EQ((*used)->token, done);
            std::uint32_t value = 0;
            std::memcpy(&value, memory.at(memory.data + 8 * (done % 8) + 4), 4);
            ASSERT_EQ(value, ~done);
            ++done;
        } else {
            std::this_thread::yield();
        }
    }
    device_thread.join();
}

}  // namespace
}  // namespace vvfu::controlq
