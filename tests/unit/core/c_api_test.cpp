// SPDX-License-Identifier: BSD-3-Clause
#include <unistd.h>

#include <cerrno>

#include "core_fixture.hpp"
#include "vvfu/core/vvfu_core.h"

namespace vvfu::test {
namespace {

FakePort &port_of(void *opaque)
{
    return *static_cast<FakePort *>(opaque);
}

template <typename T>
std::span<const T> view(const void *data, std::size_t count)
{
    return {static_cast<const T *>(data), count};
}

VvfuPortOps fake_ops()
{
    VvfuPortOps ops{};
    ops.listen = [](void *o) { return port_of(o).listen(); };
    ops.unlisten = [](void *o) { port_of(o).unlisten(); };
    ops.send = [](void *o, const void *message, std::size_t length, const int *fds, std::size_t nfds) {
        port_of(o).send(view<std::byte>(message, length), {fds, nfds});
    };
    ops.send_backlog = [](void *o) { return port_of(o).send_backlog(); };
    ops.close_peer = [](void *o) { port_of(o).close_peer(); };
    ops.push_request = [](void *o, unsigned queue, const void *message, std::size_t length) {
        return port_of(o).push_request(queue, view<std::byte>(message, length));
    };
    ops.complete_control = [](void *o, std::uint64_t token, const void *reply, std::size_t length) {
        port_of(o).complete_control(token, view<std::byte>(reply, length));
    };
    ops.device_broken = [](void *o, const char *reason) { port_of(o).device_broken(reason); };
    ops.window_map = [](void *o, std::uint64_t offset, std::uint64_t size, int protection, int fd,
                        std::uint64_t fd_offset) {
        return port_of(o).window_map(offset, size, protection, fd, fd_offset);
    };
    ops.window_unmap = [](void *o, std::uint64_t offset, std::uint64_t size) { port_of(o).window_unmap(offset, size); };
    ops.region_memory_map = [](void *o, std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) {
        return port_of(o).region_memory_map(offset, size, fd, fd_offset);
    };
    ops.region_memory_unmap = [](void *o, std::uint64_t offset, std::uint64_t size) {
        port_of(o).region_memory_unmap(offset, size);
    };
    ops.doorbell_set = [](void *o, unsigned index, int fd) { port_of(o).doorbell_set(index, fd); };
    ops.notification_set = [](void *o, unsigned index, int fd) { port_of(o).notification_set(index, fd); };
    ops.signal_eventfd = [](void *o, int fd) { port_of(o).signal_eventfd(fd); };
    ops.log = [](void *o, int level, const char *text) { port_of(o).log(core::LogLevel{level}, text); };
    ops.state_changed = [](void *o) { port_of(o).state_changed(); };
    return ops;
}

class CApiTest : public ::testing::Test {
protected:
    CApiTest()
    {
        config.abi_version = VVFU_CORE_ABI_VERSION;
        config.window_size = 1 << 20;
        config.doorbells = 4;
        config.notifications = 2;
        config.unmap_timeout_ms = 1000;
        config.access_timeout_ms = 2000;
    }
    VvfuCore *create(const char **error) { return vvfu_core_new(&config, &ops, &port, error); }

