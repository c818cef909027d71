// SPDX-License-Identifier: BSD-3-Clause
#include "data_transfer.hpp"

#include <cstring>
#include <utility>

namespace vvfu::nvme {

using guest::DmaDirection;
using guest::DmaError;
using guest::DmaMapping;

struct DataTransfer::Job {
    CommandPtr command;
    DmaDirection direction;
    PrpWalk walk;
    Then then;
    std::vector<Le64> list;  // private copy of the PRP list being read
};

void DataTransfer::map(const CommandPtr &command, std::uint64_t bytes, DmaDirection direction, Then then)
{
    const auto &entry = command->entry;
    PrpWalk walk(entry.prp1, entry.prp2, bytes, page_shift_);
    step(std::make_shared<Job>(Job{command, direction, std::move(walk), std::move(then), {}}));
}

/// Reads the next PRP list, or maps the data. Nested once per list (at most three) when memory is mapped.
void DataTransfer::step(const std::shared_ptr<Job> &job)
{
    if (job->walk.status() != Status::success) {
        job->then(job->walk.status());
        return;
    }
    const auto list = job->walk.next_list();
    if (!list) {
        map_segments(job);
        return;
    }
    job->list.resize(list->entries);
    dma_.read(list->address, std::as_writable_bytes(std::span(job->list)),
              activity_.track([this, job](Expected<void, DmaError> result) {
                  if (job->command->completed) {
                      return;
                  }
                  if (!result) {
                      job->then(Status::data_transfer_error);
                      return;
                  }
                  job->walk.feed(job->list);
                  step(job);
              }));
}

void DataTransfer::map_segments(const std::shared_ptr<Job> &job)
{
    dma_.map(job->walk.segments(), job->direction, activity_.track([job](Expected<DmaMapping, DmaError> mapping) {
        if (job->command->completed) {
            return;
        }
        if (!mapping) {
            job->then(Status::data_transfer_error);
            return;
        }
        job->command->data = std::move(*mapping);
        job->then(Status::success);
    }));
}

void DataTransfer::finish(const CommandPtr &command, Then then)
{
    std::move(command->data).finish(activity_.track([then = std::move(then)](Expected<void, DmaError> result) {
        then(result ? Status::success : Status::data_transfer_error);
    }));
}

void DataTransfer::send(const CommandPtr &command, std::vector<std::byte> data, Then then)
{
    command->buffer = std::move(data);
    const auto bytes = command->buffer.size();
    map(command, bytes, DmaDirection::to_peer, [this, command, then = std::move(then)](Status status) {
        if (status != Status::success) {
            then(status);
            return;
        }
        command->executing = true;
        command->data.store(0, command->buffer);
        finish(command, then);
    });
}

void DataTransfer::receive(const CommandPtr &command, std::uint64_t bytes, Then then)
{
    map(command, bytes, DmaDirection::from_peer, [command, bytes, then = std::move(then)](Status status) {
        if (status == Status::success) {
            command->executing = true;
            command->buffer.resize(bytes);
            copy_from_pieces(command->data.readable(), command->buffer);
            command->data = {};
        }
        then(status);
    });
}

void copy_from_pieces(std::span<const iovec> pieces, std::span<std::byte> to)
{
    for (const auto &piece : pieces) {
        std::memcpy(to.data(), piece.iov_base, piece.iov_len);
        to = to.subspan(piece.iov_len);
    }
}

}  // namespace vvfu::nvme
