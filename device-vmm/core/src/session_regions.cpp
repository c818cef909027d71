// SPDX-License-Identifier: BSD-3-Clause
//
// Register accesses of the peer, passed to the guest in the order of the socket.
#include <algorithm>
#include <memory>

#include "session.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu::core {

using control::Type;
namespace vu = vfio_user;

namespace {

//= VVFU-QUEUE-6
/// Data of one request to the guest: a page, so that it fits a request buffer and pieces stay aligned.
constexpr std::uint32_t kPieceSize = 4096;
static_assert(control::kHeaderSize + control::kRegionAccessSize + kPieceSize <= kRequestBufferSize);

/// Entries of one REGION_WRITE_MULTI request to the guest.
constexpr std::size_t kMultiPieceEntries = 256;
static_assert(control::kHeaderSize + 8 + kMultiPieceEntries * sizeof(vu::MultiWrite) <= kMinRequestBufferSize);

/// Calls act(access, offset in the data) for each piece of an access.
template <typename Act>
void for_each_piece(const vu::RegionAccess &access, const Act &act)
{
    for (std::uint32_t at = 0; at < access.count;) {
        const auto count = std::min(kPieceSize, access.count - at);
        act(control::RegionAccess{access.offset + at, access.region, count}, at);
        at += count;
    }
}

Refusal outside(std::uint32_t region, std::uint64_t offset, std::uint32_t count)
{
    return {EINVAL, "too long, or outside of the region", {{"region", region}, {"offset", offset}, {"count", count}}};
}

}  // namespace

Refusal Session::check_access(const vu::RegionAccess &access) const
{
    //= VVFU-ACCESS-1
    if (access.count <= vu::kMaxDataXferSize && env_.device.contains(access.region, access.offset, access.count)) {
        return {};
    }
    return outside(access.region, access.offset, access.count);
}

// ---- REGION_READ ----

Refusal Session::region_read(Nanoseconds now, Message &message)
{
    const auto access = vu::decode_prefix<vu::RegionAccess>(message.payload);
    if (!access) {
        return malformed(message.payload, access.error());
    }
    if (auto refusal = check_access(*access)) {
        return refusal;
    }
    forward_read(now, message.header, *access);
    return {};
}

//= VVFU-DEADLINE-5
void Session::drop_write(const Header &request, vu::Buffer reply)
{
    ++env_.counters.dropped_accesses;
    send_reply(request, std::move(reply));
}

void Session::forward_read(Nanoseconds now, const Header &request, const vu::RegionAccess &access)
{
    //= VVFU-ACCESS-3
    // The reply as it is if nothing better comes: all-ones, like a read that no device claims. cloud-hypervisor hangs
    // on a reply without data, so a valid access never gets an error.
    struct Pending {
        vu::Buffer reply;
        std::uint32_t left = 0;
    };
    const auto pending = std::make_shared<Pending>();
    vu::begin_reply(pending->reply, request);
    vu::append(pending->reply, access);
    pending->reply.resize(pending->reply.size() + access.count, std::byte{0xff});
    const bool readable = (env_.device.regions[access.region].flags & control::kRegionRead) != 0;
    if (access.count == 0 || !readable) {
        return reply_in_order(now, request, std::move(pending->reply));
    }
    //= VVFU-DEADLINE-5
    if (unheard()) {
        ++env_.counters.dropped_accesses;
        return send_reply(request, std::move(pending->reply));
    }
    vu::finish(pending->reply);
    pending->left = (access.count + kPieceSize - 1) / kPieceSize;
    read_bytes_ += access.count;
    const auto data_at = vu::kHeaderSize + sizeof access;
    for_each_piece(access, [&](const control::RegionAccess &piece, std::uint32_t at) {
        auto on_reply = [this, pending, piece, at = data_at + at, no_reply = request.no_reply(),
                         total = access.count](const GuestReply &reply) {
            if (reply.ok()) {
                const auto data = control::decode_region_data(reply.payload);
                if (!data || data->access != piece) {
                    return false;
                }
                std::copy(data->data.begin(), data->data.end(),
                          pending->reply.begin() + static_cast<std::ptrdiff_t>(at));
            }
            if (--pending->left == 0) {
                read_bytes_ -= total;
                if (!no_reply) {
                    env_.port.send(pending->reply, {});
                }
            }
            return true;
        };
        //= VVFU-QUEUE-7
        env_.guest.request(now, Type::region_read, epoch_, time_left(now), std::move(on_reply),
                           [&](control::Buffer &out) { control::append(out, piece); });
    });
}

