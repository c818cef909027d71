// SPDX-License-Identifier: BSD-3-Clause
//
// A small NVMe host driver on plain memory, and stand-ins for everything that hosts a device model.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "controller.hpp"
#include "nvme_options.hpp"
#include "registers.hpp"
#include "spec.hpp"
#include "vvfu/guest/device_model.hpp"

namespace vvfu::nvme::test {

class TestExecutor final : public guest::Executor {
public:
    void post(Task task) override { tasks.push_back(std::move(task)); }
    [[nodiscard]] bool current() const noexcept override { return on_thread; }
    void after(std::chrono::nanoseconds delay, Task task) override { timers.emplace_back(delay, std::move(task)); }
    bool run()
    {
        const bool any = !tasks.empty();
        while (!tasks.empty()) {
            const auto task = std::move(tasks.front());
            tasks.pop_front();
            task();
        }
        return any;
    }
    void fire_timers()
    {
        for (const auto &[delay, task] : std::exchange(timers, {})) {
            task();
        }
    }
    std::deque<Task> tasks;
    bool on_thread = true;
    std::vector<std::pair<std::chrono::nanoseconds, Task>> timers;
};

/// Carries work out when the test says so.
class TestWorkers final : public guest::Workers {
public:
    explicit TestWorkers(TestExecutor &executor) : executor_(executor) {}
    void submit(Lane, std::function<void()> work, std::function<void()> done) override
    {
        jobs.emplace_back(std::move(work), std::move(done));
        if (!deferred) {
            run();
        }
    }
    bool run()
    {
        const bool any = !jobs.empty();
        while (!jobs.empty()) {
            auto [work, done] = std::move(jobs.front());
            jobs.pop_front();
            work();
            executor_.post(std::move(done));
        }
        return any;
    }
    bool deferred = false;
    std::deque<std::pair<std::function<void()>, std::function<void()>>> jobs;

private:
    TestExecutor &executor_;
};

/// Peer memory behind messages; answers when the test says so.
class TestMessageDma final : public guest::MessageDma {
public:
    TestMessageDma(std::uint64_t base, std::vector<std::byte> &memory) : base_(base), memory_(memory) {}
    void dma_read(guest::DmaAddress address, std::span<std::byte> out, guest::DmaCallback done) override
    {
        waiting.push_back([this, address, out, done = std::move(done)] {
            std::memcpy(out.data(), &memory_.at(raw(address) - base_), out.size());
            done({});
        });
    }
    void dma_write(guest::DmaAddress address, std::span<const std::byte> data, guest::DmaCallback done) override
    {
        waiting.push_back([this, address, data, done = std::move(done)] {
            std::memcpy(&memory_.at(raw(address) - base_), data.data(), data.size());
            done({});
        });
    }
    bool answer_one()
    {
        if (waiting.empty()) {
            return false;
        }
        const auto next = std::move(waiting.front());
        waiting.pop_front();
        next();
        return true;
    }
    std::deque<std::function<void()>> waiting;

private:
    std::uint64_t base_;
    std::vector<std::byte> &memory_;
};

class TestIrqs final : public guest::IrqSink {
public:
    void trigger(std::uint32_t index, std::uint32_t vector) override { ++count[{index, vector}]; }
    std::vector<std::uint32_t> withdraw(std::uint32_t) override { return {}; }
    bool pending(std::uint32_t, std::uint32_t) override { return false; }
    [[nodiscard]] unsigned msix(std::uint32_t vector) { return count[{control::kIrqMsix, vector}]; }
    [[nodiscard]] unsigned msi(std::uint32_t vector) { return count[{control::kIrqMsi, vector}]; }
    [[nodiscard]] unsigned intx() { return count[{control::kIrqIntx, 0}]; }
    [[nodiscard]] unsigned total() const
    {
        unsigned sum = 0;
        for (const auto &[key, value] : count) {
            sum += value;
        }
        return sum;
    }
    std::map<std::pair<std::uint32_t, std::uint32_t>, unsigned> count;
};

/// A file of the given size that is removed with the object.
class TemporaryFile {
public:
    explicit TemporaryFile(std::uintmax_t size)
    {
        std::string name = (std::filesystem::temp_directory_path() / "nvme-test-XXXXXX").string();
        const int fd = mkstemp(name.data());
        path_ = name;
        if (fd >= 0) {
            close(fd);
        }
        std::filesystem::resize_file(path_, size);
    }
    TemporaryFile(const TemporaryFile &) = delete;
    TemporaryFile &operator=(const TemporaryFile &) = delete;
    ~TemporaryFile()
    {
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
    }
    [[nodiscard]] const std::string &path() const { return path_; }
    [[nodiscard]] std::vector<std::byte> contents() const
    {
        std::ifstream stream(path_, std::ios::binary);
        std::vector<std::byte> bytes(std::filesystem::file_size(path_));
        stream.read(reinterpret_cast<char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        return bytes;
    }

private:
    std::string path_;
};

inline std::vector<std::byte> pattern(std::size_t size, unsigned seed)
{
    std::vector<std::byte> bytes(size);
    std::uint32_t state = seed * 2654435761u + 1;
    for (auto &byte : bytes) {
        state = state * 1664525 + 1013904223;
        byte = static_cast<std::byte>(state >> 24);
    }
    return bytes;
}

/// Where a piece of host memory is: in the window, or behind messages.
enum class Place { window, message };

inline SubmissionEntry admin(AdminOpcode opcode, std::uint32_t cdw10 = 0, std::uint32_t cdw11 = 0)
{
    SubmissionEntry entry;
    entry.opcode = static_cast<std::uint8_t>(opcode);
    entry.cdw10 = cdw10;
    entry.cdw11 = cdw11;
    return entry;
}

inline SubmissionEntry io(IoOpcode opcode, std::uint64_t slba = 0, std::uint32_t blocks = 1, std::uint32_t nsid = 1)
{
    SubmissionEntry entry;
    entry.opcode = static_cast<std::uint8_t>(opcode);
    entry.nsid = nsid;
    entry.cdw10 = static_cast<std::uint32_t>(slba);
    entry.cdw11 = static_cast<std::uint32_t>(slba >> 32);
    entry.cdw12 = blocks - 1;
    return entry;
}

struct Completion {
    std::uint16_t sq_id = 0, command_id = 0, sq_head = 0;
    Status status{};
    bool more = false, do_not_retry = false;
    std::uint32_t dw0 = 0;
};

class Host {
public:
    static constexpr std::uint64_t kWindow = 0x1'0000'0000, kMessage = 0x8000'0000'0000;
    static constexpr std::size_t kMemory = 8u << 20;

