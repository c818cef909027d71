// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-guest: implements a PCI device of another VM on a virtio-vfio-user function of this one.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "device_models.hpp"
#include "program.hpp"
#include "termination.hpp"
#include "vvfu/base/fd.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/guest/thread_pool.hpp"
#include "vvfu/guest/vfio_transport.hpp"

namespace {

using namespace vvfu;

const cli::ProgramInfo kProgram{"vvfu-guest", "vfio-user", {"device", "uuid", "list", "log-format-json"}};

struct Arguments {
    std::string device, uuid;
    std::uint32_t poll_us = 0;
};

int fail(const std::string &message)
{
    spdlog::error("{}", message);
    return cli::kExitRuntime;
}

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

/// Everything between a running session and the end of the program.
class Application {
public:
    Application(guest::Reactor &reactor, guest::Session &session) : reactor_(reactor), session_(session) {}

    int run(guest::DeviceModel &model, const std::string &what, int signals)
    {
        auto watched = reactor_.watch(signals, EPOLLIN, [this, signals](std::uint32_t) { on_signal(signals); });
        if (!watched) {
            return fail(watched.error().message);
        }
        session_.start(
            model,
            [this, what](guest::Result<void> result) {
                if (result) {
                    spdlog::info("{} is ready for a peer", what);
                } else {
                    give_up(result.error());
                }
            },
            [this](const guest::Error &error) { give_up(error); });
        reactor_.run();
        reactor_.unwatch(signals);
        return exit_code_;
    }

private:
    void on_signal(int signals)
    {
        signalfd_siginfo info{};
        if (::read(signals, &info, sizeof info) == sizeof info) {
            spdlog::info("{}: stopping", ::strsignal(static_cast<int>(info.ssi_signo)));
            stop();
        }
    }
    void give_up(const guest::Error &error)
    {
        exit_code_ = fail(error.message);
        stop();
    }
    void stop()
    {
        if (!stopping_) {
            stopping_ = true;
            session_.stop([this] { reactor_.stop(); });
        }
    }

    guest::Reactor &reactor_;
    guest::Session &session_;
    bool stopping_ = false;
    int exit_code_ = cli::kExitOk;
};

int serve(const Arguments &arguments, const cli::DeviceModels &models)
{
    const Fd signals = cli::termination_signals();
    auto transport = open_transport(arguments);
    if (!transport) {
        return fail(transport.error().message);
    }
    auto reactor = guest::Reactor::create();
    if (!reactor) {
        return fail(reactor.error().message);
    }
    guest::ThreadPool workers{**reactor};
    guest::SessionOptions options;
    options.poll = std::chrono::microseconds{arguments.poll_us};
    // The model goes before the session: it may still name the session's services when it is destroyed.
    guest::Session session{**transport, **reactor, workers, options};
    auto model = models.create(session.services());
    if (!model) {
        return fail(model.error().message);
    }
    return Application{**reactor, session}.run(**model, fmt::format("{} on {}", models.name(), (*transport)->name()),
                                               signals.get());
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
    app.footer(
        "Exit status: 0 listed, or ended by SIGTERM, SIGINT or SIGHUP; 1 failure; 2 bad command line.\n"
        "Example: vvfu-guest --device=0000:00:04.0 nvme --backing=/dev/vdb");
}

}  // namespace

int main(int argc, char **argv)
{
    CLI::App app{"Implements a PCI device of another VM on a virtio-vfio-user function", kProgram.name};
    Arguments arguments;
    guest::LogOptions log;
    cli::add_common_options(app, kProgram, log);
    describe_arguments(app, arguments);
    cli::DeviceModels models{app};
    auto *list_command = app.add_subcommand("list", "Show the virtio-vfio-user functions of this machine");
    list_command->fallthrough();
    for (const auto *option : {"--device", "--uuid", "--poll"}) {
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