    VvfuCoreConfig config{};
    VvfuPortOps ops = fake_ops();
    FakePort port;
};

TEST_F(CApiTest, BadConfigurationsNameTheProblem)
{
    const char *error = nullptr;
    config.doorbells = 0;
    EXPECT_EQ(nullptr, create(&error));
    EXPECT_NE(std::string::npos, std::string{error}.find("doorbells"));
    config.doorbells = 4;
    config.abi_version = 99;
    EXPECT_EQ(nullptr, create(&error));
    EXPECT_NE(std::string::npos, std::string{error}.find("version"));
}

TEST_F(CApiTest, ASessionThroughTheCInterface)
{
    const char *error = nullptr;
    VvfuCore *core = create(&error);
    ASSERT_NE(nullptr, core) << error;
    EXPECT_EQ(64u, vvfu_core_device_config_size());
    std::uint8_t device_config[64];
    vvfu_core_device_config(core, device_config);
    EXPECT_EQ(16, device_config[18]);  // window size 0x100000
    EXPECT_EQ(0u, vvfu_core_device_features(core));
    EXPECT_EQ(UINT64_MAX, vvfu_core_next_deadline(core));
    vvfu_core_driver_ok(core, 1);

    control::DeviceInfo info;
    info.regions = {{7, 3, 256, 0, {}}};
    info.irqs = {{2, 1}};
    control::Buffer add;
    control::begin(add, {control::Type::device_info, 0, 0, 1, 0, control::Status::ok});
    control::append(add, info);
    control::finish(add);
    vvfu_core_control_request(core, 1, 7, add.data(), add.size(), 1000);
    EXPECT_TRUE(port.completed.contains(7));

    EXPECT_EQ(0, vvfu_core_peer_connected(core, 2, 11, 22, 33));
    EXPECT_EQ(-EBUSY, vvfu_core_peer_connected(core, 2, 11, 22, 33));
    EXPECT_TRUE(vvfu_core_wants_peer_data(core));
    const auto version = concat(vu::Header{1, 1, 20, 0, 0}, std::uint32_t{0});
    vvfu_core_peer_data(core, 3, version.data(), version.size(), nullptr, 0);
    EXPECT_EQ(3u + 2000000000u, vvfu_core_next_deadline(core));
    vvfu_core_tick(core, 3u + 2000000000u);
    VvfuCoreState state;
    vvfu_core_state(core, &state);
    EXPECT_STREQ("connected", state.state);
    EXPECT_EQ(11u, state.peer_pid);
    EXPECT_EQ(22u, state.peer_uid);
    EXPECT_EQ(1u, state.requests);
    EXPECT_EQ(2u, state.deadline_expiries);

    // Fds are the core's from the call on.
    const int eventfd = make_eventfd().release();
    const auto irqs = concat(vu::Header{2, 8, 36, 0, 0}, vu::IrqSet{20, 0x24, 2, 0, 1});
    vvfu_core_peer_data(core, 4, irqs.data(), irqs.size(), &eventfd, 1);
    EXPECT_EQ(eventfd, port.doorbells[0]);
    vvfu_core_doorbell_written(core, 3);
    EXPECT_TRUE(vvfu_core_doorbell_pending(core, 3));
    vvfu_core_send_drained(core, 5);
    vvfu_core_notification_fired(core, 5, 0);
    vvfu_core_request_buffers(core, 5, 1);
    const auto garbage = filled(3, 0);
    vvfu_core_reply(core, 6, 2, garbage.data(), garbage.size());
    EXPECT_TRUE(port.broken.has_value());
    EXPECT_EQ(-1, ::fcntl(eventfd, F_GETFD));
    vvfu_core_driver_reset(core, 7);
    vvfu_core_peer_closed(core, 8, 0);
    vvfu_core_state(core, &state);
    EXPECT_STREQ("no driver", state.state);
    vvfu_core_free(core);
    EXPECT_TRUE(port.violations.empty());
}

TEST_F(CApiTest, CapabilitiesCanBeDecoded)
{
    std::uint8_t body[24] = {};
    EXPECT_EQ(20u, vvfu_core_doorbell_cap(body, 0, 0x1000, 64));
    auto cap = decode_pci_cap(std::as_bytes(std::span{body}));
    ASSERT_TRUE(cap.has_value());
    EXPECT_EQ((PciCap{kCapDoorbell, 0, 0, 0x1000, 256, 4}), *cap);
    EXPECT_EQ(16u, vvfu_core_notification_cap(body, 1, 0x2000));
    cap = decode_pci_cap(std::as_bytes(std::span{body}));
    ASSERT_TRUE(cap.has_value());
    EXPECT_EQ((PciCap{kCapNotification, 1, 0, 0x2000, 4, 0}), *cap);
}

}  // namespace
}  // namespace vvfu::test
