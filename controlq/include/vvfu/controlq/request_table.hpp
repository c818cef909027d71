// SPDX-License-Identifier: BSD-3-Clause
//
// Outstanding requests of one requester: IDs, what each waits for, and its deadline. Used by the device VMM for
// requests to the guest and by the guest driver for requests to the device.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "vvfu/base/time.hpp"
#include "vvfu/protocol/control.hpp"

namespace vvfu::controlq {

/// `Context` is what the requester wants back with the reply; moved in and out.
template <typename Context>
class RequestTable {
public:
    struct Entry {
        std::uint64_t id = 0;
        control::Type type{};
        std::uint32_t epoch = 0;
        Nanoseconds deadline = kNever;
        Context context;
    };

    /// An ID for a request that gets no reply; from the same sequence as those of add().
    //= VVFU-MSG-2
    std::uint64_t next_id() noexcept { return ++last_id_; }

    /// Registers a request and returns its ID: never 0, never reused by this table, larger than all before.
    std::uint64_t add(control::Type type, std::uint32_t epoch, Nanoseconds deadline, Context context)
    {
        //= VVFU-MSG-2
        const auto id = ++last_id_;
        entries_.emplace(id, Entry{id, type, epoch, deadline, std::move(context)});
        deadlines_.emplace(deadline, id);
        return id;
    }

    enum class Match { found, unknown, type_mismatch, epoch_mismatch };

    /// Takes out the request that a reply names. unknown: never used, answered or expired; a mismatch (VVFU-MSG-3): it
    /// stays outstanding.
    std::pair<Match, std::optional<Entry>> take(const control::Header &reply)
    {
        const auto it = entries_.find(reply.request_id);
        if (it == entries_.end()) {
            return {Match::unknown, std::nullopt};
        }
        if (it->second.type != reply.type) {
            return {Match::type_mismatch, std::nullopt};
        }
        if (it->second.epoch != reply.epoch) {
            return {Match::epoch_mismatch, std::nullopt};
        }
        return {Match::found, remove(it)};
    }

    /// Takes out a request whose reply is not waited for any more; nullopt: there is none of that type.
    std::optional<Entry> cancel(std::uint64_t id, control::Type type)
    {
        const auto it = entries_.find(id);
        if (it == entries_.end() || it->second.type != type) {
            return std::nullopt;
        }
        return remove(it);
    }

    /// Takes out one request whose deadline is at or before `now`, earliest first.
    std::optional<Entry> take_expired(Nanoseconds now)
    {
        if (deadlines_.empty() || deadlines_.begin()->first > now) {
            return std::nullopt;
        }
        return remove(entries_.find(deadlines_.begin()->second));
    }

    /// Takes out any request (the session is over); oldest first.
    std::optional<Entry> take_any()
    {
        if (entries_.empty()) {
            return std::nullopt;
        }
        return remove(entries_.begin());
    }

    [[nodiscard]] Nanoseconds next_deadline() const noexcept
    {
        return deadlines_.empty() ? kNever : deadlines_.begin()->first;
    }
    [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
    [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }

private:
    using Entries = std::map<std::uint64_t, Entry>;

    Entry remove(typename Entries::iterator it)
    {
        Entry entry = std::move(it->second);
        deadlines_.erase({entry.deadline, entry.id});
        entries_.erase(it);
        return entry;
    }

    std::uint64_t last_id_ = 0;
    Entries entries_;
    std::set<std::pair<Nanoseconds, std::uint64_t>> deadlines_;
};

}  // namespace vvfu::controlq
