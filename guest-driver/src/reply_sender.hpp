// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "transport_queue.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::guest {

/// The driver's end of the reply queue.
class ReplySender {
public:
    static Result<std::unique_ptr<ReplySender>> create(Transport &transport, std::size_t max_reply_size);

    Result<void> bring_up();
    /// Queues a reply of at most max_reply_size bytes. The device is notified by flush().
    Result<void> send(const control::Buffer &reply);
    void flush();
    /// Reuses the buffers that the device is done with; replies that waited for one go out.
    Result<void> process();
    /// Replies that wait for a buffer, because the device does not take its replies. Callers stop producing then.
    [[nodiscard]] std::size_t waiting() const noexcept { return waiting_.size(); }
    [[nodiscard]] int event() const { return queue_.event(); }

private:
    ReplySender(TransportQueue queue, BufferArray buffers, std::size_t count);
    Result<void> reclaim();
    void put(const control::Buffer &reply);

    TransportQueue queue_;
    BufferArray buffers_;
    std::size_t count_;
    std::vector<std::size_t> free_;
    std::deque<control::Buffer> waiting_;
    bool sent_ = false;
};

}  // namespace vvfu::guest
