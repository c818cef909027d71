// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <string>

#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::vfio_user {
namespace {

Decoded<Version> decode(const std::string &json, bool terminated = true)
{
    Buffer payload;
    append(payload, std::uint16_t{0});
    append(payload, std::uint16_t{1});
    append_bytes(payload, std::as_bytes(std::span{json.data(), json.size()}));
    if (terminated) {
        payload.push_back(std::byte{0});
    }
    return decode_version(payload);
}

Decoded<Version> decode_capabilities(const std::string &members)
{
    return decode(R"({"capabilities":{)" + members + "}}");
}

TEST(VfioUserVersion, WithoutJson)  // SPDK
{
    Buffer payload;
    append(payload, std::uint32_t{0x00010000});
    const auto version = decode_version(payload);
    ASSERT_TRUE(version.has_value());
    EXPECT_EQ(0, version->major);
    EXPECT_EQ(1, version->minor);
    EXPECT_FALSE(version->has_json);
    payload.pop_back();
    EXPECT_FALSE(decode_version(payload).has_value());
}

TEST(VfioUserVersion, WhatStockQemuSends)
{
    const auto version = decode_capabilities(
        R"("migration":{"max_bitmap_size":268435456,"pgsize":4096},"max_msg_fds":16,)"
        R"("max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true)");
    ASSERT_TRUE(version.has_value());
    EXPECT_TRUE(version->has_json);
    EXPECT_EQ(16u, version->capabilities.max_msg_fds);
    EXPECT_EQ(1048576u, version->capabilities.max_data_xfer_size);
    EXPECT_EQ(65535u, version->capabilities.max_dma_maps);
    EXPECT_EQ(4096u, version->capabilities.pgsizes);
    EXPECT_EQ(true, version->capabilities.write_multiple);
}

TEST(VfioUserVersion, EmptyAndUnknownMembersAreFine)
{
    EXPECT_TRUE(decode("{}"));
    EXPECT_TRUE(decode(R"({"other":[1,2,{"a":null}]})"));
    EXPECT_TRUE(decode_capabilities(""));
    EXPECT_TRUE(decode_capabilities(R"("new":{"x":"y"},"twin_socket":{"supported":false})"));
}

TEST(VfioUserVersion, WrongTypesAndRangesAreRefused)
{
    for (const auto *members : {R"("max_msg_fds":"foo")",
                                R"("max_msg_fds":-1)",
                                R"("max_msg_fds":1025)",
                                R"("max_msg_fds":1.5)",
                                R"("max_msg_fds":1.0)",
                                R"("max_msg_fds":null)",
                                R"("max_msg_fds":18446744073709551616)",
                                R"("max_data_xfer_size":true)",
                                R"("max_data_xfer_size":0)",
                                R"("max_data_xfer_size":-5)",
                                R"("max_dma_maps":[])",
                                R"("pgsizes":{})",
                                R"("write_multiple":1)",
                                R"("write_multiple":"true")",
                                R"("migration":5)",
                                R"("migration":{"pgsize":4095})",
                                R"("migration":{"pgsize":0})",
                                R"("migration":{"pgsize":"x"})",
                                R"("twin_socket":true)",
                                R"("twin_socket":{"supported":3})"}) {
        EXPECT_FALSE(decode_capabilities(members)) << members;
    }
}

TEST(VfioUserVersion, TextThatIsNotTheExpectedJsonIsRefused)
{
    for (const auto *text :
         {"", "{", "[]", "1", "null", "{}x", "{} {}", R"({"capabilities":[]})", R"({"capabilities":1})",
          R"({"capabilities":{},"capabilities":{}})", "{'a':1}", "\xff\xfe"}) {
        EXPECT_FALSE(decode(text)) << text;
    }
    EXPECT_FALSE(decode("{}", false));
    EXPECT_FALSE(decode_capabilities(R"("max_msg_fds":1,"max_msg_fds":2)"));
    EXPECT_FALSE(decode_capabilities(R"("max_msg_fds":1,"max\u005fmsg_fds":2)"));
    EXPECT_TRUE(decode(std::string("{}\0garbage", 10)));  // what follows the terminator is not text
}

TEST(VfioUserVersion, DepthAndLengthAreLimited)
{
    const auto nested = [](int depth) {
        std::string text = R"({"a":)";
        for (int i = 0; i < depth; ++i) {
            text += "[";
        }
        for (int i = 0; i < depth; ++i) {
            text += "]";
        }
        return text + "}";
    };
    EXPECT_TRUE(decode(nested(7)));
    EXPECT_FALSE(decode(nested(8)));
    EXPECT_FALSE(decode(nested(100000)));
    EXPECT_FALSE(decode(R"({"a":")" + std::string(20000, 'x') + R"("})"));
}

TEST(VfioUserVersion, RoundTrip)
{
    Version version;
    version.minor = 2;
    version.capabilities.max_msg_fds = kMaxMsgFds;
    version.capabilities.max_data_xfer_size = kMaxDataXferSize;
    version.capabilities.max_dma_maps = kMaxDmaMaps;
    version.capabilities.pgsizes = kPageSize;
    version.capabilities.write_multiple = true;
    Buffer payload;
    append_version(payload, version);
    EXPECT_LE(payload.size(), 4 + kMaxVersionJson + 1);
    EXPECT_EQ(std::byte{0}, payload.back());
    const auto decoded = decode_version(payload);
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(2, decoded->minor);
    EXPECT_EQ(version.capabilities, decoded->capabilities);
}

}  // namespace
}  // namespace vvfu::vfio_user
