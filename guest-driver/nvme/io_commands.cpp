// SPDX-License-Identifier: BSD-3-Clause
#include "io_commands.hpp"

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace vvfu::nvme {
namespace {

using guest::DmaDirection;

constexpr std::uint32_t kForceUnitAccess = 1u << 30;     // NVMe 6.9, 6.15, 6.16: CDW12
constexpr std::uint32_t kDeallocate = 1u << 25;          // NVMe 6.16: DEAC
constexpr std::uint32_t kAttributeDeallocate = 1u << 2;  // NVMe 6.7: AD

/// NVMe 6.7: Range Definition.
struct DatasetRange {
    Le32 context = 0;
    Le32 blocks = 0;
    Le64 slba = 0;
};
static_assert(sizeof(DatasetRange) == 16);

std::uint64_t starting_lba(const SubmissionEntry &entry)
{
    return entry.cdw10 | std::uint64_t{entry.cdw11} << 32;
}

/// Number of logical blocks, 0's based in the command.
std::uint64_t block_count(const SubmissionEntry &entry)
{
    return (entry.cdw12 & 0xffff) + std::uint64_t{1};
}

bool contains(const Namespace &ns, std::uint64_t slba, std::uint64_t count)
{
    return slba <= ns.blocks() && count <= ns.blocks() - slba;
}

ByteRange bytes_of(std::uint64_t slba, std::uint64_t count)
{
    return {slba << kBlockShift, count << kBlockShift};
}

}  // namespace

template <typename F>
auto IoCommands::on_success(const CommandPtr &command, F next)
{
    return [this, command, next = std::move(next)](Status status) {
        if (status == Status::success) {
            next();
        } else {
            engine_.complete(command, status);
        }
    };
}

template <typename F>
auto IoCommands::on_backing(const CommandPtr &command, Access access, F next)
{
    return activity_.track([this, command, access, next = std::move(next)](int error) {
        if (error == 0) {
            next();
        } else {
            engine_.complete(command, backing_status(error, access));
        }
    });
}

auto IoCommands::complete_with(const CommandPtr &command)
{
    return [this, command](Status status) { engine_.complete(command, status); };
}

Status IoCommands::backing_status(int error, Access access)
{
    if (error == ENOSPC || error == EDQUOT) {
        return Status::capacity_exceeded;
    }
    if (error != EIO) {
        return Status::internal_error;  // ours, not the medium's: ENOMEM, EFAULT, ...
    }
    ++health_.media_errors;
    return access == Access::read ? Status::unrecovered_read_error : Status::write_fault;
}

void IoCommands::execute(const CommandPtr &command)
{
    switch (static_cast<IoOpcode>(command->entry.opcode)) {
        case IoOpcode::flush: flush(command); return;
        case IoOpcode::write: write(command); return;
        case IoOpcode::read: read(command); return;
        case IoOpcode::compare: compare(command); return;
        case IoOpcode::write_zeroes: write_zeroes(command); return;
        case IoOpcode::dataset_management: dataset_management(command); return;
    }
    engine_.complete(command, Status::invalid_opcode);
}

Namespace *IoCommands::find(std::uint32_t nsid) noexcept
{
    return nsid == 0 || nsid > namespaces_.size() ? nullptr : &namespaces_[nsid - 1];
}

Expected<IoCommands::Extent, Status> IoCommands::checked_extent(const SubmissionEntry &entry, Access access)
{
    auto *ns = find(entry.nsid);
    if (ns == nullptr) {
        return make_unexpected(Status::invalid_namespace);
    }
    const auto slba = starting_lba(entry), count = block_count(entry);
    const bool moves_data = entry.opcode != static_cast<std::uint8_t>(IoOpcode::write_zeroes);
    if (moves_data && count > kMaxTransfer >> kBlockShift) {
        return make_unexpected(Status::invalid_field);  // NVMe 5.15.2.2: MDTS
    }
    if (!contains(*ns, slba, count)) {
        return make_unexpected(Status::lba_out_of_range);
    }
    if (access == Access::write && ns->read_only) {
        return make_unexpected(Status::namespace_write_protected);
    }
    return Extent{ns, bytes_of(slba, count)};
}

bool IoCommands::durable(const SubmissionEntry &entry) const noexcept
{
    return (entry.cdw12 & kForceUnitAccess) != 0 || !features_.write_cache_enabled();
}

template <typename F>
void IoCommands::transfer(const CommandPtr &command, Access access, DmaDirection direction, F work)
{
    const auto extent = checked_extent(command->entry, access);
    if (!extent) {
        engine_.complete(command, extent.error());
        return;
    }
    const bool reads = access == Access::read;
    ++(reads ? health_.reads : health_.writes);
    (reads ? health_.blocks_read : health_.blocks_written) += extent->range.size >> kBlockShift;
    const auto mapped = [command, extent = *extent, work = std::move(work)] {
        command->executing = true;
        work(extent);
    };
    transfer_.map(command, extent->range.size, direction, on_success(command, mapped));
}

void IoCommands::read(const CommandPtr &command)
{
    transfer(command, Access::read, DmaDirection::to_peer, [this, command](const Extent &extent) {
        extent.ns->backing->read(extent.range.offset, command->data.iov(), on_backing(command, Access::read, [=, this] {
                                     transfer_.finish(command, complete_with(command));
                                 }));
    });
}

void IoCommands::write(const CommandPtr &command)
{
    transfer(command, Access::write, DmaDirection::from_peer, [this, command](const Extent &extent) {
        extent.ns->backing->write(
            extent.range.offset, command->data.iov(), durable(command->entry),
            on_backing(command, Access::write, [=, this] { engine_.complete(command, Status::success); }));
    });
}

void IoCommands::compare(const CommandPtr &command)
{
    transfer(command, Access::read, DmaDirection::from_peer, [this, command](const Extent &extent) {
        command->buffer.resize(extent.range.size);
        const auto piece = std::make_shared<iovec>(iovec{command->buffer.data(), command->buffer.size()});
        extent.ns->backing->read(extent.range.offset, {piece.get(), 1},
                                 on_backing(command, Access::read, [=, this, keep = piece] { compare_data(command); }));
    });
}

void IoCommands::compare_data(const CommandPtr &command)
{
    const auto *stored = command->buffer.data();
    for (const auto &piece : command->data.iov()) {
        if (std::memcmp(stored, piece.iov_base, piece.iov_len) != 0) {
            engine_.complete(command, Status::compare_failure);
            return;
        }
        stored += piece.iov_len;
    }
    engine_.complete(command, Status::success);
}

void IoCommands::write_zeroes(const CommandPtr &command)
{
    const auto extent = checked_extent(command->entry, Access::write);
    if (!extent) {
        engine_.complete(command, extent.error());
        return;
    }
    command->executing = true;
    const bool deallocate = (command->entry.cdw12 & kDeallocate) != 0;
    extent->ns->backing->write_zeroes(
        extent->range, deallocate, durable(command->entry),
        on_backing(command, Access::write, [this, command] { engine_.complete(command, Status::success); }));
}

void IoCommands::dataset_management(const CommandPtr &command)
{
    const auto &entry = command->entry;
    auto *ns = find(entry.nsid);
    if (ns == nullptr) {
        engine_.complete(command, Status::invalid_namespace);
        return;
    }
    const auto ranges = (entry.cdw10 & 0xff) + std::uint64_t{1};
    transfer_.receive(command, ranges * sizeof(DatasetRange),
                      on_success(command, [this, command, ns] { deallocate(command, *ns); }));
}

/// All ranges are checked before any is touched. Access hints (IDR, IDW, context) are accepted and not used.
void IoCommands::deallocate(const CommandPtr &command, Namespace &ns)
{
    std::vector<ByteRange> ranges;
    for (std::size_t offset = 0; offset < command->buffer.size(); offset += sizeof(DatasetRange)) {
        DatasetRange range;
        std::memcpy(&range, &command->buffer[offset], sizeof(range));
        if (!contains(ns, range.slba, range.blocks)) {
            engine_.complete(command, Status::lba_out_of_range);
            return;
        }
        ranges.push_back(bytes_of(range.slba, range.blocks));
    }
    if ((command->entry.cdw11 & kAttributeDeallocate) == 0) {
        engine_.complete(command, Status::success);
        return;
    }
    if (ns.read_only) {
        engine_.complete(command, Status::namespace_write_protected);
        return;
    }
    ns.backing->discard(std::move(ranges), on_backing(command, Access::write,
                                                      [this, command] { engine_.complete(command, Status::success); }));
}

void IoCommands::flush(const CommandPtr &command)
{
    command->executing = true;
    if (command->entry.nsid == kBroadcastNsid) {
        flush_all(complete_with(command));
        return;
    }
    auto *ns = find(command->entry.nsid);
    if (ns == nullptr) {
        engine_.complete(command, Status::invalid_namespace);
        return;
    }
    ns->backing->flush(
        on_backing(command, Access::write, [this, command] { engine_.complete(command, Status::success); }));
}

void IoCommands::flush_all(std::function<void(Status)> done)
{
    struct Progress {
        std::size_t left;
        Status status = Status::success;
        std::function<void(Status)> done;
    };
    const auto progress = std::make_shared<Progress>(Progress{namespaces_.size(), Status::success, std::move(done)});
    for (auto &ns : namespaces_) {
        ns.backing->flush(activity_.track([this, progress](int error) {
            if (error != 0) {
                progress->status = backing_status(error, Access::write);
            }
            if (--progress->left == 0) {
                progress->done(progress->status);
            }
        }));
    }
}

}  // namespace vvfu::nvme
