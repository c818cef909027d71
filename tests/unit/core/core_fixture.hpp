// SPDX-License-Identifier: BSD-3-Clause
//
// A core between a scripted peer and a scripted device guest.
#pragma once

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fake_port.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::test {

namespace vu = vfio_user;
using namespace std::chrono_literals;

inline Fd make_eventfd(unsigned initial = 0)
{
    return Fd{::eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK)};
}

/// Value of an eventfd, which becomes 0; 0 if it was not signalled.
inline std::uint64_t take_signals(const Fd &fd)
{
    std::uint64_t value = 0;
    return ::read(fd.get(), &value, sizeof value) == sizeof value ? value : 0;
}

inline Fd make_memfd(std::uint64_t size, bool sealed = true)
{
    Fd fd{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    EXPECT_EQ(0, ::ftruncate(fd.get(), static_cast<off_t>(size)));
    if (sealed) {
        EXPECT_EQ(0, ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK));
    }
    return fd;
}

inline unsigned open_fds()
{
    unsigned count = 0;
    for (int fd = 0; fd < 1024; ++fd) {
        count += ::fcntl(fd, F_GETFD) >= 0 ? 1u : 0u;
    }
    return count;
}

template <typename... Parts>
ByteVector concat(const Parts &...parts)
{
    ByteVector out;
    const auto add = [&](const auto &part) {
        using Part = std::decay_t<decltype(part)>;
        if constexpr (std::is_same_v<Part, ByteVector>) {
            out.insert(out.end(), part.begin(), part.end());
        } else {
            static_assert(std::is_trivially_copyable_v<Part>);
            const auto *bytes = reinterpret_cast<const std::byte *>(&part);
            out.insert(out.end(), bytes, bytes + sizeof part);
        }
    };
    (add(parts), ...);
    return out;
}

inline ByteVector filled(std::size_t count, std::uint8_t value)
{
    return ByteVector(count, std::byte{value});
}

struct PeerReply {
    vu::Header header;
    ByteVector payload;
    std::vector<Fd> fds;
};

struct GuestRequest {
    control::Header header;
    ByteVector payload;
};

struct ControlReply {
    control::Header header;
    ByteVector payload;
    [[nodiscard]] std::string text() const { return control::decode_text(payload); }
};

class CoreTest : public ::testing::Test {
protected:
    static constexpr std::uint64_t kWindow = std::uint64_t{64} << 20;
    static constexpr std::uint64_t kRegionMemory = 64 * 1024;

    CoreTest()
    {
        config.window_size = kWindow;
        config.region_memory_size = kRegionMemory;
        config.doorbells = 64;
        config.notifications = 4;
    }

    ~CoreTest() override
    {
        core.reset();
        EXPECT_TRUE(port.violations.empty()) << port.violations.front();
        EXPECT_TRUE(port.window.empty());
        EXPECT_TRUE(port.region_memory.empty());
        EXPECT_TRUE(port.doorbells.empty());
        EXPECT_TRUE(port.notifications.empty());
        EXPECT_FALSE(port.listening);
    }

    void create()
    {
        auto created = core::Core::create(config, port);
        ASSERT_TRUE(created.has_value()) << created.error();
        core = std::move(*created);
        core->driver_ok(now);
    }

    /// BAR 0 with 16 KiB of which the second page is mmappable, BAR 2 read-only, 4 KiB of configuration space, INTx, 4
    /// MSI, 8 MSI-X.
    static control::DeviceInfo sample_device()
    {
        control::DeviceInfo info;
        info.flags = control::kDeviceReset | control::kDeviceQuiesce;
        info.features = control::kFeatureWriteMultiple;
        constexpr auto rw = control::kRegionRead | control::kRegionWrite;
        info.regions = {{control::kRegionBar0, rw | control::kRegionMmap, 0x4000, 0x8000 - 0x1000, {{0x1000, 0x1000}}},
                        {2, control::kRegionRead, 0x2000, 0, {}},
                        {control::kRegionConfig, rw, 4096, 0, {}},
                        {4, rw, std::uint64_t{4} << 20, 0, {}},
                        {5, control::kRegionWrite, 0x1000, 0, {}}};
        info.irqs = {{control::kIrqIntx, 1},
                     {control::kIrqMsi, 4},
                     {control::kIrqMsix, 8},
                     {control::kIrqErr, 1},
                     {control::kIrqReq, 1}};
        return info;
    }
    static constexpr unsigned kMsixDoorbell = 5;  // of vector 0

