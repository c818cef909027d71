// SPDX-License-Identifier: BSD-3-Clause
#include "core_server.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace vvfu::test {

namespace {

constexpr std::size_t kRegionMemorySize = 256 * 1024;
constexpr std::size_t kReadChunk = 64 * 1024;
constexpr std::size_t kMaxFds = 253;  // SCM_MAX_FD

control::DeviceInfo describe_device()
{
    using namespace control;
    DeviceInfo info;
    info.flags = kDeviceReset | kDeviceQuiesce;
    info.features = kFeatureWriteMultiple;
    info.vendor_id = 0x1af4;
    info.device_id = 0x10ff;
    const std::uint32_t rw = kRegionRead | kRegionWrite;
    info.regions = {
        {kRegionBar0, rw, CoreServer::kBar0Size, 0, {}},
        {2, rw | kRegionMmap, CoreServer::kBar2Size, CoreServer::kBar2Offset, {{0x1000, 0x8000}, {0xa000, 0x2000}}},
        {kRegionConfig, rw, CoreServer::kConfigSize, 0, {}},
    };
    info.irqs = {{kIrqIntx, 1}, {kIrqMsix, CoreServer::kMsixVectors}};
    return info;
}

}  // namespace

CoreServer::CoreServer(const Options &options)
{
    doorbells_.fill(-1);
    notifications_.fill(-1);
    regions_[0].resize(kBar0Size);
    regions_[2].resize(kBar2Size);
    regions_[control::kRegionConfig].resize(kConfigSize);
    regions_[control::kRegionConfig][0x3d] = std::byte{1};  // INTA#

    core::CoreConfig config;
    config.window_size = std::uint64_t{1} << 32;
    config.region_memory_size = kRegionMemorySize;
    config.unmap_timeout = options.unmap_timeout;
    config.access_timeout = options.access_timeout;
    config.trust_peer_memory = options.trust_peer_memory;
    auto created = core::Core::create(config, *this);
    if (!created) {
        throw std::runtime_error(created.error());
    }
    core_ = std::move(*created);
    core_->driver_ok(now());
    core_->request_buffers(now(), kRequestQueue);
    register_device();
    thread_ = std::thread([this] { loop(); });
}

CoreServer::~CoreServer()
{
    call([this] { stop_ = true; });
    thread_.join();
    core_.reset();
}

void CoreServer::register_device()
{
    control::Buffer message;
    control::begin(message, {control::Type::device_info, 0, 0, 1, 0, control::Status::ok});
    control::append(message, describe_device());
    control::finish(message);
    core_->control_request(now(), 0, message, kMaxMessageSize);
    if (!registered_) {
        throw std::runtime_error("the core refused the device");
    }
}

// ---- calls from the tests' thread ----

void CoreServer::call(std::function<void()> task)
{
    std::unique_lock lock(mutex_);
    tasks_.push_back(std::move(task));
    const auto number = ++tasks_posted_;
    wake_.signal();
    done_.wait(lock, [&] { return tasks_done_ >= number; });
}

Fd CoreServer::connect()
{
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw std::system_error(errno, std::generic_category(), "socketpair");
    }
    Fd client(ends[0]);
    call([this, server = ends[1]] {
        Fd connection(server);
        // What the previous peer did before, its end above all, comes first.
        while (socket_ && core_->wants_peer_data() && read_socket()) {
        }
        if (core_->peer_connected(now(), {1, 2, 3}) == 0) {
            socket_ = std::move(connection);
            backlog_.clear();
        }
    });
    return client;
}

void CoreServer::set_guest_silent(bool silent)
{
    call([&] { silent_ = silent; });
}

std::size_t CoreServer::guest_requests()
{
    std::size_t count = 0;
    call([&] { count = request_count_; });
    return count;
}

void CoreServer::ring_doorbell(unsigned index)
{
    call([&] {
        if (doorbells_.at(index) >= 0) {
            signal_eventfd(doorbells_[index]);
        } else {
            core_->doorbell_written(index);
        }
    });
}

