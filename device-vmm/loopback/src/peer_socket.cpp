// SPDX-License-Identifier: BSD-3-Clause
#include "peer_socket.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace vvfu::loopback {
namespace {

/// One read takes a burst of posted writes; pages that small messages never reach stay untouched.
constexpr std::size_t kReceiveBytes = 128 * 1024;
constexpr std::size_t kMaxFds = 253;  // SCM_MAX_FD
/// The kernel splits a stream into buffers of 32 KiB and more. Below that a batch arrives in one piece, and no message
/// header is torn apart (QEMU takes a short read of a header for a broken connection).
constexpr std::size_t kBatchBytes = 16 * 1024;

void take_fds(msghdr &message, std::vector<Fd> &out)
{
    for (cmsghdr *header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        const auto count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            out.emplace_back(fd);
        }
    }
}

}  // namespace

PeerSocket::PeerSocket(Fd fd) : fd_(std::move(fd)), buffer_(new std::byte[kReceiveBytes])
{
    batch_.reserve(kBatchBytes);
}

PeerSocket::Received PeerSocket::receive()
{
    Received received;
    iovec part{buffer_.get(), kReceiveBytes};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control;
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t bytes = 0;
    do {
        bytes = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    } while (bytes < 0 && errno == EINTR);
    if (bytes < 0) {
        received.would_block = errno == EAGAIN || errno == EWOULDBLOCK;
        received.closed = !received.would_block;
        received.error = received.closed ? errno : 0;
        return received;
    }
    if (message.msg_controllen > 0) {
        take_fds(message, received.fds);
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
        received.fds.clear();
        received.closed = true;
        received.error = EMSGSIZE;
        return received;
    }
    received.closed = bytes == 0;
    received.data = {buffer_.get(), static_cast<std::size_t>(bytes)};
    return received;
}

void PeerSocket::send(std::span<const std::byte> message, std::span<const int> fds)
{
    if (fds.empty() && message.size() <= kBatchBytes) {
        if (message.size() > kBatchBytes - batch_.size()) {
            flush_batch();
        }
        batch_.insert(batch_.end(), message.begin(), message.end());
        return;
    }
    flush_batch();
    queue(message, fds);
}

void PeerSocket::flush_batch()
{
    if (!batch_.empty()) {
        queue(batch_, {});
        batch_.clear();
    }
}

void PeerSocket::queue(std::span<const std::byte> bytes, std::span<const int> fds)
{
    const auto taken = backlog_.empty() ? transmit(bytes, fds) : 0;
    if (taken == bytes.size() || send_error_ != 0) {
        return;
    }
    Outgoing rest;
    rest.bytes.assign(bytes.begin() + static_cast<std::ptrdiff_t>(taken), bytes.end());
    if (taken == 0) {
        for (const int fd : fds) {
            rest.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
            if (!rest.fds.back()) {
                send_error_ = errno;
                return;
            }
        }
    }
    backlog_bytes_ += rest.bytes.size();
    refused_ = true;
    backlog_.push_back(std::move(rest));
}

void PeerSocket::flush()
{
    flush_batch();
    while (!backlog_.empty() && send_error_ == 0) {
        auto &next = backlog_.front();
        std::vector<int> fds;
        for (const auto &fd : next.fds) {
            fds.push_back(fd.get());
        }
        const auto taken = transmit(std::span{next.bytes}.subspan(next.sent), fds);
        if (taken == 0) {
            return;
        }
        next.sent += taken;
        next.fds.clear();
        backlog_bytes_ -= taken;
        if (next.sent == next.bytes.size()) {
            backlog_.pop_front();
        }
    }
}

bool PeerSocket::take_drained() noexcept
{
    return backlog_bytes_ == 0 && std::exchange(refused_, false);
}

std::size_t PeerSocket::transmit(std::span<const std::byte> bytes, std::span<const int> fds)
{
    iovec part{const_cast<std::byte *>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::vector<char> control;
    if (!fds.empty()) {
        control.resize(CMSG_SPACE(fds.size_bytes()));
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fds.size_bytes());
        std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    }
    ssize_t sent = 0;
    do {
        sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK) {
            send_error_ = errno;
        }
        return 0;
    }
    return static_cast<std::size_t>(sent);
}

}  // namespace vvfu::loopback
