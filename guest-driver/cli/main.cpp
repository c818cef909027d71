// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-guest: implements a PCI device of another VM on a virtio-vfio-user function of this one.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
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

namespace {

using namespace vvfu;

const cli::ProgramInfo kProgram{"vvfu-guest", "vfio-user", {"device", "uuid", "list", "wait", "log-format-json"}};

struct Arguments {
    std::string device, uuid;
    std::uint32_t poll_us = 0;
    bool wait = false;
    cli::SandboxOptions sandbox;
};

int list()
{
    const auto functions = guest::list_functions();
    fmt::print("{:<13} {:<37} {:>10} {:<10} {:<6} {}\n", "ADDRESS", "UUID", "WINDOW", "DRIVER", "GROUP", "STATE");
    for (const auto &f : functions) {
        fmt::print("{:<13} {:<37} {:>10} {:<10} {:<6} {}\n", f.address, f.uuid ? guest::to_string(*f.uuid) : "-",
                   fmt::format("{} MiB", f.window_size >> 20), f.driver.empty() ? "-" : f.driver,
                   f.iommu_group.empty() ? "-" : f.iommu_group, f.state);
    }
    return cli::kExitOk;
}

guest::Result<std::unique_ptr<guest::Transport>> open_transport(const Arguments &arguments)
{
    if (!arguments.device.empty()) {
        return guest::open_vfio_transport(arguments.device);
    }
    return guest::open_vfio_transport(*guest::parse_uuid(arguments.uuid));
}

/// One life of the function: until the program is to end, or the function is taken away. Everything that belongs to it
/// is released at the return. Returns the exit status.
int serve_once(const Arguments &arguments, const cli::DeviceModels &models, cli::Termination &termination,
               std::unique_ptr<guest::Transport> transport)
{
    auto reactor = guest::Reactor::create();
    if (!reactor) {
        return cli::report_failure(reactor.error().message);
    }
    guest::ThreadPool workers{**reactor};
    guest::SessionOptions options;
    options.poll = std::chrono::microseconds{arguments.poll_us};
    // The model goes before the session: it may still name the session's services when it is destroyed.
    guest::Session session{*transport, **reactor, workers, options};
    auto model = models.create(session.services());
    if (!model) {
        return cli::report_failure(model.error().message);
    }
    if (!arguments.wait) {
        if (auto confined = cli::enter_sandbox(arguments.sandbox, cli::Needs::nothing); !confined) {
            return cli::report_failure(confined.error().message);
        }
    }
    cli::Application application{{termination,
                                  **reactor,
                                  workers,
                                  *transport,
                                  session,
                                  **model,
                                  models.name(),
                                  fmt::format("{} on {} is ready for a peer", models.name(), transport->name()),
                                  {}}};
    return application.run();
}

/// Waits until function and backings are there, looking every kLookInterval. Null: told to end.
guest::Result<std::unique_ptr<guest::Transport>> wait_for_function(const Arguments &arguments,
                                                                   const cli::DeviceModels &models,
                                                                   cli::Termination &termination)
{
    constexpr std::chrono::milliseconds kLookInterval{500};
    auto reactor = guest::Reactor::create();
    if (!reactor) {
        return make_unexpected(reactor.error());
    }
    std::unique_ptr<guest::Transport> transport;
    std::string reason;
    std::function<void()> look = [&] {
        std::string obstacle;
        if (const auto missing = models.missing(); !missing.empty()) {
            obstacle = fmt::format("backing \"{}\" does not exist", missing);
        } else if (auto opened = open_transport(arguments); !opened) {
            obstacle = opened.error().message;
        } else {
            transport = std::move(*opened);
            (*reactor)->stop();
            return;
        }
        if (reason != obstacle) {
            reason = obstacle;
            spdlog::info("waiting: {}", reason);
        }
        (*reactor)->after(kLookInterval, look);
    };
    std::atomic<bool> told{false};
    termination.attach({[&](int signal) {
                            spdlog::info("{}: stopping", ::strsignal(signal));
                            told = true;
                            (*reactor)->stop();
                        },
                        {},
                        {}});
    (*reactor)->post(look);
    (*reactor)->run();
    termination.detach(cli::kExitOk);
    return told ? nullptr : std::move(transport);
}

int serve(const Arguments &arguments, const cli::DeviceModels &models)
{
    cli::Termination termination{[&] { cli::limit_capabilities(arguments.sandbox, false); }};
    cli::raise_locked_memory_limit();  // DMA memory is allocated without privilege
    if (!arguments.wait) {
        auto transport = open_transport(arguments);
        if (!transport) {
            return cli::report_failure(transport.error().message);
        }
        return serve_once(arguments, models, termination, std::move(*transport));
    }
    // What is opened later is opened with the same rights as what is opened now.
    if (auto confined = cli::enter_sandbox(arguments.sandbox, cli::Needs::functions); !confined) {
        return cli::report_failure(confined.error().message);
    }
    for (;;) {
        auto transport = wait_for_function(arguments, models, termination);
        if (!transport) {
            return cli::report_failure(transport.error().message);
        }
        if (!*transport) {
            return cli::kExitOk;
        }
        const int status = serve_once(arguments, models, termination, std::move(*transport));
        if (status != cli::kExitGone) {
            return status;
        }
    }
}

void describe_arguments(CLI::App &app, Arguments &arguments)
{
    auto *device = app.add_option("--device", arguments.device, "PCI address of the function, as 0000:00:04.0");
    device->type_name("ADDRESS")->check([](const std::string &text) {
        return guest::is_pci_address(text) ? std::string{} : "'" + text + "' is not a PCI address like 0000:00:04.0";
    });
    app.add_option("--uuid", arguments.uuid, "UUID of the function, instead of its address")
        ->type_name("UUID")
        ->excludes(device)
        ->check([](const std::string &text) {
            return guest::parse_uuid(text) ? std::string{} : "'" + text + "' is not a UUID";
        });
    app.add_option("--poll", arguments.poll_us,
                   "Microseconds to poll for the next request before sleeping; costs a CPU while requests come")
        ->type_name("US")
        ->check(CLI::Range(0u, 1000000u))
        ->capture_default_str();
    app.add_flag("--wait", arguments.wait,
                 "Wait until the function and the backings are there, and again after the function was unplugged");
    cli::add_sandbox_options(app, arguments.sandbox);
    app.footer(
        "Exit status: 0 listed, or ended by SIGTERM, SIGINT or SIGHUP; 1 failure; 2 bad command line; 3 ended, but "
        "work\n"
        "was abandoned, and data may be lost; 4 the function was unplugged. SIGUSR1 logs counters.\n"
        "Example: vvfu-guest --device=0000:00:04.0 nvme --backing=/dev/vdb");
}

int main_checked(int argc, char **argv)
{
    CLI::App app{"Implements a PCI device of another VM on a virtio-vfio-user function", kProgram.name};
    Arguments arguments;
    guest::LogOptions log;
    cli::add_common_options(app, kProgram, log);
    describe_arguments(app, arguments);
    cli::DeviceModels models{app};
    auto *list_command = app.add_subcommand("list", "Show the virtio-vfio-user functions of this machine");
    list_command->fallthrough();
    for (const auto *option : {"--device", "--uuid", "--poll", "--wait", "--sandbox", "--user"}) {
        list_command->excludes(app.get_option(option));  // it shows all functions, and drives none
    }
    app.require_subcommand(1);

    if (const auto exit_code = cli::parse_command_line(app, kProgram, log, argc, argv)) {
        return *exit_code;
    }
    if (list_command->parsed()) {
        return list();
    }
    if (arguments.device.empty() && arguments.uuid.empty()) {
        std::cerr << kProgram.name << ": --device or --uuid is required (see `vvfu-guest list`)\n";
        return cli::kExitUsage;
    }
    return serve(arguments, models);
}

}  // namespace

int main(int argc, char **argv)
{
    return vvfu::cli::run_program(kProgram, [&] { return main_checked(argc, argv); });
}
