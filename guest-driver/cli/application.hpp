// SPDX-License-Identifier: BSD-3-Clause
//
// What the programs do between set-up and exit: one device model on one function.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "termination.hpp"
#include "vvfu/guest/counters.hpp"
#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/error.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/guest/thread_pool.hpp"
#include "vvfu/guest/transport.hpp"

namespace vvfu::cli {

class Application {
public:
    /// Everything is borrowed and outlives the application.
    struct Parts {
        Termination &termination;
        guest::Reactor &reactor;
        guest::ThreadPool &workers;
        guest::Transport &transport;
        guest::Session &session;
        guest::DeviceModel &model;
        std::string model_name;
        std::string ready;                               ///< logged when the device is registered
        std::function<guest::Counters()> core_counters;  ///< may be empty
    };

    explicit Application(Parts parts) : parts_(std::move(parts)) {}

    /// Registers the device, and runs the reactor until a signal, a failure, or the function is taken away. No worker
    /// runs any more at its return. Returns the exit status: kExitOk, kExitRuntime, kExitAbandoned or kExitGone.
    int run();

private:
    [[nodiscard]] guest::Result<void> start();
    void unplug_requested();
    /// The orderly end: withdraw the device, make its data durable, stop. The first call counts.
    void end(int status);
    void make_durable();
    void log_counters() const;
    /// `function` while this object lives.
    template <typename Function>
    auto guarded(Function function);

    Parts parts_;
    std::shared_ptr<Application *> self_ = std::make_shared<Application *>(this);
    int status_ = 0;
    bool ending_ = false, syncing_ = false;
};

}  // namespace vvfu::cli
