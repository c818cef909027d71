// SPDX-License-Identifier: BSD-3-Clause
//
// Fixtures of the wire tests. Tests of the protocol itself (WireTest) run twice: against the core behind a socket pair
// and against vvfu-loopback with its testdev.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core_server.hpp"
#include "event_fd.hpp"
#include "loopback_process.hpp"
#include "pci_function.hpp"
#include "process.hpp"
#include "vfio_user_client.hpp"

namespace vvfu::test {

/// The path of vvfu-loopback.
std::string loopback_program();

enum class ServerKind { core, loopback };

/// One of the two servers.
class Server {
public:
    explicit Server(ServerKind kind);
    [[nodiscard]] Fd connect();
    /// Open fds of the server's process: this process for the core, so keep one's own constant.
    [[nodiscard]] std::size_t open_fds();
    /// Ranges of the peer's GuestRam that are mapped.
    [[nodiscard]] std::size_t mappings();
    [[nodiscard]] bool alive();
    /// The core, or nullptr.
    [[nodiscard]] CoreServer *core() { return core_.get(); }

private:
    std::unique_ptr<CoreServer> core_;
    std::unique_ptr<LoopbackProcess> loopback_;
};

/// A region that both servers have and that takes plain reads and writes.
inline constexpr std::uint32_t kScratchRegion = 0;

class WireTest : public ::testing::TestWithParam<ServerKind> {
protected:
    /// A connection that has not sent anything yet.
    [[nodiscard]] VfioUserClient connect() { return VfioUserClient(server_.connect()); }
    /// A connection after VERSION.
    [[nodiscard]] VfioUserClient session();
    /// Sends one command; returns the errno of the reply.
    static int result(VfioUserClient &client, std::uint16_t command, const Bytes &payload,
                      const std::vector<int> &fds = {})
    {
        return client.transact(command, payload, fds).result();
    }
    /// Open fds of the server's process while no peer is connected. Ends with a session that is over.
    [[nodiscard]] std::size_t idle_fds();
    /// A reply may leave before the fds that came with its request are closed.
    [[nodiscard]] bool open_fds_become(std::size_t count);
    /// The session still answers.
    static void expect_alive(VfioUserClient &client) { EXPECT_EQ(client.device_info().num_regions, 9u); }

    Server server_{GetParam()};
};

/// Polls `condition` until it holds or 10 s have passed.
[[nodiscard]] bool eventually(const std::function<bool()> &condition);

/// A peer that answers no DMA command until it wants to: as QEMU, whose main loop does both that and waiting for RESET
/// and UNMAP.
class HeldDma {
public:
    explicit HeldDma(VfioUserClient &client) : client_(client) {}
    /// From now on commands are kept.
    void begin();
    /// Serves the socket until `count` commands are kept.
    [[nodiscard]] bool wait_for(std::size_t count);
    /// Answers at last, from `memory`; from then on as usual.
    void answer(const GuestRam &memory);

private:
    VfioUserClient &client_;
    std::vector<Message> held_;
};

/// No wait of the server was ended by a deadline.
void expect_no_deadline(LoopbackProcess &loopback);

/// The write end of a pipe to give away, and whether every copy of it has been closed.
class FdProbe {
public:
    FdProbe();
    /// The fd to send; kept open here until given_away().
    [[nodiscard]] int fd() const { return write_end_.get(); }
    /// Closes this process's copy; call when it has been sent.
    void given_away() { write_end_.reset(); }
    /// The last copy is closed within the timeout.
    [[nodiscard]] bool closed_everywhere(std::chrono::milliseconds timeout = std::chrono::seconds{10});

private:
    Fd read_end_, write_end_;
};

std::string server_name(const ::testing::TestParamInfo<ServerKind> &info);

#define VVFU_WIRE_SUITE(name)        \
    class name : public WireTest {}; \
    INSTANTIATE_TEST_SUITE_P(Servers, name, ::testing::Values(ServerKind::core, ServerKind::loopback), server_name)

}  // namespace vvfu::test
