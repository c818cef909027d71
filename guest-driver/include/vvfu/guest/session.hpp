// SPDX-License-Identifier: BSD-3-Clause
//
// Drives one virtio-vfio-user function: brings it up, registers a device model, and then carries requests to the
// model, its replies, its interrupts and its access to message-only memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::guest {

struct SessionOptions {
    /// How long to look at the request queue before sleeping, after each request. Costs a CPU while requests come; 0:
    /// never.
    std::chrono::nanoseconds poll{0};
    /// Times in a row that a broken device is reset and registered again. A registration that held for
    /// `stable_after` starts the count anew.
    unsigned max_restarts = 3;
    std::chrono::nanoseconds restart_delay = std::chrono::milliseconds{100};  ///< doubled each time
    std::chrono::nanoseconds stable_after = std::chrono::seconds{10};
    /// For the answer to DEVICE_INFO, and for everything that stop() waits for.
    std::chrono::nanoseconds control_timeout = std::chrono::seconds{5};
};

/// What a session did, for statistics and tests.
struct SessionCounters {
    std::uint64_t requests = 0;        ///< from the device VMM, well-formed or not
    std::uint64_t bad_requests = 0;    ///< answered with an error
    std::uint64_t stale_requests = 0;  ///< of an ended session
    std::uint64_t dma_messages = 0;    ///< DMA_READ and DMA_WRITE sent
    std::uint64_t restarts = 0;
};

/// Reactor's thread only. The order of use: create, services(), make the model, start(), and before
/// destruction stop() until its callback ran (or let the reactor never run again).
class Session final : public MessageDma, public IrqSink {
public:
    /// Everything is borrowed and outlives the session.
    Session(Transport &transport, Reactor &reactor, Workers &workers, SessionOptions options = {});
    ~Session() override;
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    /// For the model that start() will be given. Valid as long as the session.
    [[nodiscard]] DeviceServices services();

    /// Resets the function, sets it up, registers `model` (borrowed until stop()'s callback ran, or for ever; destroyed
    /// before the session). `registered` is called once with the outcome, never from inside start(): an Error carries
    /// the device's reason, and nothing is left to stop. After a success, `failed` is called once if the session gives
    /// up later. Once only.
    void start(DeviceModel &model, std::function<void(Result<void>)> registered, std::function<void(Error)> failed);

    /// Withdraws the device (the peer is disconnected), brings the model to rest, resets the function, then calls
    /// `stopped`, never from inside stop(); after options.control_timeout in any case.
    void stop(std::function<void()> stopped);

    [[nodiscard]] bool peer_up() const;
    [[nodiscard]] SessionCounters counters() const;

    // MessageDma
    void dma_read(DmaAddress address, std::span<std::byte> out, DmaCallback done) override;
    void dma_write(DmaAddress address, std::span<const std::byte> data, DmaCallback done) override;

    // IrqSink
    void trigger(std::uint32_t index, std::uint32_t vector) override;
    [[nodiscard]] std::vector<std::uint32_t> withdraw(std::uint32_t index) override;
    [[nodiscard]] bool pending(std::uint32_t index, std::uint32_t vector) override;

private:
    class Impl;
    std::shared_ptr<Impl> impl_;
};

}  // namespace vvfu::guest
