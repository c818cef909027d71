// SPDX-License-Identifier: BSD-3-Clause
//
// A virtio-vfio-user device on a test bench: the core between a driver and a peer that the test plays, with every
// effect on record. Nothing here knows how the core works.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "vvfu/core/core.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::spec {

using control::Buffer;
using control::Bytes;
using control::Header;
using control::Status;
using control::Type;
using std::chrono::milliseconds;
namespace vu = vfio_user;

inline std::uint64_t file_of(int fd)
{
    struct stat info {};
    return ::fstat(fd, &info) == 0 ? info.st_ino : 0;
}

class Memory {
public:
    Memory(std::uint64_t size, bool sealed = true)
        : fd_(::memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING)), size_(size)
    {
        EXPECT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(size)), 0);
        if (sealed) {
            EXPECT_EQ(::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
        }
    }
    [[nodiscard]] int fd() const { return fd_.get(); }
    [[nodiscard]] std::uint64_t size() const { return size_; }

private:
    Fd fd_;
    std::uint64_t size_;
};

class Event {
public:
    [[nodiscard]] int fd() const { return fd_.get(); }
    /// Number of signals since the last call.
    std::uint64_t take()
    {
        eventfd_t value = 0;
        return ::eventfd_read(fd_.get(), &value) == 0 ? value : 0;
    }

private:
    Fd fd_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
};

/// A message on one of the queues.
struct Message {
    Header header;
    Buffer payload;
};

inline Message parse(Bytes bytes)
{
    const auto header = control::decode_header(bytes);
    EXPECT_TRUE(header.has_value());
    const auto payload = bytes.subspan(std::min(bytes.size(), control::kHeaderSize));
    return {header.value_or(Header{}), {payload.begin(), payload.end()}};
}

template <typename... Parts>
Buffer payload(const Parts &...parts)
{
    Buffer out;
    (append(out, parts...));
    return out;
}

inline Buffer message(Header header, Bytes payload = {})
{
    Buffer out;
    control::begin(out, header);
    out.insert(out.end(), payload.begin(), payload.end());
    control::finish(out);
    return out;
}

/// BAR 0 of 64 KiB without, BAR 2 of 32 KiB with an area; configuration space; 1 INTx, 4 MSI-X vectors, 1 ERR.
inline control::DeviceInfo example_device()
{
    control::DeviceInfo info;
    info.flags = control::kDeviceReset;
    info.features = control::kFeatureWriteMultiple;
    info.vendor_id = 0x1234;
    const auto rw = control::kRegionRead | control::kRegionWrite;
    info.regions = {{control::kRegionBar0, rw, 0x10000, 0, {}},
                    {2, rw | control::kRegionMmap, 0x8000, 0x2000, {{0x1000, 0x3000}}},
                    {control::kRegionConfig, rw, 4096, 0, {}}};
    info.irqs = {{control::kIrqIntx, 1}, {control::kIrqMsix, 4}, {control::kIrqErr, 1}};
    return info;
}
inline constexpr unsigned kDoorbellIntx = 0, kDoorbellMsix0 = 1;
inline constexpr std::uint32_t kAssign = vu::kIrqDataEventfd | vu::kIrqActionTrigger;

class DeviceBench : public core::Port {
public:
    static constexpr milliseconds kUnmapTimeout{100}, kAccessTimeout{200};

    explicit DeviceBench(bool trust_peer_memory = false, std::uint64_t window_size = 1u << 30)
    {
        config.window_size = window_size;
        config.region_memory_size = 0x10000;
        config.doorbells = 8;
        config.trust_peer_memory = trust_peer_memory;
        config.unmap_timeout = kUnmapTimeout;
        config.access_timeout = kAccessTimeout;
        doorbells.assign(config.doorbells, -1);
        auto created = core::Core::create(config, *this);
        EXPECT_TRUE(created.has_value());
        core_ = std::move(*created);
        core_->driver_ok(now);
    }
    ~DeviceBench() override { core_.reset(); }

