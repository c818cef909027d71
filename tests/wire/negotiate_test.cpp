// SPDX-License-Identifier: BSD-3-Clause
//
// VERSION: what libvfio-user's test_negotiate pins, and what QEMU's client needs of the reply.
#include <array>
#include <boost/json.hpp>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(Negotiate);

Bytes version_payload(std::uint16_t major, std::uint16_t minor, std::string_view json, bool terminated = true)
{
    Packer payload;
    payload.u16(major).u16(minor).text(json);
    if (terminated) {
        payload.u8(0);
    }
    return payload.take();
}

TEST_P(Negotiate, AnswersQemusProposalWithMinorZeroAndAShortReply)
{
    auto client = connect();
    const auto reply = client.version(0);
    EXPECT_EQ(reply.major, 0);
    EXPECT_EQ(reply.minor, 0);
    EXPECT_LE(reply.message_size, 214u);
    const auto capabilities = boost::json::parse(reply.json).at("capabilities");
    const auto number = [&](const char *key) { return capabilities.at(key).to_number<std::uint64_t>(); };
    EXPECT_LE(number("max_msg_fds"), 16u);
    EXPECT_GE(number("max_msg_fds"), 1u);
    EXPECT_GE(number("max_data_xfer_size"), 4096u);
    EXPECT_LE(number("max_data_xfer_size"), 64u * 1024 * 1024);
    EXPECT_LE(number("max_dma_maps"), 65535u);
    EXPECT_EQ(number("pgsizes") % 4096, 0u);
    EXPECT_FALSE(capabilities.as_object().contains("twin_socket"));
}

TEST_P(Negotiate, NeverAnswersAHigherMinorThanProposed)
{
    for (const auto minor : std::to_array<std::uint16_t>({1, 2, 9})) {
        auto client = connect();
        EXPECT_LE(client.version(minor).minor, minor);
        client.close();
    }
}

TEST_P(Negotiate, OffersWriteMultipleOnlyToAPeerThatOfferedIt)
{
    {
        auto client = connect();
        const auto reply = client.version(0, R"({"capabilities":{"write_multiple":true}})");
        EXPECT_TRUE(boost::json::parse(reply.json).at("capabilities").at("write_multiple").as_bool());
    }
    for (const auto *json : {R"({"capabilities":{}})", R"({"capabilities":{"write_multiple":false}})"}) {
        auto client = connect();
        const auto capabilities = boost::json::parse(client.version(0, json).json).at("capabilities").as_object();
        EXPECT_TRUE(!capabilities.contains("write_multiple") || !capabilities.at("write_multiple").as_bool());
    }
}

TEST_P(Negotiate, AcceptsMissingAndEmptyJsonAndUnknownKeys)
{
    for (const auto *json : {"", "{}", R"({"capabilities":{}})", R"({"capabilities":{"not_invented_yet":[1,{}]}})",
                             R"({"capabilities":{"max_msg_fds":1024}})"}) {
        auto client = connect();
        EXPECT_EQ(client.version(1, json).major, 0) << json;
        expect_alive(client);
    }
}

TEST_P(Negotiate, RejectsMalformedVersionsWithEinval)
{
    const std::vector<std::pair<const char *, Bytes>> cases{
        {"empty", {}},
        {"short", Bytes(3)},
        {"major 1", version_payload(1, 0, "{}")},
        {"missing NUL", version_payload(0, 0, R"({"capabilities":{}})", false)},
        {"bad JSON", version_payload(0, 0, "{\"capabilities\":")},
        {"not an object", version_payload(0, 0, "[]")},
        {"capabilities of the wrong type", version_payload(0, 0, R"({"capabilities":"x"})")},
        {"max_msg_fds a string", version_payload(0, 0, R"({"capabilities":{"max_msg_fds":"foo"}})")},
        {"max_msg_fds negative", version_payload(0, 0, R"({"capabilities":{"max_msg_fds":-1}})")},
        {"max_msg_fds too large", version_payload(0, 0, R"({"capabilities":{"max_msg_fds":1025}})")},
        {"migration not an object", version_payload(0, 0, R"({"capabilities":{"migration":"foo"}})")},
        {"migration page size", version_payload(0, 0, R"({"capabilities":{"migration":{"pgsize":4095}}})")},
        {"nested too deep", version_payload(0, 0, std::string(5000, '['))},
    };
    for (const auto &[name, payload] : cases) {
        auto client = connect();
        EXPECT_EQ(result(client, kVersion, payload), EINVAL) << name;
        EXPECT_TRUE(client.closed_by_server()) << name;
    }
    auto client = session();
    expect_alive(client);
}

TEST_P(Negotiate, RejectsOtherCommandsBeforeVersion)
{
    auto client = connect();
    EXPECT_EQ(result(client, kGetInfo, Packer().u32(16).zeros(12).take()), EINVAL);
    EXPECT_TRUE(client.closed_by_server());
}

TEST_P(Negotiate, RejectsASecondVersionAndStaysInStep)
{
    auto client = session();
    EXPECT_EQ(result(client, kVersion, version_payload(0, 0, "{}")), EINVAL);
    expect_alive(client);
}

TEST_P(Negotiate, ClosesFdsThatComeWithVersion)
{
    auto client = connect();
    FdProbe probe;
    const int fd = probe.fd();
    const auto id = client.send(kVersion, version_payload(0, 0, "{}"), {&fd, 1});
    probe.given_away();
    static_cast<void>(client.wait_reply(id));
    EXPECT_TRUE(probe.closed_everywhere());
}

}  // namespace
}  // namespace vvfu::test