core::CoreState CoreServer::state()
{
    core::CoreState state;
    call([&] { state = core_->state(); });
    return state;
}

std::size_t CoreServer::window_mappings()
{
    std::size_t count = 0;
    call([&] { count = window_.size(); });
    return count;
}

std::string CoreServer::log_text()
{
    std::string text;
    call([&] { text = log_; });
    return text;
}

// ---- the core's thread ----

Nanoseconds CoreServer::now()
{
    return std::chrono::steady_clock::now().time_since_epoch();
}

void CoreServer::loop()
{
    while (!stop_) {
        run_guest();
        wait_for_events();
        run_tasks();
        flush_backlog();
        if (socket_ && core_->wants_peer_data()) {
            static_cast<void>(read_socket());
        }
        run_guest();  // before the deadlines: only a silent guest misses them, however slow the machine
        core_->tick(now());
    }
}

void CoreServer::wait_for_events()
{
    const auto deadline = core_->next_deadline();
    const auto left = deadline == kNever ? Nanoseconds{-1} : std::max(deadline - now(), Nanoseconds{0});
    const auto events = (core_->wants_peer_data() ? POLLIN : 0) | (backlog_.empty() ? 0 : POLLOUT);
    std::array<pollfd, 2> fds{
        {{wake_.fd(), POLLIN, 0}, {events != 0 ? socket_.get() : -1, static_cast<short>(events), 0}}};
    const timespec timeout{left.count() / 1'000'000'000, left.count() % 1'000'000'000};
    ::ppoll(fds.data(), fds.size(), left.count() < 0 ? nullptr : &timeout, nullptr);
}

void CoreServer::run_tasks()
{
    std::unique_lock lock(mutex_);
    static_cast<void>(wake_.take());
    while (!tasks_.empty()) {
        const auto task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        task();
        run_guest();
        lock.lock();
        ++tasks_done_;
        done_.notify_all();
    }
}

bool CoreServer::read_socket()
{
    std::array<std::byte, kReadChunk> data;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control_data;
    iovec iov{data.data(), data.size()};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control_data.data();
    message.msg_controllen = control_data.size();
    const auto received = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received < 0 && (errno == EAGAIN || errno == EINTR)) {
        return false;
    }
    std::vector<Fd> fds;
    for (auto *cmsg = received < 0 ? nullptr : CMSG_FIRSTHDR(&message); cmsg != nullptr;
         cmsg = CMSG_NXTHDR(&message, cmsg)) {
        for (std::size_t i = 0; i < (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof fd);
            fds.emplace_back(fd);
        }
    }
    if (received <= 0) {
        const int error = received < 0 ? errno : 0;
        socket_.reset();
        core_->peer_closed(now(), error);
        return false;
    }
    core_->peer_data(now(), std::span(data).first(static_cast<std::size_t>(received)), fds);
    return true;
}

