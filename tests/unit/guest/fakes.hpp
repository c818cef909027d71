// SPDX-License-Identifier: BSD-3-Clause
//
// Stand-ins for everything that hosts a device model.
#pragma once

#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "vvfu/guest/device_model.hpp"

namespace vvfu::guest::test {

/// Peer memory behind DMA_READ and DMA_WRITE; answers when the test says so.
class FakeMessageDma : public MessageDma {
public:
    std::map<std::uint64_t, std::byte> memory;  // bytes that were never written read as 0
    std::deque<std::function<void()>> waiting;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> reads, writes;  // address, size
    Expected<void, DmaError> result{};

    void dma_read(DmaAddress address, std::span<std::byte> out, DmaCallback done) override
    {
        reads.emplace_back(raw(address), out.size());
        waiting.push_back([this, address, out, done = std::move(done)] {
            for (std::size_t i = 0; i < out.size() && result; ++i) {
                const auto it = memory.find(raw(address) + i);
                out[i] = it == memory.end() ? std::byte{0} : it->second;
            }
            done(result);
        });
    }
    void dma_write(DmaAddress address, std::span<const std::byte> data, DmaCallback done) override
    {
        writes.emplace_back(raw(address), data.size());
        waiting.push_back([this, address, data, done = std::move(done)] {
            for (std::size_t i = 0; i < data.size() && result; ++i) {
                memory[raw(address) + i] = data[i];
            }
            done(result);
        });
    }
    void answer_all()
    {
        while (!waiting.empty()) {
            const auto next = std::move(waiting.front());
            waiting.pop_front();
            next();
        }
    }
};

class FakeExecutor : public Executor {
public:
    void post(Task task) override { tasks.push_back(std::move(task)); }
    [[nodiscard]] bool current() const noexcept override { return on_thread; }
    void after(std::chrono::nanoseconds, Task task) override { tasks.push_back(std::move(task)); }
    void run()
    {
        while (!tasks.empty()) {
            const auto task = std::move(tasks.front());
            tasks.pop_front();
            task();
        }
    }
    std::deque<Task> tasks;
    bool on_thread = true;
};

class InlineWorkers : public Workers {
public:
    explicit InlineWorkers(Executor &executor) : executor_(executor) {}
    void submit(Lane, std::function<void()> work, std::function<void()> done) override
    {
        work();
        executor_.post(std::move(done));
    }

private:
    Executor &executor_;
};

class FakeIrqs : public IrqSink {
public:
    void trigger(std::uint32_t index, std::uint32_t vector) override { triggered.emplace_back(index, vector); }
    std::vector<std::uint32_t> withdraw(std::uint32_t index) override { return std::exchange(unsent[index], {}); }
    bool pending(std::uint32_t index, std::uint32_t vector) override { return latched.contains({index, vector}); }

    std::vector<std::pair<std::uint32_t, std::uint32_t>> triggered;
    std::map<std::uint32_t, std::vector<std::uint32_t>> unsent;
    std::set<std::pair<std::uint32_t, std::uint32_t>> latched;
};

/// Everything in DeviceServices, with some peer memory at `kMemoryAddress`.
struct FakeHost {
    static constexpr std::uint64_t kMemoryAddress = 0x100000;
    static constexpr std::size_t kMemorySize = 0x10000;

    FakeMessageDma message_dma;
    DmaSpace dma{&message_dma};
    FakeExecutor executor;
    InlineWorkers workers{executor};
    FakeIrqs irqs;
    std::vector<std::byte> memory = std::vector<std::byte>(kMemorySize);
    std::vector<std::byte> region_memory;

    explicit FakeHost(std::size_t region_memory_size = 0) : region_memory(region_memory_size)
    {
        dma.add({DmaAddress{kMemoryAddress}, memory.size(), true, true, memory.data()});
    }
    DeviceServices services() { return {executor, workers, dma, irqs, region_memory}; }
};

}  // namespace vvfu::guest::test
