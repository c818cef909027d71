// SPDX-License-Identifier: BSD-3-Clause
#include "vfio_user_client.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace vvfu::test {

namespace {

constexpr std::size_t kMaxFds = 64;
constexpr std::uint32_t kSanityLimit = 64u * 1024 * 1024;

[[noreturn]] void throw_errno(const char *what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

/// Waits a little for `fd` without spinning; used between connection attempts.
void pause_briefly()
{
    const timespec one_ms{0, 1'000'000};
    ::nanosleep(&one_ms, nullptr);
}

void take_fds(const msghdr &message, std::vector<Fd> &fds)
{
    for (auto *cmsg = CMSG_FIRSTHDR(&message); cmsg != nullptr;
         cmsg = CMSG_NXTHDR(const_cast<msghdr *>(&message), cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        const auto count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof fd);
            fds.emplace_back(fd);
        }
    }
}

std::vector<SparseArea> sparse_areas(const Message &reply, std::uint32_t cap_offset)
{
    std::vector<SparseArea> areas;
    // Payload offsets count from argsz; a capability starts with id u16, version u16, next u32.
    while (cap_offset != 0) {
        const auto id = field<std::uint16_t>(reply.payload, cap_offset);
        const auto next = field<std::uint32_t>(reply.payload, cap_offset + 4);
        if (id == 1) {  // VFIO_REGION_INFO_CAP_SPARSE_MMAP: nr_areas u32, reserved u32, areas
            const auto count = field<std::uint32_t>(reply.payload, cap_offset + 8);
            for (std::uint32_t i = 0; i < count; ++i) {
                const auto at = cap_offset + 16 + std::size_t{16} * i;
                areas.push_back({field<std::uint64_t>(reply.payload, at), field<std::uint64_t>(reply.payload, at + 8)});
            }
        }
        if (next != 0 && next <= cap_offset) {
            throw ProtocolError("capability chain goes backwards");
        }
        cap_offset = next;
    }
    return areas;
}

const Message &expect_success(const Message &reply, const char *what)
{
    if (reply.is_error()) {
        throw ProtocolError(std::string(what) + " failed with errno " + std::to_string(reply.error));
    }
    return reply;
}

}  // namespace

Bytes header(std::uint16_t id, std::uint16_t command, std::uint32_t size, std::uint32_t flags, std::uint32_t error)
{
    return Packer().u16(id).u16(command).u32(size).u32(flags).u32(error).take();
}

// ---- connection ----

VfioUserClient VfioUserClient::connect(const std::string &path, std::chrono::milliseconds timeout)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        throw std::invalid_argument("socket path too long");
    }
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const auto give_up = std::chrono::steady_clock::now() + timeout;
    for (;;) {
        Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (!fd) {
            throw_errno("socket");
        }
        if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0) {
            return VfioUserClient(std::move(fd));
        }
        if ((errno != ENOENT && errno != ECONNREFUSED) || std::chrono::steady_clock::now() > give_up) {
            throw_errno("connect");
        }
        pause_briefly();
    }
}

VfioUserClient::VfioUserClient(Fd socket) : socket_(std::move(socket))
{
    set_timeout(timeout_);
}

void VfioUserClient::set_timeout(std::chrono::milliseconds timeout)
{
    timeout_ = timeout;
    const timeval value{timeout.count() / 1000, (timeout.count() % 1000) * 1000};
    if (::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value) != 0 ||
        ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value) != 0) {
        throw_errno("setsockopt");
    }
}

// ---- bytes ----

void VfioUserClient::send_raw(std::span<const std::byte> bytes, std::span<const int> fds)
{
    if (fds.size() > kMaxFds) {
        throw std::invalid_argument("too many fds");
    }
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
    while (!bytes.empty()) {
        iovec iov{const_cast<std::byte *>(bytes.data()), bytes.size()};
        msghdr message{};
        message.msg_iov = &iov;
        message.msg_iovlen = 1;
        if (!fds.empty()) {
            message.msg_control = control.data();
            message.msg_controllen = CMSG_SPACE(fds.size_bytes());
            auto *cmsg = CMSG_FIRSTHDR(&message);
            cmsg->cmsg_level = SOL_SOCKET;
            cmsg->cmsg_type = SCM_RIGHTS;
            cmsg->cmsg_len = CMSG_LEN(fds.size_bytes());
            std::memcpy(CMSG_DATA(cmsg), fds.data(), fds.size_bytes());
        }
        const auto sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN) {
                throw TimedOut("send timed out");
            }
            if (errno == EPIPE || errno == ECONNRESET) {
                throw PeerClosed("server closed the connection");
            }
            throw_errno("sendmsg");
        }
        bytes = bytes.subspan(static_cast<std::size_t>(sent));
        fds = {};
    }
}

