// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "spec.hpp"
#include "vvfu/guest/dma_space.hpp"

namespace vvfu::nvme {

/// NVMe 5.7, 7.13: doorbells in host memory. The host writes the register only when a value passes the EventIdx that
/// the controller has left for it, so a busy queue costs no register access. Both buffers must be in the window.
class ShadowDoorbells {
public:
    /// `unreachable` is called when a buffer that was there is not any more.
    ShadowDoorbells(guest::DmaSpace &dma, std::function<void()> unreachable)
        : dma_(dma), unreachable_(std::move(unreachable))
    {
    }

    /// Starts using the two pages. Not success: they cannot be used, nothing has changed.
    [[nodiscard]] Status configure(guest::DmaAddress shadow, guest::DmaAddress event_index, std::uint64_t page_size);
    void reset() noexcept { shadow_.reset(); }
    [[nodiscard]] bool enabled() const noexcept { return shadow_.has_value(); }

    /// Registers are numbered as in BAR 0: 2y is the tail of submission queue y, 2y + 1 the head of completion queue y.
    [[nodiscard]] static constexpr std::uint32_t sq_register(std::uint16_t id) noexcept { return 2u * id; }
    [[nodiscard]] static constexpr std::uint32_t cq_register(std::uint16_t id) noexcept { return 2u * id + 1; }

    /// What the host has written last; nullopt: unreachable.
    [[nodiscard]] std::optional<std::uint32_t> read(std::uint32_t index);
    /// Asks for a register write when the host goes on from `value`, and returns what it has written by then: a value
    /// written before the host could see the request.
    [[nodiscard]] std::optional<std::uint32_t> arm(std::uint32_t index, std::uint32_t value);
    /// Sets a doorbell, and its EventIdx, to the value that the queue has.
    void initialise(std::uint32_t index, std::uint32_t value);

private:
    /// Lives until the last access has ended, even when the controller does not.
    struct Access {
        Le32 value = 0;
        bool done = false;
    };
    [[nodiscard]] Status check(guest::DmaAddress page, std::uint64_t page_size, guest::DmaDirection direction);
    bool store(guest::DmaAddress base, std::uint32_t index, std::uint32_t value);
    bool finish(bool done);

    guest::DmaSpace &dma_;
    std::function<void()> unreachable_;
    std::optional<guest::DmaAddress> shadow_;
    guest::DmaAddress event_index_{};
    std::shared_ptr<Access> access_ = std::make_shared<Access>();
};

}  // namespace vvfu::nvme
