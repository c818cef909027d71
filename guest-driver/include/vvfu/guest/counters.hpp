// SPDX-License-Identifier: BSD-3-Clause
//
// Numbers that a program can read: what each part counted since the program started.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace vvfu::guest {

/// Only ever grows, unless its name says otherwise (a gauge: "requests_in_flight").
struct Counter {
    std::string name;  ///< lower case with underscores, without the name of the part: "read_commands"
    std::uint64_t value = 0;
};
using Counters = std::vector<Counter>;

/// The counters of one part: "session", "dma", "core", or a model by its name.
struct CounterGroup {
    std::string name;
    Counters counters;
};

/// One line of JSON: {"session":{"requests":17},"nvme":{"read_commands":3}}. Groups and counters in the order given.
[[nodiscard]] std::string counters_json(std::span<const CounterGroup> groups);

}  // namespace vvfu::guest