    // ---- guest ----

    ControlReply control(control::Type type, std::uint32_t epoch, const std::function<void(control::Buffer &)> &append,
                         std::size_t capacity = 300000)
    {
        const auto token = start_control(type, epoch, append, capacity);
        return control_reply(token);
    }
    std::uint64_t start_control(control::Type type, std::uint32_t epoch,
                                const std::function<void(control::Buffer &)> &append, std::size_t capacity = 300000)
    {
        control::Buffer message;
        control::begin(message, {type, 0, 0, ++control_id, epoch, control::Status::ok});
        append(message);
        control::finish(message);
        const auto token = ++last_token;
        core->control_request(now, token, message, capacity);
        return token;
    }
    ControlReply control_reply(std::uint64_t token)
    {
        const auto it = port.completed.find(token);
        if (it == port.completed.end()) {
            ADD_FAILURE() << "control request not completed";
            return {};
        }
        const auto header = control::decode_header(it->second);
        EXPECT_TRUE(header.has_value());
        EXPECT_TRUE(header->is_reply());
        return {*header, {it->second.begin() + control::kHeaderSize, it->second.end()}};
    }
    ControlReply device_add(const control::DeviceInfo &info)
    {
        return control(control::Type::device_info, 0, [&](control::Buffer &out) { control::append(out, info); });
    }
    ControlReply device_del()
    {
        control::DeviceInfo info;
        info.op = control::DeviceInfoOp::del;
        return device_add(info);
    }

    /// Takes the oldest request that the guest has not looked at.
    GuestRequest take_request()
    {
        if (port.requests.empty()) {
            ADD_FAILURE() << "no request for the guest";
            return {};
        }
        const auto bytes = std::move(port.requests.front());
        port.requests.pop_front();
        const auto header = control::decode_header(bytes);
        EXPECT_TRUE(header.has_value());
        return {*header, {bytes.begin() + control::kHeaderSize, bytes.end()}};
    }
    GuestRequest take_request(control::Type type)
    {
        auto request = take_request();
        EXPECT_EQ(control::name(type), control::name(request.header.type));
        return request;
    }
    void answer(const GuestRequest &request, const ByteVector &payload = {},
                control::Status status = control::Status::ok)
    {
        control::Buffer out;
        auto header = request.header;
        header.flags = control::kFlagReply;
        header.status = status;
        control::begin(out, header);
        out.insert(out.end(), payload.begin(), payload.end());
        control::finish(out);
        core->reply(now, 2, out);
    }
    /// Answers with what a working guest says; reads return `read_fill`.
    void answer_well(const GuestRequest &request)
    {
        control::Buffer out;
        switch (request.header.type) {
            case control::Type::feature_bits: out = request.payload; break;
            case control::Type::region_read: {
                const auto access = control::decode_region_access(request.payload);
                ASSERT_TRUE(access.has_value());
                control::append(out, *access, filled(access->count, read_fill));
                break;
            }
            case control::Type::region_write: {
                const auto data = control::decode_region_data(request.payload);
                ASSERT_TRUE(data.has_value());
                control::append(out, data->access);
                break;
            }
            default: break;
        }
        answer(request, out);
    }
    /// Answers everything, also what the answers cause.
    void answer_all()
    {
        while (!port.requests.empty()) {
            const auto request = take_request();
            if (!request.header.is_posted()) {
                answer_well(request);
            }
        }
    }

    // ---- peer ----

