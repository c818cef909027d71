// SPDX-License-Identifier: BSD-3-Clause
#include "application.hpp"

#include <gmock/gmock.h>

#include <csignal>
#include <stdexcept>

#include "fake_transport.hpp"
#include "program.hpp"

namespace vvfu::cli {
namespace {

using guest::FakeTransport;

/// A model without registers that notes how it is brought to its end.
class EndModel final : public guest::DeviceModel {
public:
    [[nodiscard]] control::DeviceInfo describe() const override
    {
        control::DeviceInfo info;
        info.op = control::DeviceInfoOp::add;
        return info;
    }
    void region_read(std::uint32_t, std::uint64_t, std::span<std::byte>) override {}
    void region_write(std::uint32_t, std::uint64_t, std::span<const std::byte>) override {}
    void irq_info(const control::IrqInfo &) override {}
    void reset(std::function<void()> done) override { done(); }
    void counters(guest::Counters &counters) const override { counters.push_back({"things", 7}); }
    void make_durable(std::function<void(bool)> done) override
    {
        ++syncs;
        done(durable);
    }

    unsigned syncs = 0;
    bool durable = true;
};

/// A function with the two events of VFIO, whose device answers every request with OK.
class EventTransport final : public FakeTransport {
public:
    [[nodiscard]] int removal_event() const override { return removal_.get(); }
    [[nodiscard]] int error_event() const override { return error_.get(); }
    void ask_for_removal() const { static_cast<void>(::eventfd_write(removal_.get(), 1)); }
    void report_error() const { static_cast<void>(::eventfd_write(error_.get(), 1)); }
    void notify(unsigned queue) override
    {
        FakeTransport::notify(queue);
        while (queue == kControlQueue) {
            const auto chain = take(queue);
            if (!chain) {
                break;
            }
            const auto info = control::decode_device_info(chain->payload());
            (info && info->op == control::DeviceInfoOp::del ? withdrawn : registered) = true;
            complete(*chain, registration);
        }
    }

    control::Status registration = control::Status::ok;
    bool registered = false, withdrawn = false;

private:
    Fd removal_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)}, error_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

struct ApplicationTest : testing::Test {
    Termination termination;
    std::unique_ptr<guest::Reactor> reactor = std::move(*guest::Reactor::create());
    guest::ThreadPool workers{*reactor};
    EventTransport transport;
    guest::Session session{transport, *reactor, workers};
    EndModel model;

    /// Runs it; `event` happens when the reactor runs.
    int run(std::function<void()> event)
    {
        reactor->post(std::move(event));
        return Application{{termination, *reactor, workers, transport, session, model, "end", "ready", {}}}.run();
    }
};

TEST_F(ApplicationTest, FunctionToBeUnpluggedIsWithdrawnAndReleased)
{
    EXPECT_EQ(run([this] { transport.ask_for_removal(); }), kExitGone);
    EXPECT_TRUE(transport.registered);
    EXPECT_TRUE(transport.withdrawn) << "the peer loses the device in good order";
    EXPECT_EQ(model.syncs, 1u);
}

TEST_F(ApplicationTest, UncorrectableErrorOfTheFunctionEndsTheProgram)
{
    EXPECT_EQ(run([this] { transport.report_error(); }), kExitRuntime);
    EXPECT_TRUE(transport.withdrawn);
    EXPECT_EQ(model.syncs, 1u);
}

TEST_F(ApplicationTest, SignalEndsItInGoodOrder)
{
    EXPECT_EQ(run([] { ::kill(::getpid(), SIGTERM); }), kExitOk);
    EXPECT_TRUE(transport.withdrawn);
    EXPECT_EQ(model.syncs, 1u);
}

TEST_F(ApplicationTest, DataThatCouldNotBeMadeDurableShowsInTheExitStatus)
{
    model.durable = false;
    EXPECT_EQ(run([] { ::kill(::getpid(), SIGTERM); }), kExitAbandoned);
}

TEST_F(ApplicationTest, RefusedRegistrationIsAFailure)
{
    transport.registration = control::Status::invalid;
    EXPECT_EQ(run([] {}), kExitRuntime);
}

TEST_F(ApplicationTest, ExceptionOfAWorkerIsAFailure)
{
    EXPECT_EQ(run([this] {
                  workers.submit(
                      this, [] { throw std::runtime_error("storage broke"); }, [] {});
              }),
              kExitRuntime);
}

TEST_F(ApplicationTest, EndWithoutASignalReportsNoCounters)
{
    testing::internal::CaptureStdout();
    EXPECT_EQ(run([this] { transport.ask_for_removal(); }), kExitGone);
    EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::Not(testing::HasSubstr("counters")));
}

TEST_F(ApplicationTest, EndLimitIsBelowTwoSeconds)
{
    EXPECT_LT(Termination::kEndLimit, std::chrono::seconds{2});
}

}  // namespace
}  // namespace vvfu::cli
