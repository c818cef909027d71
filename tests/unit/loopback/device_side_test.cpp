// SPDX-License-Identifier: BSD-3-Clause
//
// A driver that fills the control queue, as ours never does.
#include "device_side.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "temporary_directory.hpp"
#include "transport_queue.hpp"
#include "vfio_user_client.hpp"
#include "vvfu/loopback/loopback_port.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::loopback {
namespace {

using namespace std::chrono_literals;
using control::Type;

/// Everything about the queues by hand, on a thread of its own. Replies are what a working driver says.
class RawDriver {
public:
    static constexpr unsigned kRequests = 64;

    explicit RawDriver(guest::Transport &transport)
        : transport_(transport),
          queues_{make(kControlQueue), make(kRequestQueue), make(kReplyQueue)},
          buffers_(*guest::BufferArray::allocate(transport, 64, kRequestBufferSize)),
          replies_(*guest::BufferArray::allocate(transport, 64, kRequestBufferSize)),
          answers_(*guest::BufferArray::allocate(transport, kRequests, 288)),
          messages_(*guest::BufferArray::allocate(transport, kRequests, kMaxMessageSize))
    {
        transport.reset();
        constexpr std::uint64_t kRequired = std::uint64_t{3} << 32;
        static_cast<void>(transport.negotiate(kRequired, kRequired));
        for (auto &queue : queues_) {
            static_cast<void>(queue.bring_up());
        }
        for (std::size_t i = 0; i < 64; ++i) {
            post_buffer(i);
        }
        static_cast<void>(transport.driver_ok());
        thread_ = std::thread{[this] { main(); }};
    }
    ~RawDriver()
    {
        stop_ = true;
        thread_.join();
    }

    /// Sends one control request from each of `count` messages at once.
    void send(Type type, std::uint32_t epoch, const control::Buffer &payload, unsigned count)
    {
        type_ = type, epoch_ = epoch, payload_ = payload;
        to_send_.store(count, std::memory_order_release);
    }
    [[nodiscard]] unsigned answered() const { return answered_.load(std::memory_order_acquire); }
    [[nodiscard]] unsigned failed() const { return failed_; }

private:
    guest::TransportQueue make(unsigned index)
    {
        return std::move(*guest::TransportQueue::allocate(transport_, index));
    }

    void post_buffer(std::size_t index)
    {
        const controlq::DeviceBuffer buffer{buffers_.device_address(index), kRequestBufferSize};
        queues_[kRequestQueue].ring().add({}, {&buffer, 1}, index);
    }
    void main()
    {
        while (!stop_) {
            if (const auto count = to_send_.exchange(0, std::memory_order_acquire)) {
                request(count);
            }
            while (const auto used = *queues_[kControlQueue].ring().poll_used()) {
                const auto header = control::decode_header(answers_.host(used->token).first(used->length));
                failed_ += header && header->status == control::Status::ok ? 0 : 1;
                ++answered_;
            }
            while (const auto used = *queues_[kRequestQueue].ring().poll_used()) {
                const auto bytes = buffers_.host(used->token).first(used->length);
                reply(control::Buffer{bytes.begin(), bytes.end()});
                post_buffer(used->token);
            }
            while (*queues_[kReplyQueue].ring().poll_used()) {
            }
            queues_[kRequestQueue].notify();
            queues_[kReplyQueue].notify();
            std::this_thread::yield();
        }
    }
    void request(unsigned count)
    {
        for (unsigned i = 0; i < count; ++i) {
            control::Buffer message;
            control::begin(message, {type_, 0, 0, ++last_id_, epoch_, control::Status::ok});
            message.insert(message.end(), payload_.begin(), payload_.end());
            control::finish(message);
            std::copy(message.begin(), message.end(), messages_.host(i).begin());
            const controlq::DeviceBuffer out{messages_.device_address(i), static_cast<std::uint32_t>(message.size())};
            const controlq::DeviceBuffer in{answers_.device_address(i), 288};
            queues_[kControlQueue].ring().add({&out, 1}, {&in, 1}, i);
        }
        queues_[kControlQueue].notify();
    }
    void reply(const control::Buffer &request)
    {
        auto header = *control::decode_header(request);
        const auto payload = std::span{request}.subspan(control::kHeaderSize);
        control::Buffer out;
        header.flags = control::kFlagReply;
        control::begin(out, header);
        if (header.type == Type::region_read) {
            const auto access = *control::decode_region_access(payload);
            control::append(out, access, std::vector<std::byte>(access.count));
        } else if (header.type == Type::feature_bits) {
            out.insert(out.end(), payload.begin(), payload.end());
        }
        control::finish(out);
        const auto index = next_reply_++ % 64;
        std::copy(out.begin(), out.end(), replies_.host(index).begin());
        const controlq::DeviceBuffer buffer{replies_.device_address(index), static_cast<std::uint32_t>(out.size())};
        queues_[kReplyQueue].ring().add({&buffer, 1}, {}, index);
    }

