// SPDX-License-Identifier: BSD-3-Clause
//
// Serves the adder to vfio-user clients, without a device VM: adder SOCKET. Stops on SIGTERM and SIGINT.
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include <csignal>
#include <cstdio>

#include "adder.hpp"
#include "vvfu/guest/reactor.hpp"
#include "vvfu/guest/session.hpp"
#include "vvfu/guest/thread_pool.hpp"
#include "vvfu/loopback/loopback_port.hpp"

namespace guest = vvfu::guest;

namespace {

int fail(const guest::Error &error)
{
    std::fprintf(stderr, "adder: %s\n", error.message.c_str());
    return 1;
}

vvfu::Fd block_termination()
{
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    ::sigaddset(&signals, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return vvfu::Fd{::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)};
}

int serve(const char *socket_path)
{
    const auto signals = block_termination();  // before the first thread starts
    auto reactor = guest::Reactor::create();
    if (!reactor) {
        return fail(reactor.error());
    }
    vvfu::loopback::LoopbackOptions options;
    options.socket_path = socket_path;
    options.core.window_size = std::uint64_t{64} << 30;  // reserved address space, not memory
    auto port = vvfu::loopback::LoopbackPort::create(std::move(options));
    if (!port) {
        return fail(port.error());
    }
    guest::ThreadPool workers{**reactor};
    guest::Session session{(*port)->transport(), **reactor, workers};
    example::Adder adder{session.services()};

    int status = 0;
    const auto failed = [&](const guest::Error &error) {
        status = fail(error);
        (*reactor)->stop();
    };
    const auto registered = [&](const guest::Result<void> &result) {
        if (!result) {
            failed(result.error());
        }
    };
    const auto stop = [&](std::uint32_t) {
        (*reactor)->unwatch(signals.get());
        session.stop([&] { (*reactor)->stop(); });
    };
    if (auto watched = (*reactor)->watch(signals.get(), EPOLLIN, stop); !watched) {
        return fail(watched.error());
    }
    session.start(adder, registered, failed);
    (*reactor)->run();
    return status;
}

}  // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::fprintf(stderr, "usage: adder SOCKET\n");
        return 2;
    }
    return serve(argv[1]);
}