void VfioUserClient::receive_exactly(std::span<std::byte> out, std::vector<Fd> &fds)
{
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control;
    while (!out.empty()) {
        iovec iov{out.data(), out.size()};
        msghdr message{};
        message.msg_iov = &iov;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const auto received = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
        if (received < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN) {
                throw TimedOut("receive timed out");
            }
            if (errno == ECONNRESET) {
                throw PeerClosed("connection reset");
            }
            throw_errno("recvmsg");
        }
        take_fds(message, fds);
        if (received == 0) {
            throw PeerClosed("server closed the connection");
        }
        out = out.subspan(static_cast<std::size_t>(received));
    }
}

std::optional<Message> VfioUserClient::receive()
{
    std::array<std::byte, kHeaderBytes> head;
    Message message;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control;
    iovec iov{head.data(), head.size()};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.data();
    msg.msg_controllen = control.size();
    ssize_t received = 0;
    do {
        received = ::recvmsg(socket_.get(), &msg, MSG_CMSG_CLOEXEC);
    } while (received < 0 && errno == EINTR);
    if (received == 0 || (received < 0 && errno == ECONNRESET)) {
        return std::nullopt;
    }
    if (received < 0) {
        if (errno == EAGAIN) {
            throw TimedOut("receive timed out");
        }
        throw_errno("recvmsg");
    }
    take_fds(msg, message.fds);
    if (static_cast<std::size_t>(received) != head.size()) {
        throw ProtocolError("short read of a header");
    }
    message.id = field<std::uint16_t>(head, 0);
    message.command = field<std::uint16_t>(head, 2);
    message.size = field<std::uint32_t>(head, 4);
    message.flags = field<std::uint32_t>(head, 8);
    message.error = field<std::uint32_t>(head, 12);
    if (message.size < kHeaderBytes || message.size > kSanityLimit) {
        throw ProtocolError("message size " + std::to_string(message.size));
    }
    message.payload.resize(message.size - kHeaderBytes);
    receive_exactly(message.payload, message.fds);
    return message;
}

bool VfioUserClient::closed_by_server()
{
    try {
        while (receive()) {
        }
        return true;
    } catch (const PeerClosed &) {
        return true;
    } catch (const TimedOut &) {
        return false;
    }
}

// ---- messages ----

std::uint16_t VfioUserClient::send(std::uint16_t command, std::span<const std::byte> payload, std::span<const int> fds,
                                   std::uint32_t flags)
{
    const auto id = next_id_++;
    const auto head =
        std::to_array<std::uint32_t>({static_cast<std::uint32_t>(id) | std::uint32_t{command} << 16,
                                      static_cast<std::uint32_t>(kHeaderBytes + payload.size()), flags, 0});
    const auto head_bytes = std::as_bytes(std::span(head));
    out_.assign(head_bytes.begin(), head_bytes.end());
    out_.insert(out_.end(), payload.begin(), payload.end());
    send_raw(out_, fds);
    return id;
}

void VfioUserClient::dispatch_one()
{
    auto message = receive();
    if (!message) {
        throw PeerClosed("server closed the connection");
    }
    if (message->is_reply()) {
        const auto id = message->id;
        if (!replies_.emplace(id, std::move(*message)).second) {
            throw ProtocolError("two replies to message " + std::to_string(id));
        }
    } else if (dma_handler_) {
        dma_handler_(std::move(*message));
    } else {
        answer_dma(*message);
    }
}

Message VfioUserClient::wait_reply(std::uint16_t id)
{
    for (;;) {
        if (auto node = replies_.extract(id)) {
            return std::move(node.mapped());
        }
        dispatch_one();
    }
}

Message VfioUserClient::transact(std::uint16_t command, std::span<const std::byte> payload, std::span<const int> fds)
{
    auto reply = wait_reply(send(command, payload, fds));
    if (reply.command != command) {
        throw ProtocolError("reply names another command");
    }
    if (reply.is_error() && (!reply.payload.empty() || !reply.fds.empty())) {
        throw ProtocolError("an error reply is the header only");
    }
    return reply;
}

bool VfioUserClient::serve_until(const std::function<bool()> &done, int extra_fd)
{
    const auto give_up = std::chrono::steady_clock::now() + timeout_;
    while (!done()) {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(give_up - std::chrono::steady_clock::now()).count();
        std::array<pollfd, 2> fds{{{socket_.get(), POLLIN, 0}, {extra_fd, POLLIN, 0}}};
        if (left <= 0 || ::poll(fds.data(), fds.size(), static_cast<int>(left)) == 0) {
            return done();
        }
        if (fds[0].revents != 0) {
            dispatch_one();
        }
    }
    return true;
}

