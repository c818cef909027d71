// SPDX-License-Identifier: BSD-3-Clause
#include "session.hpp"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <memory>
#include <utility>

namespace vvfu::core {

using control::DownReason;
using control::Status;
using control::Type;
using vfio_user::Command;

Session::Session(Nanoseconds now, const SessionEnvironment &environment, const PeerCredentials &credentials)
    : env_(environment),
      credentials_(credentials),
      connected_at_(now),
      memory_(env_.config, env_.port, env_.guest, env_.log, env_.window, [this](DownReason reason) { end(reason); }),
      region_memory_(env_.port),
      dma_(env_.port, env_.counters, env_.log, env_.config.access_timeout)
{
}

void Session::end(DownReason reason)
{
    if (!ended_) {
        ended_ = reason;
    }
}

void Session::violated(std::string_view what)
{
    ++env_.counters.protocol_errors;
    env_.log.write(LogLevel::warning, "a peer violated the protocol",
                   "the peer violated the protocol: " + std::string{what});
    end(DownReason::protocol_error);
}

void Session::release()
{
    memory_.release();
    region_memory_.release();
    env_.irqs.release();
    kept_.clear();
}

// ---- receiving ----

void Session::feed(Nanoseconds now, std::span<const std::byte> data, std::span<Fd> fds)
{
    std::deque<Message> messages;
    framer_.feed(data, fds, messages);
    env_.counters.requests += messages.size();
    for (auto &message : messages) {
        message.received = now;
        const bool is_reply = message.header.type() == vfio_user::kTypeReply && !message.out_of_step;
        //= VVFU-DMA-3
        // Replies overtake commands that wait, so a DMA command of ours never waits for them.
        if (is_reply && state_ == State::connected) {
            take_reply(message);
            continue;
        }
        kept_bytes_ += vfio_user::kHeaderSize + message.payload.size();
        kept_fds_ += message.fds.size();
        kept_.push_back(std::move(message));
    }
}

Nanoseconds Session::next_deadline() const
{
    return state_ == State::awaiting_version ? connected_at_ + kHandshakeTimeout : dma_.next_deadline();
}

void Session::tick(Nanoseconds now)
{
    //= VVFU-SESSION-9
    if (state_ == State::awaiting_version && next_deadline() <= now) {
        ++env_.counters.deadline_expiries;
        env_.log.write(LogLevel::warning, "a peer did not complete VERSION",
                       "peer " + describe(credentials_) + " did not complete VERSION in time");
        end(DownReason::protocol_error);
    }
    dma_.tick(now);
    if (dma_.exhausted()) {
        violated("it left too many DMA commands unanswered");
    }
}

void Session::take_reply(const Message &message)
{
    if (dma_.reply(message)) {
        return;
    }
    const auto command = message.header.kind();
    if (command == Command::dma_read || command == Command::dma_write) {
        ++env_.counters.unknown_replies;
        return env_.log.once(LogLevel::warning, "unknown reply of the peer",
                             "reply of the peer to an unknown command ignored");
    }
    // Replies are read even while nothing is dispatched, so the limit on what the peer does not read counts here too.
    if (env_.port.send_backlog() >= kMaxSendBacklog) {
        return violated("it reads none of its replies");
    }
    // libvfio-user's tests pin an error reply for a reply to nothing (test_unsolicited_reply).
    refuse(message.header, {EINVAL, "a reply to nothing", {}});
}

bool Session::wants_data() const
{
    // A command that waits does so for an unmap, which ends by its deadline, and stops the reading no longer. While our
    // own DMA commands are outstanding their replies must come in, so reading goes on within a bound. When
    // the bound is reached nothing is lost for good: what keeps commands from being dispatched are requests to the
    // guest, which end by their deadlines, and data that the peer has to read first.
    if (ended_ || !framer_.in_step()) {
        return false;
    }
    if (kept_.empty()) {
        return true;
    }
    return (must_wait_ || dma_.outstanding()) && kept_bytes_ < kMaxKeptBytes && kept_fds_ < kMaxKeptFds;
}

//= VVFU-QUEUE-11
bool Session::may_dispatch() const
{
    return state_ != State::negotiating && !ended_ && env_.guest.has_room() && read_bytes_ < kMaxReadBytes &&
           env_.port.send_backlog() < kMaxSendBacklog;
}

void Session::pump(Nanoseconds now)
{
    if (!parked_for_) {
        parked_for_ = now - connected_at_;
    }
    while (!kept_.empty() && may_dispatch()) {
        auto &message = kept_.front();
        if (!dispatch(now, message)) {
            return;
        }
        kept_bytes_ -= vfio_user::kHeaderSize + message.payload.size();
        kept_fds_ -= message.fds.size();
        kept_.pop_front();
    }
}

bool Session::dispatch(Nanoseconds now, Message &message)
{
    const auto &header = message.header;
    const auto fail = [&](const Refusal &refusal, bool fatal) {
        refuse(header, refusal);
        if (fatal) {
            end(DownReason::protocol_error);
        }
        return true;
    };
    if (message.out_of_step) {
        return fail({EINVAL, "impossible message size", {{"size", header.size}}}, true);
    }
    // As libvfio-user: whatever comes instead of VERSION ends the connection.
    const bool first = state_ == State::awaiting_version;
    if (header.type() != vfio_user::kTypeCommand) {
        return fail({EINVAL, "not a command", {{"flags", header.flags}}}, first);
    }
    if (message.too_many_fds) {
        return fail({EINVAL, "too many file descriptors", {{"limit", vfio_user::kMaxMsgFds}}}, first);
    }
    if (first) {
        const auto refusal = header.kind() == Command::version
                                 ? version(now, message)
                                 : Refusal{EINVAL, "the first command is not VERSION", {{"command", header.command}}};
        return !refusal || fail(refusal, true);
    }
    Handler handler = nullptr;
    switch (header.kind()) {
        case Command::dma_map: handler = &Session::dma_map; break;
        case Command::dma_unmap: handler = &Session::dma_unmap; break;
        case Command::device_get_info: handler = &Session::get_info; break;
        case Command::device_get_region_info: handler = &Session::get_region_info; break;
        case Command::device_get_region_io_fds: handler = &Session::get_region_io_fds; break;
        case Command::device_get_irq_info: handler = &Session::get_irq_info; break;
        case Command::device_set_irqs: handler = &Session::set_irqs; break;
        case Command::region_read: handler = &Session::region_read; break;
        case Command::region_write: handler = &Session::region_write; break;
        case Command::region_write_multi: handler = &Session::region_write_multi; break;
        case Command::device_reset: handler = &Session::device_reset; break;
        case Command::device_feature: handler = &Session::device_feature; break;
        case Command::mig_data_read: handler = &Session::mig_data_read; break;
        case Command::mig_data_write: handler = &Session::mig_data_write; break;
        //= VVFU-OP-3
        case Command::version:    // a second one
        case Command::dma_read:   // server to client only
        case Command::dma_write:  // likewise
        default: return fail({EINVAL, "not a command that may come now", {{"command", header.command}}}, false);
    }
    must_wait_ = false;
    latest_ = message.received + kPeerPatience;
    if (const auto refusal = (this->*handler)(now, message)) {
        return fail(refusal, false);
    }
    return !must_wait_;
}

Nanoseconds Session::time_left(Nanoseconds now) const
{
    return core::time_left(now, latest_, env_.config.access_timeout);
}

// ---- replying ----

void Session::refuse(const Header &request, const Refusal &refusal)
{
    ++env_.counters.protocol_errors;
    // Clients ask for what is optional to find out whether it is there, and unmap spans of a vIOMMU that had nothing.
    const bool usual = refusal.error == ENOTSUP || refusal.error == ENOENT;
    const auto level = usual ? LogLevel::debug : LogLevel::warning;
    env_.log.write(level, std::string{vfio_user::name(request.kind())} + " was refused", describe(request, refusal));
    //= VVFU-OP-1
    //# The device MUST NOT reply to a command of the peer that has NO_REPLY set, not even with an error.
    if (request.no_reply()) {
        return;
    }
    vfio_user::encode_error(scratch_, request, refusal.error);
    env_.port.send(scratch_, {});
}

void Session::send_reply(const Header &request, vfio_user::Buffer reply, int fd)
{
    if (request.no_reply()) {
        return;
    }
    vfio_user::finish(reply);
    env_.port.send(reply, fd >= 0 ? std::span<const int>{&fd, 1} : std::span<const int>{});
}

void Session::send_empty_reply(const Header &request)
{
    vfio_user::Buffer reply;
    vfio_user::begin_reply(reply, request);
    send_reply(request, std::move(reply));
}

void Session::reply_in_order(Nanoseconds now, const Header &request, vfio_user::Buffer reply)
{
    if (!env_.guest.posted_incomplete()) {
        return send_reply(request, std::move(reply));
    }
    //= VVFU-OP-5
    // An IRQ_INFO about no vector at all: its answer tells that the guest has come this far.
    send_irq_info(now, time_left(now), {control::kIrqIntx, 0, 0, control::IrqAction::assign},
                  [this, request, reply = std::move(reply)](Nanoseconds) { send_reply(request, reply); });
}

// ---- VERSION ----

Refusal Session::version(Nanoseconds now, Message &message)
{
    const auto version = vfio_user::decode_version(message.payload);
    if (!version) {
        return version.error() == vfio_user::DecodeError::bad_value
                   ? Refusal{EINVAL, "malformed version data", {{"payload size", message.payload.size()}}}
                   : malformed(message.payload, version.error());
    }
    if (version->major != vfio_user::kVersionMajor) {
        return {EINVAL, "another major version", {{"major", version->major}}};
    }
    if (!message.fds.empty()) {
        return {EINVAL, "with file descriptors", {{"number", message.fds.size()}}};
    }
    // What was rung for nobody does not interrupt this peer.
    //= VVFU-DOORBELL-9
    env_.irqs.clear_pending();
    if (const int rc = region_memory_.show(env_.device); rc != 0) {
        return {-rc, "no memory for the areas of the device", {}};
    }
    state_ = State::negotiating;
    // It could not be read while the guest still had to answer the end of the session before.
    latest_ = message.received - parked_for_.value_or(Nanoseconds{0}) + kPeerPatience;
    //= VVFU-SESSION-1
    epoch_ = env_.epochs.next();
    peer_takes_fds_ = version->capabilities.max_msg_fds.value_or(1) != 0;
    dma_.set_max_transfer(version->capabilities.max_data_xfer_size.value_or(vfio_user::kMaxDataXferSize));
    //= VVFU-SESSION-3
    announce(now, *version);
    const auto offered =
        //= VVFU-FEATURES-1
        //= VVFU-DEVICE-6
        version->capabilities.write_multiple.value_or(false) ? control::kFeatureWriteMultiple : std::uint64_t{0};
    negotiate(now, message.header, std::min(version->minor, vfio_user::kVersionMinor), offered & env_.device.features);
    return {};
}

void Session::announce(Nanoseconds now, const vfio_user::Version &version)
{
    control::Peer peer;
    peer.op = control::PeerOp::up;
    peer.major = version.major;
    peer.minor = version.minor;
    peer.max_msg_fds = static_cast<std::uint32_t>(version.capabilities.max_msg_fds.value_or(1));
    peer.max_data_xfer_size = version.capabilities.max_data_xfer_size.value_or(vfio_user::kMaxDataXferSize);
    peer.pid = credentials_.pid;
    peer.uid = credentials_.uid;
    peer.gid = credentials_.gid;
    up_request_ = env_.guest.request(
        now, Type::peer, epoch_, time_left(now),
        [this](const GuestReply &reply) {
            if (!reply.expired && reply.status != Status::ok) {
                env_.log.write(LogLevel::warning, "the device guest refused a peer",
                               "the device guest refused the peer: " + reply.text);
                end(DownReason::guest_closed);
            }
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, peer); }, GuestChannel::Answer::unhurried);
}

