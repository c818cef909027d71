// SPDX-License-Identifier: BSD-3-Clause
#include "testdev.hpp"

#include <algorithm>
#include <boost/crc.hpp>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "testdev_registers.hpp"
#include "vvfu/guest/pci_device.hpp"
#include "vvfu/guest/register_bank.hpp"

namespace vvfu::testdev {
namespace {

using guest::DmaAddress;
using guest::DmaDirection;
using guest::DmaError;
using guest::DmaMapping;
using guest::DmaSegment;

constexpr std::uint64_t kAll64 = ~std::uint64_t{0};
constexpr std::uint64_t kAll32 = 0xffffffff;

const guest::Register kRegisters[] = {
    {"ID", kRegId, 4, kId},
    {"VERSION", kRegVersion, 4, kVersion},
    {"SCRATCH8", kRegScratch8, 1, 0, 0xff},
    {"SCRATCH16", kRegScratch16, 2, 0, 0xffff},
    {"SCRATCH32", kRegScratch32, 4, 0, kAll32},
    {"SCRATCH64", kRegScratch64, 8, 0, kAll64},
    {"READS", kRegReads, 8},
    {"WRITES", kRegWrites, 8},
    {"TRAPPED_READS", kRegTrappedReads, 8},
    {"TRAPPED_WRITES", kRegTrappedWrites, 8},
    {"TRANSFERS", kRegTransfers, 8},
    {"BYTES", kRegBytes, 8},
    {"RESETS", kRegResets, 8},
    {"RAISE", kRegRaise, 4, 0, kAll32},
    {"INTX", kRegIntx, 4, 0, 1},
    {"SOURCE", kRegSource, 8, 0, kAll64},
    {"DESTINATION", kRegDestination, 8, 0, kAll64},
    {"LENGTH", kRegLength, 8, 0, kAll64},
    {"COMMAND", kRegCommand, 4, 0, kAll32},
    {"STATUS", kRegStatus, 4, kIdle},
    {"VECTOR", kRegVector, 4, kVectorNone, kAll32},
    {"PATTERN", kRegPattern, 4, 0, kAll32},
    {"CHECKSUM", kRegChecksum, 4},
};

guest::PciFunction make_function(const TestdevOptions &options)
{
    guest::PciFunction function;
    function.identity = {kVendorId, kDeviceId, kVendorId, kDeviceId, 0xff0000, 1};
    function.bars[0].size = kBar0Size;
    if (options.interrupts == guest::InterruptKind::msix) {
        function.bars[1].size = kBar1Size;
    }
    function.bars[2].size = kBar2Size;
    if (!options.no_mmap) {
        const auto after = kTrappedPage + kPageSize;
        function.bars[2].areas = {{0, kTrappedPage}, {after, kBar2Size - after}};
    }
    function.offer(options.interrupts, kVectors);
    function.msix_bar = 1;
    function.msix_table_offset = kMsixTable;
    function.msix_pba_offset = kMsixPba;
    return function;
}

Status status_of(DmaError error)
{
    switch (error) {
        case DmaError::disabled: return kNoBusMaster;
        case DmaError::fault: return kFault;
        case DmaError::permission: return kPermission;
        case DmaError::io: return kIo;
        case DmaError::timeout: return kTimeout;
        case DmaError::too_large: return kTooLarge;
    }
    return kIo;
}

void fill(std::span<std::byte> to, std::uint32_t pattern)
{
    for (std::size_t i = 0; i < to.size(); ++i) {
        to[i] = static_cast<std::byte>(pattern >> (8 * (i % 4)));
    }
}

std::uint32_t checksum(std::span<const std::byte> from)
{
    boost::crc_32_type crc;
    crc.process_bytes(from.data(), from.size());
    return crc.checksum();
}

class Testdev final : public guest::PciDevice {
public:
    Testdev(const TestdevOptions &options, guest::DeviceServices device_services)
        : PciDevice(make_function(options), device_services),
          registers_(kBar0Size),
          self_(std::make_shared<Testdev *>(this))
    {
        const bool messages = options.interrupts != guest::InterruptKind::intx;
        registers_.add(kRegisters).add({"VECTORS", kRegVectors, 4, messages ? std::uint64_t{kVectors} : 0});
        if (options.no_mmap) {
            own_memory_ = std::make_shared<std::vector<std::byte>>(kBar2Size);
            memory_ = *own_memory_;
        } else {
            memory_ = device_services.region_memory.first(kBar2Size);
        }
    }

private:
    /// One DMA command. Lives on the executor's thread, but for `data` and `checksum` while a worker has them.
    struct Transfer {
        Command command{};
        std::uint64_t source = 0, destination = 0, length = 0;
        std::uint32_t pattern = 0;
        DmaMapping to;
        std::vector<std::byte> data;  ///< from the source, or to be there at the destination
        std::uint32_t checksum = 0;
    };
    using TransferPtr = std::shared_ptr<Transfer>;

