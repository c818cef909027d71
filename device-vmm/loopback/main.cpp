// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-loopback: a vfio-user server for stock clients, with core, control queues and device model in one process.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "application.hpp"
#include "device_models.hpp"
#include "program.hpp"
#include "sandbox.hpp"
#include "termination.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/guest/thread_pool.hpp"
#include "vvfu/guest/vfio_transport.hpp"
#include "vvfu/loopback/loopback_port.hpp"

namespace vvfu::loopback {
namespace {

constexpr const char *kProgram = "vvfu-loopback";

struct Options {
    std::string socket_path;
    int fd = -1;
    std::string uuid;
    std::uint64_t window_size = std::uint64_t{256} << 30;
    std::uint64_t region_memory_size = 0;
    std::uint32_t doorbells = 64;
    std::uint32_t unmap_timeout_ms = 1000, access_timeout_ms = 2000;
    std::uint32_t poll_us = 0;
    bool trust_peer_memory = false;
    cli::SandboxOptions sandbox;
};

std::string check_uuid(const std::string &text)
{
    return guest::parse_uuid(text) ? std::string{} : "'" + text + "' is not a UUID";
}

/// A check of a size in bytes. The limit is that of the QEMU port; it also refuses what was a negative number.
CLI::Validator pages(std::uint64_t least)
{
    const auto check = [least](const std::string &bytes) {
        constexpr std::uint64_t kPage = 4096, kMost = std::uint64_t{1} << 60;
        const auto size = std::stoull(bytes);
        return size % kPage == 0 && size >= least && size <= kMost
                   ? std::string{}
                   : bytes + " is not a multiple of 4096 between " + std::to_string(least) + " and 2^60";
    };
    return {check, ""};
}

void add_options(CLI::App &app, Options &options)
{
    CLI::Validator size = CLI::AsSizeValue{false};
    size.description("");  // its own lists every unit
    const CLI::Range timeout{1, 4000};
    auto *where = app.add_option_group("socket", "Where peers connect; one of:");
    where->add_option("--socket-path", options.socket_path, "UNIX socket to create")->type_name("PATH");
    where->add_option("--fd", options.fd, "Listening UNIX socket that was passed to this process")
        ->type_name("FD")
        ->check(CLI::Range(0, std::numeric_limits<int>::max()));
    where->require_option(1);
    app.add_option("--uuid", options.uuid, "Identity of the virtio-vfio-user device")
        ->type_name("UUID")
        ->check(check_uuid);
    app.add_option("--window-size", options.window_size, "Peer memory that can be mapped at a time (default: 256G)")
        ->type_name("SIZE")
        ->transform(size)
        ->check(pages(4096));
    app.add_option("--region-memory-size", options.region_memory_size,
                   "Memory for device areas that the peer may map (default: what the model needs)")
        ->type_name("SIZE")
        ->transform(size)
        ->check(pages(0));
    app.add_option("--doorbells", options.doorbells, "Interrupt vectors that the device can have (default: 64)")
        ->type_name("N")
        ->check(CLI::Range(1u, kMaxDoorbells));
    app.add_option("--unmap-timeout", options.unmap_timeout_ms,
                   "Longest wait for the model to let go of memory that the peer unmaps (default: 1000)")
        ->type_name("MS")
        ->check(timeout);
    app.add_option("--access-timeout", options.access_timeout_ms,
                   "Longest wait for the model to answer a request (default: 2000)")
        ->type_name("MS")
        ->check(timeout);
    app.add_option("--poll", options.poll_us,
                   "Look for the next request that long before sleeping; costs processor time (default: 0)")
        ->type_name("US")
        ->check(CLI::Range(0, 1000000));
    app.add_flag("--trust-peer-memory", options.trust_peer_memory,
                 "Map memory files that the peer could truncate (a truncated file kills this process)");
    cli::add_sandbox_options(app, options.sandbox);
    app.footer(
        "Exit status: 0 ended by SIGTERM, SIGINT or SIGHUP; 1 failure; 2 bad command line; 3 ended, but work was\n"
        "abandoned, and data may be lost. SIGUSR1 logs counters.\n"
        "Example: vvfu-loopback --socket-path=/run/nvme.sock nvme --backing=disk.img");
}

core::CoreConfig core_config(const Options &options, std::uint64_t model_region_memory)
{
    core::CoreConfig config;
    config.uuid = guest::parse_uuid(options.uuid).value_or(Uuid{});
    config.window_size = options.window_size;
    config.region_memory_size = std::max(options.region_memory_size, model_region_memory);
    config.doorbells = options.doorbells;
    config.trust_peer_memory = options.trust_peer_memory;
    config.unmap_timeout = std::chrono::milliseconds{options.unmap_timeout_ms};
    config.access_timeout = std::chrono::milliseconds{options.access_timeout_ms};
    return config;
}

guest::Counters core_counters(const core::CoreState &state)
{
    return {{"sessions", state.epoch},
            {"requests", state.requests},
            {"protocol_errors", state.protocol_errors},
            {"deadline_expiries", state.deadline_expiries},
            {"unknown_replies", state.unknown_replies},
            {"silences", state.silences},
            {"dropped_accesses", state.dropped_accesses},
            {"mapped_bytes", state.mapped_bytes},
            {"mapped_ranges", state.mapped_ranges},
            {"message_ranges", state.message_ranges}};
}

int run(const Options &options, const cli::DeviceModels &models)
{
    cli::limit_capabilities(options.sandbox, true);  // also the device VMM's thread, which makes the socket
    cli::Termination termination{[&options] { cli::limit_capabilities(options.sandbox, false); }};
    auto reactor = guest::Reactor::create();
    if (!reactor) {
        return cli::report_failure(reactor.error().message);
    }
    auto port =
        LoopbackPort::create({options.socket_path, Fd{options.fd}, core_config(options, models.region_memory_size())});
    if (!port) {
        return cli::report_failure(port.error().message);
    }
    guest::ThreadPool workers{**reactor};
    auto &transport = (*port)->transport();
    guest::Session session{transport, **reactor, workers, {.poll = std::chrono::microseconds{options.poll_us}}};
    auto model = models.create(session.services());
    if (!model) {
        return cli::report_failure(model.error().message);
    }
    // The socket is made by the user that it is for, in a directory that is that user's.
    if (auto confined = cli::enter_sandbox(options.sandbox, cli::Needs::local_sockets); !confined) {
        return cli::report_failure(confined.error().message);
    }
    const auto where = options.socket_path.empty() ? "fd " + std::to_string(options.fd) : options.socket_path;
    cli::Application application{{termination, **reactor, workers, transport, session, **model, models.name(),
                                  "serving on " + where, [&] { return core_counters((*port)->state()); }}};
    return application.run();
}

const cli::ProgramInfo kInfo{kProgram, "vfio-user", {"socket-path", "fd", "log-format-json"}};

int main_checked(int argc, char **argv)
{
    CLI::App app{"vfio-user server with an emulated PCI device, for unmodified vfio-user clients", kProgram};
    Options options;
    guest::LogOptions log;
    add_options(app, options);
    cli::add_common_options(app, kInfo, log);
    cli::DeviceModels models{app};
    if (const auto status = cli::parse_command_line(app, kInfo, log, argc, argv)) {
        return *status;
    }
    if (!models.chosen()) {
        std::string names;
        for (const auto &name : cli::DeviceModels::names()) {
            names += (names.empty() ? "" : " or ") + name;
        }
        std::cerr << kProgram << ": a subcommand is required: " << names << " (see " << kProgram << " --help)\n";
        return cli::kExitUsage;
    }
    return run(options, models);
}

}  // namespace
}  // namespace vvfu::loopback

int main(int argc, char **argv)
{
    return vvfu::cli::run_program(vvfu::loopback::kInfo, [&] { return vvfu::loopback::main_checked(argc, argv); });
}