    void connect() { ASSERT_EQ(0, core->peer_connected(now, {4711, 1000, 100})); }
    void feed(const ByteVector &data, std::vector<Fd> fds = {}) { core->peer_data(now, data, fds); }
    ByteVector command(vu::Command kind, const ByteVector &payload, std::uint32_t flags = 0)
    {
        return raw_command(static_cast<std::uint16_t>(kind), payload, flags);
    }
    ByteVector raw_command(std::uint16_t kind, const ByteVector &payload, std::uint32_t flags = 0)
    {
        const vu::Header header{++message_id, kind, static_cast<std::uint32_t>(16 + payload.size()), flags, 0};
        return concat(header, payload);
    }
    bool has_reply() const { return !port.sent.empty(); }
    PeerReply take_sent()
    {
        if (port.sent.empty()) {
            ADD_FAILURE() << "nothing sent to the peer";
            return {};
        }
        auto entry = std::move(port.sent.front());
        port.sent.pop_front();
        PeerReply reply;
        EXPECT_GE(entry.bytes.size(), 16u);
        std::memcpy(&reply.header, entry.bytes.data(), 16);
        EXPECT_EQ(entry.bytes.size(), reply.header.size);
        reply.payload.assign(entry.bytes.begin() + 16, entry.bytes.end());
        reply.fds = std::move(entry.fds);
        return reply;
    }
    /// Sends a command, lets the guest answer everything, returns the reply.
    PeerReply call(vu::Command kind, const ByteVector &payload, std::vector<Fd> fds = {})
    {
        feed(command(kind, payload), std::move(fds));
        answer_all();
        auto reply = take_sent();
        EXPECT_EQ(message_id, reply.header.message_id);
        EXPECT_EQ(vu::kTypeReply, reply.header.type());
        return reply;
    }
    /// As call(), for the errno; 0: success.
    int call_errno(vu::Command kind, const ByteVector &payload, std::vector<Fd> fds = {})
    {
        const auto reply = call(kind, payload, std::move(fds));
        EXPECT_EQ(reply.header.is_error(), reply.header.error != 0);
        if (reply.header.is_error()) {
            EXPECT_TRUE(reply.payload.empty());
        }
        return static_cast<int>(reply.header.error);
    }
    static ByteVector version_payload(const std::string &json, std::uint16_t major = 0, std::uint16_t minor = 0)
    {
        ByteVector text;
        if (!json.empty()) {
            text.resize(json.size() + 1);
            std::memcpy(text.data(), json.c_str(), json.size() + 1);
        }
        return concat(major, minor, text);
    }
    /// A session in progress, with everything of the handshake answered and removed.
    void start_session(const std::string &json = R"({"capabilities":{"write_multiple":true}})")
    {
        create();
        ASSERT_EQ(control::Status::ok, device_add(sample_device()).header.status);
        begin_session(json);
    }
    void begin_session(const std::string &json = R"({"capabilities":{"write_multiple":true}})")
    {
        connect();
        feed(command(vu::Command::version, version_payload(json)));
        answer_all();
        const auto reply = take_sent();
        ASSERT_FALSE(reply.header.is_error());
        ASSERT_STREQ("connected", core->state().state);
        port.events.clear();
    }
    static ByteVector dma_map_payload(std::uint64_t address, std::uint64_t size, std::uint64_t offset = 0,
                                      std::uint32_t flags = 3)
    {
        return concat(vu::DmaMap{32, flags, offset, address, size});
    }
    static ByteVector dma_unmap_payload(std::uint64_t address, std::uint64_t size, std::uint32_t flags = 0)
    {
        return concat(vu::DmaUnmap{24, flags, address, size});
    }
    int map(std::uint64_t address, std::uint64_t size, std::vector<Fd> fds = {}, std::uint64_t offset = 0,
            std::uint32_t flags = 3)
    {
        return call_errno(vu::Command::dma_map, dma_map_payload(address, size, offset, flags), std::move(fds));
    }
    std::vector<Fd> memory(std::uint64_t size, bool sealed = true)
    {
        std::vector<Fd> fds;
        fds.push_back(make_memfd(size, sealed));
        return fds;
    }
    void advance(Nanoseconds by)
    {
        now += by;
        core->tick(now);
    }

    core::CoreConfig config;
    FakePort port;
    std::unique_ptr<core::Core> core;
    Nanoseconds now = 1000s;
    std::uint8_t read_fill = 0x5a;
    std::uint16_t message_id = 100;
    std::uint64_t control_id = 0, last_token = 0;
};

}  // namespace vvfu::test
