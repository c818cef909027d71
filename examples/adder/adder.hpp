// SPDX-License-Identifier: BSD-3-Clause
//
// A complete device model: a PCI function that adds two numbers, writes the sum to the driver guest's memory
// and sends an interrupt message. The whole of it is this file.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "vvfu/guest/pci_device.hpp"

namespace example {

class Adder final : public vvfu::guest::PciDevice {
public:
    explicit Adder(vvfu::guest::DeviceServices services) : PciDevice(function(), services) {}

    /// BAR 0. All registers are little-endian; `sum` is read-only; a write to `go` starts an addition.
    struct Registers {
        std::uint32_t a = 0, b = 0, sum = 0, go = 0;
        std::uint64_t destination = 0;  ///< DMA address of 4 bytes that receive the sum
    };

private:
    static vvfu::guest::PciFunction function()
    {
        vvfu::guest::PciFunction f;
        f.identity.vendor_id = 0x1234;
        f.identity.device_id = 0xadd0;
        f.identity.class_code = 0xff0000;  // no standard class
        f.bars[0].size = 0x1000;
        f.msi_vectors = 1;
        return f;
    }

    void bar_read(unsigned, std::uint64_t offset, std::span<std::byte> out) override
    {
        std::fill(out.begin(), out.end(), std::byte{0xff});  // what is no register reads as all-ones
        if (offset < sizeof registers_) {
            std::memcpy(out.data(), reinterpret_cast<const std::byte *>(&registers_) + offset,
                        std::min(out.size(), sizeof registers_ - static_cast<std::size_t>(offset)));
        }
    }

    void bar_write(unsigned, std::uint64_t offset, std::span<const std::byte> data) override
    {
        if (offset >= sizeof registers_ || data.size() > sizeof registers_ - offset) {
            return;
        }
        const auto sum = registers_.sum;
        std::memcpy(reinterpret_cast<std::byte *>(&registers_) + offset, data.data(), data.size());
        registers_.sum = sum;
        if (offset <= offsetof(Registers, go) && offset + data.size() > offsetof(Registers, go)) {
            add();
        }
    }

    void add()
    {
        if (writing_ || !bus_master()) {
            return;
        }
        registers_.sum = registers_.a + registers_.b;
        std::memcpy(result_.data(), &registers_.sum, result_.size());
        writing_ = true;
        // Completes inside the call for memory in the window, later for message-only memory.
        services().dma.write(vvfu::guest::DmaAddress{registers_.destination}, result_, [this](const auto &written) {
            writing_ = false;
            if (reset_done_) {
                finish_reset(std::exchange(reset_done_, nullptr));
            } else if (written) {
                trigger(0);
            }
        });
    }

    void function_reset(std::function<void()> done) override
    {
        if (writing_) {
            reset_done_ = std::move(done);  // not before our DMA is over
        } else {
            finish_reset(std::move(done));
        }
    }

    void finish_reset(std::function<void()> done)
    {
        registers_ = {};
        done();
    }

    Registers registers_;
    std::array<std::byte, 4> result_{};
    bool writing_ = false;
    std::function<void()> reset_done_;
};

}  // namespace example
