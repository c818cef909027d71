// SPDX-License-Identifier: BSD-3-Clause
//
// What the programs of this project have in common on their command lines.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sandbox.hpp"
#include "vvfu/guest/logging.hpp"

namespace vvfu::cli {

/// Exit codes.
inline constexpr int kExitOk = 0;
inline constexpr int kExitRuntime = 1;    ///< set-up or operation failed
inline constexpr int kExitUsage = 2;      ///< bad command line
inline constexpr int kExitAbandoned = 3;  ///< ended with work unfinished: data may be lost
inline constexpr int kExitGone = 4;       ///< the function was unplugged

struct ProgramInfo {
    std::string name;                   ///< for messages, "vvfu-guest"
    std::string type;                   ///< "type" of --print-capabilities, "vfio-user" for back-end programs
    std::vector<std::string> features;  ///< "features" of --print-capabilities
};

/// Adds --version, --print-capabilities, --log-level and --log-format. `log` outlives `app`.
void add_common_options(CLI::App &app, const ProgramInfo &info, guest::LogOptions &log);

/// Adds --sandbox and --user. `options` outlives `app`.
void add_sandbox_options(CLI::App &app, SandboxOptions &options);

/// Parses the command line and starts logging. A value: exit with it (help, version and capabilities are printed to
/// stdout; an error is one line on stderr, prefixed with the program's name).
[[nodiscard]] std::optional<int> parse_command_line(CLI::App &app, const ProgramInfo &info, guest::LogOptions &log,
                                                    int argc, const char *const *argv);

/// Logs the one line of a failure; returns kExitRuntime.
int report_failure(const std::string &message);

/// Runs `run`, which returns the exit status. What main() consists of: standard file descriptors that are closed are
/// opened, so that nothing else gets their numbers, and every exception becomes one line and kExitRuntime.
int run_program(const ProgramInfo &info, const std::function<int()> &run);

/// The object that --print-capabilities prints, with a final newline.
[[nodiscard]] std::string capabilities_json(const ProgramInfo &info);

}  // namespace vvfu::cli