    guest::Transport &transport_;
    std::array<guest::TransportQueue, 3> queues_;
    guest::BufferArray buffers_, replies_, answers_, messages_;
    Type type_{};
    std::uint32_t epoch_ = 0;
    control::Buffer payload_;
    std::atomic<unsigned> to_send_{0}, answered_{0}, failed_{0};
    std::atomic<bool> stop_{false};
    std::uint64_t last_id_ = 0;
    std::size_t next_reply_ = 0;
    std::thread thread_;
};

bool eventually(const std::function<bool()> &condition)
{
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (!condition() && std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();
    }
    return condition();
}

//= VVFU-QUEUE-12
//= type=test
//= VVFU-QUEUE-13
//= type=test
TEST(DeviceSide, TakesNoMoreDmaDataThanItMayHoldWhilePeerAndDriverGoOn)
{
    constexpr std::uint64_t kAddress = 0x100000, kMost = 4 * 1024 * 1024;
    constexpr std::size_t kChunk = kMaxMessageSize - control::kHeaderSize - control::kDmaAccessSize;
    constexpr unsigned kWrites = 32;
    static_assert(kWrites * kChunk > kMost + kChunk);
    const test::TemporaryDirectory directory;
    LoopbackOptions options;
    options.socket_path = directory.path("sock");
    options.core.window_size = std::uint64_t{1} << 30;
    options.core.access_timeout = 4s;
    const auto port = std::move(*LoopbackPort::create(std::move(options)));
    RawDriver driver{port->transport()};

    control::DeviceInfo info;
    info.regions = {{0, control::kRegionRead | control::kRegionWrite, 4096, 0, {}},
                    {control::kRegionConfig, control::kRegionRead | control::kRegionWrite, 256, 0, {}}};
    control::Buffer payload;
    control::append(payload, info);
    driver.send(Type::device_info, 0, payload, 1);
    ASSERT_TRUE(eventually([&] { return driver.answered() == 1; }));
    auto client = test::VfioUserClient::connect(directory.path("sock"));
    client.version();
    ASSERT_EQ(client.dma_map(kAddress, 1 << 20, 0, test::kMapRead | test::kMapWrite, -1), 0);

    // A peer that answers no DMA command for now.
    std::vector<test::Message> held;
    std::uint64_t bytes = 0;
    client.on_dma([&](test::Message message) {
        bytes += message.payload.size() - sizeof(vfio_user::DmaAccess);
        held.push_back(std::move(message));
    });
    payload.clear();
    control::append(payload, control::DmaAccess{kAddress, kChunk}, std::vector<std::byte>(kChunk, std::byte{7}));
    driver.send(Type::dma_write, 1, payload, kWrites);
    ASSERT_TRUE(client.serve_until([&] { return bytes >= kMost; }));
    for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(client.read<std::uint32_t>(0, 0), 0u) << "the driver's replies are taken";
    }
    EXPECT_LE(bytes, kMost + kChunk);
    EXPECT_EQ(driver.answered(), 1u);

    std::vector<std::byte> memory(1 << 20);
    client.serve_memory(kAddress, memory);
    client.on_dma(nullptr);
    for (const auto &message : held) {
        client.answer_dma(message);
    }
    ASSERT_TRUE(client.serve_until([&] { return client.dma_counters().writes == kWrites; }));
    EXPECT_TRUE(eventually([&] { return driver.answered() == 1 + kWrites; }));
    EXPECT_EQ(driver.failed(), 0u);
    EXPECT_EQ(memory[kChunk - 1], std::byte{7});
}

}  // namespace
}  // namespace vvfu::loopback
