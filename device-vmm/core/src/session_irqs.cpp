// SPDX-License-Identifier: BSD-3-Clause
//
// SET_IRQS (reference/vfio-user.md 1.5; the refusals are those of libvfio-user and of Linux's VFIO).
#include <algorithm>
#include <utility>

#include "session.hpp"

namespace vvfu::core {

using control::IrqAction;
using control::IrqInfo;
namespace vu = vfio_user;

namespace {

bool one_bit(std::uint32_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/// Calls act(start, count) for each run of vectors that a BOOL array selects, or once for all with NONE.
template <typename Act>
void for_each_run(const vu::IrqRequest &request, const Act &act)
{
    if (request.bools.empty()) {
        return act(request.set.start, request.set.count);
    }
    const auto set = [&](std::uint32_t i) { return request.bools[i] != std::byte{0}; };
    for (std::uint32_t i = 0; i < request.set.count; ++i) {
        if (!set(i)) {
            continue;
        }
        auto end = i + 1;
        while (end < request.set.count && set(end)) {
            ++end;
        }
        act(request.set.start + i, end - i);
        i = end;
    }
}

}  // namespace

Refusal Session::check_irqs(const vu::IrqRequest &request, const std::vector<Fd> &fds) const
{
    const auto &set = request.set;
    const auto data = set.flags & vu::kIrqDataMask;
    const auto action = set.flags & vu::kIrqActionTypeMask;
    if (!one_bit(data) || !one_bit(action) || (set.flags & ~(vu::kIrqDataMask | vu::kIrqActionTypeMask)) != 0) {
        return {EINVAL, "not one data type and one action", {{"flags", set.flags}}};
    }
    if (set.index >= control::kIrqIndexCount) {
        return {EINVAL, "no such interrupt index", {{"index", set.index}}};
    }
    const auto refused = [&](std::string_view reason) {
        return Refusal{EINVAL, reason, {{"index", set.index}, {"start", set.start}, {"count", set.count}}};
    };
    const auto vectors = env_.irqs.counts()[set.index];
    if (set.start >= vectors || set.count > vectors - set.start) {
        return refused("no such vectors");
    }
    const bool err_or_req = set.index == control::kIrqErr || set.index == control::kIrqReq;
    if (err_or_req && action != vu::kIrqActionTrigger) {
        return {EINVAL, "ERR and REQ cannot be masked", {{"index", set.index}, {"flags", set.flags}}};
    }
    const bool disable = data == vu::kIrqDataNone && action == vu::kIrqActionTrigger;
    if (set.count == 0 && (set.start != 0 || !disable)) {
        return refused("no vectors");
    }
    if (!fds.empty() && (data != vu::kIrqDataEventfd || fds.size() != set.count)) {
        return {EINVAL, "not one file descriptor per vector", {{"number", fds.size()}, {"count", set.count}}};
    }
    if (data == vu::kIrqDataEventfd && action != vu::kIrqActionTrigger) {
        // Only INTx has a resample eventfd; eventfds that mask exist nowhere.
        if (action == vu::kIrqActionMask || set.index != control::kIrqIntx) {
            return {ENOTSUP, "not supported", {{"index", set.index}, {"flags", set.flags}}};
        }
    }
    //= VVFU-OP-6
    //# The device MUST refuse SET_IRQS with a file descriptor that is not an eventfd.
    if (!std::all_of(fds.begin(), fds.end(), [this](const Fd &fd) { return env_.is_eventfd(fd.get()); })) {
        return refused("not an eventfd");
    }
    return {};
}

void Session::mask_irqs(const vu::IrqRequest &request, std::vector<IrqInfo> &changes)
{
    const bool mask = (request.set.flags & vu::kIrqActionMask) != 0;
    for_each_run(request, [&](std::uint32_t start, std::uint32_t count) {
        if (mask) {
            env_.irqs.mask(request.set.index, start, count);
        } else {
            env_.irqs.unmask(request.set.index, start, count);
        }
        changes.push_back({request.set.index, start, count, mask ? IrqAction::mask : IrqAction::unmask});
    });
}

void Session::trigger_irqs(const vu::IrqRequest &request)
{
    for_each_run(request, [&](std::uint32_t start, std::uint32_t count) {
        for (std::uint32_t i = 0; i < count; ++i) {
            env_.irqs.trigger(request.set.index, start + i);
        }
    });
}

void Session::apply_irqs(const vu::IrqRequest &request, std::vector<Fd> &fds, std::vector<IrqInfo> &changes)
{
    const auto &set = request.set;
    const bool trigger = (set.flags & vu::kIrqActionTrigger) != 0;
    if ((set.flags & vu::kIrqDataEventfd) != 0) {
        if (!trigger) {
            env_.irqs.set_resample(fds.empty() ? Fd{} : std::move(fds[0]));
        } else if (fds.empty()) {
            env_.irqs.deassign(set.index, set.start, set.count);
            changes.push_back({set.index, set.start, set.count, IrqAction::deassign});
        } else {
            env_.irqs.assign(set.index, set.start, fds);
            changes.push_back({set.index, set.start, set.count, IrqAction::assign});
        }
    } else if (!trigger) {
        mask_irqs(request, changes);
    } else if (set.count == 0) {
        env_.irqs.disable(set.index);
        changes.push_back({set.index, 0, 0, IrqAction::disable});
    } else {
        trigger_irqs(request);
    }
}

Refusal Session::set_irqs(Nanoseconds now, Message &message)
{
    const auto request = vu::decode_set_irqs(message.payload);
    if (!request) {
        return malformed_argsz(message.payload, request.error());
    }
    if (auto refusal = check_irqs(*request, message.fds)) {
        return refusal;
    }
    std::vector<IrqInfo> changes;
    apply_irqs(*request, message.fds, changes);
    //= VVFU-IRQ-1
    for (const auto &change : changes) {
        send_irq_info(now, time_left(now), change);
    }
    vu::Buffer reply;
    vu::begin_reply(reply, message.header);
    reply_in_order(now, message.header, std::move(reply));
    return {};
}

void Session::send_irq_info(Nanoseconds now, Nanoseconds timeout, const IrqInfo &info,
                            std::function<void(Nanoseconds)> done)
{
    env_.guest.request(
        now, control::Type::irq_info, epoch_, timeout,
        [done = std::move(done)](const GuestReply &reply) {
            if (done) {
                done(reply.now);
            }
            return reply.payload.empty();
        },
        [&](control::Buffer &out) { control::append(out, info); });
}

void Session::intx_unmasked(Nanoseconds now)
{
    if (state_ != State::connected || env_.irqs.counts()[control::kIrqIntx] == 0) {
        return;
    }
    // The peer signals as often as it likes, also while the guest takes nothing.
    if (unmask_outstanding_) {
        unmask_again_ = true;
        return;
    }
    unmask_outstanding_ = true;
    send_irq_info(now, env_.config.access_timeout, {control::kIrqIntx, 0, 1, IrqAction::unmask},
                  [this](Nanoseconds answered) {
                      unmask_outstanding_ = false;
                      if (std::exchange(unmask_again_, false)) {
                          intx_unmasked(answered);
                      }
                  });
}

}  // namespace vvfu::core