    core::Core &core() { return *core_; }

    // ---- the driver ----

    /// Sends a control message; its reply, once there, is in replies[token].
    std::uint64_t send_control(Bytes bytes, std::size_t capacity = 512)
    {
        core_->control_request(now, ++token, bytes, capacity);
        return token;
    }
    Message control(Type type, Bytes payload, std::uint32_t epoch = 0, std::size_t capacity = 512)
    {
        const auto id = send_control(message({type, 0, 0, ++request_id, epoch, Status::ok}, payload), capacity);
        EXPECT_TRUE(replies.contains(id)) << control::name(type) << " is not answered at once";
        return replies.contains(id) ? parse(replies[id]) : Message{};
    }
    Message add(const control::DeviceInfo &info = example_device())
    {
        return control(Type::device_info, payload(info));
    }
    Message del()
    {
        control::DeviceInfo info;
        info.op = control::DeviceInfoOp::del;
        return control(Type::device_info, payload(info));
    }

    /// The next request of the device; it must be of this type.
    Message next(Type type)
    {
        if (requests.empty()) {
            ADD_FAILURE() << "no request, expected " << control::name(type);
            return {};
        }
        auto request = parse(requests.front());
        requests.pop_front();
        EXPECT_EQ(control::name(request.header.type), control::name(type));
        return request;
    }
    void reply(const Message &request, Bytes payload = {}, Status status = Status::ok)
    {
        auto header = request.header;
        header.flags = control::kFlagReply;
        header.status = status;
        core_->reply(now, kReplyQueue, message(header, payload));
    }
    /// Answers as a driver does whose registers read as 0.
    void answer(const Message &request)
    {
        if (request.header.is_posted()) {
            return;
        }
        switch (request.header.type) {
            case Type::feature_bits: return reply(request, request.payload);
            case Type::region_read: {
                const auto access = *control::decode_region_access(request.payload);
                auto data = request.payload;
                data.resize(data.size() + access.count);
                return reply(request, data);
            }
            case Type::region_write: return reply(request, Bytes{request.payload}.first(control::kRegionAccessSize));
            default: return reply(request);
        }
    }
    void answer_all()
    {
        while (!requests.empty()) {
            const auto request = parse(requests.front());
            requests.pop_front();
            answer(request);
        }
    }
    /// A write to a doorbell, as a port carries it out.
    void ring(unsigned index)
    {
        if (doorbells.at(index) >= 0) {
            signal_eventfd(doorbells[index]);
        } else {
            core_->doorbell_written(index);
        }
    }
    void advance(Nanoseconds time)
    {
        now += time;
        core_->tick(now);
    }

    // ---- the peer ----

    struct Reply {
        vu::Header header;
        Buffer payload;
        std::vector<std::uint64_t> files;
        [[nodiscard]] int error() const { return header.is_error() ? static_cast<int>(header.error) : 0; }
    };