    struct Counters {
        std::uint64_t reads = 0, writes = 0, trapped_reads = 0, trapped_writes = 0, transfers = 0, bytes = 0;
    };

    void bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out) override;
    void bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) override;
    void function_reset(std::function<void()> done) override;

    void publish_counters();
    void register_written(std::uint32_t reg);
    void start_transfer();
    void map_source(const TransferPtr &transfer);
    void map_destination(const TransferPtr &transfer);
    void run(const TransferPtr &transfer);
    void finish(const TransferPtr &transfer);
    void end_transfer(Status status);
    /// `callback` with this device as first argument, unless it is gone by then.
    template <typename F>
    auto bind(F callback)
    {
        return [weak = std::weak_ptr<Testdev *>(self_), callback = std::move(callback)](auto &&...arguments) {
            if (const auto self = weak.lock()) {
                callback(**self, std::forward<decltype(arguments)>(arguments)...);
            }
        };
    }

    guest::RegisterBank registers_;
    std::span<std::byte> memory_;                         // BAR 2
    std::shared_ptr<std::vector<std::byte>> own_memory_;  // of BAR 2 without mmap; a worker may outlive the device
    Counters counters_;
    std::uint64_t resets_ = 0;
    bool busy_ = false;
    std::function<void()> reset_done_;  // waits for the transfer that runs
    std::shared_ptr<Testdev *> self_;
};

void Testdev::bar_read(unsigned bar, std::uint64_t offset, std::span<std::byte> out)
{
    if (bar == 0) {
        ++counters_.reads;
        publish_counters();
        registers_.read(offset, out);
    } else if (bar == 2) {
        ++counters_.trapped_reads;
        std::memcpy(out.data(), memory_.data() + offset, out.size());
    } else {
        std::fill(out.begin(), out.end(), std::byte{0xff});
    }
}

void Testdev::bar_write(unsigned bar, std::uint64_t offset, std::span<const std::byte> data)
{
    if (bar == 2) {
        ++counters_.trapped_writes;
        std::memcpy(memory_.data() + offset, data.data(), data.size());
    }
    if (bar != 0) {
        return;
    }
    ++counters_.writes;
    registers_.write(offset, data);
    for (const auto reg : {kRegRaise, kRegIntx, kRegCommand}) {
        if (offset <= reg && reg - offset < data.size()) {
            register_written(reg);
        }
    }
}

void Testdev::publish_counters()
{
    registers_.set(kRegReads, 8, counters_.reads);
    registers_.set(kRegWrites, 8, counters_.writes);
    registers_.set(kRegTrappedReads, 8, counters_.trapped_reads);
    registers_.set(kRegTrappedWrites, 8, counters_.trapped_writes);
    registers_.set(kRegTransfers, 8, counters_.transfers);
    registers_.set(kRegBytes, 8, counters_.bytes);
    registers_.set(kRegResets, 8, resets_);
}

void Testdev::register_written(std::uint32_t reg)
{
    const auto value = static_cast<std::uint32_t>(registers_.get(reg, 4));
    if (reg == kRegIntx) {
        intx_set((value & 1) != 0);
    } else if (reg == kRegCommand) {
        start_transfer();
    } else {
        registers_.set(kRegRaise, 4, 0);
        if (value < kVectors) {
            trigger(static_cast<std::uint16_t>(value));
        }
    }
}

void Testdev::start_transfer()
{
    if (busy_) {
        return;
    }
    auto transfer = std::make_shared<Transfer>();
    transfer->command = static_cast<Command>(registers_.get(kRegCommand, 4));
    transfer->source = registers_.get(kRegSource, 8);
    transfer->destination = registers_.get(kRegDestination, 8);
    transfer->length = registers_.get(kRegLength, 8);
    transfer->pattern = static_cast<std::uint32_t>(registers_.get(kRegPattern, 4));

    const auto in_bar2 = [&](std::uint64_t offset) {
        return offset <= kBar2Size && transfer->length <= kBar2Size - offset;
    };
    busy_ = true;
    registers_.set(kRegStatus, 4, kBusy);
    const bool known = transfer->command >= kCopy && transfer->command <= kFromDevice;
    if (!bus_master()) {
        end_transfer(kNoBusMaster);
    } else if (transfer->length > kMaxTransfer) {
        end_transfer(kTooLarge);
    } else if (!known || (transfer->command == kToDevice && !in_bar2(transfer->destination)) ||
               (transfer->command == kFromDevice && !in_bar2(transfer->source))) {
        end_transfer(kBadCommand);
    } else {
        map_source(transfer);
    }
}