// ---- commands ----

VersionReply VfioUserClient::version(std::uint16_t minor, std::string_view json)
{
    Packer payload;
    payload.u16(0).u16(minor);
    if (!json.empty()) {
        payload.text(json).u8(0);
    }
    const auto reply = transact(kVersion, payload.view());
    expect_success(reply, "VERSION");
    VersionReply result;
    result.major = field<std::uint16_t>(reply.payload, 0);
    result.minor = field<std::uint16_t>(reply.payload, 2);
    result.message_size = reply.size;
    if (reply.payload.size() > 4) {
        if (reply.payload.back() != std::byte{0}) {
            throw ProtocolError("VERSION reply: JSON without NUL");
        }
        result.json.assign(reinterpret_cast<const char *>(reply.payload.data()) + 4, reply.payload.size() - 5);
    }
    return result;
}

int VfioUserClient::dma_map(std::uint64_t address, std::uint64_t size, std::uint64_t offset, std::uint32_t flags,
                            int fd)
{
    const auto payload = Packer().u32(32).u32(flags).u64(offset).u64(address).u64(size).take();
    const auto reply = fd >= 0 ? transact(kDmaMap, payload, {&fd, 1}) : transact(kDmaMap, payload);
    if (!reply.payload.empty()) {
        throw ProtocolError("DMA_MAP reply has a payload");
    }
    return reply.result();
}

int VfioUserClient::dma_map(const GuestRam &ram, std::uint32_t flags)
{
    return dma_map(ram.address(), ram.size(), 0, flags, ram.fd());
}

int VfioUserClient::dma_unmap(std::uint64_t address, std::uint64_t size, std::uint32_t flags)
{
    const auto payload = Packer().u32(24).u32(flags).u64(address).u64(size).take();
    const auto reply = transact(kDmaUnmap, payload);
    if (!reply.is_error() && reply.payload != payload) {
        throw ProtocolError("DMA_UNMAP reply does not echo the request");
    }
    return reply.result();
}

DeviceInfoReply VfioUserClient::device_info()
{
    const auto reply = transact(kGetInfo, Packer().u32(16).u32(0).u32(0).u32(0).view());
    const auto &payload = expect_success(reply, "GET_INFO").payload;
    if (payload.size() != 16) {
        throw ProtocolError("GET_INFO reply size");
    }
    return {field<std::uint32_t>(payload, 0), field<std::uint32_t>(payload, 4), field<std::uint32_t>(payload, 8),
            field<std::uint32_t>(payload, 12)};
}

RegionInfoReply VfioUserClient::region_info(std::uint32_t index)
{
    std::uint32_t argsz = 32;
    for (;;) {
        const auto request = Packer().u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0).take();
        auto reply = transact(kGetRegionInfo, request);
        expect_success(reply, "GET_REGION_INFO");
        const auto &payload = reply.payload;
        RegionInfoReply info;
        info.argsz = field<std::uint32_t>(payload, 0);
        if (info.argsz > argsz) {
            argsz = info.argsz;
            continue;
        }
        info.flags = field<std::uint32_t>(payload, 4);
        info.index = field<std::uint32_t>(payload, 8);
        info.cap_offset = field<std::uint32_t>(payload, 12);
        info.size = field<std::uint64_t>(payload, 16);
        info.offset = field<std::uint64_t>(payload, 24);
        if ((info.flags & RegionInfoReply::kCaps) != 0) {
            info.areas = sparse_areas(reply, info.cap_offset);
        }
        info.fds = std::move(reply.fds);
        return info;
    }
}

IrqInfoReply VfioUserClient::irq_info(std::uint32_t index)
{
    const auto reply = transact(kGetIrqInfo, Packer().u32(16).u32(0).u32(index).u32(0).view());
    const auto &payload = expect_success(reply, "GET_IRQ_INFO").payload;
    return {field<std::uint32_t>(payload, 0), field<std::uint32_t>(payload, 4), field<std::uint32_t>(payload, 8),
            field<std::uint32_t>(payload, 12)};
}

int VfioUserClient::set_irqs(std::uint32_t flags, std::uint32_t index, std::uint32_t start, std::uint32_t count,
                             std::span<const int> fds, std::span<const std::byte> bools)
{
    Packer payload;
    payload.u32(static_cast<std::uint32_t>(20 + bools.size())).u32(flags).u32(index).u32(start).u32(count).bytes(bools);
    return transact(kSetIrqs, payload.view(), fds).result();
}

