// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <set>

#include "log_pages.hpp"
#include "queues.hpp"

namespace vvfu::nvme {

inline constexpr std::size_t kAsyncEventRequests = 4;  ///< AERL + 1

/// NVMe 5.2: an asynchronous event, as in Dword 0 of the completion.
struct AsyncEvent {
    std::uint8_t type = 0;  ///< 0: error status, 1: SMART / health status
    std::uint8_t info = 0;
    LogId log{};

    [[nodiscard]] std::uint32_t dword() const noexcept
    {
        return type | std::uint32_t{info} << 8 | static_cast<std::uint32_t>(log) << 16;
    }
    friend bool operator==(const AsyncEvent &, const AsyncEvent &) = default;
};

inline constexpr AsyncEvent kInvalidDoorbellRegister{0, 0, LogId::error};
inline constexpr AsyncEvent kInvalidDoorbellValue{0, 1, LogId::error};
inline constexpr AsyncEvent kReliabilityEvent{1, 0, LogId::smart};
inline constexpr AsyncEvent kTemperatureEvent{1, 1, LogId::smart};

/// Brings asynchronous events and the requests that wait for them together.
class AsyncEvents {
public:
    using Complete = std::function<void(const CommandPtr &request, std::uint32_t dword0)>;
    explicit AsyncEvents(Complete complete) : complete_(std::move(complete)) {}

    /// False: there are kAsyncEventRequests already.
    [[nodiscard]] bool request(const CommandPtr &command);
    /// An event that waits already is not queued a second time.
    void raise(const AsyncEvent &event);
    /// The host has read a log page: events of its type may be reported again.
    void log_read(LogId log);
    /// True if it was waiting (the caller completes it).
    [[nodiscard]] bool abort(const CommandPtr &command);
    void reset();

private:
    void deliver();

    Complete complete_;
    std::deque<CommandPtr> requests_;
    std::deque<AsyncEvent> events_;
    std::set<std::uint8_t> masked_;  // types that have been reported and not been cleared
};

}  // namespace vvfu::nvme
