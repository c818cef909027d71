// SPDX-License-Identifier: BSD-3-Clause
#include "irq_table.hpp"

#include <atomic>
#include <thread>

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using core::IrqTable;

/// A port whose doorbells may be rung by another thread, as those of a VMM are. Its lock is not the core's: between
/// its look at the doorbell and the call of doorbell_written() the core may connect it.
class RingablePort : public FakePort {
public:
    void doorbell_set(unsigned, int fd) override { target_ = fd; }
    void signal_eventfd(int) override { ++signals; }
    void ring(IrqTable &table)
    {
        if (target_ >= 0) {
            ++signals;
        } else {
            table.doorbell_written(0);
        }
    }
    std::atomic<unsigned> signals = 0;

private:
    std::atomic<int> target_ = -1;
};

TEST(IrqTable, NoRingIsLostWhileTheDoorbellIsConnected)
{
    for (int round = 0; round < 300; ++round) {
        RingablePort port;
        IrqTable table{port, 1};
        table.configure({0, 0, 1, 0, 0});
        std::atomic<bool> go = false;
        std::thread ringer{[&] {
            while (!go) {
            }
            port.ring(table);
        }};
        std::vector<Fd> fds;
        fds.push_back(make_eventfd());
        go = true;
        table.assign(control::kIrqMsix, 0, fds);
        ringer.join();
        ASSERT_EQ(1u, port.signals);
        ASSERT_FALSE(table.doorbell_pending(0));
    }
}

TEST(IrqTable, ConfigureForgetsWhatWasBefore)
{
    FakePort port;
    IrqTable table{port, 8};
    table.configure({1, 0, 4, 0, 0});
    std::vector<Fd> fds;
    fds.push_back(make_eventfd());
    table.assign(control::kIrqMsix, 3, fds);
    table.doorbell_written(0);
    EXPECT_TRUE(port.doorbells.contains(4));
    table.configure({0, 2, 0, 0, 0});
    EXPECT_TRUE(port.doorbells.empty());
    EXPECT_FALSE(table.doorbell_pending(0));
    EXPECT_EQ(IrqTable::Trigger::no_such_vector, table.trigger(control::kIrqMsix, 3));
    EXPECT_EQ(IrqTable::Trigger::done, table.trigger(control::kIrqMsi, 1));
    EXPECT_TRUE(table.doorbell_pending(1));
}

}  // namespace
}  // namespace vvfu::test
