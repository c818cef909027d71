// SPDX-License-Identifier: BSD-3-Clause
#include "peer_dma.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vvfu::core {

using control::Status;
using vfio_user::Command;

void PeerDma::read(Nanoseconds now, std::uint64_t address, std::uint64_t count, Done done)
{
    Operation operation;
    operation.command = Command::dma_read;
    operation.address = address;
    operation.count = count;
    operation.data.resize(static_cast<std::size_t>(count));
    operation.done = std::move(done);
    start(now, std::move(operation));
}

void PeerDma::write(Nanoseconds now, std::uint64_t address, std::vector<std::byte> data, Done done)
{
    Operation operation;
    operation.command = Command::dma_write;
    operation.address = address;
    operation.count = data.size();
    operation.data = std::move(data);
    operation.done = std::move(done);
    start(now, std::move(operation));
}

void PeerDma::start(Nanoseconds now, Operation operation)
{
    operation.deadline = now + timeout_;
    held_bytes_ += operation.count;
    auto shared = std::make_shared<Operation>(std::move(operation));
    waiting_.push_back(shared);
    by_deadline_.push_back(std::move(shared));
    issue();
}

std::uint64_t PeerDma::reply_cost(Command command, std::uint64_t count) noexcept
{
    return command == Command::dma_read ? 2 * count + 512 : 0;
}

std::uint64_t PeerDma::next_count(const Operation &operation) const
{
    //= VVFU-DMA-2
    //# The device MUST NOT exceed the peer's `max_data_xfer_size` in one command to the peer.
    const auto limit = operation.command == Command::dma_read ? std::min(max_transfer_, kMaxReadPiece) : max_transfer_;
    return std::min(limit, operation.count - operation.issued);
}

bool PeerDma::may_issue(const Operation &operation) const
{
    return pieces_.size() < kMaxOutstanding && port_.send_backlog() < kMaxBacklog &&
           reply_cost_ + reply_cost(operation.command, next_count(operation)) <= kMaxReplyCost;
}

void PeerDma::issue()
{
    while (!waiting_.empty() && (waiting_.front()->finished || may_issue(*waiting_.front()))) {
        const auto operation = waiting_.front();
        if (!operation->finished) {
            issue_piece(operation);
        }
        if (operation->finished || operation->issued == operation->count) {
            waiting_.pop_front();
        }
    }
}

void PeerDma::cancel(Status status, const Lost &lost)
{
    for (const auto &operation : by_deadline_) {
        if (!operation->finished &&
            lost(operation->address, operation->count, operation->command == Command::dma_write)) {
            finish(operation, status);
        }
    }
    forget_finished();
    issue();
}

std::uint16_t PeerDma::next_message_id()
{
    // Terminates: at most kMaxOutstanding + kMaxExpired + kMaxOutstanding of 65536 IDs are taken, see exhausted().
    do {
        ++last_message_id_;
    } while (pieces_.contains(last_message_id_) || expired_.contains(last_message_id_));
    return last_message_id_;
}

void PeerDma::issue_piece(const OperationPtr &operation)
{
    const auto count = next_count(*operation);
    const vfio_user::DmaAccess access{operation->address + operation->issued, count};
    const auto id = next_message_id();
    vfio_user::begin_command(scratch_, operation->command, id);
    vfio_user::append(scratch_, access);
    if (operation->command == Command::dma_write) {
        vfio_user::append_bytes(scratch_,
                                std::span{operation->data}.subspan(static_cast<std::size_t>(operation->issued),
                                                                   static_cast<std::size_t>(count)));
    }
    vfio_user::finish(scratch_);
    operation->issued += count;
    ++operation->in_flight;
    reply_cost_ += reply_cost(operation->command, count);
    pieces_.emplace(id, Piece{operation, access});
    port_.send(scratch_, {});
}

namespace {

Status from_errno(std::uint32_t error)
{
    switch (error) {
        case EFAULT: return Status::fault;
        case EPERM:
        case EACCES: return Status::permission;
        default: return Status::io;
    }
}

}  // namespace

