// SPDX-License-Identifier: BSD-3-Clause
#include "control_client.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vvfu::guest {
namespace {

using control::Status;
using control::Type;

constexpr std::size_t kDataOverhead = control::kHeaderSize + control::kDmaAccessSize;
/// VVFU-QUEUE-2: the smallest reply part, rounded up.
constexpr std::size_t kSmallSize = 512;
static_assert(kSmallSize >= control::kHeaderSize + control::kTextMax);
/// A slot's larger buffer; bigger messages would gain little and cost locked memory.
constexpr std::size_t kLargeSize = 256u * 1024;

DmaError to_dma_error(Status status)
{
    switch (status) {
        case Status::fault: return DmaError::fault;
        case Status::permission: return DmaError::permission;
        case Status::timeout: return DmaError::timeout;
        default: return DmaError::io;
    }
}

Expected<void, DmaError> outcome(const std::optional<DmaError> &error)
{
    return error ? Expected<void, DmaError>{make_unexpected(*error)} : Expected<void, DmaError>{};
}

}  // namespace

Result<std::unique_ptr<ControlClient>> ControlClient::create(Transport &transport, Executor &executor)
{
    auto queue = TransportQueue::allocate(transport, kControlQueue);
    if (!queue) {
        return make_unexpected(queue.error());
    }
    std::unique_ptr<ControlClient> client{new ControlClient{transport, executor, std::move(*queue)}};
    if (!client->free_slot()) {
        return failure("not enough DMA memory for a control message");
    }
    return client;
}

ControlClient::ControlClient(Transport &transport, Executor &executor, TransportQueue queue)
    : transport_(transport), executor_(executor), queue_(std::move(queue))
{
}

Result<void> ControlClient::bring_up(std::uint32_t max_message_size)
{
    //= VVFU-CONF-3
    //# The driver MUST NOT send a controlq message that is longer than `max_message_size`.
    chunk_ = std::min<std::size_t>(max_message_size, kLargeSize) - kDataOverhead;
    return queue_.bring_up();
}

std::optional<std::size_t> ControlClient::free_slot()
{
    const auto idle = std::find_if(slots_.begin(), slots_.end(), [](const Slot &slot) { return !slot.busy; });
    if (idle != slots_.end()) {
        return static_cast<std::size_t>(idle - slots_.begin());
    }
    // A request takes two descriptors.
    if (slots_.size() >= std::min<std::size_t>(kSlots, queue_.size() / 2)) {
        return std::nullopt;
    }
    auto large = BufferArray::allocate(transport_, 1, kLargeSize);
    auto small = BufferArray::allocate(transport_, 1, kSmallSize);
    if (!large || !small) {
        return std::nullopt;
    }
    slots_.emplace_back(*large, *small);
    return slots_.size() - 1;
}

bool ControlClient::request(Type type, std::uint32_t epoch, control::Bytes payload, ReplyCallback done)
{
    if (waiting_.size() >= kMaxWaiting || payload.size() > chunk_) {
        return false;
    }
    waiting_.push_back({type, epoch, {payload.begin(), payload.end()}, std::move(done)});
    pump();
    return true;
}

void ControlClient::dma(DmaDirection direction, std::uint32_t epoch, DmaAddress address, std::span<std::byte> buffer,
                        DmaCallback done)
{
    if (buffer.empty()) {
        executor_.post([done = std::move(done)] { done({}); });
        return;
    }
    auto transfer = std::make_shared<Transfer>();
    transfer->direction = direction;
    transfer->epoch = epoch;
    transfer->address = address;
    transfer->buffer = buffer;
    transfer->done = std::move(done);
    transfers_.push_back(std::move(transfer));
    pump();
}

void ControlClient::pump()
{
    bool sent = false;
    while (!waiting_.empty() || !transfers_.empty()) {
        const auto slot = free_slot();
        if (!slot) {
            break;
        }
        sent = true;
        if (!waiting_.empty()) {
            send_waiting(*slot);
            continue;
        }
        const auto transfer = transfers_.front();
        send_chunk(*slot, transfer);
        if (transfer->sent == transfer->buffer.size()) {
            transfers_.pop_front();
        }
    }
    if (sent) {
        queue_.notify();
    }
}

void ControlClient::send_waiting(std::size_t index)
{
    auto &slot = slots_[index];
    Waiting waiting = std::move(waiting_.front());
    waiting_.pop_front();
    slot.type = waiting.type;
    slot.done = std::move(waiting.done);
    control::begin(message_, {.type = waiting.type, .request_id = next_id_, .epoch = waiting.epoch});
    message_.insert(message_.end(), waiting.payload.begin(), waiting.payload.end());
    submit(index, slot.large, slot.small);
}

