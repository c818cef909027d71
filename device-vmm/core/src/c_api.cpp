// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "support.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/core/vvfu_core.h"

namespace {

using vvfu::Fd;
using vvfu::kNever;
using vvfu::Nanoseconds;
namespace core = vvfu::core;

/// A port that consists of C function pointers.
class CPort final : public core::Port {
public:
    CPort(const VvfuPortOps &ops, void *opaque) : ops_(ops), opaque_(opaque) {}

    int listen() override { return ops_.listen(opaque_); }
    void unlisten() override { ops_.unlisten(opaque_); }
    void send(std::span<const std::byte> message, std::span<const int> fds) override
    {
        ops_.send(opaque_, message.data(), message.size(), fds.data(), fds.size());
    }
    std::size_t send_backlog() const override { return ops_.send_backlog(opaque_); }
    void close_peer() override { ops_.close_peer(opaque_); }
    int push_request(unsigned queue, std::span<const std::byte> message) override
    {
        return ops_.push_request(opaque_, queue, message.data(), message.size());
    }
    void complete_control(std::uint64_t token, std::span<const std::byte> reply) override
    {
        ops_.complete_control(opaque_, token, reply.data(), reply.size());
    }
    void device_broken(std::string_view reason) override { ops_.device_broken(opaque_, std::string{reason}.c_str()); }
    int window_map(std::uint64_t window_offset, std::uint64_t size, int protection, int fd,
                   std::uint64_t fd_offset) override
    {
        return ops_.window_map(opaque_, window_offset, size, protection, fd, fd_offset);
    }
    void window_unmap(std::uint64_t window_offset, std::uint64_t size) override
    {
        ops_.window_unmap(opaque_, window_offset, size);
    }
    int region_memory_map(std::uint64_t offset, std::uint64_t size, int fd, std::uint64_t fd_offset) override
    {
        return ops_.region_memory_map(opaque_, offset, size, fd, fd_offset);
    }
    void region_memory_unmap(std::uint64_t offset, std::uint64_t size) override
    {
        ops_.region_memory_unmap(opaque_, offset, size);
    }
    void doorbell_set(unsigned index, int fd) override { ops_.doorbell_set(opaque_, index, fd); }
    void notification_set(unsigned index, int fd) override { ops_.notification_set(opaque_, index, fd); }
    void signal_eventfd(int fd) override { ops_.signal_eventfd(opaque_, fd); }
    void log(core::LogLevel level, std::string_view text) override
    {
        ops_.log(opaque_, static_cast<int>(level), std::string{text}.c_str());
    }
    void state_changed() override { ops_.state_changed(opaque_); }

private:
    VvfuPortOps ops_;
    void *opaque_;
};

Nanoseconds time(std::uint64_t now_ns)
{
    return Nanoseconds{static_cast<Nanoseconds::rep>(now_ns)};
}

template <typename T>
std::span<const std::byte> bytes(const T *data, std::size_t length)
{
    return {static_cast<const std::byte *>(static_cast<const void *>(data)), length};
}

/// The text outlives the call that it explains, as vvfu_core_new() promises.
const char *keep(const std::string &error)
{
    static thread_local std::string last;
    last = error;
    return last.c_str();
}

core::CoreConfig convert(const VvfuCoreConfig &config)
{
    core::CoreConfig out;
    std::copy(std::begin(config.uuid), std::end(config.uuid), out.uuid.begin());
    out.window_size = config.window_size;
    out.region_memory_size = config.region_memory_size;
    out.doorbells = config.doorbells;
    out.notifications = config.notifications;
    out.trust_peer_memory = config.trust_peer_memory;
    out.unmap_timeout = std::chrono::milliseconds{config.unmap_timeout_ms};
    out.access_timeout = std::chrono::milliseconds{config.access_timeout_ms};
    return out;
}

std::size_t put_cap(std::uint8_t out[24], const vvfu::PciCap &cap)
{
    std::array<std::byte, vvfu::kPciCap64Size> buffer{};
    const auto size = vvfu::encode_pci_cap(cap, buffer);
    std::memcpy(out, buffer.data(), size);
    return size;
}

}  // namespace

struct VvfuCore {
    CPort port;
    std::unique_ptr<core::Core> core;
};