Status PeerDma::take(Piece &piece, const Message &message)
{
    auto &operation = *piece.operation;
    if (message.header.is_error()) {
        return from_errno(message.header.error);
    }
    if (operation.command == Command::dma_write) {
        return vfio_user::decode_dma_write_reply(message.payload, piece.access) ? Status::ok : Status::io;
    }
    const auto data = vfio_user::decode_dma_read_reply(message.payload, piece.access);
    if (!data) {
        return Status::io;
    }
    const auto at = static_cast<std::ptrdiff_t>(piece.access.address - operation.address);
    std::copy(data->begin(), data->end(), operation.data.begin() + at);
    return Status::ok;
}

bool PeerDma::reply(const Message &message)
{
    const auto id = message.header.message_id;
    const auto expired = expired_.find(id);
    if (expired != expired_.end() && expired->second == message.header.command) {
        expired_.erase(expired);
        ++counters_.unknown_replies;
        log_.once(LogLevel::warning, "late reply of the peer", "late reply of the peer to a DMA command ignored");
        return true;
    }
    const auto it = pieces_.find(id);
    if (it == pieces_.end() || static_cast<std::uint16_t>(it->second.operation->command) != message.header.command) {
        return false;
    }
    auto piece = std::move(it->second);
    pieces_.erase(it);
    --piece.operation->in_flight;
    reply_cost_ -= reply_cost(piece.operation->command, piece.access.count);
    //= VVFU-DMA-7
    if (!piece.operation->finished) {
        const auto status = take(piece, message);
        piece.operation->completed += piece.access.count;
        if (status != Status::ok) {
            log_.once(LogLevel::warning, "DMA failed by the peer", "the peer failed a DMA command");
            finish(piece.operation, status);
        } else if (piece.operation->completed == piece.operation->count) {
            //= VVFU-ORDER-3
            finish(piece.operation, Status::ok);
        }
    }
    forget_finished();
    issue();
    return true;
}

void PeerDma::forget_finished()
{
    while (!by_deadline_.empty() && by_deadline_.front()->finished && by_deadline_.front()->in_flight == 0) {
        by_deadline_.pop_front();
    }
}

void PeerDma::finish(const OperationPtr &operation, Status status)
{
    operation->finished = true;
    held_bytes_ -= operation->count;
    const bool has_data = status == Status::ok && operation->command == Command::dma_read;
    operation->done(status, has_data ? control::Bytes{operation->data} : control::Bytes{});
    operation->data.clear();
    operation->data.shrink_to_fit();
}

void PeerDma::tick(Nanoseconds now)
{
    while (!by_deadline_.empty() && by_deadline_.front()->deadline <= now) {
        const auto operation = by_deadline_.front();
        by_deadline_.pop_front();
        if (operation->finished) {
            continue;
        }
        //= VVFU-DEADLINE-1
        ++counters_.deadline_expiries;
        log_.once(LogLevel::warning, "DMA not answered", "the peer did not answer a DMA command in time");
        finish(operation, Status::timeout);
    }
    std::erase_if(pieces_, [&](const auto &entry) {
        const bool dead = entry.second.operation->deadline <= now;
        if (dead) {
            expired_[entry.first] = static_cast<std::uint16_t>(entry.second.operation->command);
            reply_cost_ -= reply_cost(entry.second.operation->command, entry.second.access.count);
        }
        return dead;
    });
    issue();
}

void PeerDma::abort(Status status)
{
    for (const auto &operation : by_deadline_) {
        if (!operation->finished) {
            finish(operation, status);
        }
    }
    by_deadline_.clear();
    waiting_.clear();
    pieces_.clear();
    reply_cost_ = 0;
}

Nanoseconds PeerDma::next_deadline() const
{
    return by_deadline_.empty() ? kNever : by_deadline_.front()->deadline;
}

}  // namespace vvfu::core
