// SPDX-License-Identifier: BSD-3-Clause
#include "io_commands.hpp"

#include <algorithm>
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

/// What the kernel reports when a medium or a path to it fails: BLK_STS_IOERR, _MEDIUM, _TARGET, _PROTECTION, and file
/// systems that found damage.
bool is_media_error(int error)
{
    return error == EIO || error == ENODATA || error == EREMOTEIO || error == EILSEQ || error == EBADMSG ||
           error == EUCLEAN;
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
auto IoCommands::on_backing(const CommandPtr &command, const Namespace &ns, Access access, F next)
{
    return activity_.track([this, command, &ns, access, next = std::move(next)](int error) {
        if (error == 0) {
            next();
        } else {
            engine_.complete(command, backing_status(error, ns, access));
        }
    });
}

auto IoCommands::complete_with(const CommandPtr &command)
{
    return [this, command](Status status) { engine_.complete(command, status); };
}

Status IoCommands::backing_status(int error, const Namespace &ns, Access access)
{
    const bool reads = access == Access::read;
    const bool no_space = error == ENOSPC || error == EDQUOT;
    ++(no_space ? health_.no_space : reads ? health_.read_errors : health_.write_errors);
    reports_.report(no_space ? Reports::Kind::no_space : Reports::Kind::storage_error, spdlog::level::err,
                    "a " + std::string(reads ? "read from" : "write to") + " backing " + ns.backing->name() +
                        " failed: " + std::strerror(error));
    if (no_space) {
        return Status::capacity_exceeded;
    }
    if (!is_media_error(error)) {
        return Status::internal_error;  // ours, not the medium's: ENOMEM, EFAULT, ...
    }
    ++health_.media_errors;
    return reads ? Status::unrecovered_read_error : Status::write_fault;
}

void IoCommands::storage_lost(Namespace &ns, int error)
{
    ++health_.flush_errors;
    if (std::exchange(ns.lost, true)) {
        return;
    }
    ++health_.media_errors;
    health_.reliability_degraded = true;
    reports_.report(Reports::Kind::storage_lost, spdlog::level::err,
                    "backing " + ns.backing->name() + " has lost data that was written (" + std::strerror(error) +
                        "): every flush fails from now on; repair the storage, check its contents, start again");
    lost_();
}

template <typename F>
void IoCommands::make_durable(Namespace &ns, F then)
{
    if (ns.read_only) {
        then(Status::success);  // nothing was written; and what others wrote is not ours to answer for
        return;
    }
    ns.backing->flush(activity_.track([this, &ns, then = std::move(then)](int error) {
        if (error != 0) {
            storage_lost(ns, error);
        }
        then(error == 0 ? Status::success : Status::write_lost);
    }));
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
    const auto mapped = [command, extent = *extent, work = std::move(work)] {
        command->executing = true;
        work(extent);
    };
    transfer_.map(command, extent->range.size, direction, on_success(command, mapped));
}

/// Failed commands are not counted (NVMe 5.14.1.2: commands completed).
void IoCommands::count(Access access, const Extent &extent) noexcept
{
    const bool reads = access == Access::read;
    ++(reads ? health_.reads : health_.writes);
    (reads ? health_.blocks_read : health_.blocks_written) += extent.range.size >> kBlockShift;
}

template <typename F>
void IoCommands::read_backing(const CommandPtr &command, const Extent &extent, F next)
{
    auto done = [this, command, extent, next = std::move(next)](int error, std::span<const std::byte> data) {
        if (error != 0) {
            engine_.complete(command, backing_status(error, *extent.ns, Access::read));
            return;
        }
        count(Access::read, extent);
        next(data);
    };
    const auto read = [this, extent, done = std::move(done)] {
        extent.ns->backing->read(extent.range, activity_.track(done));
    };
    if ((command->entry.cdw12 & kForceUnitAccess) != 0) {
        make_durable(*extent.ns, on_success(command, read));
    } else {
        read();
    }
}

void IoCommands::read(const CommandPtr &command)
{
    transfer(command, Access::read, DmaDirection::to_peer, [this, command](const Extent &extent) {
        read_backing(command, extent, [this, command](std::span<const std::byte> data) {
            command->data.store(0, data);
            transfer_.finish(command, complete_with(command));
        });
    });
}

void IoCommands::write(const CommandPtr &command)
{
    transfer(command, Access::write, DmaDirection::from_peer, [this, command](const Extent &extent) {
        extent.ns->backing->write(extent.range.offset, command->data.readable(),
                                  on_backing(command, *extent.ns, Access::write, [=, this] {
                                      count(Access::write, extent);
                                      finish_write(command, *extent.ns);
                                  }));
        command->data = {};  // the backing has it, and an unmap may be waiting for it
    });
}

/// Whether it must be durable is asked afterwards: the host may have turned the write cache off meanwhile.
void IoCommands::finish_write(const CommandPtr &command, Namespace &ns)
{
    if (durable(command->entry)) {
        make_durable(ns, complete_with(command));
    } else {
        engine_.complete(command, Status::success);
    }
}

void IoCommands::compare(const CommandPtr &command)
{
    const auto extent = checked_extent(command->entry, Access::read);
    if (!extent) {
        engine_.complete(command, extent.error());
        return;
    }
    const auto received = [this, command, extent = *extent] {
        read_backing(command, extent, [this, command](std::span<const std::byte> stored) {
            const bool equal = std::equal(stored.begin(), stored.end(), command->buffer.begin(), command->buffer.end());
            engine_.complete(command, equal ? Status::success : Status::compare_failure);
        });
    };
    transfer_.receive(command, extent->range.size, on_success(command, received));
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
    auto &ns = *extent->ns;
    ns.backing->write_zeroes(extent->range, deallocate, on_backing(command, ns, Access::write, [this, command, &ns] {
                                 finish_write(command, ns);
                             }));
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
    ns.backing->discard(std::move(ranges), on_backing(command, ns, Access::write,
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
    make_durable(*ns, complete_with(command));
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
        make_durable(ns, [progress](Status status) {
            progress->status = status == Status::success ? progress->status : status;
            if (--progress->left == 0) {
                progress->done(progress->status);
            }
        });
    }
}

}  // namespace vvfu::nvme
