// SPDX-License-Identifier: BSD-3-Clause
#include "peer_memory.hpp"

#include <cerrno>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>

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

PeerMemory::PeerMemory(const CoreConfig &config, Port &port, GuestChannel &guest, Log &log, WindowAllocator &window,
                       End end)
    : config_(config), port_(port), guest_(guest), log_(log), window_(window), end_(std::move(end))
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

PeerMemory::Map PeerMemory::map(Nanoseconds now, std::uint32_t epoch, const vfio_user::DmaMap &request,
                                std::span<Fd> fds, const Done &done)
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
    const auto it = ranges_.emplace(info.address, Range{info, ++last_id_}).first;
    auto &range = it->second;
    if (!place(range, request, fds)) {
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
    announce(now, epoch, range);
    //= VVFU-OP-7
    //= VVFU-OP-8
    done({});
    return Map::taken;
}

void PeerMemory::explain_message_only(const MemoryInfo &info, const char *reason)
{
    log_.once(LogLevel::warning, reason,
              "peer memory " + range_text(info) + " is reached by messages only: " + std::string{reason});
}

bool PeerMemory::place(Range &range, const vfio_user::DmaMap &request, std::span<Fd> fds)
{
    auto &info = range.info;
    const auto access = info.flags;
    info.flags |= control::kMemoryMessageOnly;
    if (fds.empty()) {
        if ((access & control::kMemoryWrite) != 0 && info.size >= kNoteworthySize) {
            explain_message_only(info,
                                 "it came without a file descriptor (QEMU: give the driver VM "
                                 "memory-backend-memfd,share=on)");
        }
        return true;
    }
    //= VVFU-WINDOW-12
    if ((access & control::kMemoryRead) == 0) {
        return true;  // a mapping that can be written can be read
    }
    //= VVFU-WINDOW-6
    //= VVFU-WINDOW-7
    const auto checked = check_memory_fd(fds[0].get(), request.offset, request.size, config_.trust_peer_memory);
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
        explain_message_only(info, window_.has_retired() ? "the device guest has not let go of what was in the window"
                                                         : "it does not fit into the window (window-size)");
        return true;
    }
    info.window_offset = *offset;
    range.file = files_.keep(fds[0]);
    range.file_offset = request.offset;
    const auto undo = [&] {
        window_.release(*offset);
        info.window_offset = 0;
        range.file = nullptr;
    };
    //= VVFU-WINDOW-13
    if (!range.file) {
        undo();
        explain_message_only(info, "the peer's memory is in too many files");
        return true;
    }
    info.flags = access;
    //= VVFU-WINDOW-2
    if (const int rc = show(range); rc < 0) {
        undo();
        info.flags |= control::kMemoryMessageOnly;
        log_.once(LogLevel::warning, "memory not mapped",
                  "peer memory " + range_text(info) + " cannot be mapped: " + std::strerror(-rc));
    }
    return true;
}

int PeerMemory::show(Range &range)
{
    if (hidden_ || !range.in_window()) {
        return 0;
    }
    const int rc = port_.window_map(range.info.window_offset, range.info.size, protection(range.info.flags),
                                    range.file->get(), range.file_offset);
    range.shown = rc == 0;
    return rc;
}

void PeerMemory::hide(Range &range) noexcept
{
    if (std::exchange(range.shown, false)) {
        port_.window_unmap(range.info.window_offset, range.info.size);
    }
}

//= VVFU-RESET-4
void PeerMemory::hide() noexcept
{
    hidden_ = true;
    for (auto &[address, range] : ranges_) {
        hide(range);
    }
    for (auto &[id, range] : removing_) {
        hide(range);
    }
}

//= VVFU-RESET-5
void PeerMemory::show()
{
    hidden_ = false;
    for (auto &[address, range] : ranges_) {
        if (const int rc = show(range); rc < 0) {
            log_.write(LogLevel::error, "memory not mapped again",
                       "peer memory " + range_text(range.info) +
                           " cannot be mapped again after a reset: " + std::strerror(-rc));
            //= VVFU-RESET-7
            return end_(control::DownReason::host_error);
        }
    }
}

void PeerMemory::announce(Nanoseconds now, std::uint32_t epoch, Range &range)
{
    const auto info = range.info;
    range.add_request = guest_.request(
        now, Type::memory_info, epoch, config_.access_timeout,
        [this, address = info.address, id = range.id](const GuestReply &reply) {
            if (!reply.expired && reply.status != Status::ok) {
                refused_by_guest(address, id, reply.text);
            }
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, info); }, GuestChannel::Answer::unhurried);
}

