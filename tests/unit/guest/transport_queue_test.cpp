// SPDX-License-Identifier: BSD-3-Clause
#include "transport_queue.hpp"

#include <gtest/gtest.h>

#include "fake_transport.hpp"

namespace vvfu::guest {
namespace {

TEST(BufferArray, BuffersLieApartInHostAndDeviceAddressesAlike)
{
    FakeTransport transport;
    const auto buffers = BufferArray::allocate(transport, 4, 8192);
    ASSERT_TRUE(buffers);
    EXPECT_EQ(buffers->size(), 8192u);
    for (std::size_t i = 0; i + 1 < 4; ++i) {
        EXPECT_EQ(buffers->host(i).size(), 8192u);
        const auto distance = buffers->host(i + 1).data() - buffers->host(i).data();
        EXPECT_GE(distance, 8192);
        EXPECT_NE(distance % 4096, 0) << "they would compete for the same cache sets";
        EXPECT_EQ(buffers->device_address(i + 1) - buffers->device_address(i), static_cast<std::uint64_t>(distance));
    }
}

TEST(BufferArray, FailsWithTheTransportsReason)
{
    FakeTransport transport;
    transport.allocation_limit = 4096;
    const auto buffers = BufferArray::allocate(transport, 4, 8192);
    ASSERT_FALSE(buffers);
    EXPECT_NE(buffers.error().message.find("DMA memory"), std::string::npos);
}

TEST(TransportQueue, AQueueThatDoesNotExistIsNamed)
{
    FakeTransport transport;
    transport.missing_queues = {2};
    const auto queue = TransportQueue::allocate(transport, 2);
    ASSERT_FALSE(queue);
    EXPECT_NE(queue.error().message.find("queue 2"), std::string::npos);
}

TEST(TransportQueue, WorksAgainAfterTheDeviceWasReset)
{
    FakeTransport transport;
    auto queue = std::move(*TransportQueue::allocate(transport, kReplyQueue));
    EXPECT_EQ(queue.size(), kQueueSize);
    const auto buffers = BufferArray::allocate(transport, 1, 64);
    control::Buffer message;
    control::begin(message, {.type = control::Type::peer, .flags = control::kFlagReply});
    control::finish(message);
    std::copy(message.begin(), message.end(), buffers->host(0).begin());
    const controlq::DeviceBuffer buffer{buffers->device_address(0), static_cast<std::uint32_t>(message.size())};
    for (int life = 0; life < 3; ++life) {
        transport.reset();
        ASSERT_TRUE(queue.bring_up());
        EXPECT_EQ(queue.ring().free_descriptors(), kQueueSize);
        for (int i = 0; i < 5; ++i) {
            ASSERT_TRUE(queue.ring().add({&buffer, 1}, {}, 1));
        }
        queue.notify();
        for (int i = 0; i < 3; ++i) {  // two stay behind
            EXPECT_TRUE(transport.take(kReplyQueue));
        }
    }
    EXPECT_EQ(transport.notified[kReplyQueue], 3u);
}

}  // namespace
}  // namespace vvfu::guest