    explicit Host(NvmeOptions options = memory_options())
    {
        auto device = make_nvme(options, {executor, workers, dma, irqs, {}});
        if (!device) {
            throw std::runtime_error(device.error().message);
        }
        device_ = std::move(*device);
        add_memory();
    }
    /// With a backing of the test's own.
    explicit Host(std::unique_ptr<Backing> backing)
    {
        DiskIdentity identity;
        identity.serial = "TEST0001";
        identity.namespaces.resize(1);
        Controller::Config config{std::move(identity), 4, {}, guest::InterruptKind::msix};
        config.namespaces.push_back({std::move(backing), false});
        device_ =
            std::make_unique<Controller>(std::move(config), guest::DeviceServices{executor, workers, dma, irqs, {}});
        add_memory();
    }
    void add_memory()
    {
        dma.add({guest::DmaAddress{kWindow}, kMemory, true, true, window_.data()});
        dma.add({guest::DmaAddress{kMessage}, kMemory, true, true, nullptr});
    }
    ~Host() { run(); }
    Host(const Host &) = delete;
    Host &operator=(const Host &) = delete;

    static NvmeOptions memory_options()
    {
        NvmeOptions options;
        options.backings = {"mem:1M"};
        options.identity.serial = "TEST0001";
        return options;
    }
    static NvmeOptions file_options(const TemporaryFile &file)
    {
        auto options = memory_options();
        options.backings = {file.path()};
        return options;
    }

    // ---- memory ----

