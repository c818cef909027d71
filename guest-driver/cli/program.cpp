// SPDX-License-Identifier: BSD-3-Clause
#include "program.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <span>
#include <string_view>
#include <utility>

#include "choice.hpp"
#include "device_models.hpp"
#include "version.hpp"

namespace vvfu::cli {
namespace {

std::string json_array(const std::vector<std::string> &values)
{
    std::string out = "[";
    for (const auto &value : values) {
        out += (out.size() > 1 ? ", " : "") + guest::json_quote(value);
    }
    return out + "]";
}

const Choices<spdlog::level::level_enum> kLevels{{"error", spdlog::level::err},
                                                 {"warning", spdlog::level::warn},
                                                 {"info", spdlog::level::info},
                                                 {"debug", spdlog::level::debug},
                                                 {"trace", spdlog::level::trace}};
const Choices<guest::LogFormat> kFormats{{"text", guest::LogFormat::text}, {"json", guest::LogFormat::json}};

const Choices<bool> kSwitch{{"on", true}, {"off", false}};

/// CLI11 says only that a subcommand is required when it was given a word that is none.
std::string explain(const CLI::App &app, const CLI::ParseError &error)
{
    const auto rest = app.remaining();
    const auto word = std::find_if(rest.begin(), rest.end(), [](const auto &text) { return !text.starts_with("-"); });
    if (!app.get_subcommands().empty() || word == rest.end()) {
        return error.what();
    }
    std::string known;
    for (const auto *command : app.get_subcommands([](const CLI::App *) { return true; })) {
        known += (known.empty() ? "" : ", ") + command->get_name();
    }
    return "'" + *word + "' is not one of: " + known;
}

void report_usage_error(const CLI::App &app, const ProgramInfo &info, const CLI::ParseError &error)
{
    std::string help = "--help";
    const auto chosen = app.get_subcommands();
    if (!chosen.empty()) {
        help = chosen.front()->get_name() + " --help";
    }
    std::cerr << info.name << ": " << explain(app, error) << " (see " << info.name << ' ' << help << ")\n";
}

const char *terminating_program = "";

/// Where an exception cannot be caught: in a function that promises not to throw, or while another one is on its way.
/// Without allocation, which may be what failed.
[[noreturn]] void report_terminate()
{
    const char *what = "internal error";
    try {
        if (const auto error = std::current_exception()) {
            std::rethrow_exception(error);
        }
    } catch (const std::exception &error) {
        what = error.what();
    } catch (...) {
    }
    for (const char *text : {terminating_program, ": error: ", what, "\n"}) {
        static_cast<void>(!::write(STDERR_FILENO, text, std::strlen(text)));
    }
    ::_exit(kExitRuntime);
}

/// A file that is opened as number 2 would get our log lines.
bool open_standard_fds()
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
        // The lowest free number is taken, and those below are open already.
        if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", O_RDWR) != fd) {
            return false;
        }
    }
    return true;
}

}  // namespace

std::string capabilities_json(const ProgramInfo &info)
{
    return "{\n  \"type\": " + guest::json_quote(info.type) + ",\n  \"version\": " + guest::json_quote(kVersion) +
           ",\n  \"control-protocol\": " + guest::json_quote(kControlProtocolVersion) +
           ",\n  \"models\": " + json_array(DeviceModels::names()) + ",\n  \"features\": " + json_array(info.features) +
           "\n}\n";
}

void add_common_options(CLI::App &app, const ProgramInfo &info, guest::LogOptions &log)
{
    app.set_version_flag("--version",
                         info.name + " " + kVersion + " (control protocol " + kControlProtocolVersion + ")",
                         "Print program and protocol version and exit");
    app.add_flag("--print-capabilities")
        ->description("Print what this program can do as JSON and exit; ignores all other arguments");
    add_choice(app, "--log-level", "Least severe level to log (default: info)", kLevels, log.level);
    add_choice(app, "--log-format", "Format of log lines on stderr (default: text)", kFormats, log.format);
}

void add_sandbox_options(CLI::App &app, SandboxOptions &options)
{
    add_choice(app, "--sandbox", "Give up privileges and most system calls after set-up (default: on)", kSwitch,
               options.enabled);
    app.add_option("--user", options.user, "User to become after set-up: a name of /etc/passwd, UID or UID:GID")
        ->type_name("USER")
        ->check([](const std::string &user) {
            const auto found = find_user(user);
            return found ? std::string{} : found.error().message;
        });
}

std::optional<int> parse_command_line(CLI::App &app, const ProgramInfo &info, guest::LogOptions &log, int argc,
                                      const char *const *argv)
{
    // Looked for by hand: it works together with anything, as back-end program conventions ask.
    const auto is_capabilities = [](const char *argument) {
        return std::string_view{argument} == "--print-capabilities";
    };
    const std::span arguments{argv + 1, argv + std::max(argc, 1)};
    if (std::any_of(arguments.begin(), arguments.end(), is_capabilities)) {
        std::cout << capabilities_json(info) << std::flush;
        return kExitOk;
    }
    // CLI11 would take the next argument for the value.
    const auto is_empty = [](std::string_view argument) {
        return argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    };
    if (const auto empty = std::find_if(arguments.begin(), arguments.end(), is_empty); empty != arguments.end()) {
        std::cerr << info.name << ": " << *empty << " has no value (see " << info.name << " --help)\n";
        return kExitUsage;
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
            app.exit(error);  // prints help or version
            return kExitOk;
        }
        report_usage_error(app, info, error);
        return kExitUsage;
    }
    guest::init_logging(info.name, log);
    return std::nullopt;
}

int report_failure(const std::string &message)
{
    spdlog::error("{}", message);
    return kExitRuntime;
}

int run_program(const ProgramInfo &info, const std::function<int()> &run)
{
    terminating_program = info.name.c_str();
    std::set_terminate(report_terminate);
    if (!open_standard_fds()) {
        return kExitRuntime;
    }
    try {
        guest::init_logging(info.name, {});  // until the command line says how
        return run();
    } catch (const std::exception &error) {
        return report_failure(error.what());
    }
}

}  // namespace vvfu::cli
