// SPDX-License-Identifier: BSD-3-Clause
//
// The core behind a real socket pair, with a scripted device guest: the smallest port there is. One thread runs the
// core; the tests' thread talks to it through sockets and through the few calls below.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "event_fd.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/core/core.hpp"

namespace vvfu::test {

class CoreServer : private core::Port {
public:
    struct Options {
        std::chrono::milliseconds unmap_timeout{1000};
        std::chrono::milliseconds access_timeout{2000};
        bool trust_peer_memory = false;
    };

    explicit CoreServer(const Options &options);
    CoreServer() : CoreServer(Options{}) {}
    ~CoreServer() override;

    /// A new connection's client end. If the core refuses it, the other end is closed already.
    Fd connect();

    /// While silent, the guest keeps requests without answering; afterwards it answers them all.
    void set_guest_silent(bool silent);
    /// Number of requests that the guest got so far.
    std::size_t guest_requests();
    /// The guest driver rings a doorbell.
    void ring_doorbell(unsigned index);

    core::CoreState state();
    std::size_t window_mappings();
    std::string log_text();

    // The emulated device's description.
    static constexpr std::uint64_t kBar0Size = 4096, kBar2Size = 65536, kConfigSize = 4096, kBar2Offset = 65536;
    static constexpr std::uint32_t kMsixVectors = 16;
    static constexpr unsigned kDoorbellIntx = 0, kDoorbellMsix0 = 1;

private:
    // core::Port
    int listen() override { return 0; }
    void unlisten() override {}
    void send(std::span<const std::byte> message, std::span<const int> fds) override;
    std::size_t send_backlog() const override { return backlog_.size(); }
    void close_peer() override { socket_.reset(); }
    int push_request(unsigned queue, std::span<const std::byte> message) override;
    void complete_control(std::uint64_t token, std::span<const std::byte> reply) override;
    void device_broken(std::string_view reason) override;
    int window_map(std::uint64_t window_offset, std::uint64_t size, int protection, int fd,
                   std::uint64_t fd_offset) override;
    void window_unmap(std::uint64_t window_offset, std::uint64_t size) override;
    // No wire test with this server looks at bytes of region memory.
    int region_memory_map(std::uint64_t, std::uint64_t, int, std::uint64_t) override { return 0; }
    void region_memory_unmap(std::uint64_t, std::uint64_t) override {}
    void doorbell_set(unsigned index, int fd) override { doorbells_.at(index) = fd; }
    void notification_set(unsigned index, int fd) override { notifications_.at(index) = fd; }
    void signal_eventfd(int fd) override;
    void log(core::LogLevel level, std::string_view text) override;
    void state_changed() override {}

    void loop();
    void run_tasks();
    void wait_for_events();
    /// False when there is nothing (more) to read.
    bool read_socket();
    void flush_backlog();
    void run_guest();
    void answer(std::span<const std::byte> request);
    /// Runs `task` on the core's thread and waits for it.
    void call(std::function<void()> task);
    void register_device();

    static Nanoseconds now();

    std::unique_ptr<core::Core> core_;
    Fd socket_;
    std::vector<std::byte> backlog_;
    std::array<std::vector<std::byte>, control::kRegionCount> regions_;
    std::deque<std::vector<std::byte>> requests_;
    std::size_t request_count_ = 0;
    bool silent_ = false;
    std::map<std::uint64_t, std::uint64_t> window_;
    std::array<int, 64> doorbells_;
    std::array<int, 8> notifications_;
    std::string log_;
    bool registered_ = false;

    EventFd wake_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::deque<std::function<void()>> tasks_;
    std::uint64_t tasks_posted_ = 0, tasks_done_ = 0;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace vvfu::test
