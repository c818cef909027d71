// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-bench: what vvfu-loopback costs, beside raw sockets and eventfds measured in the same run.
#include <sched.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>

#include "items.hpp"

namespace {

std::string loopback_beside_this_program()
{
    std::error_code error;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
    return (self.parent_path() / "vvfu-loopback").string();
}

/// For this program and everything it starts.
void stay_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0) {
        throw std::system_error(errno, std::generic_category(), "cannot run on CPU " + std::to_string(cpu));
    }
}

}  // namespace

int main(int argc, char **argv)
{
    CLI::App app{"Measures vvfu-loopback: register accesses, DMA mappings, copies, NVMe reads, idle costs"};
    vvfu::bench::Plan plan;
    plan.loopback = loopback_beside_this_program();
    int cpu = -1;
    bool as_json = false, as_quick = false;
    app.add_option("--loopback", plan.loopback, "Path of vvfu-loopback (default: beside this program)")
        ->type_name("PATH");
    app.add_option("--rounds", plan.rounds, "How often each item is measured; results are medians")
        ->check(CLI::Range(1u, 1000u))
        ->capture_default_str();
    app.add_option("--cpu", cpu,
                   "Keep everything on this CPU: waking another CPU can cost more than all the rest, and whether it "
                   "happens is the scheduler's choice")
        ->check(CLI::Range(0, CPU_SETSIZE - 1));
    app.add_flag("--json", as_json, "Print one JSON object instead of a table");
    app.add_flag("--quick", as_quick, "Few repetitions: shows that it works, not how fast it is");
    app.set_version_flag("--version", VVFU_VERSION);
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp &help) {
        return app.exit(help);
    } catch (const CLI::CallForVersion &version) {
        return app.exit(version);
    } catch (const CLI::ParseError &error) {
        std::fprintf(stderr, "vvfu-bench: %s\n", error.what());
        return 2;
    }
    try {
        if (cpu >= 0) {
            stay_on(cpu);
        }
        if (as_quick) {
            plan = vvfu::bench::quick(plan);
        }
        const auto rows = vvfu::bench::run(plan);
        if (as_json) {
            vvfu::bench::print_json(std::cout, rows);
        } else {
            vvfu::bench::print_table(std::cout, rows);
        }
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "vvfu-bench: %s\n", error.what());
        return 1;
    }
}
