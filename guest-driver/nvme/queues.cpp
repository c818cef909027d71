// SPDX-License-Identifier: BSD-3-Clause
#include "queues.hpp"

#include <algorithm>
#include <utility>

namespace vvfu::nvme {

std::uint32_t SubmissionQueue::fetchable(std::uint32_t burst) const noexcept
{
    if (fetching || deleted || in_flight >= kMaxInFlight) {
        return 0;
    }
    const auto to_wrap = ring.size - ring.head;
    return std::min({ring.used(), to_wrap, burst, kFetchBatch, kMaxInFlight - in_flight});
}

void SubmissionQueue::remove(const CommandPtr &command)
{
    const auto index = command->index;
    if (index + 1 != commands.size()) {
        commands[index] = std::move(commands.back());
        commands[index]->index = index;
    }
    commands.pop_back();
}

}  // namespace vvfu::nvme
