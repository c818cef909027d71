// SPDX-License-Identifier: BSD-3-Clause
//
// Logging of the programs: spdlog's default logger, to stderr, as text or as JSON lines. Code logs with
// spdlog::info() and kin.
#pragma once

#include <spdlog/spdlog.h>

#include <memory>
#include <string>
#include <string_view>

namespace vvfu::guest {

enum class LogFormat {
    text,  ///< "program: warning: message"; no level for info
    json,  ///< one object per line: ts (UTC, RFC 3339), level, program, message
};

struct LogOptions {
    spdlog::level::level_enum level = spdlog::level::info;
    LogFormat format = LogFormat::text;
};

/// Makes a logger named `program` that writes to stderr the default logger. Call it once, before threads are started.
void init_logging(const std::string &program, const LogOptions &options);

/// The formatter that init_logging() installs.
[[nodiscard]] std::unique_ptr<spdlog::formatter> make_log_formatter(LogFormat format);

/// `text` as a JSON string literal, quotes included. Bytes that are not UTF-8 become U+FFFD.
[[nodiscard]] std::string json_quote(std::string_view text);

}  // namespace vvfu::guest
