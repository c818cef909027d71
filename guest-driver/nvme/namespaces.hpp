// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backing.hpp"
#include "spec.hpp"

namespace vvfu::nvme {

struct Namespace {
    std::unique_ptr<Backing> backing;
    bool read_only = false;
    bool lost = false;  ///< a flush has failed: what was acknowledged is not all there

    [[nodiscard]] std::uint64_t blocks() const noexcept { return backing->size() >> kBlockShift; }
};

/// All of them active; namespace identifier i + 1 is element i.
using Namespaces = std::vector<Namespace>;

}  // namespace vvfu::nvme
