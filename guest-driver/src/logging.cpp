// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/logging.hpp"

#include <spdlog/sinks/stdout_sinks.h>

#include <chrono>
#include <ctime>
#include <utility>

namespace vvfu::guest {
namespace {

/// Length of the UTF-8 sequence that `text` starts with; 0: it is not one (RFC 3629).
std::size_t utf8_sequence(std::string_view text)
{
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned first = byte(0);
    const std::size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (length == 0 || first > 0xf4 || length > text.size()) {
        return 0;
    }
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xc0u) != 0x80) {
            return 0;
        }
    }
    const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
    const bool surrogate = first == 0xed && byte(1) >= 0xa0;
    const bool too_large = first == 0xf4 && byte(1) >= 0x90;
    return overlong || surrogate || too_large ? 0 : length;
}

void append(spdlog::memory_buf_t &out, std::string_view text)
{
    out.append(text.data(), text.data() + text.size());
}

std::string_view level_name(spdlog::level::level_enum level)
{
    const auto name = spdlog::level::to_string_view(level);
    return {name.data(), name.size()};
}

class TextFormatter final : public spdlog::formatter {
public:
    void format(const spdlog::details::log_msg &message, spdlog::memory_buf_t &out) override
    {
        append(out, {message.logger_name.data(), message.logger_name.size()});
        append(out, ": ");
        if (message.level != spdlog::level::info) {
            append(out, level_name(message.level));
            append(out, ": ");
        }
        append(out, {message.payload.data(), message.payload.size()});
        append(out, "\n");
    }
    [[nodiscard]] std::unique_ptr<formatter> clone() const override { return std::make_unique<TextFormatter>(); }
};

std::string timestamp(spdlog::log_clock::time_point time)
{
    using namespace std::chrono;
    const auto since = time.time_since_epoch();
    const std::time_t whole = duration_cast<seconds>(since).count();
    const auto micros = duration_cast<microseconds>(since).count() % 1'000'000;
    std::tm utc{};
    gmtime_r(&whole, &utc);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                       utc.tm_hour, utc.tm_min, utc.tm_sec, micros);
}

class JsonFormatter final : public spdlog::formatter {
public:
    void format(const spdlog::details::log_msg &message, spdlog::memory_buf_t &out) override
    {
        append(out, fmt::format(R"({{"ts":"{}","level":"{}","program":{},"message":{}}})", timestamp(message.time),
                                level_name(message.level),
                                json_quote({message.logger_name.data(), message.logger_name.size()}),
                                json_quote({message.payload.data(), message.payload.size()})));
        append(out, "\n");
    }
    [[nodiscard]] std::unique_ptr<formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

}  // namespace

std::string json_quote(std::string_view text)
{
    std::string out = "\"";
    while (!text.empty()) {
        const auto length = utf8_sequence(text);
        const char c = text.front();
        if (length == 0) {
            out += "\\ufffd";
        } else if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return out + '"';
}

std::unique_ptr<spdlog::formatter> make_log_formatter(LogFormat format)
{
    if (format == LogFormat::json) {
        return std::make_unique<JsonFormatter>();
    }
    return std::make_unique<TextFormatter>();
}

void init_logging(const std::string &program, const LogOptions &options)
{
    auto logger = std::make_shared<spdlog::logger>(program, std::make_shared<spdlog::sinks::stderr_sink_mt>());
    logger->set_formatter(make_log_formatter(options.format));
    logger->set_level(options.level);
    spdlog::set_default_logger(std::move(logger));
}

}  // namespace vvfu::guest
