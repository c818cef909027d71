// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/core/core.hpp"

#include <cerrno>
#include <cstring>
#include <exception>
#include <optional>
#include <string>

#include "device_registry.hpp"
#include "guest_channel.hpp"
#include "irq_table.hpp"
#include "support.hpp"

namespace vvfu::core {

using control::Status;
using control::Type;

/// Every reply part of the control queue holds at least a header and a text (VVFU-QUEUE-3).
constexpr std::size_t kMinReplyCapacity = control::kHeaderSize + control::kTextMax;

class Core::Impl {
public:
    Impl(const CoreConfig &config, Port &port)
        : config_(config),
          port_(port),
          log_(port),
          irqs_(port, config.doorbells),
          guest_(port, counters_, log_, config.access_timeout)
    {
    }

    /// Runs an entry point. Nothing thrown leaves it, and what it found out about the guest takes effect.
    template <typename Body>
    void enter(Nanoseconds now, const Body &body) noexcept
    {
        try {
            if (!broken_) {
                body();
                settle(now);
            }
        } catch (const std::exception &error) {
            fail_safe(error.what());
        } catch (...) {
            fail_safe("unknown exception");
        }
    }

    void driver_ok()
    {
        driver_ok_ = true;
        port_.state_changed();
    }
    void driver_reset();
    void control_request(Nanoseconds now, std::uint64_t token, control::Bytes message, std::size_t capacity);

    CoreConfig config_;
    Port &port_;
    Counters counters_;
    Log log_;
    IrqTable irqs_;
    GuestChannel guest_;
    std::optional<Device> device_;
    std::uint32_t epoch_ = 0;
    bool driver_ok_ = false;
    bool broken_ = false;

private:
    void settle(Nanoseconds now);
    void break_device(std::string_view reason);
    void fail_safe(const char *cause) noexcept;
    void withdraw();