void Session::negotiate(Nanoseconds now, const Header &request, std::uint16_t minor, std::uint64_t offered)
{
    env_.guest.request(
        now, Type::feature_bits, epoch_, time_left(now),
        [this, request, minor, offered](const GuestReply &reply) {
            std::uint64_t accepted = 0;
            if (reply.ok()) {
                const auto bits = control::decode_feature_bits(reply.payload);
                if (!bits) {
                    return false;
                }
                //= VVFU-ERROR-10
                if ((bits->features & ~offered) != 0) {
                    env_.guest.violated(control::Check::accepted_features,
                                        "a feature was accepted that was not offered");
                    return true;
                }
                accepted = bits->features;
            }
            write_multiple_ = (accepted & control::kFeatureWriteMultiple) != 0;
            accept(request, minor);
            return true;
        },
        [&](control::Buffer &out) { control::append(out, control::FeatureBits{offered}); });
}

void Session::accept(const Header &request, std::uint16_t minor)
{
    if (ended_) {
        return;
    }
    vfio_user::Version version;
    version.major = vfio_user::kVersionMajor;
    version.minor = minor;
    version.capabilities.max_msg_fds = vfio_user::kMaxMsgFds;
    version.capabilities.max_data_xfer_size = vfio_user::kMaxDataXferSize;
    version.capabilities.max_dma_maps = vfio_user::kMaxDmaMaps;
    version.capabilities.pgsizes = vfio_user::kPageSize;
    //= VVFU-FEATURES-3
    if (write_multiple_) {
        version.capabilities.write_multiple = true;
    }
    state_ = State::connected;
    if (!request.no_reply()) {
        vfio_user::begin_reply(scratch_, request);
        vfio_user::append_version(scratch_, version);
        vfio_user::finish(scratch_);
        env_.port.send(scratch_, {});
    }
    env_.log.write(LogLevel::info, "a session began",
                   "session " + std::to_string(epoch_) + " begins: peer " + describe(credentials_));
    env_.port.state_changed();
}

