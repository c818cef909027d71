// SPDX-License-Identifier: BSD-3-Clause
#include "items.hpp"

#include <cstring>
#include <random>

#include "event_fd.hpp"
#include "guest_ram.hpp"
#include "loopback_process.hpp"
#include "nvme_host.hpp"
#include "pci_function.hpp"
#include "raw_server.hpp"
#include "testdev_registers.hpp"

namespace vvfu::bench {

namespace {

using Clock = std::chrono::steady_clock;
using test::GuestRam;
using test::VfioUserClient;

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr unsigned kBatch = 64;

/// Microseconds per call of `work` that runs `count` times.
template <typename Work>
double microseconds_each(unsigned count, Work work)
{
    const auto start = Clock::now();
    for (unsigned i = 0; i < count; ++i) {
        work();
    }
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / count;
}

void set_aim(Row &row, std::string aim, bool met)
{
    row.aim = std::move(aim);
    row.met = met;
}

std::string per_send(unsigned batch)
{
    return batch == 1 ? "" : ", " + std::to_string(batch) + " per send";
}

// ---- the yardstick ----

Item raw_round_trip(const Plan &plan, RawServer &server)
{
    return {"raw socket+eventfd round trip", "us",
            [&] { return microseconds_each(plan.round_trips, [&] { server.round_trip(); }); }};
}

Item raw_posted(const Plan &plan, RawServer &server, unsigned batch)
{
    return {"raw socket one-way message" + per_send(batch), "us", [&plan, &server, batch] {
                return microseconds_each(1, [&] { server.post(plan.posted_writes, batch); }) / plan.posted_writes;
            }};
}

/// In MiB/s; `each` in microseconds.
double copy_rate(const Plan &plan, double each)
{
    return static_cast<double>(plan.copy_bytes) / kMiB / each * 1e6;
}

Item memcpy_rate(const Plan &plan, GuestRam &ram)
{
    return {"memcpy of shared memory", "MiB/s", [&plan, &ram] {
                const auto source = ram.bytes().data(), destination = source + ram.size() / 2;
                return copy_rate(
                    plan, microseconds_each(plan.copies, [&] { std::memcpy(destination, source, plan.copy_bytes); }));
            }};
}

// ---- testdev ----

/// A session with the test device, its memory mapped and vector 0 assigned.
class TestdevSession {
public:
    explicit TestdevSession(const Plan &plan)
        : loopback_(plan.loopback, {"testdev", "--no-mmap"}), client(loopback_.connect()), ram(0x100000000, 64 * kMiB)
    {
        client.version();
        if (client.dma_map(ram) != 0) {
            throw std::runtime_error("DMA_MAP failed");
        }
        test::enable_function(client);
        test::set_msix_enable(client, true);
        const int fd = done_.fd();
        if (client.set_irqs(test::kDataEventfd | test::kActionTrigger, test::kMsixIndex, 0, 1, {&fd, 1}) != 0) {
            throw std::runtime_error("SET_IRQS failed");
        }
        client.write<std::uint32_t>(0, testdev::kRegVector, 0);
    }

    /// Copies within `ram`, from its start to its second half, and waits for the interrupt.
    void copy(std::uint64_t bytes)
    {
        client.post<std::uint64_t>(0, testdev::kRegSource, ram.address());
        client.post<std::uint64_t>(0, testdev::kRegDestination, ram.address() + ram.size() / 2);
        client.post<std::uint64_t>(0, testdev::kRegLength, bytes);
        client.post<std::uint32_t>(0, testdev::kRegCommand, testdev::kCopy);
        if (done_.wait() == 0 || client.read<std::uint32_t>(0, testdev::kRegStatus) != testdev::kDone) {
            throw std::runtime_error("the copy engine does not finish");
        }
    }