    std::uint64_t allocate(std::size_t bytes, Place place = Place::window, std::size_t alignment = 4096)
    {
        auto &next = place == Place::window ? next_window_ : next_message_;
        next = (next + alignment - 1) / alignment * alignment;
        const auto address = (place == Place::window ? kWindow : kMessage) + next;
        next += bytes;
        if (next > kMemory) {
            throw std::runtime_error("test memory is used up");
        }
        return address;
    }
    std::byte *at(std::uint64_t address)
    {
        return address >= kMessage ? &message_.at(address - kMessage) : &window_.at(address - kWindow);
    }
    std::vector<std::byte> load(std::uint64_t address, std::size_t size) { return {at(address), at(address) + size}; }
    void store(std::uint64_t address, std::span<const std::byte> bytes)
    {
        std::memcpy(at(address), bytes.data(), bytes.size());
    }
    template <typename T>
    T load_as(std::uint64_t address)
    {
        T value;
        std::memcpy(&value, at(address), sizeof(value));
        return value;
    }

    // ---- registers ----

    std::uint64_t read_bar(std::uint64_t offset, std::size_t size = 4)
    {
        std::array<std::byte, 8> bytes{};
        device_->region_read(0, offset, {bytes.data(), size});
        Le64 value;
        std::memcpy(&value, bytes.data(), sizeof(value));
        return value;
    }
    void write_bar(std::uint64_t offset, std::uint64_t value, std::size_t size = 4)
    {
        const Le64 little = value;
        std::array<std::byte, 8> bytes{};
        std::memcpy(bytes.data(), &little, sizeof(little));
        device_->region_write(0, offset, {bytes.data(), size});
    }
    void write_config16(std::uint64_t offset, std::uint16_t value)
    {
        const Le16 little = value;
        device_->region_write(control::kRegionConfig, offset, std::as_bytes(std::span(&little, 1)));
    }
    std::uint8_t config8(std::uint64_t offset)
    {
        std::byte byte{};
        device_->region_read(control::kRegionConfig, offset, {&byte, 1});
        return static_cast<std::uint8_t>(byte);
    }
    void set_bus_master(bool on) { write_config16(4, on ? 6 : 2); }
    /// 0: there is none.
    std::uint8_t find_capability(std::uint8_t id)
    {
        auto capability = config8(0x34);
        while (capability != 0 && config8(capability) != id) {
            capability = config8(capability + 1u);
        }
        return capability;
    }
    /// Message Control of MSI-X; nothing without it.
    void set_msix(bool on)
    {
        if (const auto capability = find_capability(0x11)) {
            write_config16(capability + 2u, on ? 0x8000 : 0);
        }
    }
    /// Message Control of MSI, with 2^log2_vectors vectors allowed; nothing without it.
    void set_msi(bool on, unsigned log2_vectors)
    {
        if (const auto capability = find_capability(0x05)) {
            write_config16(capability + 2u, static_cast<std::uint16_t>((on ? 1u : 0u) | log2_vectors << 4));
        }
    }
    [[nodiscard]] bool ready() { return (read_bar(reg::kCsts) & 1) != 0; }
    [[nodiscard]] bool fatal() { return (read_bar(reg::kCsts) & 2) != 0; }
    [[nodiscard]] unsigned shutdown_status() { return static_cast<unsigned>(read_bar(reg::kCsts) >> 2 & 3); }

    // ---- controller ----

    static constexpr std::uint32_t kCcEnable = 0x0046'0001;

    struct Queue {
        std::uint64_t sq = 0, cq = 0;
        std::uint32_t entries = 0, sq_tail = 0, cq_head = 0;
        bool phase = true;
    };

