// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "activity.hpp"
#include "features.hpp"
#include "queues.hpp"
#include "vvfu/guest/executor.hpp"

namespace vvfu::nvme {

/// Decides when completions become messages (MSI-X or MSI): at once, or coalesced (NVMe 7.5, 5.21.1.8).
class Interrupts {
public:
    using Send = std::function<void(std::uint16_t vector)>;

    Interrupts(std::uint16_t vectors, const Features &features, guest::Executor &executor, Activity &activity,
               Send send);

    /// `entries` completions have become visible on a queue that interrupts with `vector`.
    void completions(std::uint16_t vector, std::uint32_t entries);
    /// Forgets what has been held back.
    void reset();

private:
    struct Vector {
        std::uint32_t held_back = 0;  ///< completions without a message
        bool timer = false;
    };
    void send(std::uint16_t vector);
    void start_timer(std::uint16_t vector);

    std::vector<Vector> vectors_;
    const Features &features_;
    guest::Executor &executor_;
    Activity &activity_;
    Send send_;
};

}  // namespace vvfu::nvme