    /// Posts `count` register writes, `batch` per system call, and waits until the last one has taken effect.
    void post(unsigned count, unsigned batch)
    {
        test::Packer one;
        one.bytes(test::header(0, test::kRegionWrite, 36, test::kNoReply));
        one.u64(testdev::kRegScratch32).u32(0).u32(4).u32(42);
        test::Packer messages;
        for (unsigned i = 0; i < batch; ++i) {
            messages.bytes(one.view());
        }
        for (unsigned sent = 0; sent < count; sent += batch) {
            client.send_raw(messages.view());
        }
        static_cast<void>(client.read<std::uint32_t>(0, testdev::kRegScratch32));
    }

private:
    test::LoopbackProcess loopback_;

public:
    VfioUserClient client;
    GuestRam ram;

private:
    test::EventFd done_;
};

Item register_read(const Plan &plan, TestdevSession &session)
{
    return {"trapped register read", "us", [&] {
                return microseconds_each(plan.round_trips, [&] {
                    static_cast<void>(session.client.read<std::uint32_t>(0, testdev::kRegId));
                });
            }};
}

Item posted_write(const Plan &plan, TestdevSession &session, unsigned batch)
{
    return {"posted register write" + per_send(batch), "us", [&plan, &session, batch] {
                return microseconds_each(1, [&] { session.post(plan.posted_writes, batch); }) / plan.posted_writes;
            }};
}

Item map_unmap(const Plan &plan, TestdevSession &session, GuestRam &ram)
{
    return {"DMA map and unmap of 2 MiB", "us", [&] {
                return microseconds_each(plan.maps, [&] {
                    if (session.client.dma_map(ram) != 0 || session.client.dma_unmap(ram.address(), ram.size()) != 0) {
                        throw std::runtime_error("DMA_MAP or DMA_UNMAP failed");
                    }
                });
            }};
}

/// The command's own cost (registers, interrupt) is measured with a copy of 64 bytes in the same round and taken off.
Item window_copy(const Plan &plan, TestdevSession &session)
{
    return {"copy through the window, net", "MiB/s", [&] {
                const auto command = microseconds_each(plan.copies, [&] { session.copy(64); });
                const auto each = microseconds_each(plan.copies, [&] { session.copy(plan.copy_bytes); });
                return copy_rate(plan, each > command ? each - command : each);  // noise can exceed a short copy
            }};
}

Item copy_command(const Plan &plan, TestdevSession &session)
{
    return {"copy command of 64 bytes, interrupt", "us",
            [&] { return microseconds_each(plan.copies * 20, [&] { session.copy(64); }); }};
}

/// Appends the yardstick and what is measured beside it.
Row &append(std::vector<Row> &rows, std::pair<Row, Row> pair)
{
    rows.push_back(std::move(pair.first));
    rows.push_back(std::move(pair.second));
    return rows.back();
}

/// Returns the raw round trip, with which later rows are compared.
Row testdev_rows(const Plan &plan, std::vector<Row> &rows)
{
    RawServer ping_pong(RawServer::Mode::ping_pong), sink(RawServer::Mode::sink);
    TestdevSession session(plan);
    GuestRam more_ram(0x1000000000, 2 * kMiB);
    session.copy(plan.copy_bytes);  // touches every page

    auto &read =
        append(rows, measure_beside(raw_round_trip(plan, ping_pong), register_read(plan, session), plan.rounds));
    set_aim(read, "<= 2 x raw", *read.ratio <= 2);
    const auto raw = rows.front();
    for (const auto batch : {1u, kBatch}) {
        auto &posted = append(
            rows, measure_beside(raw_posted(plan, sink, batch), posted_write(plan, session, batch), plan.rounds));
        set_aim(posted, "<= 1 us", posted.result <= 1);
    }
    for (const auto &item : {map_unmap(plan, session, more_ram), copy_command(plan, session)}) {
        rows.push_back(measure(item, plan.rounds));
        compare(rows.back(), raw);
    }
    auto &copy = append(rows, measure_beside(memcpy_rate(plan, session.ram), window_copy(plan, session), plan.rounds));
    set_aim(copy, ">= 0.95 x memcpy", *copy.ratio >= 0.95);
    return raw;
}

// ---- nvme ----

/// Random 4 KiB reads of namespace 1 for `time`, `depth` of them outstanding.
class RandomReads {
public:
    RandomReads(test::NvmeHost &host, std::uint16_t depth) : host_(host), depth_(depth)
    {
        blocks_ = host.namespace_blocks(1);
        buffer_ = host.allocate(std::size_t{depth} * kIoBytes);
    }

    double iops(std::chrono::milliseconds time)
    {
        const auto start = Clock::now();
        std::uint64_t done = 0, outstanding = 0;
        for (; outstanding < depth_; ++outstanding) {
            submit(outstanding);
        }
        host_.ring(kQueue);
        while (outstanding > 0) {
            const bool go_on = Clock::now() - start < time;
            if (!host_.client().serve_until([&] { return host_.vector(kQueue).take() != 0; },
                                            host_.vector(kQueue).fd())) {
                throw std::runtime_error("no interrupt");
            }
            bool submitted = false;
            while (const auto completion = host_.poll(kQueue)) {
                check(*completion);
                ++done;
                if (go_on) {
                    submit(done % depth_);
                    submitted = true;
                } else {
                    --outstanding;
                }
            }
            host_.release(kQueue);
            if (submitted) {
                host_.ring(kQueue);
            }
        }
        return static_cast<double>(done) / std::chrono::duration<double>(Clock::now() - start).count();
    }

private:
    static constexpr std::uint16_t kQueue = 1;
    static constexpr std::uint32_t kIoBytes = 4096, kIoBlocks = 8;

    static void check(const test::NvmeCompletion &completion)
    {
        if (completion.status != 0) {
            throw std::runtime_error("NVMe read failed with status " + std::to_string(completion.status));
        }
    }