//= VVFU-MEMORY-4
void PeerMemory::refused_by_guest(std::uint64_t address, std::uint64_t id, const std::string &text)
{
    const auto it = ranges_.find(address);
    if (it == ranges_.end() || it->second.id != id) {
        return;  // the peer has removed it
    }
    log_.write(LogLevel::warning, "memory refused",
               "the device guest refused memory " + range_text(it->second.info) + ": " + text);
    end_(control::DownReason::guest_closed);
}

void PeerMemory::unmap(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, std::uint64_t address,
                       std::uint64_t size, Done done)
{
    const auto refused = [&](int error, std::string_view reason) {
        return Refusal{error, reason, {{"address", address}, {"size", size}}};
    };
    const auto last = address + (size - 1);
    if (size != 0 && last < address) {
        return done(refused(EINVAL, "a span that wraps"));
    }
    const auto begin = ranges_.lower_bound(address);
    const auto end = size == 0 ? begin : ranges_.upper_bound(last);
    //= VVFU-OP-9
    const bool cuts_first = size != 0 && begin != ranges_.begin() && std::prev(begin)->second.last() >= address;
    const bool cuts_last = begin != end && std::prev(end)->second.last() > last;
    if (cuts_first || cuts_last) {
        return done(refused(EINVAL, "cuts a range"));
    }
    if (begin == end) {
        return done(refused(ENOENT, "no range is in that span"));
    }
    remove(now, latest, epoch, begin, end, std::move(done));
}

void PeerMemory::unmap_all(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Done done)
{
    if (ranges_.empty()) {
        return done({});
    }
    remove(now, latest, epoch, ranges_.begin(), ranges_.end(), std::move(done));
}

void PeerMemory::remove(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Ranges::iterator begin,
                        Ranges::iterator end, Done done)
{
    const auto left = std::make_shared<std::ptrdiff_t>(std::distance(begin, end));
    const auto one_done = [left, done = std::move(done)](const Refusal &) {
        if (--*left == 0) {
            done({});
        }
    };
    while (begin != end) {
        remove(now, latest, epoch, begin++, one_done);
    }
}

void PeerMemory::remove(Nanoseconds now, Nanoseconds latest, std::uint32_t epoch, Ranges::iterator it, Done done)
{
    // A guest that has not seen it yet need not see it any more.
    if (guest_.cancel(it->second.add_request, Type::memory_info)) {
        auto unseen = ranges_.extract(it);
        unmap_from_window(unseen.mapped(), Guest::let_go);
        return done({});
    }
    const auto id = it->second.id;
    auto info = it->second.info;
    info.op = control::MemoryOp::del;
    // Out of the table at once: the peer may map the same addresses again before this unmap is over.
    removing_.emplace(id, std::move(it->second));
    ranges_.erase(it);
    //= VVFU-WINDOW-3
    //# The device MUST remove a range from the window before it answers the peer's DMA_UNMAP command, whether or
    //# not the driver has answered MEMORY_INFO(DEL).
    guest_.request(
        now, Type::memory_info, epoch, time_left(now, latest, config_.unmap_timeout),
        [this, id, offset = info.window_offset, done = std::move(done)](const GuestReply &reply) {
            //= VVFU-WINDOW-11
            const auto guest = reply.ok() ? Guest::let_go : Guest::may_access;
            if (!reply.late) {
                auto removed = removing_.extract(id);
                unmap_from_window(removed.mapped(), guest);
                done({});
            } else if (guest == Guest::let_go) {
                window_.release_retired(offset);
            }
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, info); },
        (info.flags & control::kMemoryMessageOnly) == 0 ? GuestChannel::Answer::awaited_late
                                                        : GuestChannel::Answer::awaited);
}

void PeerMemory::unmap_from_window(Range &range, Guest guest) noexcept
{
    if (!range.in_window()) {
        --message_ranges_;
        return;
    }
    hide(range);
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
    for (auto &[address, range] : ranges_) {
        unmap_from_window(range, Guest::may_access);
    }
    for (auto &[id, range] : removing_) {
        unmap_from_window(range, Guest::may_access);
    }
    ranges_.clear();
    removing_.clear();
}

}  // namespace vvfu::core
