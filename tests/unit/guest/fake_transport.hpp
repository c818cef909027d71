// SPDX-License-Identifier: BSD-3-Clause
//
// A virtio-vfio-user function in plain memory whose device side the test plays by hand, well or badly.
#pragma once

#include <sys/eventfd.h>

#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "vvfu/base/fd.hpp"
#include "vvfu/controlq/split_queue.hpp"
#include "vvfu/guest/transport.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::guest {

class FakeTransport : public Transport {
public:
    static constexpr std::size_t kArena = 32u * 1024 * 1024;
    static constexpr std::uint64_t kBase = 0x4000'0000;
    static constexpr std::size_t kWindow = 64 * 1024;

    FakeTransport() : arena_(new (std::align_val_t{4096}) std::byte[kArena]), window_(kWindow), regions_(8192)
    {
        for (auto &event : used_events_) {
            event.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        }
        std::memset(arena_, 0, 1024 * 1024);
    }
    ~FakeTransport() override { ::operator delete[](arena_, std::align_val_t{4096}); }

    // ---- knobs and records ----

    std::uint64_t offered = std::uint64_t{3} << 32;
    DeviceConfig device_config{.window_size = kWindow, .region_memory_size = 8192, .doorbells = 16, .notifications = 1};
    std::size_t allocation_limit = kArena;
    std::set<unsigned> missing_queues;
    bool with_notification = false;
    bool broken = false;
    unsigned resets = 0;
    bool driver_is_ok = false;
    std::vector<std::uint32_t> doorbells_rung;
    std::set<std::uint32_t> pending;
    std::array<unsigned, kBaseQueues> notified{};

    // ---- Transport ----

    [[nodiscard]] const char *name() const override { return "fake"; }
    void reset() override
    {
        ++resets;
        driver_is_ok = false;
        broken = false;
        for (auto &queue : queues_) {
            queue.reset();
        }
    }
    Result<std::uint64_t> negotiate(std::uint64_t wanted, std::uint64_t required) override
    {
        if ((required & ~offered) != 0) {
            return failure("a required feature is missing");
        }
        return wanted & offered;
    }
    DeviceConfig config() override { return device_config; }
    Result<SharedBuffer> allocate(std::size_t bytes) override
    {
        const auto rounded = (bytes + 4095) & ~std::size_t{4095};
        if (used_ + rounded > allocation_limit) {
            return failure("out of DMA memory");
        }
        std::byte *host = arena_ + used_;
        std::memset(host, 0, rounded);
        const SharedBuffer buffer{{host, bytes}, kBase + used_};
        used_ += rounded;
        return buffer;
    }
    std::uint16_t queue_size_max(unsigned queue) override
    {
        return missing_queues.count(queue) != 0 ? std::uint16_t{0} : kQueueSize;
    }
    Result<void> setup_queue(unsigned queue, const QueueAddresses &addresses) override
    {
        addresses_[queue] = addresses;
        auto ring = controlq::DeviceQueue::create(
            addresses.size, addresses.descriptors, addresses.driver_area, addresses.device_area,
            [this](std::uint64_t address, std::uint64_t length) -> std::span<std::byte> {
                if (address < kBase || address - kBase > kArena || length > kArena - (address - kBase)) {
                    return {};
                }
                return {arena_ + (address - kBase), length};
            });
        if (!ring) {
            return failure("bad queue addresses");
        }
        queues_[queue] = std::move(*ring);
        return {};
    }
    Result<void> driver_ok() override
    {
        driver_is_ok = true;
        return {};
    }
    void notify(unsigned queue) override { ++notified.at(queue); }
    [[nodiscard]] int queue_event(unsigned queue) const override { return used_events_.at(queue).get(); }
    [[nodiscard]] int config_event() const override { return config_event_.get(); }
    bool needs_reset() override { return broken; }
    std::span<std::byte> window() override { return window_; }
    std::span<std::byte> region_memory() override { return regions_; }
    void ring_doorbell(std::uint32_t index) override { doorbells_rung.push_back(index); }
    bool doorbell_pending(std::uint32_t index) override { return pending.count(index) != 0; }
    int notification_event(std::uint32_t index) override
    {
        return with_notification && index == kNotificationIntxUnmask ? notification_.get() : -1;
    }

    // ---- the device's side ----

    struct Chain {
        controlq::DeviceQueue::Element element;
        control::Buffer message;
        control::Header header;
        [[nodiscard]] control::Bytes payload() const { return control::Bytes{message}.subspan(control::kHeaderSize); }
    };
    /// The next message on controlq or replyq; replies are given back at once.
    std::optional<Chain> take(unsigned queue)
    {
        if (!queues_[queue]) {
            return std::nullopt;
        }
        Chain chain;
        const auto found = queues_[queue]->pop(chain.element);
        if (!found || !*found) {
            return std::nullopt;
        }
        chain.message.resize(chain.element.readable_bytes());
        chain.element.read(chain.message);
        chain.header = control::decode_header(chain.message).value();
        if (queue == kReplyQueue) {
            queues_[queue]->push(chain.element, 0);
            signal(queue);
        }
        return chain;
    }
    /// A buffer of the request queue; false: none is posted.
    bool push_request(control::Bytes message)
    {
        controlq::DeviceQueue::Element element;
        const auto found = queues_[kRequestQueue]->pop(element);
        if (!found || !*found || element.writable_bytes() < message.size()) {
            return false;
        }
        element.write(message);
        queues_[kRequestQueue]->push(element, static_cast<std::uint32_t>(message.size()));
        signal(kRequestQueue);
        return true;
    }
    void complete(const Chain &chain, control::Status status, control::Bytes payload = {})
    {
        control::Buffer out;
        control::begin(out, {.type = chain.header.type,
                             .flags = control::kFlagReply,
                             .request_id = chain.header.request_id,
                             .epoch = chain.header.epoch,
                             .status = status});
        out.insert(out.end(), payload.begin(), payload.end());
        control::finish(out);
        complete_raw(chain, out);
    }
    void complete_raw(const Chain &chain, control::Bytes message)
    {
        chain.element.write(message);
        queues_[kControlQueue]->push(chain.element, static_cast<std::uint32_t>(message.size()));
        signal(kControlQueue);
    }
    [[nodiscard]] bool wants_used_notification(unsigned queue) const { return queues_[queue]->should_notify(); }
    void signal(unsigned queue)
    {
        if (queues_[queue]->should_notify()) {
            ++used_signals;
            static_cast<void>(::eventfd_write(used_events_[queue].get(), 1));
        }
    }
    /// DEVICE_NEEDS_RESET.
    void set_broken()
    {
        broken = true;
        static_cast<void>(::eventfd_write(config_event_.get(), 1));
    }
    void fire_notification() { static_cast<void>(::eventfd_write(notification_.get(), 1)); }
    /// Makes the used index of a queue jump, as only a broken device does.
    void corrupt_used_index(unsigned queue)
    {
        const std::uint16_t jump = 9999;
        std::memcpy(arena_ + (addresses_[queue].device_area - kBase) + 2, &jump, sizeof jump);
        static_cast<void>(::eventfd_write(used_events_[queue].get(), 1));
    }

    unsigned used_signals = 0;

private:
    std::byte *arena_;
    std::size_t used_ = 0;
    std::vector<std::byte> window_, regions_;
    std::array<std::optional<controlq::DeviceQueue>, kBaseQueues> queues_;
    std::array<QueueAddresses, kBaseQueues> addresses_;
    std::array<Fd, kBaseQueues> used_events_;
    Fd config_event_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    Fd notification_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

}  // namespace vvfu::guest
