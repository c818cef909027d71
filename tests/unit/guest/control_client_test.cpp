// SPDX-License-Identifier: BSD-3-Clause
#include "control_client.hpp"

#include <gtest/gtest.h>

#include "fake_transport.hpp"
#include "fakes.hpp"

namespace vvfu::guest {
namespace {

using control::Status;
using control::Type;

class ControlClientTest : public ::testing::Test {
protected:
    void SetUp() override { ASSERT_TRUE(client->bring_up(kMaxMessageSize)); }
    std::vector<FakeTransport::Chain> take_all()
    {
        std::vector<FakeTransport::Chain> chains;
        while (auto chain = transport.take(kControlQueue)) {
            chains.push_back(std::move(*chain));
        }
        return chains;
    }

    FakeTransport transport;
    test::FakeExecutor executor;
    std::unique_ptr<ControlClient> client = std::move(*ControlClient::create(transport, executor));
    std::optional<DmaError> error;
    unsigned completions = 0;
    DmaCallback count = [this](Expected<void, DmaError> result) {
        ++completions;
        if (!result) {
            error = result.error();
        }
    };
};

TEST_F(ControlClientTest, AReplyReachesItsRequestWhateverTheOrder)
{
    std::string order;
    for (const char name : {'a', 'b', 'c'}) {
        ASSERT_TRUE(client->request(Type::irq_trigger, 3, {}, [&order, name](const ControlClient::Reply &reply) {
            order += name;
            order += reply.text;
        }));
    }
    const auto chains = take_all();
    ASSERT_EQ(chains.size(), 3u);
    EXPECT_EQ(chains[0].header.epoch, 3u);
    control::Buffer text;
    control::append_text(text, "!");
    transport.complete(chains[2], Status::not_found, text);
    transport.complete(chains[0], Status::ok);
    transport.complete(chains[1], Status::ok);
    ASSERT_TRUE(client->process());
    EXPECT_EQ(order, "c!ab");
}

//= VVFU-MSG-3
//= type=test
TEST_F(ControlClientTest, NoRequestIdIsUsedTwice)
{
    std::set<std::uint64_t> ids;
    for (int i = 0; i < 100; ++i) {
        ASSERT_TRUE(client->request(Type::irq_trigger, 1, {}, nullptr));
        for (const auto &chain : take_all()) {
            EXPECT_TRUE(ids.insert(chain.header.request_id).second);
            transport.complete(chain, Status::ok);
        }
        ASSERT_TRUE(client->process());
    }
    EXPECT_EQ(ids.size(), 100u);
}

TEST_F(ControlClientTest, MoreRequestsThanSlotsWaitAndTooManyAreRefused)
{
    unsigned accepted = 0;
    while (client->request(Type::irq_trigger, 1, {}, [this](const ControlClient::Reply &) { ++completions; })) {
        ++accepted;
        ASSERT_LE(accepted, ControlClient::kMaxWaiting + ControlClient::kSlots);
    }
    EXPECT_EQ(accepted, ControlClient::kMaxWaiting + ControlClient::kSlots);
    while (completions < accepted) {
        const auto chains = take_all();
        ASSERT_FALSE(chains.empty());
        EXPECT_LE(chains.size(), ControlClient::kSlots);
        for (const auto &chain : chains) {
            transport.complete(chain, Status::ok);
        }
        ASSERT_TRUE(client->process());
    }
    EXPECT_TRUE(client->request(Type::irq_trigger, 1, {}, nullptr));
}

TEST_F(ControlClientTest, AnErrorEndsATransferWithoutTheMessagesThatWereStillToCome)
{
    std::vector<std::byte> buffer(std::size_t{16} * 1024 * 1024);
    client->dma(DmaDirection::from_peer, 1, DmaAddress{0}, buffer, count);
    auto chains = take_all();
    ASSERT_EQ(chains.size(), ControlClient::kSlots);
    for (const auto &chain : chains) {
        EXPECT_EQ(completions, 0u);
        transport.complete(chain, Status::fault);
        ASSERT_TRUE(client->process());
        EXPECT_TRUE(take_all().empty());
    }
    EXPECT_EQ(completions, 1u);
    EXPECT_EQ(error, DmaError::fault);
    EXPECT_EQ(client->dma_messages(), ControlClient::kSlots);
}

TEST_F(ControlClientTest, TransfersShareTheSlotsAndAllComplete)
{
    std::vector<std::vector<std::byte>> buffers(40, std::vector<std::byte>(300000));
    for (auto &buffer : buffers) {
        client->dma(DmaDirection::to_peer, 1, DmaAddress{0x1000}, buffer, count);
    }
    while (completions < buffers.size()) {
        const auto chains = take_all();
        ASSERT_FALSE(chains.empty());
        for (const auto &chain : chains) {
            control::Buffer payload;
            control::append(payload, *control::decode_dma_access(chain.payload().first(control::kDmaAccessSize)));
            transport.complete(chain, Status::ok, payload);
        }
        ASSERT_TRUE(client->process());
    }
    EXPECT_FALSE(error);
}

TEST_F(ControlClientTest, AbortFailsTransfersLaterAndForgetsRequests)
{
    std::vector<std::byte> buffer(std::size_t{16} * 1024 * 1024);
    bool answered = false;
    ASSERT_TRUE(client->request(Type::irq_trigger, 1, {}, [&](const ControlClient::Reply &) { answered = true; }));
    client->dma(DmaDirection::from_peer, 1, DmaAddress{0}, buffer, count);
    client->dma(DmaDirection::from_peer, 1, DmaAddress{0}, buffer, count);
    transport.reset();
    client->abort();
    EXPECT_EQ(completions, 0u) << "not inside the call";
    executor.run();
    EXPECT_EQ(completions, 2u);
    EXPECT_EQ(error, DmaError::io);
    EXPECT_FALSE(answered);
    ASSERT_TRUE(client->bring_up(kMaxMessageSize));
    ASSERT_TRUE(client->request(Type::irq_trigger, 1, {}, [&](const ControlClient::Reply &) { answered = true; }));
    transport.complete(*transport.take(kControlQueue), Status::ok);
    ASSERT_TRUE(client->process());
    EXPECT_TRUE(answered);
}

TEST_F(ControlClientTest, ARequestThatIsTooLongIsRefused)
{
    const std::vector<std::byte> payload(kMaxMessageSize);
    EXPECT_FALSE(client->request(Type::device_info, 0, payload, nullptr));
    EXPECT_TRUE(take_all().empty());
}

}  // namespace
}  // namespace vvfu::guest
