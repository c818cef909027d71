// SPDX-License-Identifier: BSD-3-Clause
#include "interrupts.hpp"

#include <utility>

namespace vvfu::nvme {

Interrupts::Interrupts(std::uint16_t vectors, const Features &features, guest::Executor &executor, Activity &activity,
                       Send send)
    : vectors_(vectors), features_(features), executor_(executor), activity_(activity), send_(std::move(send))
{
}

void Interrupts::completions(std::uint16_t vector, std::uint32_t entries)
{
    auto &state = vectors_[vector];
    state.held_back += entries;
    // The threshold is 0's based: 0 asks for a message for each completion.
    if (state.held_back > features_.coalescing_threshold(vector)) {
        send(vector);
    } else {
        start_timer(vector);
    }
}

void Interrupts::send(std::uint16_t vector)
{
    vectors_[vector].held_back = 0;
    send_(vector);
}

void Interrupts::start_timer(std::uint16_t vector)
{
    if (std::exchange(vectors_[vector].timer, true)) {
        return;
    }
    const std::chrono::microseconds delay{100 * features_.coalescing_time()};
    executor_.after(delay, activity_.guard([this, vector] {
        vectors_[vector].timer = false;
        if (vectors_[vector].held_back > 0) {
            send(vector);
        }
    }));
}

void Interrupts::reset()
{
    for (auto &vector : vectors_) {
        vector.held_back = 0;  // a timer that still runs finds nothing to send
    }
}

}  // namespace vvfu::nvme