    int connect()
    {
        const int rc = core_->peer_connected(now, {11, 22, 33});
        connected = rc == 0 || connected;
        return rc;
    }
    /// Feeds one message with duplicates of `fds`; returns its ID.
    std::uint16_t command(vu::Command command, Bytes payload = {}, std::vector<int> fds = {}, std::uint32_t flags = 0)
    {
        vu::Buffer out;
        vu::begin_command(out, command, ++message_id, flags);
        out.insert(out.end(), payload.begin(), payload.end());
        vu::finish(out);
        feed(out, fds);
        return message_id;
    }
    void feed(Bytes bytes, const std::vector<int> &fds = {})
    {
        std::vector<Fd> owned;
        for (const int fd : fds) {
            owned.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
        }
        core_->peer_data(now, bytes, owned);
    }
    /// The reply to a command of the peer, valid until the next message; nullptr: there is none yet.
    const Reply *reply_to(std::uint16_t id)
    {
        const auto it = std::find_if(sent.begin(), sent.end(), [id](const Reply &message) {
            return message.header.message_id == id && message.header.type() == vu::kTypeReply;
        });
        return it == sent.end() ? nullptr : &*it;
    }
    /// The error of a command that is answered at once; 0: success, -1: no reply yet.
    int result(std::uint16_t id)
    {
        const auto *reply = reply_to(id);
        return reply ? reply->error() : -1;
    }
    std::uint16_t version(std::string_view json = R"({"capabilities":{"write_multiple":true}})")
    {
        Buffer out(4);
        const auto text = std::as_bytes(std::span{json});
        out.insert(out.end(), text.begin(), text.end());
        out.push_back(std::byte{0});
        return command(vu::Command::version, out);
    }
    /// Device registered, peer connected, session begun, nothing left to answer.
    void start_session(std::string_view json = R"({"capabilities":{"write_multiple":true}})")
    {
        EXPECT_EQ(add().header.status, Status::ok);
        EXPECT_EQ(connect(), 0);
        const auto id = version(json);
        answer_all();
        EXPECT_EQ(result(id), 0);
    }
    std::uint16_t map(std::uint64_t address, std::uint64_t size, int fd, std::uint64_t offset = 0,
                      std::uint32_t flags = vu::kDmaRead | vu::kDmaWrite)
    {
        const vu::DmaMap request{sizeof request, flags, offset, address, size};
        return command(vu::Command::dma_map, payload(request), fd < 0 ? std::vector<int>{} : std::vector{fd});
    }
    std::uint16_t unmap(std::uint64_t address, std::uint64_t size)
    {
        const vu::DmaUnmap request{sizeof request, 0, address, size};
        return command(vu::Command::dma_unmap, payload(request));
    }
    std::uint16_t read(std::uint32_t region, std::uint64_t offset, std::uint32_t count)
    {
        return command(vu::Command::region_read, payload(vu::RegionAccess{offset, region, count}));
    }
    std::uint16_t write(std::uint32_t region, std::uint64_t offset, std::uint32_t count, std::uint32_t flags = 0)
    {
        auto out = payload(vu::RegionAccess{offset, region, count});
        out.resize(out.size() + count, std::byte{0x5a});
        return command(vu::Command::region_write, out, {}, flags);
    }
    std::uint16_t set_irqs(std::uint32_t flags, std::uint32_t index, std::uint32_t start, std::uint32_t count,
                           std::vector<int> fds = {})
    {
        return command(vu::Command::device_set_irqs,
                       payload(vu::IrqSet{sizeof(vu::IrqSet), flags, index, start, count}), std::move(fds));
    }
    /// The peer's answer to a command of the device.
    void peer_reply(const vu::Header &request, Bytes payload)
    {
        vu::Buffer out;
        vu::begin_reply(out, request);
        out.insert(out.end(), payload.begin(), payload.end());
        vu::finish(out);
        feed(out);
    }
    /// Commands that the device sent to the peer.
    std::vector<Reply> commands()
    {
        std::vector<Reply> out;
        std::copy_if(sent.begin(), sent.end(), std::back_inserter(out),
                     [](const Reply &message) { return message.header.type() == vu::kTypeCommand; });
        return out;
    }

    // ---- the record ----

    struct Mapping {
        std::uint64_t size = 0;
        int protection = 0;
        std::uint64_t file = 0, file_offset = 0;
    };

    core::CoreConfig config;
    Nanoseconds now{std::chrono::seconds{1000}};
    std::vector<std::string> events;  ///< names of port calls, in order
    std::vector<Reply> sent;          ///< to the peer
    std::deque<Buffer> requests;      ///< to the driver, not yet taken by next() or answer_all()
    std::size_t buffers = 1'000'000, buffer_size = kRequestBufferSize;  ///< that the driver has posted
    std::map<std::uint64_t, Buffer> replies;
    std::optional<std::string> broken;
    std::map<std::uint64_t, Mapping> window;
    int map_result = 0;  ///< of window_map()
    std::vector<int> doorbells;
    std::map<unsigned, int> notifications;
    bool listening = false, connected = false;
    int listen_result = 0;
    std::string log_text;
    std::map<std::uint64_t, Mapping> region_memory;
    std::uint64_t token = 0, request_id = 1'000'000;
    std::uint16_t message_id = 0;

