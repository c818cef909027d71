// SPDX-License-Identifier: BSD-3-Clause
//
// The requester's end of the control queue: any number of requests, as many of them in the queue at a time as there are
// slots.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transport_queue.hpp"
#include "vvfu/guest/dma_space.hpp"
#include "vvfu/guest/executor.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::guest {

class ControlClient {
public:
    struct Reply {
        control::Status status = control::Status::ok;
        std::string text;  ///< the device's reason when the status is not ok
    };
    using ReplyCallback = std::function<void(const Reply &)>;

    static constexpr std::size_t kSlots = 16;
    /// Requests without payload data that may wait for a slot; what is beyond is refused.
    static constexpr std::size_t kMaxWaiting = 1024;

    static Result<std::unique_ptr<ControlClient>> create(Transport &transport, Executor &executor);

    /// After a device reset: sets the queue up again, with what the device's configuration allows per message.
    Result<void> bring_up(std::uint32_t max_message_size);

    /// `payload` is what follows the header. `done` runs from process(); after abort() never. False: too many waiting.
    bool request(control::Type type, std::uint32_t epoch, control::Bytes payload, ReplyCallback done);
    /// One transfer, as several messages if need be. `done` never runs inside the call; after abort() it runs with io.
    void dma(DmaDirection direction, std::uint32_t epoch, DmaAddress address, std::span<std::byte> buffer,
             DmaCallback done);

    /// Takes what the device completed. An error says what is wrong with the device: it must be reset and abort()
    /// called.
    Result<void> process();
    /// Forgets every request. Only when the device is reset and touches the buffers no more.
    void abort();

    [[nodiscard]] int event() const { return queue_.event(); }
    [[nodiscard]] std::uint64_t dma_messages() const noexcept { return dma_messages_; }

private:
    struct Transfer {  // one dma() call
        DmaDirection direction{};
        std::uint32_t epoch = 0;
        DmaAddress address{};
        std::span<std::byte> buffer;
        std::size_t sent = 0;
        unsigned in_flight = 0;
        std::optional<DmaError> error;
        DmaCallback done;
    };
    struct Waiting {
        control::Type type{};
        std::uint32_t epoch = 0;
        control::Buffer payload;
        ReplyCallback done;
    };
    struct Slot {
        Slot(BufferArray large_buffer, BufferArray small_buffer) : large(large_buffer), small(small_buffer) {}

        BufferArray large, small;  // requests with data and replies with data; the other one
        bool busy = false;
        control::Type type{};
        std::uint64_t id = 0;
        ReplyCallback done;
        std::shared_ptr<Transfer> transfer;
        control::DmaAccess access;  // of this chunk
        std::size_t offset = 0;     // of this chunk in the transfer's buffer
    };

    ControlClient(Transport &transport, Executor &executor, TransportQueue queue);
    std::optional<std::size_t> free_slot();
    void pump();
    void send_waiting(std::size_t slot);
    void send_chunk(std::size_t slot, const std::shared_ptr<Transfer> &transfer);
    void submit(std::size_t slot, const BufferArray &readable, const BufferArray &writable);
    Result<void> completed(std::size_t slot, std::uint32_t length);
    Result<void> chunk_completed(const Slot &slot, control::Status status, control::Bytes payload);
    void finish_if_done(const std::shared_ptr<Transfer> &transfer);

    Transport &transport_;
    Executor &executor_;
    TransportQueue queue_;
    std::vector<Slot> slots_;  // grown up to kSlots as they are needed
    std::size_t chunk_ = 0;    // data bytes per message
    std::uint64_t next_id_ = 1;
    std::deque<Waiting> waiting_;
    std::deque<std::shared_ptr<Transfer>> transfers_;  // with chunks left to send
    control::Buffer message_;
    std::uint64_t dma_messages_ = 0;
};

}  // namespace vvfu::guest
