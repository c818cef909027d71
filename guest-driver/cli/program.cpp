// SPDX-License-Identifier: BSD-3-Clause
#include "program.hpp"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <span>
#include <string_view>
#include <utility>

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

template <typename T>
using Choices = std::vector<std::pair<std::string, T>>;

const Choices<spdlog::level::level_enum> kLevels{{"error", spdlog::level::err},
                                                 {"warning", spdlog::level::warn},
                                                 {"info", spdlog::level::info},
                                                 {"debug", spdlog::level::debug},
                                                 {"trace", spdlog::level::trace}};
const Choices<guest::LogFormat> kFormats{{"text", guest::LogFormat::text}, {"json", guest::LogFormat::json}};

/// An option that takes one of a few words. CLI11's own transformer would show the numbers behind them to people.
template <typename T>
void add_choice(CLI::App &app, const char *name, const char *description, const Choices<T> &choices, T &value)
{
    std::string words;
    for (const auto &choice : choices) {
        words += (words.empty() ? "" : "|") + choice.first;
    }
    const auto store = [&choices, &value, words, option = std::string(name)](const std::string &word) {
        const auto it = std::find_if(choices.begin(), choices.end(), [&](const auto &c) { return c.first == word; });
        if (it == choices.end()) {
            throw CLI::ValidationError(option, "'" + word + "' is not one of " + words);
        }
        value = it->second;
    };
    app.add_option_function<std::string>(name, store, description)->type_name(words);
}

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

}  // namespace vvfu::cli