void Testdev::map_source(const TransferPtr &transfer)
{
    transfer->data.resize(transfer->length);
    if (transfer->command == kFill || transfer->command == kFromDevice) {
        map_destination(transfer);
        return;
    }
    services().dma.read(DmaAddress{transfer->source}, transfer->data, bind([transfer](Testdev &self, auto result) {
                            if (!result) {
                                self.end_transfer(status_of(result.error()));
                                return;
                            }
                            self.map_destination(transfer);
                        }));
}

void Testdev::map_destination(const TransferPtr &transfer)
{
    if (transfer->command == kChecksum || transfer->command == kToDevice) {
        run(transfer);
        return;
    }
    const DmaSegment segment{DmaAddress{transfer->destination}, transfer->length};
    services().dma.map({&segment, 1}, DmaDirection::to_peer, bind([transfer](Testdev &self, auto mapping) {
                           if (!mapping) {
                               self.end_transfer(status_of(mapping.error()));
                               return;
                           }
                           transfer->to = std::move(*mapping);
                           self.run(transfer);
                       }));
}

void Testdev::run(const TransferPtr &transfer)
{
    auto work = [transfer, memory = memory_, keep = own_memory_] {
        auto &data = transfer->data;
        switch (transfer->command) {
            case kFill: fill(data, transfer->pattern); break;
            case kChecksum: transfer->checksum = checksum(data); break;
            case kToDevice: std::memcpy(memory.data() + transfer->destination, data.data(), data.size()); break;
            case kFromDevice: std::memcpy(data.data(), memory.data() + transfer->source, data.size()); break;
            default: break;  // kCopy: it is there
        }
    };
    services().workers.submit(this, std::move(work), bind([transfer](Testdev &self) { self.finish(transfer); }));
}

void Testdev::finish(const TransferPtr &transfer)
{
    transfer->to.store(0, transfer->data);
    std::move(transfer->to).finish(bind([transfer](Testdev &self, auto result) {
        if (!result) {
            self.end_transfer(status_of(result.error()));
            return;
        }
        if (!self.reset_done_) {
            ++self.counters_.transfers;
            self.counters_.bytes += transfer->length;
            if (transfer->command == kChecksum) {
                self.registers_.set(kRegChecksum, 4, transfer->checksum);
            }
        }
        self.end_transfer(kDone);
    }));
}

void Testdev::end_transfer(Status status)
{
    busy_ = false;
    if (reset_done_) {
        std::exchange(reset_done_, nullptr)();
        return;
    }
    registers_.set(kRegStatus, 4, status);
    const auto vector = static_cast<std::uint32_t>(registers_.get(kRegVector, 4));
    if (vector == kVectorIntx) {
        registers_.set(kRegIntx, 4, 1);
        intx_set(true);
    } else if (vector < kVectors) {
        trigger(static_cast<std::uint16_t>(vector));
    }
}

void Testdev::function_reset(std::function<void()> done)
{
    ++resets_;
    registers_.reset();
    counters_ = {};
    //= VVFU-RESET-3
    auto finish = [this, done = std::move(done)] {
        std::fill(memory_.begin(), memory_.end(), std::byte{0});
        done();
    };
    if (busy_) {
        reset_done_ = std::move(finish);
    } else {
        finish();
    }
}

}  // namespace

std::uint64_t region_memory_size(const TestdevOptions &options)
{
    return options.no_mmap ? 0 : kBar2Size;
}

guest::Result<std::unique_ptr<guest::DeviceModel>> make_testdev(const TestdevOptions &options,
                                                                guest::DeviceServices services)
{
    const auto needed = region_memory_size(options);
    if (services.region_memory.size() < needed) {
        return guest::failure("testdev needs " + std::to_string(needed) + " bytes of region memory and there are " +
                              std::to_string(services.region_memory.size()) +
                              ": set region-memory-size of the device, or use --no-mmap");
    }
    return std::make_unique<Testdev>(options, services);
}

}  // namespace vvfu::testdev