    /// NVMe 7.6.1. Interrupts by MSI-X or INTx.
    void enable(bool msix = true, std::uint32_t admin_entries = 32)
    {
        set_bus_master(true);
        set_msix(msix);
        queues_[0] = make_queue(admin_entries);
        write_bar(reg::kAqa, (admin_entries - 1) << 16 | (admin_entries - 1));
        write_bar(reg::kAsq, queues_[0].sq, 8);
        write_bar(reg::kAcq, queues_[0].cq, 8);
        write_bar(reg::kCc, kCcEnable | (page_shift - 12) << 7);
        run();
        ASSERT_TRUE(ready());
    }
    void disable()
    {
        write_bar(reg::kCc, 0x0046'0000);
        run();
        ASSERT_FALSE(ready());
        queues_.clear();
    }
    /// A queue pair whose interrupts have vector `qid` (0 without MSI-X).
    void create_io_queue(std::uint16_t qid = 1, std::uint32_t entries = 64, std::optional<std::uint16_t> vector = {})
    {
        queues_[qid] = make_queue(entries);
        const std::uint32_t size_and_id = (entries - 1) << 16 | qid;
        auto cq = admin(AdminOpcode::create_io_cq, size_and_id, std::uint32_t{vector.value_or(qid)} << 16 | 3);
        cq.prp1 = queues_[qid].cq;
        ASSERT_EQ(execute(0, cq).status, Status::success);
        auto sq = admin(AdminOpcode::create_io_sq, size_and_id, std::uint32_t{qid} << 16 | 1);
        sq.prp1 = queues_[qid].sq;
        ASSERT_EQ(execute(0, sq).status, Status::success);
    }
    void start()
    {
        enable();
        create_io_queue();
    }

    /// A queue pair; whether the controller accepts it is not looked at.
    void add_queue(std::uint16_t qid, std::uint32_t entries)
    {
        queues_[qid] = make_queue(entries);
        const std::uint32_t size_and_id = (entries - 1) << 16 | qid;
        auto cq = admin(AdminOpcode::create_io_cq, size_and_id, std::uint32_t{qid} << 16 | 3);
        cq.prp1 = queues_[qid].cq;
        auto sq = admin(AdminOpcode::create_io_sq, size_and_id, std::uint32_t{qid} << 16 | 1);
        sq.prp1 = queues_[qid].sq;
        submit(0, cq);
        submit(0, sq);
        ring_sq(0);
        run();
        drain(0);
    }
    /// Starts again with empty memory; only while the controller is disabled.
    void forget_memory() { next_window_ = next_message_ = 0; }

    Queue make_queue(std::uint32_t entries)
    {
        Queue queue;
        queue.entries = entries;
        queue.sq = allocate(entries * sizeof(SubmissionEntry), queue_place, std::size_t{1} << page_shift);
        queue.cq = allocate(entries * sizeof(CompletionEntry), queue_place, std::size_t{1} << page_shift);
        std::memset(at(queue.cq), 0, entries * sizeof(CompletionEntry));
        return queue;
    }
    Queue &queue(std::uint16_t qid) { return queues_.at(qid); }

    std::uint16_t submit(std::uint16_t qid, SubmissionEntry entry)
    {
        auto &queue = queues_.at(qid);
        entry.command_id = next_command_id_;
        std::memcpy(at(queue.sq + queue.sq_tail * sizeof(entry)), &entry, sizeof(entry));
        queue.sq_tail = (queue.sq_tail + 1) % queue.entries;
        return next_command_id_++;
    }
    void ring_sq(std::uint16_t qid) { write_bar(reg::kDoorbells + 8u * qid, queues_.at(qid).sq_tail); }
    void ring_cq(std::uint16_t qid) { write_bar(reg::kDoorbells + 8u * qid + 4, queues_.at(qid).cq_head); }

    /// The next completion, without telling the controller that its place is free.
    std::optional<Completion> poll(std::uint16_t qid)
    {
        auto &queue = queues_.at(qid);
        const auto entry = load_as<CompletionEntry>(queue.cq + queue.cq_head * sizeof(CompletionEntry));
        if (((entry.status & 1) != 0) != queue.phase) {
            return std::nullopt;
        }
        queue.cq_head = (queue.cq_head + 1) % queue.entries;
        queue.phase = queue.cq_head == 0 ? !queue.phase : queue.phase;
        return Completion{entry.sq_id,
                          entry.command_id,
                          entry.sq_head,
                          static_cast<Status>(entry.status >> 1 & 0x7ff),
                          (entry.status >> 14 & 1) != 0,
                          (entry.status >> 15 & 1) != 0,
                          entry.dw0};
    }
    std::vector<Completion> drain(std::uint16_t qid)
    {
        std::vector<Completion> all;
        while (auto completion = poll(qid)) {
            all.push_back(*completion);
        }
        if (!all.empty()) {
            ring_cq(qid);
        }
        return all;
    }
    Completion execute(std::uint16_t qid, const SubmissionEntry &entry)
    {
        const auto id = submit(qid, entry);
        ring_sq(qid);
        run();
        const auto completions = drain(qid);
        EXPECT_EQ(completions.size(), 1u);
        if (completions.empty()) {
            return {0, 0, 0, static_cast<Status>(0x7ff)};
        }
        EXPECT_EQ(completions.front().command_id, id);
        EXPECT_EQ(completions.front().sq_id, qid);
        return completions.front();
    }
    /// Runs everything that can run without the test's help.
    void run()
    {
        while (executor.run() || (!workers.deferred && workers.run()) || (!hold_messages && messages.answer_one())) {
        }
    }
    void run_deferred()
    {
        while (executor.run() || workers.run() || messages.answer_one()) {
        }
    }

    // ---- data ----

    /// Sets the PRP entries for a contiguous buffer, with a list where needed.
    void set_data(SubmissionEntry &entry, std::uint64_t address, std::size_t bytes)
    {
        const std::uint64_t page = std::uint64_t{1} << page_shift;
        entry.prp1 = address;
        const auto first = std::min<std::uint64_t>(bytes, page - address % page);
        const auto rest = bytes - first;
        if (rest == 0) {
            return;
        }
        if (rest <= page) {
            entry.prp2 = address + first;
            return;
        }
        const auto pages = (rest + page - 1) / page;
        const auto list = allocate(pages * 8, list_place, page);
        for (std::uint64_t i = 0; i < pages; ++i) {
            const Le64 pointer = address + first + i * page;
            std::memcpy(at(list + 8 * i), &pointer, sizeof(pointer));
        }
        entry.prp2 = list;
    }
    Completion write(std::uint64_t slba, std::span<const std::byte> data, std::uint32_t nsid = 1)
    {
        auto entry = io(IoOpcode::write, slba, static_cast<std::uint32_t>(data.size() / kBlockSize), nsid);
        const auto buffer = allocate(data.size(), data_place);
        store(buffer, data);
        set_data(entry, buffer, data.size());
        return execute(1, entry);
    }
    std::vector<std::byte> read(std::uint64_t slba, std::uint32_t blocks, std::uint32_t nsid = 1)
    {
        auto entry = io(IoOpcode::read, slba, blocks, nsid);
        const auto buffer = allocate(std::size_t{blocks} * kBlockSize, data_place);
        set_data(entry, buffer, std::size_t{blocks} * kBlockSize);
        EXPECT_EQ(execute(1, entry).status, Status::success);
        return load(buffer, std::size_t{blocks} * kBlockSize);
    }
    /// An admin command that returns a data structure.
    std::vector<std::byte> fetch(SubmissionEntry entry, std::size_t bytes)
    {
        const auto buffer = allocate(bytes, data_place);
        set_data(entry, buffer, bytes);
        EXPECT_EQ(execute(0, entry).status, Status::success);
        return load(buffer, bytes);
    }
    std::vector<std::byte> log_page(std::uint8_t id, std::size_t bytes, bool retain = false)
    {
        const auto dwords = static_cast<std::uint32_t>(bytes / 4 - 1);
        auto entry = admin(AdminOpcode::get_log_page, dwords << 16 | (retain ? 1u << 15 : 0) | id, dwords >> 16);
        entry.nsid = kBroadcastNsid;
        return fetch(entry, bytes);
    }

    guest::DeviceModel &device() { return *device_; }
    void destroy_device() { device_.reset(); }

    TestExecutor executor;
    TestWorkers workers{executor};
    TestIrqs irqs;
    Place queue_place = Place::window, list_place = Place::window, data_place = Place::window;
    bool hold_messages = false;
    std::uint32_t page_shift = 12;

private:
    std::vector<std::byte> window_ = std::vector<std::byte>(kMemory);
    std::vector<std::byte> message_ = std::vector<std::byte>(kMemory);

public:
    TestMessageDma messages{kMessage, message_};
    guest::DmaSpace dma{&messages};

private:
    std::size_t next_window_ = 0, next_message_ = 0;
    std::uint16_t next_command_id_ = 1;
    std::map<std::uint16_t, Queue> queues_;
    std::unique_ptr<guest::DeviceModel> device_;
};

template <typename T>
T field(const std::vector<std::byte> &page, std::size_t offset)
{
    T value;
    std::memcpy(&value, &page.at(offset + sizeof(T) - 1) - (sizeof(T) - 1), sizeof(value));
    return value;
}

inline std::string text(const std::vector<std::byte> &page, std::size_t offset, std::size_t size)
{
    return {reinterpret_cast<const char *>(&page.at(offset)), size};
}

}  // namespace vvfu::nvme::test
