// SPDX-License-Identifier: BSD-3-Clause
#include "peer_memory.hpp"

#include <cerrno>
#include <cstring>
#include <string>

#include "fd_checks.hpp"

namespace vvfu::core {
namespace {

using control::MemoryInfo;
using control::Status;
using control::Type;

constexpr std::uint64_t kPage = 4096;
/// Smaller ranges without a file are ROMs and the device's own BARs, which stock QEMU maps like that.
constexpr std::uint64_t kNoteworthySize = std::uint64_t{1} << 20;

std::string range_text(const MemoryInfo &info)
{
    return hex(info.address) + " size " + hex(info.size);
}

int protection(std::uint32_t memory_flags)
{
    return ((memory_flags & control::kMemoryRead) != 0 ? kProtRead : 0) |
           ((memory_flags & control::kMemoryWrite) != 0 ? kProtWrite : 0);
}

}  // namespace

PeerMemory::PeerMemory(const CoreConfig &config, Port &port, GuestChannel &guest, Log &log, WindowAllocator &window)
    : config_(config), port_(port), guest_(guest), log_(log), window_(window)
{
}

PeerMemory::~PeerMemory()
{
    release();
}

bool PeerMemory::overlaps(std::uint64_t address, std::uint64_t size) const
{
    const auto last = address + (size - 1);
    const auto next = ranges_.lower_bound(address);
    if (next != ranges_.end() && next->first <= last) {
        return true;
    }
    return next != ranges_.begin() && std::prev(next)->second.last() >= address;
}

Refusal PeerMemory::check_map(const vfio_user::DmaMap &request, std::size_t fds) const
{
    if ((request.flags & ~(vfio_user::kDmaRead | vfio_user::kDmaWrite)) != 0) {
        return {EINVAL, "undefined flags", {{"flags", request.flags}}};
    }
    if (fds > 1) {
        return {EINVAL, "more than one file descriptor", {{"number", fds}}};
    }
    const auto refused = [&](int error, std::string_view reason) {
        return Refusal{error, reason, {{"address", request.address}, {"size", request.size}}};
    };
    if (request.size == 0 || request.address + (request.size - 1) < request.address) {
        return refused(EINVAL, "an empty range, or one that wraps");
    }
    if (request.offset + request.size < request.offset) {
        return {EINVAL, "a file range that wraps", {{"offset", request.offset}, {"size", request.size}}};
    }
    if (request.size > kMaxRangeSize) {
        return refused(ENOSPC, "more than 8 TiB");
    }
    if (overlaps(request.address, request.size)) {
        return refused(EEXIST, "overlaps a range");
    }
    // Those being removed count: they hold window space and requests.
    if (ranges_.size() + removing_.size() >= vfio_user::kMaxDmaMaps) {
        return {EINVAL, "too many ranges", {{"limit", vfio_user::kMaxDmaMaps}}};
    }
    return {};
}

PeerMemory::Map PeerMemory::map(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch,
                                const vfio_user::DmaMap &request, std::span<Fd> fds, Done done)
{
    if (const auto refusal = check_map(request, fds.size())) {
        done(refusal);
        return Map::taken;
    }
    MemoryInfo info;
    info.flags = ((request.flags & vfio_user::kDmaRead) != 0 ? control::kMemoryRead : 0u) |
                 ((request.flags & vfio_user::kDmaWrite) != 0 ? control::kMemoryWrite : 0u);
    info.address = request.address;
    info.size = request.size;
    // In the table before it is in the window: what release() does not know would stay there.
    const auto it = ranges_.emplace(info.address, Range{info, ++last_id_, 0}).first;
    auto &range = it->second;
    if (!place(range.info, request, fds.empty() ? -1 : fds[0].get())) {
        ranges_.erase(it);
        return Map::wait;
    }
    if (range.in_window()) {
        ++mapped_ranges_;
        mapped_bytes_ += info.size;
    } else {
        ++message_ranges_;
    }
    //= VVFU-WINDOW-1
    announce(now, latest, epoch, range, std::move(done));
    return Map::taken;
}

void PeerMemory::explain_message_only(const MemoryInfo &info, const char *reason)
{
    log_.once(LogLevel::warning, reason,
              "peer memory " + range_text(info) + " is reached by messages only: " + std::string{reason});
}

bool PeerMemory::place(MemoryInfo &info, const vfio_user::DmaMap &request, int fd)
{
    const auto access = info.flags;
    info.flags |= control::kMemoryMessageOnly;
    if (fd < 0) {
        if ((access & control::kMemoryWrite) != 0 && info.size >= kNoteworthySize) {
            explain_message_only(info,
                                 "it came without a file descriptor (QEMU: give the driver VM "
                                 "memory-backend-memfd,share=on)");
        }
        return true;
    }
    if (access == 0) {
        return true;  // nothing may touch it
    }
    //= VVFU-WINDOW-6
    //= VVFU-WINDOW-7
    const auto checked = check_memory_fd(fd, request.offset, request.size, config_.trust_peer_memory);
    if (checked.verdict != MemoryFd::mappable || info.address % kPage != 0) {
        explain_message_only(info,
                             describe(checked.verdict == MemoryFd::mappable ? MemoryFd::misaligned : checked.verdict));
        return true;
    }
    const auto offset = window_.allocate(info.size, request.offset, checked.page_size);
    //= VVFU-WINDOW-6
    if (!offset) {
        if (!removing_.empty() && info.size <= config_.window_size) {
            return false;
        }
        explain_message_only(info, "it does not fit into the window (window-size)");
        return true;
    }
    //= VVFU-WINDOW-2
    if (const int rc = port_.window_map(*offset, info.size, protection(access), fd, request.offset); rc < 0) {
        window_.release(*offset);
        log_.once(LogLevel::warning, "memory not mapped",
                  "peer memory " + range_text(info) + " cannot be mapped: " + std::strerror(-rc));
        return true;
    }
    info.flags = access;
    info.window_offset = *offset;
    return true;
}

void PeerMemory::announce(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Range &range, Done done)
{
    const auto info = range.info;
    const auto id = range.id;
    range.add_request = guest_.request(
        now, Type::memory_info, epoch, time_left(now, latest, config_.access_timeout),
        [this, info, id, done = std::move(done)](const GuestReply &reply) {
            //= VVFU-DEADLINE-1
            // Past the deadline the range stays and the peer gets success.
            const bool refused = !reply.expired && reply.status != Status::ok;
            if (refused) {
                log_.once(LogLevel::warning, "memory refused",
                          "the device guest refused memory " + range_text(info) + ": " + reply.text);
                refused_by_guest(info.address, id);
            }
            done(refused ? Refusal{EIO, "the device guest refused the range", {{"address", info.address}}} : Refusal{});
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, info); });
}

