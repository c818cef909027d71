// SPDX-License-Identifier: BSD-3-Clause
#include "application.hpp"

#include <spdlog/spdlog.h>
#include <sys/epoll.h>

#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "program.hpp"

namespace vvfu::cli {
namespace {

/// Of Termination::kEndLimit, for withdrawing the device. A model that does not come to rest by then has its data made
/// durable all the same: one backing may hang and the others not.
constexpr std::chrono::milliseconds kWithdrawLimit{700};

}  // namespace

template <typename Function>
auto Application::guarded(Function function)
{
    return [alive = std::weak_ptr<Application *>{self_}, function](auto &&...arguments) {
        if (alive.lock()) {
            function(std::forward<decltype(arguments)>(arguments)...);
        }
    };
}

int Application::run()
{
    auto &reactor = parts_.reactor;
    parts_.termination.attach({[this](int signal) {
                                   parts_.reactor.post(guarded([this, signal] {
                                       spdlog::info("{}: stopping", ::strsignal(signal));
                                       end(kExitOk);
                                   }));
                               },
                               [this] { parts_.reactor.post(guarded([this] { log_counters(); })); },
                               [this] { return parts_.model.unfinished(); }});
    try {
        if (const auto started = start(); started) {
            reactor.run();
        } else {
            status_ = report_failure(started.error().message);
        }
    } catch (const std::exception &error) {
        status_ = report_failure(error.what());  // the session cannot be trusted to end in good order
    }
    for (const int event : {parts_.transport.removal_event(), parts_.transport.error_event()}) {
        reactor.unwatch(event);
    }
    parts_.termination.begin();
    parts_.workers.stop();
    parts_.termination.detach(status_);
    return status_;
}

guest::Result<void> Application::start()
{
    const std::pair<int, std::function<void(std::uint32_t)>> events[] = {
        {parts_.transport.removal_event(), [this](std::uint32_t) { unplug_requested(); }},
        {parts_.transport.error_event(),
         [this](std::uint32_t) {
             spdlog::error("[{}] the function reports an uncorrectable error", parts_.transport.name());
             end(kExitRuntime);
         }},
    };
    for (const auto &[event, handler] : events) {
        if (event < 0) {
            continue;
        }
        if (auto watched = parts_.reactor.watch(event, EPOLLIN | EPOLLET, handler); !watched) {
            return watched;
        }
    }
    const auto give_up = guarded([this](const guest::Error &error) { end(report_failure(error.message)); });
    parts_.session.start(parts_.model, guarded([this, give_up](guest::Result<void> registered) {
                             if (registered) {
                                 spdlog::info("{}", parts_.ready);
                             } else {
                                 give_up(registered.error());
                             }
                         }),
                         give_up);
    return {};
}

void Application::unplug_requested()
{
    if (!ending_) {
        spdlog::warn("[{}] the function is being unplugged: the session ends, and the function is released",
                     parts_.transport.name());
        end(kExitGone);
    }
}

void Application::end(int status)
{
    if (std::exchange(ending_, true)) {
        return;
    }
    status_ = status;
    parts_.termination.begin();
    parts_.reactor.after(kWithdrawLimit, guarded([this] { make_durable(); }));
    parts_.session.stop(guarded([this] { make_durable(); }));
}

void Application::make_durable()
{
    if (std::exchange(syncing_, true)) {
        return;
    }
    parts_.model.make_durable(guarded([this](bool durable) {
        if (!durable) {
            spdlog::error("storage failed at the end; data that was written last may be lost");
            status_ = kExitAbandoned;
        }
        parts_.reactor.stop();
    }));
}

void Application::log_counters() const
{
    const auto session = parts_.session.counters();
    std::vector<guest::CounterGroup> groups{{"session",
                                             {{"requests", session.requests},
                                              {"bad_requests", session.bad_requests},
                                              {"stale_requests", session.stale_requests},
                                              {"restarts", session.restarts}}},
                                            {"dma", {{"messages", session.dma_messages}}},
                                            {parts_.model_name, {}}};
    parts_.model.counters(groups.back().counters);
    if (parts_.core_counters) {
        groups.push_back({"core", parts_.core_counters()});
    }
    spdlog::info("counters: {}", guest::counters_json(groups));
}

}  // namespace vvfu::cli