void ControlClient::send_chunk(std::size_t index, const std::shared_ptr<Transfer> &transfer)
{
    auto &slot = slots_[index];
    const bool write = transfer->direction == DmaDirection::to_peer;
    const auto bytes = std::min(chunk_, transfer->buffer.size() - transfer->sent);
    slot.type = write ? Type::dma_write : Type::dma_read;
    slot.transfer = transfer;
    slot.offset = transfer->sent;
    slot.access = {raw(transfer->address + transfer->sent), bytes};
    control::begin(message_, {.type = slot.type, .request_id = next_id_, .epoch = transfer->epoch});
    if (write) {
        control::append(message_, slot.access, transfer->buffer.subspan(slot.offset, bytes));
    } else {
        control::append(message_, slot.access);
    }
    transfer->sent += bytes;
    ++transfer->in_flight;
    ++dma_messages_;
    //= VVFU-QUEUE-2
    //# The driver MUST provide a device-writable part of at least 288 bytes with each controlq request, and of at
    //# least 48 plus `count` bytes with a DMA_READ request.
    submit(index, write ? slot.large : slot.small, write ? slot.small : slot.large);
}

void ControlClient::submit(std::size_t index, const BufferArray &readable, const BufferArray &writable)
{
    auto &slot = slots_[index];
    control::finish(message_);
    slot.busy = true;
    //= VVFU-MSG-2
    //# The requester MUST NOT use a `request_id` twice within a session.
    slot.id = next_id_++;
    std::memcpy(readable.host(0).data(), message_.data(), message_.size());
    const controlq::DeviceBuffer request{readable.device_address(0), static_cast<std::uint32_t>(message_.size())};
    const controlq::DeviceBuffer reply{writable.device_address(0), static_cast<std::uint32_t>(writable.size())};
    queue_.ring().add({&request, 1}, {&reply, 1}, index);
}

Result<void> ControlClient::process()
{
    for (;;) {
        const auto used = queue_.ring().poll_used();
        if (!used) {
            return failure(std::string{"control queue: "} + controlq::describe(used.error()));
        }
        if (!*used) {
            break;
        }
        if (auto result = completed((*used)->token, (*used)->length); !result) {
            return result;
        }
    }
    pump();
    return {};
}

Result<void> ControlClient::completed(std::size_t index, std::uint32_t length)
{
    const auto &buffer = slots_[index].type == Type::dma_read ? slots_[index].large : slots_[index].small;
    const auto shared = buffer.host(0).first(length);
    control::Buffer message{shared.begin(), shared.end()};
    const auto header = control::decode_header(message);
    if (!header) {
        return failure(std::string{"reply on the control queue: "} + std::string{control::describe(header.error())});
    }
    if (!header->is_reply() || header->type != slots_[index].type || header->request_id != slots_[index].id) {
        return failure("reply on the control queue does not match its request");
    }
    // Moved out: callbacks may send, and so use the slot again.
    const Slot slot = std::exchange(slots_[index], Slot{slots_[index].large, slots_[index].small});
    const auto payload = control::Bytes{message}.subspan(control::kHeaderSize);
    if (slot.transfer) {
        return chunk_completed(slot, header->status, payload);
    }
    if (slot.done) {
        slot.done({header->status, header->status == Status::ok ? std::string{} : control::decode_text(payload)});
    }
    return {};
}

Result<void> ControlClient::chunk_completed(const Slot &slot, Status status, control::Bytes payload)
{
    const auto transfer = slot.transfer;
    --transfer->in_flight;
    if (status != Status::ok) {
        transfer->error = transfer->error.value_or(to_dma_error(status));
    } else if (slot.type == Type::dma_read) {
        const auto reply = control::decode_dma_data(payload);
        if (!reply || reply->access != slot.access) {
            transfer->error = DmaError::io;
            finish_if_done(transfer);
            return failure("malformed reply to DMA_READ");
        }
        std::memcpy(transfer->buffer.data() + slot.offset, reply->data.data(), reply->data.size());
    } else {
        const auto reply = control::decode_dma_access(payload);
        if (!reply || *reply != slot.access) {
            transfer->error = DmaError::io;
            finish_if_done(transfer);
            return failure("malformed reply to DMA_WRITE");
        }
    }
    finish_if_done(transfer);
    return {};
}

void ControlClient::finish_if_done(const std::shared_ptr<Transfer> &transfer)
{
    if (transfer->error && transfer->sent < transfer->buffer.size()) {
        transfer->sent = transfer->buffer.size();  // the rest would be wasted
        std::erase(transfers_, transfer);
    }
    if (transfer->in_flight == 0 && transfer->sent == transfer->buffer.size() && transfer->done) {
        const auto done = std::exchange(transfer->done, nullptr);
        done(outcome(transfer->error));
    }
}

void ControlClient::abort()
{
    waiting_.clear();
    std::vector<std::shared_ptr<Transfer>> lost{transfers_.begin(), transfers_.end()};
    transfers_.clear();
    for (auto &slot : slots_) {
        if (slot.transfer && std::find(lost.begin(), lost.end(), slot.transfer) == lost.end()) {
            lost.push_back(slot.transfer);
        }
        slot.busy = false;
        slot.done = nullptr;
        slot.transfer = nullptr;
    }
    for (const auto &transfer : lost) {
        if (transfer->done) {
            executor_.post([done = std::exchange(transfer->done, nullptr)] { done(make_unexpected(DmaError::io)); });
        }
    }
}

}  // namespace vvfu::guest