void PeerMemory::refused_by_guest(std::uint64_t address, std::uint64_t id)
{
    const auto it = ranges_.find(address);
    if (it != ranges_.end() && it->second.id == id) {
        const auto range = it->second;
        ranges_.erase(it);
        unmap_from_window(range, Guest::let_go);  // it never took it
    }
}

void PeerMemory::unmap(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, std::uint64_t address,
                       std::uint64_t size, Done done)
{
    const auto it = ranges_.find(address);
    if (it == ranges_.end() || it->second.info.size != size) {
        return done({ENOENT, "no range was mapped exactly so", {{"address", address}, {"size", size}}});
    }
    remove(now, latest, epoch, it, std::move(done));
}

void PeerMemory::unmap_all(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Done done)
{
    if (ranges_.empty()) {
        return done({});
    }
    const auto left = std::make_shared<std::size_t>(ranges_.size());
    const auto one_done = [left, done = std::move(done)](const Refusal &) {
        if (--*left == 0) {
            done({});
        }
    };
    while (!ranges_.empty()) {
        remove(now, latest, epoch, ranges_.begin(), one_done);
    }
}

void PeerMemory::remove(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Ranges::iterator it, Done done)
{
    const auto id = it->second.id;
    auto info = it->second.info;
    info.op = control::MemoryOp::del;
    // Out of the table at once: the peer may map the same addresses again before this unmap is over.
    removing_.emplace(id, std::move(it->second));
    ranges_.erase(it);
    const auto request = std::make_shared<std::uint64_t>(0);
    //= VVFU-WINDOW-3
    //# The device MUST remove a range from the window before it answers the peer's DMA_UNMAP command, whether or
    //# not the driver has answered MEMORY_INFO(DEL).
    *request = guest_.request(
        now, Type::memory_info, epoch, time_left(now, latest, config_.unmap_timeout),
        [this, id, request, done = std::move(done)](const GuestReply &reply) {
            const auto removed = removing_.extract(id);
            const auto add_request = removed.mapped().add_request;
            //= VVFU-OP-7
            guest_.give_up(reply.now, add_request, Type::memory_info);
            // A guest that has seen neither message yet need not see either.
            const bool unseen = guest_.cancel(add_request);
            if (unseen) {
                guest_.cancel(*request);
            }
            //= VVFU-WINDOW-3
            unmap_from_window(removed.mapped(), unseen || !reply.expired ? Guest::let_go : Guest::may_access);
            done({});
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, info); });
}

void PeerMemory::unmap_from_window(const Range &range, Guest guest) noexcept
{
    if (!range.in_window()) {
        --message_ranges_;
        return;
    }
    port_.window_unmap(range.info.window_offset, range.info.size);
    if (guest == Guest::let_go) {
        window_.release(range.info.window_offset);
    } else {
        //= VVFU-WINDOW-11
        window_.retire(range.info.window_offset);
    }
    --mapped_ranges_;
    mapped_bytes_ -= range.info.size;
}

//= VVFU-DMA-1
Status PeerMemory::check(std::uint64_t address, std::uint64_t count, std::uint32_t flag) const
{
    const auto last = address + (count - 1);
    if (last < address) {
        return Status::fault;
    }
    bool allowed = true;
    auto it = ranges_.upper_bound(address);
    if (it == ranges_.begin()) {
        return Status::fault;
    }
    --it;
    for (auto position = address;; ++it) {
        if (it == ranges_.end() || it->first > position || it->second.last() < position) {
            return Status::fault;
        }
        allowed = allowed && (it->second.info.flags & flag) != 0;
        if (it->second.last() >= last) {
            return allowed ? Status::ok : Status::permission;
        }
        position = it->second.last() + 1;
    }
}

void PeerMemory::release() noexcept
{
    for (const auto &[address, range] : ranges_) {
        unmap_from_window(range, Guest::may_access);
    }
    for (const auto &[id, range] : removing_) {
        unmap_from_window(range, Guest::may_access);
    }
    ranges_.clear();
    removing_.clear();
}

}  // namespace vvfu::core
