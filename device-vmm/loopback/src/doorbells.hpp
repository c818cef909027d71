// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <functional>
#include <memory>
#include <mutex>

namespace vvfu::loopback {

/// The doorbell registers: rung by any thread, connected and disconnected by the device VMM's.
class Doorbells {
public:
    /// `unconnected` is called for a doorbell that is rung without a target; any thread, never during set().
    Doorbells(unsigned count, std::function<void(unsigned index)> unconnected);

    /// As Port::doorbell_set(). When it returns no thread uses the previous target any more, so that it may be closed.
    void set(unsigned index, int fd);
    void ring(unsigned index);

private:
    struct Doorbell {
        std::mutex mutex;
        int fd = -1;
    };
    unsigned count_;
    std::unique_ptr<Doorbell[]> doorbells_;
    std::function<void(unsigned)> unconnected_;
};

}  // namespace vvfu::loopback
