// SPDX-License-Identifier: BSD-3-Clause
//
// Runs a fuzz target without libFuzzer: its seeds, mutations of them and random inputs, the same in every run.
//   TARGET [ROUNDS]          ROUNDS mutated and random inputs (default 2000)
//   TARGET --write=FOLDER    writes the seeds as a corpus for libFuzzer
//   TARGET FILE...           runs files, such as those that libFuzzer left
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "fuzz_target.hpp"

namespace {

using vvfu::fuzz::Input;

void run(const Input &input)
{
    LLVMFuzzerTestOneInput(input.data(), input.size());
}

Input mutate(Input input, std::mt19937 &random)
{
    const auto changes = 1 + random() % 8;
    for (unsigned i = 0; i < changes; ++i) {
        const auto at = input.empty() ? 0 : random() % input.size();
        switch (random() % 4) {
            case 0:
                input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(random()));
                break;
            case 1:
                if (!input.empty()) {
                    input.erase(input.begin() + static_cast<std::ptrdiff_t>(at));
                }
                break;
            default:
                if (!input.empty()) {
                    input[at] = static_cast<std::uint8_t>(random() % 3 == 0 ? 0xff : random());
                }
        }
    }
    return input;
}

Input random_input(std::mt19937 &random)
{
    Input input(random() % 400);
    for (auto &byte : input) {
        byte = static_cast<std::uint8_t>(random());
    }
    return input;
}

int write_corpus(const std::string &folder)
{
    int number = 0;
    for (const auto &seed : vvfu::fuzz::seeds()) {
        std::ofstream file{folder + "/seed-" + std::to_string(number++), std::ios::binary};
        file.write(reinterpret_cast<const char *>(seed.data()), static_cast<std::streamsize>(seed.size()));
        if (!file.flush()) {
            std::fprintf(stderr, "cannot write to %s\n", folder.c_str());
            return 1;
        }
    }
    return 0;
}

int run_file(const char *path)
{
    std::ifstream file{path, std::ios::binary};
    if (!file) {
        std::fprintf(stderr, "cannot read %s\n", path);
        return 1;
    }
    run(Input{std::istreambuf_iterator<char>{file}, {}});
    return 0;
}

}  // namespace

int main(int argc, char **argv)
{
    const std::string first = argc > 1 ? argv[1] : "2000";
    if (first.starts_with("--write=")) {
        return write_corpus(first.substr(8));
    }
    if (first.find_first_not_of("0123456789") != std::string::npos) {
        int result = 0;
        for (int i = 1; i < argc; ++i) {
            result |= run_file(argv[i]);
        }
        return result;
    }
    const auto seeds = vvfu::fuzz::seeds();
    for (const auto &seed : seeds) {
        run(seed);
    }
    std::mt19937 random{20261120};
    const auto rounds = std::stoul(first);
    for (unsigned long round = 0; round < rounds; ++round) {
        run(round % 4 == 0 ? random_input(random) : mutate(seeds[random() % seeds.size()], random));
    }
    return 0;
}