// ---- REGION_WRITE ----

Refusal Session::region_write(Nanoseconds now, Message &message)
{
    const auto write = vu::decode_region_data(message.payload);
    if (!write) {
        return malformed(message.payload, write.error());
    }
    if (auto refusal = check_access(write->access)) {
        return refusal;
    }
    const bool writable = (env_.device.regions[write->access.region].flags & control::kRegionWrite) != 0;
    if (write->access.count == 0 || !writable) {
        reply_in_order(now, message.header, reply_with(message.header, write->access));
    } else if (unheard()) {
        drop_write(message.header, reply_with(message.header, write->access));
    } else {
        forward_write(now, message.header, *write);
    }
    return {};
}

void Session::forward_write(Nanoseconds now, const Header &request, const vu::RegionData &write)
{
    const auto left = std::make_shared<std::uint32_t>((write.access.count + kPieceSize - 1) / kPieceSize);
    for_each_piece(write.access, [&](const control::RegionAccess &piece, std::uint32_t at) {
        const auto append = [&](control::Buffer &out) {
            control::append(out, piece, write.data.subspan(at, piece.count));
        };
        //= VVFU-ACCESS-4
        //# The device MUST set POSTED on a REGION_WRITE or REGION_WRITE_MULTI for which the peer waits for no
        //# reply.
        if (request.no_reply()) {
            return env_.guest.post(now, Type::region_write, epoch_, append);
        }
        auto on_reply = [this, left, piece, request, whole = write.access](const GuestReply &reply) {
            if (reply.ok()) {
                const auto echoed = control::decode_region_access(reply.payload);
                if (!echoed || *echoed != piece) {
                    return false;
                }
            }
            if (--*left == 0) {
                vu::begin_reply(scratch_, request);
                vu::append(scratch_, whole);
                vu::finish(scratch_);
                env_.port.send(scratch_, {});
            }
            return true;
        };
        env_.guest.request(now, Type::region_write, epoch_, time_left(now), std::move(on_reply), append);
    });
}

// ---- REGION_WRITE_MULTI ----

Refusal Session::region_write_multi(Nanoseconds now, Message &message)
{
    const auto decoded = vu::decode_multi_write(message.payload);
    if (!decoded) {
        return malformed(message.payload, decoded.error());
    }
    if (!write_multiple_) {
        return {EINVAL, "write_multiple was not negotiated", {}};
    }
    std::vector<control::MultiWrite> writes;
    for (const auto &entry : *decoded) {
        if (entry.count > sizeof entry.data || !env_.device.contains(entry.region, entry.offset, entry.count)) {
            return outside(entry.region, entry.offset, entry.count);
        }
        const bool writable = (env_.device.regions[entry.region].flags & control::kRegionWrite) != 0;
        if (entry.count == 0 || !writable) {
            continue;
        }
        control::MultiWrite write;
        write.access = {entry.offset, entry.region, entry.count};
        std::copy_n(entry.data, entry.count, write.data);
        writes.push_back(write);
    }
    forward_multi(now, message.header, writes, decoded->size());
    return {};
}

void Session::forward_multi(Nanoseconds now, const Header &request, const std::vector<control::MultiWrite> &writes,
                            std::uint64_t count)
{
    if (writes.empty()) {
        return reply_in_order(now, request, reply_with(request, count));
    }
    if (unheard()) {
        return drop_write(request, reply_with(request, count));
    }
    const auto left = std::make_shared<std::size_t>((writes.size() + kMultiPieceEntries - 1) / kMultiPieceEntries);
    for (std::size_t at = 0; at < writes.size(); at += kMultiPieceEntries) {
        const auto piece = std::span{writes}.subspan(at, std::min(kMultiPieceEntries, writes.size() - at));
        const auto append = [&](control::Buffer &out) { control::append(out, piece); };
        if (request.no_reply()) {
            env_.guest.post(now, Type::region_write_multi, epoch_, append);
            continue;
        }
        auto on_reply = [this, left, request, count](const GuestReply &reply) {
            if (--*left == 0) {
                vu::begin_reply(scratch_, request);
                vu::append(scratch_, count);
                vu::finish(scratch_);
                env_.port.send(scratch_, {});
            }
            return reply.payload.empty();
        };
        env_.guest.request(now, Type::region_write_multi, epoch_, time_left(now), std::move(on_reply), append);
    }
}

}  // namespace vvfu::core