    void answer(std::uint64_t token, const control::Header &request, Status status, std::string_view text = {});
    void device_info(std::uint64_t token, const control::Header &header, control::Bytes payload);
    void device_add(std::uint64_t token, const control::Header &header, const control::DeviceInfo &info);
    void device_del(std::uint64_t token, const control::Header &header);
};

void Core::Impl::settle(Nanoseconds)
{
    if (guest_.failure()) {
        break_device(*guest_.failure());
    }
}

void Core::Impl::withdraw()
{
    irqs_.release();
    if (device_) {
        device_.reset();
        port_.unlisten();
    }
}

void Core::Impl::break_device(std::string_view reason)
{
    broken_ = true;
    withdraw();
    log_.write(LogLevel::error, "device broken: " + std::string{reason});
    port_.device_broken(reason);
    port_.state_changed();
}

void Core::Impl::fail_safe(const char *cause) noexcept
{
    try {
        break_device(cause);
    } catch (...) {
        broken_ = true;  // not even memory for a log line
    }
}

void Core::Impl::driver_reset()
{
    withdraw();
    guest_.reset();
    log_.forget();
    broken_ = driver_ok_ = false;
    port_.state_changed();
}

void Core::Impl::answer(std::uint64_t token, const control::Header &request, Status status, std::string_view text)
{
    control::Buffer out;
    control::begin(out, {request.type, control::kFlagReply, 0, request.request_id, request.epoch, status});
    if (status != Status::ok) {
        control::append_text(out, text);
    }
    control::finish(out);
    port_.complete_control(token, out);
}

void Core::Impl::control_request(Nanoseconds, std::uint64_t token, control::Bytes message, std::size_t capacity)
{
    const auto header = control::decode_header(message);
    if (!header) {
        return guest_.fail("control queue: " + std::string{control::describe(header.error())});
    }
    if (header->flags != 0) {
        return guest_.fail("control queue: a message that is not a request");
    }
    if (capacity < kMinReplyCapacity) {
        return guest_.fail("control queue: the reply part has less than 288 bytes");
    }
    const auto payload = message.subspan(control::kHeaderSize);
    switch (header->type) {
        case Type::device_info: return device_info(token, *header, payload);
        default: return answer(token, *header, Status::unsupported, "unknown message type");
    }
}

void Core::Impl::device_info(std::uint64_t token, const control::Header &header, control::Bytes payload)
{
    const auto info = control::decode_device_info(payload);
    if (!info) {
        return answer(token, header, Status::invalid, control::describe(info.error()));
    }
    if (info->op == control::DeviceInfoOp::add) {
        device_add(token, header, *info);
    } else {
        device_del(token, header);
    }
}

void Core::Impl::device_add(std::uint64_t token, const control::Header &header, const control::DeviceInfo &info)
{
    if (device_) {
        return answer(token, header, Status::busy, "a device is registered already");
    }
    auto device = make_device(info, config_);
    if (!device) {
        return answer(token, header, device.error().status, device.error().reason);
    }
    if (const int rc = port_.listen(); rc < 0) {
        return answer(token, header, Status::io, std::string{"the device VMM cannot listen: "} + std::strerror(-rc));
    }
    device_ = std::move(*device);
    irqs_.configure(device_->irqs);
    answer(token, header, Status::ok);
    port_.state_changed();
}

void Core::Impl::device_del(std::uint64_t token, const control::Header &header)
{
    if (!device_) {
        return answer(token, header, Status::not_found, "no device is registered");
    }
    withdraw();
    answer(token, header, Status::ok);
    port_.state_changed();
}

// ---- Core ----

namespace {

bool page_multiple(std::uint64_t size)
{
    return size % 4096 == 0;
}

bool in_range(Nanoseconds timeout)
{
    return timeout >= std::chrono::milliseconds{1} && timeout <= std::chrono::seconds{4};
}

const char *problem(const CoreConfig &config)
{
    if (config.window_size == 0 || !page_multiple(config.window_size)) {
        return "window size must be a multiple of 4096 and not 0";
    }
    if (!page_multiple(config.region_memory_size)) {
        return "region memory size must be a multiple of 4096";
    }
    if ((config.region_memory_size != 0) != (config.region_memory_fd >= 0)) {
        return "region memory needs both a size and a file descriptor";
    }
    if (config.doorbells == 0 || config.doorbells > kMaxDoorbells) {
        return "the number of doorbells must be 1 to 4096";
    }
    if (config.notifications == 0 || config.notifications > kMaxNotifications) {
        return "the number of notifications must be 1 to 1024";
    }
    if (!in_range(config.unmap_timeout) || !in_range(config.access_timeout)) {
        return "timeouts must be 1 to 4000 ms";
    }
    return nullptr;
}

}  // namespace

Core::Core(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Core::~Core() = default;

Expected<std::unique_ptr<Core>, std::string> Core::create(const CoreConfig &config, Port &port)
{
    if (const char *text = problem(config)) {
        return make_unexpected(std::string{text});
    }
    return std::unique_ptr<Core>{new Core{std::make_unique<Impl>(config, port)}};
}

DeviceConfig Core::device_config() const
{
    DeviceConfig out;
    out.uuid = impl_->config_.uuid;
    out.window_size = impl_->config_.window_size;
    out.region_memory_size = impl_->config_.region_memory_size;
    out.doorbells = impl_->config_.doorbells;
    out.notifications = impl_->config_.notifications;
    return out;
}

std::uint64_t Core::device_features() const
{
    return 0;  // ACCESS_QUEUES is reserved (VVFU-FEAT-3)
}

void Core::driver_ok(Nanoseconds now)
{
    impl_->enter(now, [&] { impl_->driver_ok(); });
}

void Core::driver_reset(Nanoseconds now)
{
    impl_->broken_ = false;
    impl_->enter(now, [&] { impl_->driver_reset(); });
}

void Core::control_request(Nanoseconds now, std::uint64_t token, std::span<const std::byte> message,
                           std::size_t reply_capacity)
{
    impl_->enter(now, [&] { impl_->control_request(now, token, message, reply_capacity); });
}

void Core::reply(Nanoseconds now, unsigned queue, std::span<const std::byte> message)
{
    impl_->enter(now, [&] { impl_->guest_.reply(now, queue, message); });
}

void Core::request_buffers(Nanoseconds now, unsigned queue)
{
    impl_->enter(now, [&] {
        if (queue == kRequestQueue) {
            impl_->guest_.flush(now);
        }
    });
}

int Core::peer_connected(Nanoseconds, const PeerCredentials &)
{
    return -EBUSY;
}

void Core::peer_data(Nanoseconds, std::span<const std::byte>, std::span<Fd>) {}

void Core::peer_closed(Nanoseconds, int) {}

bool Core::wants_peer_data() const
{
    return false;
}

void Core::send_drained(Nanoseconds) {}

void Core::doorbell_written(unsigned index) noexcept
{
    impl_->irqs_.doorbell_written(index);
}

bool Core::doorbell_pending(unsigned index) const noexcept
{
    return impl_->irqs_.doorbell_pending(index);
}

void Core::notification_fired(Nanoseconds, unsigned) {}

Nanoseconds Core::next_deadline() const
{
    return impl_->guest_.next_deadline();
}

void Core::tick(Nanoseconds now)
{
    impl_->enter(now, [&] { impl_->guest_.tick(now); });
}

CoreState Core::state() const
{
    CoreState out;
    out.state = impl_->broken_       ? "broken"
                : !impl_->driver_ok_ ? "no driver"
                : impl_->device_     ? "listening"
                                     : "no device";
    out.epoch = impl_->epoch_;
    return out;
}

}  // namespace vvfu::core