    // ---- Port ----

    int listen() override
    {
        listening = listen_result == 0;
        return listen_result;
    }
    void unlisten() override
    {
        events.emplace_back("unlisten");
        listening = false;
    }
    void send(std::span<const std::byte> bytes, std::span<const int> fds) override
    {
        const auto header = vu::decode_header(bytes);
        EXPECT_TRUE(header && header->size == bytes.size());
        const auto rest = bytes.subspan(vu::kHeaderSize);
        events.emplace_back("send");
        sent.push_back({*header, {rest.begin(), rest.end()}, {}});
        for (const int fd : fds) {
            sent.back().files.push_back(file_of(fd));
        }
    }
    [[nodiscard]] std::size_t send_backlog() const override { return 0; }
    void close_peer() override
    {
        events.emplace_back("close_peer");
        connected = false;
    }
    int push_request(unsigned queue, std::span<const std::byte> bytes) override
    {
        EXPECT_EQ(queue, kRequestQueue);
        if (buffers == 0) {
            return -EAGAIN;
        }
        --buffers;
        if (bytes.size() > buffer_size) {
            return -EMSGSIZE;
        }
        events.emplace_back("push_request");
        requests.emplace_back(bytes.begin(), bytes.end());
        return 0;
    }
    void complete_control(std::uint64_t id, std::span<const std::byte> reply) override
    {
        events.emplace_back("complete_control");
        EXPECT_TRUE(replies.emplace(id, Buffer{reply.begin(), reply.end()}).second) << "answered twice";
    }
    void device_broken(std::string_view reason) override { broken = std::string{reason}; }
    int window_map(std::uint64_t offset, std::uint64_t size, int protection, int fd, std::uint64_t fd_offset) override
    {
        if (map_result != 0) {
            return map_result;
        }
        EXPECT_TRUE(offset <= config.window_size && size <= config.window_size - offset);
        for (const auto &[other, mapping] : window) {
            EXPECT_FALSE(offset < other + mapping.size && other < offset + size) << "ranges overlap in the window";
        }
        events.emplace_back("window_map");
        window[offset] = {size, protection, file_of(fd), fd_offset};
        return 0;
    }
    void window_unmap(std::uint64_t offset, std::uint64_t size) override
    {
        events.emplace_back("window_unmap");
        EXPECT_TRUE(window.contains(offset) && window[offset].size == size);
        window.erase(offset);
    }
    int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) override
    {
        EXPECT_TRUE(offset <= config.region_memory_size && size <= config.region_memory_size - offset);
        events.emplace_back("region_memory_map");
        region_memory[offset] = {size, core::kProtRead | core::kProtWrite, file_of(fd), fd_offset};
        return 0;
    }
    void region_memory_unmap(std::uint64_t offset, std::uint64_t size) override
    {
        events.emplace_back("region_memory_unmap");
        EXPECT_TRUE(region_memory.contains(offset) && region_memory[offset].size == size);
        region_memory.erase(offset);
    }
    void doorbell_set(unsigned index, int fd) override { doorbells.at(index) = fd; }
    void notification_set(unsigned index, int fd) override { notifications[index] = fd; }
    void signal_eventfd(int fd) override { EXPECT_EQ(::eventfd_write(fd, 1), 0); }
    void log(core::LogLevel, std::string_view text) override { log_text.append(text).append("\n"); }
    void state_changed() override {}

private:
    std::unique_ptr<core::Core> core_;
};

}  // namespace vvfu::spec
