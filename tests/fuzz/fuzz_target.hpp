// SPDX-License-Identifier: BSD-3-Clause
//
// What a fuzz target consists of. With clang (preset "fuzz") libFuzzer drives LLVMFuzzerTestOneInput; otherwise
// replay_main.cpp runs it over seeds(), mutations of them and random inputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace vvfu::fuzz {

using Input = std::vector<std::uint8_t>;

/// Inputs that reach deep; implemented by each target.
std::vector<Input> seeds();

/// A property does not hold: say which, and stop.
[[noreturn]] inline void fail(const char *what)
{
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

}  // namespace vvfu::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size);
