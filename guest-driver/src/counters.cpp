// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/counters.hpp"

#include "vvfu/guest/logging.hpp"

namespace vvfu::guest {

std::string counters_json(std::span<const CounterGroup> groups)
{
    std::string out = "{";
    for (const auto &group : groups) {
        out += (out.size() > 1 ? "," : "") + json_quote(group.name) + ":{";
        for (const auto &counter : group.counters) {
            out += (&counter == group.counters.data() ? "" : ",") + json_quote(counter.name) + ":" +
                   std::to_string(counter.value);
        }
        out += '}';
    }
    return out + '}';
}

}  // namespace vvfu::guest
