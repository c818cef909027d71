// SPDX-License-Identifier: BSD-3-Clause
#include "reply_sender.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vvfu::guest {
namespace {

constexpr std::size_t kBuffers = 64;

}  // namespace

Result<std::unique_ptr<ReplySender>> ReplySender::create(Transport &transport, std::size_t max_reply_size)
{
    auto queue = TransportQueue::allocate(transport, kReplyQueue);
    if (!queue) {
        return make_unexpected(queue.error());
    }
    const auto count = std::min<std::size_t>(kBuffers, queue->size());
    auto buffers = BufferArray::allocate(transport, count, max_reply_size);
    if (!buffers) {
        return make_unexpected(buffers.error());
    }
    return std::unique_ptr<ReplySender>{new ReplySender{std::move(*queue), *buffers, count}};
}

ReplySender::ReplySender(TransportQueue queue, BufferArray buffers, std::size_t count)
    : queue_(std::move(queue)), buffers_(buffers), count_(count)
{
}

Result<void> ReplySender::bring_up()
{
    free_.clear();
    for (std::size_t i = count_; i > 0; --i) {
        free_.push_back(i - 1);
    }
    waiting_.clear();
    sent_ = false;
    auto result = queue_.bring_up();
    if (result) {
        // Buffers are reclaimed when they are needed: no interrupt per reply.
        queue_.ring().want_notifications(false);
    }
    return result;
}

Result<void> ReplySender::send(const control::Buffer &reply)
{
    if (free_.empty()) {
        if (auto result = reclaim(); !result) {
            return result;
        }
    }
    if (free_.empty() || !waiting_.empty()) {
        waiting_.push_back(reply);
        queue_.ring().want_notifications(true);
        return process();  // a buffer that came back before notifications were wanted
    }
    put(reply);
    return {};
}

void ReplySender::put(const control::Buffer &reply)
{
    const auto index = free_.back();
    free_.pop_back();
    std::memcpy(buffers_.host(index).data(), reply.data(), reply.size());
    const controlq::DeviceBuffer buffer{buffers_.device_address(index), static_cast<std::uint32_t>(reply.size())};
    queue_.ring().add({&buffer, 1}, {}, index);
    sent_ = true;
}

void ReplySender::flush()
{
    if (std::exchange(sent_, false)) {
        queue_.notify();
    }
}

Result<void> ReplySender::process()
{
    if (waiting_.empty()) {
        return {};
    }
    if (auto result = reclaim(); !result) {
        return result;
    }
    while (!waiting_.empty() && !free_.empty()) {
        put(waiting_.front());
        waiting_.pop_front();
    }
    if (waiting_.empty()) {
        queue_.ring().want_notifications(false);
    }
    return {};
}

Result<void> ReplySender::reclaim()
{
    for (;;) {
        const auto used = queue_.ring().poll_used();
        if (!used) {
            return failure(std::string{"reply queue: "} + controlq::describe(used.error()));
        }
        if (!*used) {
            return {};
        }
        free_.push_back((*used)->token);
    }
}

}  // namespace vvfu::guest