// ---- memory ----

Refusal Session::dma_map(Nanoseconds now, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::DmaMap>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    const auto done = [this, &header = message.header](const Refusal &refusal) {
        if (refusal) {
            refuse(header, refusal);
        } else {
            send_empty_reply(header);
        }
    };
    const auto result = memory_.map(now, epoch_, *request, message.fds, done);
    must_wait_ = result == PeerMemory::Map::wait;
    return {};
}

namespace {

/// The checks that libvfio-user's tests pin for DMA_UNMAP.
Refusal check_unmap(const vfio_user::DmaUnmap &request)
{
    if (request.argsz > vfio_user::kMaxDataXferSize) {
        return {EINVAL, "more than a message holds", {{"argsz", request.argsz}}};
    }
    // Dirty pages are not tracked, so GET_DIRTY_BITMAP is invalid too.
    if ((request.flags & ~vfio_user::kUnmapAll) != 0) {
        return {EINVAL, "undefined flags", {{"flags", request.flags}}};
    }
    if (request.flags == vfio_user::kUnmapAll && (request.address != 0 || request.size != 0)) {
        return {EINVAL, "all ranges, and a certain one", {{"address", request.address}, {"size", request.size}}};
    }
    return {};
}

}  // namespace

Refusal Session::dma_unmap(Nanoseconds now, Message &message)
{
    const auto request = vfio_user::decode_argsz<vfio_user::DmaUnmap>(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (auto refusal = check_unmap(*request)) {
        return refusal;
    }
    auto done = [this, header = message.header, request = *request](const Refusal &refusal) {
        if (refusal) {
            return refuse(header, refusal);
        }
        if (!header.no_reply()) {
            vfio_user::begin_reply(scratch_, header);
            vfio_user::append(scratch_, request);
            vfio_user::finish(scratch_);
            env_.port.send(scratch_, {});
        }
    };
    if (request->flags == vfio_user::kUnmapAll) {
        memory_.unmap_all(now, latest_, epoch_, std::move(done));
    } else {
        memory_.unmap(now, latest_, epoch_, request->address, request->size, std::move(done));
    }
    //= VVFU-OP-4
    //= VVFU-DMA-5
    dma_.cancel(Status::fault, [this](std::uint64_t address, std::uint64_t count, bool write) {
        return memory_.check(address, count, write ? control::kMemoryWrite : control::kMemoryRead) != Status::ok;
    });
    return {};
}

Status Session::check_dma(const control::DmaAccess &access, std::uint32_t flag) const
{
    //= VVFU-DMA-1
    const auto status = memory_.check(access.address, access.count, flag);
    //= VVFU-DMA-6
    return status == Status::ok && resets_ > 0 ? Status::busy : status;
}

Status Session::dma_read(Nanoseconds now, const control::DmaAccess &access, PeerDma::Done done)
{
    const auto status = check_dma(access, control::kMemoryRead);
    if (status == Status::ok) {
        dma_.read(now, access.address, access.count, std::move(done));
    }
    return status;
}

Status Session::dma_write(Nanoseconds now, const control::DmaData &request, PeerDma::Done done)
{
    const auto status = check_dma(request.access, control::kMemoryWrite);
    if (status == Status::ok) {
        dma_.write(now, request.access.address, {request.data.begin(), request.data.end()}, std::move(done));
    }
    return status;
}

// ---- reset ----

Refusal Session::device_reset(Nanoseconds now, Message &message)
{
    if (!env_.device.resettable()) {
        return {ENOTSUP, "the device guest registered no reset", {}};
    }
    // Before the guest resets: what rings from then on belongs to the time after.
    //= VVFU-DOORBELL-5
    env_.irqs.clear_pending();
    //= VVFU-RESET-6
    if (reset_overdue_) {
        send_empty_reply(message.header);
        return {};
    }
    ++resets_;
    env_.guest.request(
        now, Type::device_reset, epoch_, time_left(now),
        [this, header = message.header](const GuestReply &reply) {
            reset_answered(header, reply);
            return reply.payload.empty();
        },
        [](control::Buffer &) {}, GuestChannel::Answer::awaited_late);
    // After the request, so that a guest that takes requests first knows why.
    //= VVFU-OP-4
    //= VVFU-DMA-5
    dma_.cancel(Status::busy, [](std::uint64_t, std::uint64_t, bool) { return true; });
    return {};
}

void Session::reset_answered(const Header &request, const GuestReply &reply)
{
    if (reply.expired) {
        // DMA and interrupts of the time before may still be going on: they reach nothing from here on.
        //= VVFU-RESET-4
        //= VVFU-DOORBELL-10
        reset_overdue_ = true;
        memory_.hide();
        env_.irqs.hold();
        return send_empty_reply(request);
    }
    --resets_;
    const bool refused = reply.status != Status::ok;
    if (!reply.late) {
        if (refused) {
            refuse(request, {EIO, "the device guest refused the reset", {}});
        } else {
            send_empty_reply(request);
        }
        //= VVFU-RESET-7
    } else if (refused) {
        env_.log.write(LogLevel::warning, "the device guest refused a reset late",
                       "the device guest refused a reset that the peer believes done: " + reply.text);
        end(DownReason::guest_closed);
    }
    //= VVFU-RESET-5
    if (resets_ == 0 && std::exchange(reset_overdue_, false)) {
        memory_.show();
        //= VVFU-DOORBELL-5
        env_.irqs.resume();
    }
}

}  // namespace vvfu::core
