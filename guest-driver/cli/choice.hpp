// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace vvfu::cli {

/// The words that an option takes, with what each means.
template <typename T>
using Choices = std::vector<std::pair<std::string, T>>;

/// An option that takes one of a few words. CLI11's own transformer would show the numbers behind them to people.
/// `choices` and `value` outlive `app`.
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

}  // namespace vvfu::cli
