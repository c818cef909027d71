// SPDX-License-Identifier: BSD-3-Clause
//
// Requests of the device guest on the control queue (docs/spec/virtio-vfio-user.md 9 and 10).
#include <cstring>
#include <string>

#include "core_impl.hpp"

namespace vvfu::core {

using control::Check;
using control::Status;
using control::Type;

/// Every reply part of the control queue holds at least a header and a text (VVFU-QUEUE-2).
constexpr std::size_t kMinReplyCapacity = control::kHeaderSize + control::kTextMax;
/// Of a DMA_READ reply, without the data.
constexpr std::uint64_t kDmaFixed = control::kHeaderSize + control::kDmaAccessSize;

//= VVFU-QUEUE-3
void Core::Impl::answer(std::uint64_t token, const control::Header &request, Status status, std::string_view text)
{
    control::Buffer out;
    //= VVFU-MSG-3
    //= VVFU-MSG-8
    control::begin(out, {request.type, control::kFlagReply, 0, request.request_id, request.epoch, status});
    if (status != Status::ok) {
        control::append_text(out, text);
    }
    control::finish(out);
    complete(token, request, out);
}

void Core::Impl::complete(std::uint64_t token, const control::Header &request, std::span<const std::byte> reply)
{
    open_requests_.erase(request.request_id);
    port_.complete_control(token, reply);
}

void Core::Impl::refuse(std::uint64_t token, const control::Header &request, Check check, std::string_view text)
{
    switch (control::rule(check).consequence) {
        case control::Consequence::unsupported: return answer(token, request, Status::unsupported, text);
        case control::Consequence::invalid: return answer(token, request, Status::invalid, text);
        default: return guest_.violated(check, "control queue: " + std::string{text});
    }
}

void Core::Impl::control_request(Nanoseconds now, std::uint64_t token, control::Bytes message, std::size_t capacity)
{
    //= VVFU-ERROR-1
    const auto header = control::decode_header(message);
    if (!header) {
        return guest_.violated(Check::header, "control queue: " + std::string{control::describe(header.error())});
    }
    if (header->flags != 0) {
        return refuse(token, *header, Check::direction, "a message that is not a request");
    }
    //= VVFU-ERROR-4
    if (capacity < kMinReplyCapacity) {
        return refuse(token, *header, Check::reply_part, "the reply part has less than 288 bytes");
    }
    //= VVFU-ERROR-9
    if (!open_requests_.insert(header->request_id).second) {
        return refuse(token, *header, Check::request_id, "a request with the ID of one that is not answered");
    }
    const auto payload = message.subspan(control::kHeaderSize);
    switch (header->type) {
        case Type::device_info: return device_info(now, token, *header, payload);
        case Type::dma_read: return dma_read(now, token, *header, payload, capacity);
        case Type::dma_write: return dma_write(now, token, *header, payload);
        case Type::irq_trigger: return irq_trigger(token, *header, payload);
        case Type::peer_close: return peer_close(now, token, *header, payload);
        default:
            //= VVFU-MSG-6
            //# The responder MUST answer a request of a type that it does not implement with UNSUPPORTED.
            return refuse(token, *header, Check::request_type, "unknown message type");
    }
}

// ---- DEVICE_INFO ----

void Core::Impl::device_info(Nanoseconds now, std::uint64_t token, const control::Header &header,
                             control::Bytes payload)
{
    //= VVFU-DEVICE-4
    if (header.epoch != 0) {
        return refuse(token, header, Check::device_info_epoch, "DEVICE_INFO belongs to no session: epoch is not 0");
    }
    const auto info = control::decode_device_info(payload);
    if (!info) {
        return refuse(token, header, Check::payload, control::describe(info.error()));
    }
    if (info->op == control::DeviceInfoOp::add) {
        device_add(token, header, *info);
    } else {
        device_del(now, token, header);
    }
}

void Core::Impl::device_add(std::uint64_t token, const control::Header &header, const control::DeviceInfo &info)
{
    //= VVFU-DEVICE-2
    if (device_) {
        return answer(token, header, Status::busy, "a device is registered already");
    }
    //= VVFU-DEVICE-1
    auto device = make_device(info, config_);
    if (!device) {
        return answer(token, header, device.error().status, device.error().reason);
    }
    if (const int rc = port_.listen(); rc < 0) {
        return answer(token, header, Status::io, std::string{"the device VMM cannot listen: "} + std::strerror(-rc));
    }
    device_ = std::move(*device);
    irqs_.configure(device_->irqs);
    answer(token, header, Status::ok);
    port_.state_changed();
}

void Core::Impl::device_del(Nanoseconds now, std::uint64_t token, const control::Header &header)
{
    if (!device_) {
        return answer(token, header, Status::not_found, "no device is registered");
    }
    //= VVFU-DEVICE-3
    //# The device MUST end the session and stop accepting peers before it answers DEVICE_INFO(DEL).
    if (session_) {
        end_session(now, control::DownReason::device_deleted);
    }
    withdraw();
    answer(token, header, Status::ok);
    port_.state_changed();
}

// ---- requests of a session ----

Status Core::Impl::check_session(const control::Header &header) const
{
    const bool begun = session_ && session_->epoch() != 0;
    if (begun && header.epoch == session_->epoch()) {
        return Status::ok;
    }
    //= VVFU-SESSION-6
    //# The device MUST answer a DMA_READ, DMA_WRITE, IRQ_TRIGGER or PEER_CLOSE request that carries the epoch of an
    //# ended session with STALE, without any other effect.
    if (epochs_.used(header.epoch)) {
        return Status::stale;
    }
    return begun ? Status::invalid : Status::not_connected;
}

void Core::Impl::dma_read(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload,
                          std::size_t capacity)
{
    const auto access = control::decode_dma_access(payload);
    //= VVFU-DMA-4
    if (!access || access->count == 0 || access->count > kMaxMessageSize - kDmaFixed) {
        return refuse(token, header, Check::payload, "DMA_READ of no bytes or of too many");
    }
    //= VVFU-ERROR-4
    if (capacity < kDmaFixed + access->count) {
        return refuse(token, header, Check::dma_read_reply_part, "the reply part is too small for the DMA_READ");
    }
    if (const auto status = check_session(header); status != Status::ok) {
        return answer(token, header, status);
    }
    auto done = [this, token, header, access = *access](Status status, control::Bytes data) {
        if (status != Status::ok) {
            return answer(token, header, status);
        }
        control::Buffer out;
        out.reserve(kDmaFixed + data.size());
        control::begin(out, {header.type, control::kFlagReply, 0, header.request_id, header.epoch, Status::ok});
        control::append(out, access, data);
        control::finish(out);
        complete(token, header, out);
    };
    if (const auto status = session_->dma_read(now, *access, std::move(done)); status != Status::ok) {
        answer(token, header, status);
    }
}

void Core::Impl::dma_write(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload)
{
    const auto request = control::decode_dma_data(payload);
    //= VVFU-DMA-4
    if (!request || request->access.count == 0) {
        return refuse(token, header, Check::payload, "DMA_WRITE of no bytes, or not of as many as it says");
    }
    if (const auto status = check_session(header); status != Status::ok) {
        return answer(token, header, status);
    }
    auto done = [this, token, header, access = request->access](Status status, control::Bytes) {
        if (status != Status::ok) {
            return answer(token, header, status);
        }
        control::Buffer out;
        control::begin(out, {header.type, control::kFlagReply, 0, header.request_id, header.epoch, Status::ok});
        control::append(out, access);
        control::finish(out);
        complete(token, header, out);
    };
    if (const auto status = session_->dma_write(now, *request, std::move(done)); status != Status::ok) {
        answer(token, header, status);
    }
}

void Core::Impl::irq_trigger(std::uint64_t token, const control::Header &header, control::Bytes payload)
{
    const auto trigger = control::decode_irq_trigger(payload);
    if (!trigger) {
        return refuse(token, header, Check::payload, control::describe(trigger.error()));
    }
    if (const auto status = check_session(header); status != Status::ok) {
        return answer(token, header, status);
    }
    //= VVFU-TRIGGER-1
    const auto result = irqs_.trigger(trigger->index, trigger->vector);
    answer(token, header, result == IrqTable::Trigger::done ? Status::ok : Status::not_found, "no such vector");
}

void Core::Impl::peer_close(Nanoseconds now, std::uint64_t token, const control::Header &header, control::Bytes payload)
{
    if (payload.size() > control::kTextMax) {
        return refuse(token, header, Check::payload, "more than 256 bytes of text");
    }
    if (const auto status = check_session(header); status != Status::ok) {
        return answer(token, header, status);
    }
    log_.write(LogLevel::info, "the device guest closed a session",
               "the device guest closes the session: " + control::decode_text(payload));
    //= VVFU-CLOSE-1
    //# The device MUST close the connection to the peer before it answers PEER_CLOSE with OK.
    end_session(now, control::DownReason::guest_closed);
    answer(token, header, Status::ok);
}

}  // namespace vvfu::core
