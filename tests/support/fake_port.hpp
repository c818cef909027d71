// SPDX-License-Identifier: BSD-3-Clause
//
// A port that records what the core asks of it. No sockets, no memory, no threads; for tests and fuzzers.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vvfu/base/fd.hpp"
#include "vvfu/core/port.hpp"

namespace vvfu::test {

using ByteVector = std::vector<std::byte>;

class FakePort : public core::Port {
public:
    struct Sent {
        ByteVector bytes;
        std::vector<Fd> fds;  ///< duplicates
    };
    struct Mapping {
        std::uint64_t size = 0;
        int protection = 0;
        std::uint64_t fd_offset = 0;
        ino_t inode = 0;
    };
    struct LogLine {
        core::LogLevel level{};
        std::string text;
    };

    // What a test sets.
    int listen_result = 0;
    std::size_t backlog = 0;
    std::size_t request_buffers = 1000000;  ///< that the guest has posted
    int push_result = 0;                    ///< other than 0: instead of taking the request
    int map_result = 0;
    int region_memory_result = 0;

    // What the core did.
    bool listening = false;
    std::deque<Sent> sent;
    unsigned closed = 0;
    std::deque<ByteVector> requests;
    std::map<std::uint64_t, ByteVector> completed;  ///< control replies by token
    std::optional<std::string> broken;
    std::map<std::uint64_t, Mapping> window;         ///< by window offset
    std::map<std::uint64_t, Mapping> region_memory;  ///< by offset
    std::map<unsigned, int> doorbells;               ///< connected ones
    std::map<unsigned, int> notifications;
    std::vector<LogLine> lines;
    std::vector<std::string> events;  ///< order of effects: "send", "unmap 0x0", "close", ...
    unsigned state_changes = 0;
    std::vector<std::string> violations;  ///< of port.hpp's promises, by the core

    int listen() override
    {
        listening = listen_result == 0;
        return listen_result;
    }
    void unlisten() override { listening = false; }
    void send(std::span<const std::byte> message, std::span<const int> fds) override
    {
        Sent entry{{message.begin(), message.end()}, {}};
        for (const int fd : fds) {
            entry.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
        }
        sent.push_back(std::move(entry));
        events.emplace_back("send");
    }
    std::size_t send_backlog() const override { return backlog; }
    void close_peer() override
    {
        ++closed;
        events.emplace_back("close");
    }
    int push_request(unsigned queue, std::span<const std::byte> message) override
    {
        if (queue != 1 || message.size() > 8192) {
            violations.emplace_back("request on a wrong queue, or too long");
        }
        if (push_result != 0) {
            return push_result;
        }
        if (request_buffers == 0) {
            return -EAGAIN;
        }
        --request_buffers;
        requests.emplace_back(message.begin(), message.end());
        events.emplace_back("request");
        return 0;
    }
    void complete_control(std::uint64_t token, std::span<const std::byte> reply) override
    {
        if (!completed.emplace(token, ByteVector{reply.begin(), reply.end()}).second) {
            violations.emplace_back("control chain completed twice");
        }
        events.emplace_back("complete");
    }
    void device_broken(std::string_view reason) override
    {
        broken = std::string{reason};
        events.emplace_back("broken");
    }
    int window_map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset) override
    {
        if (map_result != 0) {
            return map_result;
        }
        put(window, offset, size, protection, fd, fd_offset);
        events.emplace_back("map");
        return 0;
    }
    void window_unmap(std::uint64_t offset, std::uint64_t size) override
    {
        take(window, offset, size);
        events.emplace_back("unmap");
    }
    int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) override
    {
        if (region_memory_result != 0) {
            return region_memory_result;
        }
        put(region_memory, offset, size, core::kProtRead | core::kProtWrite, fd, fd_offset);
        events.emplace_back("map areas");
        return 0;
    }
    void region_memory_unmap(std::uint64_t offset, std::uint64_t size) override
    {
        take(region_memory, offset, size);
        events.emplace_back("unmap areas");
    }
    void doorbell_set(unsigned index, int fd) override { set(doorbells, index, fd); }
    void notification_set(unsigned index, int fd) override { set(notifications, index, fd); }
    void signal_eventfd(int fd) override
    {
        const std::uint64_t one = 1;
        if (::write(fd, &one, sizeof one) != sizeof one) {
            violations.emplace_back("signal of a closed or full eventfd");
        }
    }
    void log(core::LogLevel level, std::string_view text) override { lines.push_back({level, std::string{text}}); }
    void state_changed() override { ++state_changes; }

    [[nodiscard]] bool logged(std::string_view part) const
    {
        for (const auto &line : lines) {
            if (line.text.find(part) != std::string::npos) {
                return true;
            }
        }
        return false;
    }

private:
    using Mappings = std::map<std::uint64_t, Mapping>;

    void put(Mappings &where, std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset)
    {
        const auto next = where.lower_bound(offset);
        const bool hits_next = next != where.end() && next->first < offset + size;
        const bool hits_previous =
            next != where.begin() && std::prev(next)->first + std::prev(next)->second.size > offset;
        if (hits_next || hits_previous || offset % 4096 != 0 || size % 4096 != 0) {
            violations.emplace_back("overlapping or misaligned mapping");
        }
        struct stat st {};
        ::fstat(fd, &st);
        where[offset] = {size, protection, fd_offset, st.st_ino};
    }
    void take(Mappings &where, std::uint64_t offset, std::uint64_t size)
    {
        const auto it = where.find(offset);
        if (it == where.end() || it->second.size != size) {
            violations.emplace_back("unmap of something else than was mapped");
        } else {
            where.erase(it);
        }
    }
    void set(std::map<unsigned, int> &where, unsigned index, int fd)
    {
        if (fd < 0) {
            where.erase(index);
        } else {
            if (::fcntl(fd, F_GETFD) < 0) {
                violations.emplace_back("closed eventfd handed to the port");
            }
            where[index] = fd;
        }
    }
};

}  // namespace vvfu::test
