// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "activity.hpp"
#include "queues.hpp"
#include "shadow_doorbells.hpp"
#include "vvfu/guest/device_model.hpp"

namespace vvfu::nvme {

/// What the queue engine asks of the controller.
class QueueEngineClient {
public:
    virtual ~QueueEngineClient() = default;
    /// Carries a fetched command out; ends in QueueEngine::complete(), inside the call or later, or never
    /// (asynchronous event requests).
    virtual void execute(const CommandPtr &command) = 0;
    /// A command failed: for the error log. Returns whether there is more information (the More bit).
    virtual bool command_failed(const Command &command, Status status) = 0;
    /// New entries of `cq` are visible to the host.
    virtual void entries_posted(CompletionQueue &cq) = 0;
    /// A queue's own memory cannot be reached: Controller Fatal Status.
    virtual void fatal() = 0;
    /// The host has put an impossible value into a shadow doorbell.
    virtual void invalid_doorbell_value() = 0;
};

/// Fetches commands round robin, keeps track of them, and posts completions. Works in rounds: entries_posted() is
/// called once per completion queue and round.
class QueueEngine {
public:
    QueueEngine(guest::DeviceServices services, Activity &activity, QueueEngineClient &client)
        : services_(services), activity_(activity), client_(client), shadows_(services.dma, [this] { client_.fatal(); })
    {
        slots_->freed = [this] { schedule_kick(); };
    }
    ~QueueEngine()
    {
        slots_->freed = nullptr;  // commands may outlive the engine
        clear();
    }
    QueueEngine(const QueueEngine &) = delete;
    QueueEngine &operator=(const QueueEngine &) = delete;

    // ---- queues; IDs are checked by the caller ----

    void create_cq(std::shared_ptr<CompletionQueue> cq);
    void create_sq(std::shared_ptr<SubmissionQueue> sq);
    [[nodiscard]] std::shared_ptr<CompletionQueue> find_cq(std::uint16_t id) const;
    [[nodiscard]] std::shared_ptr<SubmissionQueue> find_sq(std::uint16_t id) const;
    /// The queue takes no more commands; `done` runs when those it had are over.
    void delete_sq(const std::shared_ptr<SubmissionQueue> &sq, std::function<void()> done);
    /// No submission queue completes to it any more.
    void delete_cq(const std::shared_ptr<CompletionQueue> &cq);
    [[nodiscard]] const std::map<std::uint16_t, std::shared_ptr<CompletionQueue>> &cqs() const noexcept { return cqs_; }
    [[nodiscard]] bool has_io_queues() const noexcept { return cqs_.size() > 1 || sqs_.size() > 1; }

    // ---- operation ----

    /// New tail or head from a doorbell register (a queue with shadow doorbells has the newer value there). False: not
    /// a value that the host may write now.
    [[nodiscard]] bool sq_doorbell(const std::shared_ptr<SubmissionQueue> &sq, std::uint32_t tail);
    [[nodiscard]] bool cq_doorbell(CompletionQueue &cq, std::uint32_t head);
    /// Takes the doorbells of I/O queues from host memory from now on; for queues made later, too.
    [[nodiscard]] Status use_shadow_doorbells(guest::DmaAddress shadow, guest::DmaAddress event_index,
                                              std::uint64_t page_size);
    /// Takes over the head from a shadow doorbell, if there is one, and has the host write the register next time.
    bool refresh_head(CompletionQueue &cq);
    /// Processes what there is; the rest of a long backlog in a posted task.
    void kick();
    /// DMA is allowed again: takes up the commands and completions that waited for it.
    void resume();
    /// Ends a command. Later calls for the same command have no effect.
    void complete(const CommandPtr &command, Status status, std::uint32_t dw0 = 0);
    /// Commands that one turn of a queue may take (NVMe 4.13, Arbitration Burst).
    void set_arbitration_burst(std::uint32_t commands) noexcept { burst_ = commands; }

    /// Nothing is fetched, posted or signalled any more.
    void stop() noexcept { running_ = false; }
    void start() noexcept { running_ = true; }
    [[nodiscard]] bool running() const noexcept { return running_; }
    /// Forgets all queues; nothing of them may be under way.
    void clear();

private:
    template <typename F>
    void round(F work);
    void schedule_kick();
    void process();
    [[nodiscard]] bool set_tail(SubmissionQueue &sq, std::uint32_t tail) noexcept;
    [[nodiscard]] bool set_head(CompletionQueue &cq, std::uint32_t head) noexcept;
    void retry_waiting(const std::shared_ptr<CompletionQueue> &cq);
    void mark_unarmed(const std::shared_ptr<SubmissionQueue> &sq);
    [[nodiscard]] bool rearm();
    [[nodiscard]] bool rearm(SubmissionQueue &sq);
    void adopt_shadow(const std::shared_ptr<SubmissionQueue> &sq);
    void adopt_shadow(const std::shared_ptr<CompletionQueue> &cq);
    [[nodiscard]] std::uint32_t fetchable(const SubmissionQueue &sq) const noexcept;
    [[nodiscard]] std::shared_ptr<SubmissionQueue> next_ready() const;
    void fetch(const std::shared_ptr<SubmissionQueue> &sq);
    void fetched(const std::shared_ptr<SubmissionQueue> &sq, std::uint32_t count);
    void start_command(const std::shared_ptr<SubmissionQueue> &sq, const SubmissionEntry &entry);
    void enqueue_completion(const CommandPtr &command, Status status, std::uint32_t dw0);
    void post_dirty();
    void post(const std::shared_ptr<CompletionQueue> &cq);
    bool post_batch(const std::shared_ptr<CompletionQueue> &cq);
    void posted(const std::shared_ptr<CompletionQueue> &cq, std::uint32_t count,
                Expected<void, guest::DmaError> result);
    void forget(SubmissionQueue &sq);
    void drop_deleted(CompletionQueue &cq);
    void check_drained(SubmissionQueue &sq);
    void signal_posted();

    guest::DeviceServices services_;
    Activity &activity_;
    QueueEngineClient &client_;
    std::map<std::uint16_t, std::shared_ptr<CompletionQueue>> cqs_;
    std::map<std::uint16_t, std::shared_ptr<SubmissionQueue>> sqs_;
    std::vector<std::shared_ptr<SubmissionQueue>> draining_;  // deleted, with commands left
    std::uint32_t fetching_ = 0;                              // entries
    std::uint16_t last_served_ = 0;
    std::uint32_t burst_ = kFetchBatch;
    bool running_ = false;
    bool in_round_ = false;
    bool kick_posted_ = false;
    std::vector<std::shared_ptr<CompletionQueue>> dirty_, to_signal_;
    std::shared_ptr<CommandSlots> slots_ = std::make_shared<CommandSlots>();
    ShadowDoorbells shadows_;
    std::vector<std::shared_ptr<SubmissionQueue>> unarmed_;
};

}  // namespace vvfu::nvme