Bytes VfioUserClient::region_read(std::uint32_t region, std::uint64_t offset, std::uint32_t count)
{
    const auto request = Packer().u64(offset).u32(region).u32(count).take();
    auto reply = transact(kRegionRead, request);
    expect_success(reply, "REGION_READ");
    if (reply.payload.size() != request.size() + count ||
        std::memcmp(reply.payload.data(), request.data(), request.size()) != 0) {
        throw ProtocolError("REGION_READ reply does not match its request");
    }
    reply.payload.erase(reply.payload.begin(), reply.payload.begin() + 16);
    return std::move(reply.payload);
}

int VfioUserClient::region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data)
{
    const auto reply = transact(
        kRegionWrite, Packer().u64(offset).u32(region).u32(static_cast<std::uint32_t>(data.size())).bytes(data).view());
    if (!reply.is_error() &&
        (reply.payload.size() != 16 || field<std::uint64_t>(reply.payload, 0) != offset ||
         field<std::uint32_t>(reply.payload, 8) != region || field<std::uint32_t>(reply.payload, 12) != data.size())) {
        throw ProtocolError("REGION_WRITE reply does not match its request");
    }
    return reply.result();
}

void VfioUserClient::region_post(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data)
{
    send(kRegionWrite, Packer().u64(offset).u32(region).u32(static_cast<std::uint32_t>(data.size())).bytes(data).view(),
         {}, kNoReply);
}

int VfioUserClient::write_multi(std::span<const MultiWriteEntry> entries, bool posted)
{
    Packer payload;
    payload.u64(entries.size());
    for (const auto &entry : entries) {
        payload.u64(entry.offset).u32(entry.region).u32(entry.count).u64(entry.data);
    }
    if (posted) {
        send(kRegionWriteMulti, payload.view(), {}, kNoReply);
        return 0;
    }
    return transact(kRegionWriteMulti, payload.view()).result();
}

int VfioUserClient::reset()
{
    const auto reply = transact(kReset, {});
    if (!reply.payload.empty()) {
        throw ProtocolError("DEVICE_RESET reply has a payload");
    }
    return reply.result();
}

// ---- DMA from the server ----

void VfioUserClient::serve_memory(std::uint64_t address, std::span<std::byte> memory)
{
    memory_[address] = memory;
}

std::span<std::byte> VfioUserClient::served(std::uint64_t address, std::uint64_t count)
{
    auto it = memory_.upper_bound(address);
    if (it == memory_.begin()) {
        return {};
    }
    --it;
    const auto offset = address - it->first;
    if (offset > it->second.size() || count > it->second.size() - offset) {
        return {};
    }
    return it->second.subspan(offset, count);
}

void VfioUserClient::answer_dma(const Message &command)
{
    if (command.command != kDmaRead && command.command != kDmaWrite) {
        throw ProtocolError("the server sent command " + std::to_string(command.command));
    }
    const auto address = field<std::uint64_t>(command.payload, 0);
    const auto count = field<std::uint64_t>(command.payload, 8);
    const bool is_read = command.command == kDmaRead;
    if (command.payload.size() != 16 + (is_read ? 0 : count) || !command.fds.empty()) {
        throw ProtocolError("malformed DMA command");
    }
    (is_read ? dma_.reads : dma_.writes)++;
    dma_.largest = std::max(dma_.largest, count);
    const auto memory = served(address, count);
    if (count == 0 || memory.empty()) {
        dma_.failed++;
        reply_error(command, EFAULT);
        return;
    }
    Packer payload;
    payload.u64(address).u64(count);
    if (is_read) {
        payload.bytes(memory);
    } else {
        std::memcpy(memory.data(), command.payload.data() + 16, count);
    }
    reply(command, payload.view());
}

void VfioUserClient::reply(const Message &command, std::span<const std::byte> payload)
{
    if ((command.flags & kNoReply) != 0) {
        return;
    }
    send_raw(Packer()
                 .bytes(header(command.id, command.command, static_cast<std::uint32_t>(kHeaderBytes + payload.size()),
                               kTypeReply))
                 .bytes(payload)
                 .view());
}

void VfioUserClient::reply_error(const Message &command, int error)
{
    if ((command.flags & kNoReply) != 0) {
        return;
    }
    send_raw(header(command.id, command.command, kHeaderBytes, kTypeReply | kError, static_cast<std::uint32_t>(error)));
}

}  // namespace vvfu::test