    void submit(std::uint64_t slot)
    {
        const auto lba = random_() % (blocks_ / kIoBlocks) * kIoBlocks;
        host_.submit(kQueue, host_.read_command(1, lba, kIoBlocks).prps(buffer_ + slot * kIoBytes, 0));
    }

    test::NvmeHost &host_;
    std::uint16_t depth_;
    std::uint64_t blocks_ = 0, buffer_ = 0;
    std::minstd_rand random_{1};
};

/// Writes all of namespace 1: memory that was never written is one page of zeroes for every read.
void fill(test::NvmeHost &host)
{
    constexpr std::uint64_t kBytes = 512 * 1024, kBlock = 512;
    const std::vector<std::byte> data(kBytes, std::byte{0xa5});
    const auto blocks = host.namespace_blocks(1);
    for (std::uint64_t lba = 0; lba < blocks; lba += kBytes / kBlock) {
        if (host.write(1, 1, lba, data).status != 0) {
            throw std::runtime_error("NVMe write failed");
        }
    }
}

std::vector<Row> nvme_rows(const Plan &plan, const Row &raw)
{
    test::LoopbackProcess loopback(plan.loopback, {"nvme", "--backing=mem:256M"});
    auto client = loopback.connect();
    client.version();
    GuestRam ram(0, 16 * kMiB);
    if (client.dma_map(ram) != 0) {
        throw std::runtime_error("DMA_MAP failed");
    }
    test::NvmeHost host(client, ram);
    host.start();
    if (host.create_io_queue(1, 128).status != 0) {
        throw std::runtime_error("cannot create an I/O queue");
    }
    fill(host);
    Row raw_rate = raw;
    raw_rate.result = 1e6 / raw.result;  // round trips per second
    std::vector<Row> rows;
    for (const std::uint16_t depth : {std::uint16_t{1}, std::uint16_t{64}}) {
        RandomReads reads(host, depth);
        auto row = measure(
            {"NVMe 4 KiB random read, QD " + std::to_string(depth), "IOPS", [&] { return reads.iops(plan.nvme_time); }},
            plan.rounds);
        compare(row, raw_rate);
        row.against = "raw round trips per second";
        rows.push_back(std::move(row));
    }
    return rows;
}

// ---- idle ----

void idle_rows(const Plan &plan, std::vector<Row> &rows)
{
    test::LoopbackProcess loopback(plan.loopback, {"nvme", "--backing=mem:256M"});
    auto client = loopback.connect();
    client.version();
    GuestRam ram(0, 64 * kMiB);
    if (client.dma_map(ram) != 0) {
        throw std::runtime_error("DMA_MAP failed");
    }
    auto &process = loopback.process();
    Row memory;
    memory.name = "idle memory of vvfu-loopback (RSS)";
    memory.unit = "MiB";
    memory.result = static_cast<double>(process.rss_bytes()) / kMiB;
    set_aim(memory, "< 16 MiB", memory.result < 16);
    rows.push_back(std::move(memory));

    // Nothing happens on the socket meanwhile: these are the measurement, not a way to wait for something.
    static_cast<void>(test::EventFd().wait(plan.idle_time / 4));
    const auto before = process.cpu_time();
    const auto switches = process.context_switches();
    static_cast<void>(test::EventFd().wait(plan.idle_time));
    const auto seconds = std::chrono::duration<double>(plan.idle_time).count();
    Row cpu;
    cpu.name = "idle CPU of vvfu-loopback";
    cpu.unit = "us/s";
    cpu.result = static_cast<double>((process.cpu_time() - before).count()) / 1000 / seconds;
    set_aim(cpu, "none", cpu.result == 0);
    rows.push_back(std::move(cpu));
    Row wakeups;
    wakeups.name = "idle wake-ups of vvfu-loopback";
    wakeups.unit = "1/s";
    wakeups.result = static_cast<double>(process.context_switches() - switches) / seconds;
    set_aim(wakeups, "none", wakeups.result == 0);
    rows.push_back(std::move(wakeups));
}

}  // namespace

Plan quick(Plan plan)
{
    plan.rounds = 2;
    plan.round_trips = 100;
    plan.posted_writes = 6400;
    plan.maps = 20;
    plan.copies = 2;
    plan.nvme_time = std::chrono::milliseconds{30};
    plan.idle_time = std::chrono::milliseconds{200};
    return plan;
}

std::vector<Row> run(const Plan &plan)
{
    std::vector<Row> rows;
    const auto raw = testdev_rows(plan, rows);
    for (auto &row : nvme_rows(plan, raw)) {
        rows.push_back(std::move(row));
    }
    idle_rows(plan, rows);
    return rows;
}

}  // namespace vvfu::bench
