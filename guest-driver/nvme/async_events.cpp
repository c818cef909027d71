// SPDX-License-Identifier: BSD-3-Clause
#include "async_events.hpp"

#include <algorithm>

namespace vvfu::nvme {

bool AsyncEvents::request(const CommandPtr &command)
{
    if (requests_.size() >= kAsyncEventRequests) {
        return false;
    }
    requests_.push_back(command);
    deliver();
    return true;
}

void AsyncEvents::raise(const AsyncEvent &event)
{
    if (std::find(events_.begin(), events_.end(), event) == events_.end()) {
        events_.push_back(event);
        deliver();
    }
}

void AsyncEvents::log_read(LogId log)
{
    const std::uint8_t type = log == LogId::error ? 0 : 1;
    if (log == LogId::error || log == LogId::smart) {
        masked_.erase(type);
        deliver();
    }
}

bool AsyncEvents::abort(const CommandPtr &command)
{
    return std::erase(requests_, command) > 0;
}

void AsyncEvents::reset()
{
    requests_.clear();
    events_.clear();
    masked_.clear();
}

void AsyncEvents::deliver()
{
    for (auto it = events_.begin(); it != events_.end() && !requests_.empty();) {
        if (masked_.count(it->type) > 0) {
            ++it;
            continue;
        }
        // NVMe 5.2: further events of the type are masked until the host has read the log page.
        masked_.insert(it->type);
        const auto request = requests_.front();
        const auto dword = it->dword();
        requests_.pop_front();
        it = events_.erase(it);
        complete_(request, dword);
    }
}

}  // namespace vvfu::nvme