void CoreServer::send(std::span<const std::byte> message, std::span<const int> fds)
{
    if (!backlog_.empty() && fds.empty()) {
        backlog_.insert(backlog_.end(), message.begin(), message.end());
        return;
    }
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control_data{};
    iovec iov{const_cast<std::byte *>(message.data()), message.size()};
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (!fds.empty()) {
        msg.msg_control = control_data.data();
        msg.msg_controllen = CMSG_SPACE(fds.size_bytes());
        auto *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(fds.size_bytes());
        std::memcpy(CMSG_DATA(cmsg), fds.data(), fds.size_bytes());
    }
    // No test of this port leaves messages with fds unread, so only plain bytes ever need the backlog.
    const auto sent = ::sendmsg(socket_.get(), &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    const auto taken = sent < 0 ? std::size_t{0} : static_cast<std::size_t>(sent);
    backlog_.insert(backlog_.end(), message.begin() + static_cast<std::ptrdiff_t>(taken), message.end());
}

void CoreServer::flush_backlog()
{
    if (backlog_.empty() || !socket_) {
        return;
    }
    const auto sent = ::send(socket_.get(), backlog_.data(), backlog_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
        backlog_.erase(backlog_.begin(), backlog_.begin() + sent);
        if (backlog_.empty()) {
            core_->send_drained(now());
        }
    } else if (sent < 0 && errno != EAGAIN) {
        const int error = errno;
        socket_.reset();
        backlog_.clear();
        core_->peer_closed(now(), error);
    }
}

// ---- the scripted guest ----

int CoreServer::push_request(unsigned queue, std::span<const std::byte> message)
{
    if (queue != kRequestQueue || requests_.size() >= kQueueSize) {
        return -EAGAIN;
    }
    if (message.size() > kRequestBufferSize) {
        return -EMSGSIZE;
    }
    requests_.emplace_back(message.begin(), message.end());
    ++request_count_;
    return 0;
}

void CoreServer::run_guest()
{
    while (!silent_ && !requests_.empty()) {
        const auto request = std::move(requests_.front());
        requests_.pop_front();
        answer(request);
        core_->request_buffers(now(), kRequestQueue);
    }
}

void CoreServer::answer(std::span<const std::byte> request)
{
    using namespace control;
    const auto header = decode_header(request);
    if (!header) {
        throw std::logic_error("the core sent a malformed header");
    }
    const auto payload = request.subspan(kHeaderSize);
    Buffer reply;
    begin(reply, {header->type, kFlagReply, 0, header->request_id, header->epoch, Status::ok});
    if (header->type == Type::feature_bits) {
        append(reply, decode_feature_bits(payload).value());
    } else if (header->type == Type::region_read) {
        const auto access = decode_region_access(payload).value();
        append(reply, access, std::span(regions_.at(access.region)).subspan(access.offset, access.count));
    } else if (header->type == Type::region_write) {
        const auto write = decode_region_data(payload).value();
        std::copy(write.data.begin(), write.data.end(),
                  regions_.at(write.access.region).begin() + static_cast<std::ptrdiff_t>(write.access.offset));
        append(reply, write.access);
    } else if (header->type == Type::region_write_multi) {
        const auto writes = decode_multi_write(payload).value();
        for (const auto &write : writes) {
            std::copy_n(write.data, write.access.count,
                        regions_.at(write.access.region).begin() + static_cast<std::ptrdiff_t>(write.access.offset));
        }
    }
    finish(reply);
    if (!header->is_posted()) {
        core_->reply(now(), kReplyQueue, reply);
    }
}

// ---- the rest of the port ----

void CoreServer::complete_control(std::uint64_t, std::span<const std::byte> reply)
{
    const auto header = control::decode_header(reply);
    registered_ = header && header->type == control::Type::device_info && header->status == control::Status::ok;
    if (!registered_) {
        log(core::LogLevel::error, control::decode_text(reply.subspan(control::kHeaderSize)));
    }
}

void CoreServer::device_broken(std::string_view reason)
{
    log(core::LogLevel::error, reason);
}

int CoreServer::window_map(std::uint64_t window_offset, std::uint64_t size, int, int, std::uint64_t)
{
    return window_.emplace(window_offset, size).second ? 0 : -EEXIST;
}

void CoreServer::window_unmap(std::uint64_t window_offset, std::uint64_t size)
{
    const auto it = window_.find(window_offset);
    if (it == window_.end() || it->second != size) {
        throw std::logic_error("the core unmaps what it did not map");
    }
    window_.erase(it);
}

void CoreServer::signal_eventfd(int fd)
{
    const std::uint64_t one = 1;
    // A full counter is left full; the fd is non-blocking in every test.
    static_cast<void>(!::write(fd, &one, sizeof one));
}

void CoreServer::log(core::LogLevel, std::string_view text)
{
    log_.append(text).append("\n");
}

}  // namespace vvfu::test
