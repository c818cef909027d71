// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/logging.hpp"

#include <gmock/gmock.h>

namespace vvfu::guest {
namespace {

std::string format(LogFormat kind, spdlog::level::level_enum level, std::string_view text)
{
    const spdlog::details::log_msg message{spdlog::log_clock::time_point{std::chrono::milliseconds{1'700'000'000'123}},
                                           spdlog::source_loc{}, "prog", level, text};
    spdlog::memory_buf_t out;
    make_log_formatter(kind)->clone()->format(message, out);
    return {out.data(), out.size()};
}

TEST(Logging, TextHasProgramAndLevel)
{
    EXPECT_EQ(format(LogFormat::text, spdlog::level::info, "hello"), "prog: hello\n");
    EXPECT_EQ(format(LogFormat::text, spdlog::level::err, "bad"), "prog: error: bad\n");
}

TEST(Logging, JsonLineIsOneEscapedObject)
{
    EXPECT_EQ(format(LogFormat::json, spdlog::level::warn, "say \"hi\"\n"),
              "{\"ts\":\"2023-11-14T22:13:20.123000Z\",\"level\":\"warning\",\"program\":\"prog\","
              "\"message\":\"say \\\"hi\\\"\\u000a\"}\n");
}

TEST(Logging, JsonQuoteKeepsUtf8AndReplacesEverythingElse)
{
    EXPECT_EQ(json_quote("a\\b\x7f"), "\"a\\\\b\\u007f\"");
    EXPECT_EQ(json_quote("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), "\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\"");
    EXPECT_EQ(json_quote("\xff"), "\"\\ufffd\"");
    EXPECT_EQ(json_quote("\xc3"), "\"\\ufffd\"") << "cut short";
    EXPECT_EQ(json_quote("\xc0\x80"), "\"\\ufffd\\ufffd\"") << "overlong";
    EXPECT_EQ(json_quote("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"") << "surrogate";
    EXPECT_EQ(json_quote("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"") << "above U+10FFFF";
    EXPECT_EQ(json_quote(""), "\"\"");
}

}  // namespace
}  // namespace vvfu::guest
