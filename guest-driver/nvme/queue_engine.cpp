// SPDX-License-Identifier: BSD-3-Clause
#include "queue_engine.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <utility>

namespace vvfu::nvme {
namespace {

/// Commands that one round takes before the executor's other work gets its turn.
constexpr std::uint32_t kRoundBudget = 64;
constexpr std::size_t kPhaseDword = 12;  // the dword of a CompletionEntry that has the phase tag

/// Copies to byte `offset` of a list of pieces.
void scatter(std::span<const iovec> pieces, std::size_t offset, const std::byte *from, std::size_t size)
{
    for (const auto &piece : pieces) {
        if (offset >= piece.iov_len) {
            offset -= piece.iov_len;
            continue;
        }
        const auto part = std::min(size, piece.iov_len - offset);
        std::memcpy(static_cast<std::byte *>(piece.iov_base) + offset, from, part);
        from += part;
        size -= part;
        offset = 0;
        if (size == 0) {
            return;
        }
    }
}

/// NVMe 4.6: a host that sees the new phase tag must see the rest of the entry and the data of the command.
void write_entry(std::span<const iovec> pieces, std::size_t offset, const CompletionEntry &entry)
{
    const auto *bytes = reinterpret_cast<const std::byte *>(&entry);
    auto *to = static_cast<std::byte *>(pieces[0].iov_base) + offset;
    const bool whole = offset + sizeof(entry) <= pieces[0].iov_len;
    if (whole && reinterpret_cast<std::uintptr_t>(to) % alignof(std::uint32_t) == 0) {
        std::memcpy(to, bytes, kPhaseDword);
        std::uint32_t dword;
        std::memcpy(&dword, bytes + kPhaseDword, sizeof(dword));
        std::atomic_ref<std::uint32_t>(*reinterpret_cast<std::uint32_t *>(to + kPhaseDword))
            .store(dword, std::memory_order_release);
        return;
    }
    scatter(pieces, offset, bytes, kPhaseDword);
    std::atomic_thread_fence(std::memory_order_release);
    scatter(pieces, offset + kPhaseDword, bytes + kPhaseDword, sizeof(entry) - kPhaseDword);
}

}  // namespace

// ---- queues ----

void QueueEngine::create_cq(std::shared_ptr<CompletionQueue> cq)
{
    const auto id = cq->id;
    if (id != 0 && shadows_.enabled()) {
        cq->shadowed = true;
        shadows_.initialise(ShadowDoorbells::cq_register(id), 0);
    }
    cqs_[id] = std::move(cq);
}

void QueueEngine::create_sq(std::shared_ptr<SubmissionQueue> sq)
{
    ++sq->cq->submission_queues;
    const auto id = sq->id;
    if (id != 0 && shadows_.enabled()) {
        sq->shadowed = true;
        shadows_.initialise(ShadowDoorbells::sq_register(id), 0);
    }
    sqs_[id] = std::move(sq);
}

std::shared_ptr<CompletionQueue> QueueEngine::find_cq(std::uint16_t id) const
{
    const auto it = cqs_.find(id);
    return it == cqs_.end() ? nullptr : it->second;
}

std::shared_ptr<SubmissionQueue> QueueEngine::find_sq(std::uint16_t id) const
{
    const auto it = sqs_.find(id);
    return it == sqs_.end() ? nullptr : it->second;
}

void QueueEngine::delete_sq(const std::shared_ptr<SubmissionQueue> &sq, std::function<void()> done)
{
    sqs_.erase(sq->id);
    draining_.push_back(sq);
    sq->deleted = true;
    sq->drained = std::move(done);
    if (!sq->cq->writing) {
        drop_deleted(*sq->cq);
    }
    check_drained(*sq);
}

/// NVMe 5.6: commands of a deleted queue may be completed implicitly. Those that found the completion queue full are,
/// because the host may be waiting for the deletion before it makes room.
void QueueEngine::drop_deleted(CompletionQueue &cq)
{
    std::vector<std::shared_ptr<SubmissionQueue>> dropped;
    std::erase_if(cq.waiting, [&](const auto &waiting) {
        if (waiting.sq->deleted) {
            dropped.push_back(waiting.sq);
        }
        return waiting.sq->deleted;
    });
    for (const auto &sq : dropped) {
        forget(*sq);
    }
}

void QueueEngine::delete_cq(const std::shared_ptr<CompletionQueue> &cq)
{
    cq->deleted = true;
    cqs_.erase(cq->id);
}

void QueueEngine::clear()
{
    for (auto &[id, sq] : sqs_) {
        // Breaks the cycle queue -> command -> queue.
        sq->commands.clear();
    }
    for (auto &[id, cq] : cqs_) {
        cq->waiting.clear();
    }
    for (const auto &sq : draining_) {
        sq->commands.clear();
        sq->drained = nullptr;
    }
    draining_.clear();
    unarmed_.clear();
    shadows_.reset();
    sqs_.clear();
    cqs_.clear();
    dirty_.clear();
    to_signal_.clear();
    last_served_ = 0;
}

// ---- doorbells and rounds ----

bool QueueEngine::set_tail(SubmissionQueue &sq, std::uint32_t tail) noexcept
{
    if (tail >= sq.ring.size || sq.ring.distance(sq.ring.tail, tail) > sq.ring.free()) {
        return false;
    }
    sq.ring.tail = tail;
    return true;
}

bool QueueEngine::set_head(CompletionQueue &cq, std::uint32_t head) noexcept
{
    if (head >= cq.ring.size || cq.ring.distance(cq.ring.head, head) > cq.ring.used()) {
        return false;
    }
    cq.ring.head = head;
    return true;
}

bool QueueEngine::sq_doorbell(const std::shared_ptr<SubmissionQueue> &sq, std::uint32_t tail)
{
    if (!sq->shadowed) {
        return set_tail(*sq, tail);
    }
    // The register write may be older than what has been taken from host memory already.
    // Without DMA it waits for resume(), which looks at all that is not armed.
    mark_unarmed(sq);
    const auto shadow =
        services_.dma.is_open() ? shadows_.read(ShadowDoorbells::sq_register(sq->id)) : std::optional<std::uint32_t>{};
    return !shadow || set_tail(*sq, *shadow);
}

bool QueueEngine::cq_doorbell(CompletionQueue &cq, std::uint32_t head)
{
    if (cq.shadowed && !services_.dma.is_open()) {
        return true;  // refresh_head() looks when there is no room
    }
    if (cq.shadowed) {
        head = shadows_.read(ShadowDoorbells::cq_register(cq.id)).value_or(cq.ring.head);
    }
    if (!set_head(cq, head)) {
        return false;
    }
    retry_waiting(cqs_.at(cq.id));
    return true;
}

/// What kept completions from being posted may be over: no room, or no DMA.
void QueueEngine::retry_waiting(const std::shared_ptr<CompletionQueue> &cq)
{
    if (!cq->waiting.empty() && !cq->dirty) {
        cq->dirty = true;
        dirty_.push_back(cq);
    }
}

Status QueueEngine::use_shadow_doorbells(guest::DmaAddress shadow, guest::DmaAddress event_index,
                                         std::uint64_t page_size)
{
    const auto status = shadows_.configure(shadow, event_index, page_size);
    if (status != Status::success) {
        return status;
    }
    for (const auto &[id, cq] : cqs_) {
        if (id != 0) {
            adopt_shadow(cq);
        }
    }
    for (const auto &[id, sq] : sqs_) {
        if (id != 0) {
            adopt_shadow(sq);
        }
    }
    return Status::success;
}

/// A host may have used the buffers for a while (Linux does), or have left them zero and written the register only.
void QueueEngine::adopt_shadow(const std::shared_ptr<SubmissionQueue> &sq)
{
    sq->shadowed = true;
    const auto index = ShadowDoorbells::sq_register(sq->id);
    const auto shadow = shadows_.read(index);
    if (shadow && *shadow != 0 && set_tail(*sq, *shadow)) {
        mark_unarmed(sq);
    } else if (shadow) {
        shadows_.initialise(index, sq->ring.tail);
    }
}

void QueueEngine::adopt_shadow(const std::shared_ptr<CompletionQueue> &cq)
{
    cq->shadowed = true;
    const auto index = ShadowDoorbells::cq_register(cq->id);
    const auto shadow = shadows_.enabled() ? shadows_.read(index) : std::nullopt;
    if (shadow && (*shadow == 0 || !set_head(*cq, *shadow))) {
        shadows_.initialise(index, cq->ring.head);
    }
    retry_waiting(cq);  // nothing says that the host writes the register for a head that it has moved already
}

bool QueueEngine::refresh_head(CompletionQueue &cq)
{
    if (!cq.shadowed || !shadows_.enabled() || !services_.dma.is_open()) {
        return false;
    }
    const auto before = cq.ring.head;
    const auto head = shadows_.arm(ShadowDoorbells::cq_register(cq.id), before);
    if (head && !set_head(cq, *head)) {
        client_.invalid_doorbell_value();
    }
    return cq.ring.head != before;
}

void QueueEngine::mark_unarmed(const std::shared_ptr<SubmissionQueue> &sq)
{
    if (!std::exchange(sq->unarmed, true)) {
        unarmed_.push_back(sq);
    }
}

/// Has the host write the registers of queues that have become empty. True: one of them is not empty any more.
bool QueueEngine::rearm()
{
    if (!running_ || !services_.dma.is_open()) {
        return false;
    }
    bool more = false;
    std::erase_if(unarmed_, [&](const auto &sq) {
        if (!sq->deleted && shadows_.enabled() && (sq->ring.used() > 0 || rearm(*sq))) {
            more = more || sq->ring.used() > 0;
            return false;
        }
        sq->unarmed = false;
        return true;
    });
    return more && next_ready() != nullptr;
}

/// True: the queue has new entries, and its register is not asked for.
bool QueueEngine::rearm(SubmissionQueue &sq)
{
    const auto tail = shadows_.arm(ShadowDoorbells::sq_register(sq.id), sq.ring.tail);
    if (!tail || *tail == sq.ring.tail) {
        return false;
    }
    if (!set_tail(sq, *tail)) {
        client_.invalid_doorbell_value();
        return false;
    }
    return true;
}

template <typename F>
void QueueEngine::round(F work)
{
    if (in_round_) {
        work();
        return;
    }
    in_round_ = true;
    work();
    post_dirty();
    in_round_ = false;
    signal_posted();
}

void QueueEngine::schedule_kick()
{
    if (!kick_posted_) {
        kick_posted_ = true;
        services_.executor.post(activity_.guard([this] {
            kick_posted_ = false;
            kick();
        }));
    }
}

void QueueEngine::kick()
{
    if (!in_round_ && running_) {
        round([this] { process(); });
    }
}

void QueueEngine::resume()
{
    for (const auto &[id, cq] : cqs_) {
        retry_waiting(cq);
    }
    kick();
}

void QueueEngine::process()
{
    post_dirty();
    std::uint32_t started = 0;
    do {
        while (const auto sq = next_ready()) {
            if (started >= kRoundBudget) {
                schedule_kick();
                return;
            }
            started += fetchable(*sq);
            last_served_ = sq->id;
            fetch(sq);
            post_dirty();
        }
    } while (rearm());
}

/// Entries that a turn of the queue takes now.
std::uint32_t QueueEngine::fetchable(const SubmissionQueue &sq) const noexcept
{
    const auto count = sq.fetchable(burst_);
    return sq.id == 0 ? count : std::min(count, kMaxCommands - std::min(kMaxCommands, slots_->used + fetching_));
}

/// Round robin over the submission queues that have something to fetch (NVMe 4.13.1).
std::shared_ptr<SubmissionQueue> QueueEngine::next_ready() const
{
    if (!running_ || !services_.dma.is_open()) {
        return nullptr;
    }
    auto it = sqs_.upper_bound(last_served_);
    for (std::size_t i = 0; i < sqs_.size(); ++i, ++it) {
        if (it == sqs_.end()) {
            it = sqs_.begin();
        }
        if (fetchable(*it->second) > 0) {
            return it->second;
        }
    }
    return nullptr;
}

// ---- commands ----

void QueueEngine::fetch(const std::shared_ptr<SubmissionQueue> &sq)
{
    const auto count = fetchable(*sq);
    const auto address = sq->base + std::uint64_t{sq->ring.head} * sizeof(SubmissionEntry);
    const std::span<SubmissionEntry> batch{sq->batch.data(), count};
    sq->fetching = true;
    // The entries being read have no command yet, and other queues must leave room for them.
    fetching_ += count;
    services_.dma.read(address, std::as_writable_bytes(batch),
                       activity_.track([this, sq, count](Expected<void, guest::DmaError> result) {
                           sq->fetching = false;
                           fetching_ -= count;
                           if (!running_) {
                               return;
                           }
                           if (sq->deleted) {
                               check_drained(*sq);
                           } else if (!result && result.error() == guest::DmaError::disabled) {
                               schedule_kick();  // resume() may have been called since, and found it under way
                           } else if (!result) {
                               client_.fatal();
                           } else {
                               fetched(sq, count);
                           }
                       }));
}

void QueueEngine::fetched(const std::shared_ptr<SubmissionQueue> &sq, std::uint32_t count)
{
    const bool nested = in_round_;
    round([&] {
        // The next fetch may overwrite the batch, so it must not start before the last entry is taken.
        sq->fetching = true;
        for (std::uint32_t i = 0; i < count && running_ && !sq->deleted; ++i) {
            sq->ring.head = sq->ring.advanced(sq->ring.head, 1);
            start_command(sq, sq->batch[i]);
        }
        sq->fetching = false;
        check_drained(*sq);
    });
    if (!nested) {
        kick();
    }
}

void QueueEngine::start_command(const std::shared_ptr<SubmissionQueue> &sq, const SubmissionEntry &entry)
{
    auto command = std::make_shared<Command>(sq->id == 0 ? nullptr : slots_);
    command->entry = entry;
    command->sq = sq;
    command->index = sq->commands.size();
    sq->commands.push_back(command);
    ++sq->in_flight;
    client_.execute(command);
}

void QueueEngine::complete(const CommandPtr &command, Status status, std::uint32_t dw0)
{
    if (std::exchange(command->completed, true)) {
        return;
    }
    command->data = {};  // an unmap may be waiting for it
    command->sq->remove(command);
    if (!running_) {
        --command->sq->in_flight;
        return;
    }
    enqueue_completion(command, status, dw0);
}

void QueueEngine::enqueue_completion(const CommandPtr &command, Status status, std::uint32_t dw0)
{
    auto &sq = command->sq;
    const auto &cq = sq->cq;
    const bool more = status != Status::success && client_.command_failed(*command, status);
    if (sq->deleted && cq->waiting.size() >= cq->ring.free()) {
        forget(*sq);  // completed implicitly, see delete_sq()
        return;
    }
    CompletionEntry entry;
    entry.dw0 = dw0;
    entry.sq_id = sq->id;
    entry.command_id = command->entry.command_id;
    entry.status = status_field(status, more);
    cq->waiting.push_back({sq, entry});
    if (!cq->dirty) {
        cq->dirty = true;
        dirty_.push_back(cq);
    }
    if (!in_round_) {
        schedule_kick();  // completions of one burst of backing I/O share a round
    }
}

void QueueEngine::forget(SubmissionQueue &sq)
{
    --sq.in_flight;
    check_drained(sq);
}

void QueueEngine::check_drained(SubmissionQueue &sq)
{
    if (sq.drained && sq.in_flight == 0 && !sq.fetching) {
        --sq.cq->submission_queues;
        const auto done = std::exchange(sq.drained, nullptr);
        std::erase_if(draining_, [&](const auto &entry) { return entry.get() == &sq; });
        done();
    }
}

// ---- completions ----

void QueueEngine::post_dirty()
{
    while (!dirty_.empty()) {
        for (const auto &cq : std::exchange(dirty_, {})) {
            cq->dirty = false;
            post(cq);
        }
    }
}

void QueueEngine::post(const std::shared_ptr<CompletionQueue> &cq)
{
    if (std::exchange(cq->posting, true)) {
        return;
    }
    while (post_batch(cq)) {
    }
    cq->posting = false;
}

/// Writes what fits up to the end of the ring. False: nothing can be written now, or the write finishes later.
bool QueueEngine::post_batch(const std::shared_ptr<CompletionQueue> &cq)
{
    if (!running_ || cq->deleted || cq->writing || !services_.dma.is_open()) {
        return false;
    }
    auto &ring = cq->ring;
    if (cq->waiting.empty() || (ring.free() == 0 && !refresh_head(*cq))) {
        return false;
    }
    const auto count = std::min({static_cast<std::uint32_t>(cq->waiting.size()), ring.free(), ring.size - ring.tail});
    cq->writing = true;
    const guest::DmaSegment segment{cq->base + std::uint64_t{ring.tail} * sizeof(CompletionEntry),
                                    std::uint64_t{count} * sizeof(CompletionEntry)};
    auto mapped = [this, cq, count](Expected<guest::DmaMapping, guest::DmaError> mapping) {
        if (!mapping) {
            posted(cq, count, make_unexpected(mapping.error()));
            return;
        }
        for (std::uint32_t i = 0; i < count; ++i) {
            auto entry = cq->waiting[i].entry;
            entry.sq_head = static_cast<std::uint16_t>(cq->waiting[i].sq->ring.head);
            entry.status = static_cast<std::uint16_t>(entry.status | (cq->phase ? 1 : 0));
            write_entry(mapping->writable(), i * sizeof(entry), entry);
        }
        std::move(*mapping).finish(
            activity_.track([this, cq, count](Expected<void, guest::DmaError> result) { posted(cq, count, result); }));
    };
    services_.dma.map({&segment, 1}, guest::DmaDirection::to_peer, activity_.track(std::move(mapped)));
    return !cq->writing;
}

void QueueEngine::posted(const std::shared_ptr<CompletionQueue> &cq, std::uint32_t count,
                         Expected<void, guest::DmaError> result)
{
    cq->writing = false;
    if (!running_) {
        return;
    }
    if (!result && result.error() == guest::DmaError::disabled) {
        retry_waiting(cq);  // resume() may have been called since, and found it under way
        schedule_kick();
        return;
    }
    if (!result) {
        client_.fatal();
        return;
    }
    cq->ring.tail = cq->ring.advanced(cq->ring.tail, count);
    if (cq->ring.tail == 0) {
        cq->phase = !cq->phase;
    }
    round([&] {
        if (cq->unsignalled == 0) {
            to_signal_.push_back(cq);
        }
        cq->unsignalled += count;
        for (std::uint32_t i = 0; i < count; ++i) {
            const auto sq = std::move(cq->waiting.front().sq);
            cq->waiting.pop_front();
            forget(*sq);
        }
        drop_deleted(*cq);
        post(cq);
    });
    if (!in_round_ && next_ready()) {
        schedule_kick();  // there is room for more commands now
    }
}

void QueueEngine::signal_posted()
{
    for (const auto &cq : std::exchange(to_signal_, {})) {
        if (running_) {
            client_.entries_posted(*cq);
        }
        cq->unsignalled = 0;
    }
}

}  // namespace vvfu::nvme