extern "C" {

VvfuCore *vvfu_core_new(const VvfuCoreConfig *config, const VvfuPortOps *ops, void *opaque, const char **error)
try {
    if (config->abi_version != VVFU_CORE_ABI_VERSION) {
        *error = "the port was built for another version of the core's C interface";
        return nullptr;
    }
    auto holder = std::make_unique<VvfuCore>(VvfuCore{CPort{*ops, opaque}, nullptr});
    auto created = core::Core::create(convert(*config), holder->port);
    if (!created) {
        *error = keep(created.error());
        return nullptr;
    }
    holder->core = std::move(*created);
    return holder.release();
} catch (...) {
    *error = core::exception_text();
    return nullptr;
}

void vvfu_core_free(VvfuCore *core)
{
    delete core;
}

uint64_t vvfu_core_device_features(const VvfuCore *core)
{
    return core->core->device_features();
}

void vvfu_core_device_config(const VvfuCore *core, uint8_t out[64])
{
    std::array<std::byte, vvfu::kDeviceConfigSize> buffer{};
    vvfu::encode(core->core->device_config(), buffer);
    std::memcpy(out, buffer.data(), buffer.size());
}

size_t vvfu_core_device_config_size(void)
{
    return vvfu::kDeviceConfigSize;
}

void vvfu_core_driver_ok(VvfuCore *core, uint64_t now_ns)
{
    core->core->driver_ok(time(now_ns));
}

void vvfu_core_driver_reset(VvfuCore *core, uint64_t now_ns)
{
    core->core->driver_reset(time(now_ns));
}

void vvfu_core_control_request(VvfuCore *core, uint64_t now_ns, uint64_t token, const void *message, size_t length,
                               size_t reply_capacity)
{
    core->core->control_request(time(now_ns), token, bytes(message, length), reply_capacity);
}

bool vvfu_core_wants_control_requests(const VvfuCore *core)
{
    return core->core->wants_control_requests();
}

void vvfu_core_reply(VvfuCore *core, uint64_t now_ns, unsigned queue, const void *message, size_t length)
{
    core->core->reply(time(now_ns), queue, bytes(message, length));
}

void vvfu_core_request_buffers(VvfuCore *core, uint64_t now_ns, unsigned queue)
{
    core->core->request_buffers(time(now_ns), queue);
}

int vvfu_core_peer_connected(VvfuCore *core, uint64_t now_ns, uint32_t pid, uint32_t uid, uint32_t gid)
{
    return core->core->peer_connected(time(now_ns), {pid, uid, gid});
}

void vvfu_core_peer_data(VvfuCore *core, uint64_t now_ns, const void *data, size_t length, const int *fds, size_t nfds)
{
    // SCM_MAX_FD of the kernel: one recvmsg() never brings more.
    constexpr std::size_t kMaxFds = 253;
    std::array<Fd, kMaxFds> owned;
    for (std::size_t i = 0; i < nfds; ++i) {
        if (i < kMaxFds) {
            owned[i].reset(fds[i]);
        } else {
            Fd{fds[i]}.reset();
        }
    }
    core->core->peer_data(time(now_ns), bytes(data, length), std::span{owned}.first(std::min(nfds, kMaxFds)));
}

void vvfu_core_peer_closed(VvfuCore *core, uint64_t now_ns, int error)
{
    core->core->peer_closed(time(now_ns), error);
}

bool vvfu_core_wants_peer_data(const VvfuCore *core)
{
    return core->core->wants_peer_data();
}

void vvfu_core_send_drained(VvfuCore *core, uint64_t now_ns)
{
    core->core->send_drained(time(now_ns));
}

void vvfu_core_doorbell_written(VvfuCore *core, unsigned index)
{
    core->core->doorbell_written(index);
}

bool vvfu_core_doorbell_pending(const VvfuCore *core, unsigned index)
{
    return core->core->doorbell_pending(index);
}

void vvfu_core_notification_fired(VvfuCore *core, uint64_t now_ns, unsigned index)
{
    core->core->notification_fired(time(now_ns), index);
}

void vvfu_core_log(VvfuCore *core, uint64_t now_ns, int level, const char *kind, const char *text)
{
    core->core->log(time(now_ns), core::LogLevel{level}, kind, text);
}

uint64_t vvfu_core_next_deadline(const VvfuCore *core)
{
    const auto deadline = core->core->next_deadline();
    return deadline == kNever ? UINT64_MAX : static_cast<std::uint64_t>(deadline.count());
}

void vvfu_core_tick(VvfuCore *core, uint64_t now_ns)
{
    core->core->tick(time(now_ns));
}

void vvfu_core_state(const VvfuCore *core, VvfuCoreState *out)
{
    const auto state = core->core->state();
    *out = VvfuCoreState{};
    out->state = state.state;
    out->epoch = state.epoch;
    out->peer_pid = state.peer.pid;
    out->peer_uid = state.peer.uid;
    out->mapped_bytes = state.mapped_bytes;
    out->mapped_ranges = state.mapped_ranges;
    out->message_ranges = state.message_ranges;
    out->requests = state.requests;
    out->protocol_errors = state.protocol_errors;
    out->deadline_expiries = state.deadline_expiries;
    out->unknown_replies = state.unknown_replies;
    out->silences = state.silences;
    out->dropped_accesses = state.dropped_accesses;
}

//= VVFU-PCI-2
size_t vvfu_core_doorbell_cap(uint8_t out[24], uint8_t bar, uint32_t offset, uint32_t doorbells)
{
    return put_cap(out, {vvfu::kCapDoorbell, bar, 0, offset, std::uint64_t{doorbells} * vvfu::kDoorbellMultiplier,
                         vvfu::kDoorbellMultiplier});
}

size_t vvfu_core_notification_cap(uint8_t out[24], uint8_t bar, uint32_t offset)
{
    constexpr std::uint64_t kRegisters = 4;  // notification_select and notification_msix_vector
    return put_cap(out, {vvfu::kCapNotification, bar, 0, offset, kRegisters, 0});
}

}  // extern "C"
