// SPDX-License-Identifier: BSD-3-Clause
//
// The whole core between a hostile peer and a hostile guest. An input is a program: an operation byte, then what the
// operation needs. After it nothing may be left over: no mapping, no connected doorbell, no file descriptor.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "fake_port.hpp"
#include "fuzz_target.hpp"
#include "vvfu/core/core.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace {

using namespace vvfu;
using namespace std::chrono_literals;
using control::Type;
using test::ByteVector;

enum Op : std::uint8_t {
    kPeerBytes,
    kPeerCommand,
    kPeerReply,
    kPeerConnect,
    kPeerClose,
    kGuestAnswers,
    kGuestReplies,
    kGuestBytes,
    kControlRequest,
    kControlBytes,
    kDevice,
    kBuffers,
    kBacklog,
    kInterrupts,
    kTick,
    kDriverReset,
    kOps
};

class Program {
public:
    Program(const std::uint8_t *data, std::size_t size) : rest_(data, size) {}
    [[nodiscard]] bool done() const { return rest_.empty(); }
    std::uint8_t byte()
    {
        if (rest_.empty()) {
            return 0;
        }
        const auto value = rest_[0];
        rest_ = rest_.subspan(1);
        return value;
    }
    /// A length byte and that many bytes, or as many as there are.
    ByteVector bytes()
    {
        const std::size_t wanted = byte();
        const auto count = std::min(wanted, rest_.size());
        const auto part = std::as_bytes(rest_.first(count));
        rest_ = rest_.subspan(count);
        return {part.begin(), part.end()};
    }

private:
    std::span<const std::uint8_t> rest_;
};

int sealed_memfd()
{
    const int fd = ::memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ::ftruncate(fd, 1 << 20) != 0 || ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
        fuzz::fail("no memfd");
    }
    return fd;
}

class Machine {
public:
    explicit Machine(Program program) : program_(program)
    {
        core::CoreConfig config;
        config.window_size = 4 << 20;
        config.region_memory_size = 1 << 20;
        config.doorbells = 16;
        auto created = core::Core::create(config, port);
        if (!created) {
            fuzz::fail("the core cannot be created");
        }
        core_ = std::move(*created);
        core_->driver_ok(now_);
        device(0);
        connect();
        const std::uint32_t version = 0;
        ByteVector payload(4);
        std::memcpy(payload.data(), &version, 4);
        static constexpr char kJson[] = R"({"capabilities":{"write_multiple":true}})";
        const auto json = std::as_bytes(std::span{kJson});
        payload.insert(payload.end(), json.begin(), json.end());
        command(1, 0, payload, {});
        answer();
        answer();
    }

    void run()
    {
        while (!program_.done()) {
            step();
        }
        core_.reset();
        if (!port.violations.empty()) {
            fuzz::fail(port.violations.front().c_str());
        }
        if (!port.window.empty() || !port.region_memory.empty() || !port.doorbells.empty() ||
            !port.notifications.empty() || port.listening) {
            fuzz::fail("the core left something behind");
        }
    }

    test::FakePort port;

private:
    void step()
    {
        switch (program_.byte() % kOps) {
            case kPeerBytes: {
                auto fds = make_fds(program_.byte());
                core_->peer_data(now_, program_.bytes(), fds);
                break;
            }
            case kPeerCommand: {
                const auto kind = program_.byte();
                const auto flags = program_.byte();
                auto fds = make_fds(program_.byte());
                command(kind % 20, flags & 0x30u, program_.bytes(), std::move(fds));
                break;
            }
            case kPeerReply: peer_reply(); break;
            case kPeerConnect: connect(); break;
            case kPeerClose: core_->peer_closed(now_, program_.byte()); break;
            case kGuestAnswers: answer(); break;
            case kGuestReplies: guest_reply(); break;
            case kGuestBytes: core_->reply(now_, 2, program_.bytes()); break;
            case kControlRequest: control_request(); break;
            case kControlBytes: core_->control_request(now_, ++token_, program_.bytes(), 300); break;
            case kDevice: device(program_.byte()); break;
            case kBuffers:
                port.request_buffers = program_.byte();
                core_->request_buffers(now_, 1);
                break;
            case kBacklog:
                port.backlog = std::size_t{program_.byte()} << 15;
                if (port.backlog == 0) {
                    core_->send_drained(now_);
                }
                break;
            case kInterrupts:
                core_->doorbell_written(program_.byte());
                core_->notification_fired(now_, program_.byte());
                break;
            case kTick:
                now_ += program_.byte() * 20ms;
                core_->tick(now_);
                break;
            case kDriverReset:
                core_->driver_reset(now_);
                port.requests.clear();
                core_->driver_ok(now_);
                break;
            default: break;
        }
        (void)core_->state();
        (void)core_->next_deadline();
        (void)core_->wants_peer_data();
    }

    static std::vector<Fd> make_fds(std::uint8_t what)
    {
        std::vector<Fd> fds;
        for (unsigned i = 0; i < (what & 3u); ++i) {
            switch ((what >> (2 + 2 * i)) & 3u) {
                case 0: fds.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); break;
                case 1: fds.emplace_back(sealed_memfd()); break;
                case 2: fds.emplace_back(::memfd_create("unsealed", MFD_CLOEXEC)); break;
                default: fds.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC)); break;
            }
        }
        return fds;
    }

    void connect()
    {
        if (core_->peer_connected(now_, {1, 2, 3}) == 0) {
            port.sent.clear();
        }
    }

    void command(std::uint16_t kind, std::uint32_t flags, const ByteVector &payload, std::vector<Fd> fds)
    {
        vfio_user::Buffer message;
        vfio_user::append(
            message, vfio_user::Header{++message_id_, kind, static_cast<std::uint32_t>(16 + payload.size()), flags, 0});
        vfio_user::append_bytes(message, payload);
        core_->peer_data(now_, message, fds);
    }

    /// The peer answers the oldest command of ours: well, or with the program's bytes.
    void peer_reply()
    {
        const auto how = program_.byte();
        while (!port.sent.empty()) {
            const auto sent = std::move(port.sent.front());
            port.sent.pop_front();
            auto header = *vfio_user::decode_header(sent.bytes);
            if (header.type() != vfio_user::kTypeCommand) {
                continue;
            }
            const auto access = vfio_user::decode_prefix<vfio_user::DmaAccess>(
                std::span<const std::byte>{sent.bytes}.subspan(vfio_user::kHeaderSize));
            if (!access) {
                fuzz::fail("a command of the core is too short");
            }
            ByteVector payload;
            if (how % 4 == 0) {
                payload = program_.bytes();
            } else {
                vfio_user::append(payload, *access);
                if (header.kind() == vfio_user::Command::dma_read) {
                    payload.resize(payload.size() + static_cast<std::size_t>(access->count));
                }
            }
            header.flags = vfio_user::kTypeReply | (how % 8 == 1 ? vfio_user::kFlagError : 0u);
            header.size = static_cast<std::uint32_t>(16 + payload.size());
            vfio_user::Buffer reply;
            vfio_user::append(reply, header);
            vfio_user::append_bytes(reply, payload);
            core_->peer_data(now_, reply, {});
            return;
        }
    }

    void guest_message(const control::Header &request, control::Status status, const ByteVector &payload)
    {
        auto header = request;
        header.flags = control::kFlagReply;
        header.status = status;
        control::Buffer out;
        control::begin(out, header);
        out.insert(out.end(), payload.begin(), payload.end());
        control::finish(out);
        core_->reply(now_, 2, out);
    }

    bool take_request(control::Header &header, ByteVector &payload)
    {
        while (!port.requests.empty()) {
            const auto message = std::move(port.requests.front());
            port.requests.pop_front();
            const auto decoded = control::decode_header(message);
            if (!decoded || decoded->is_reply()) {
                fuzz::fail("a request of the core is malformed");
            }
            if (decoded->is_posted()) {
                continue;
            }
            header = *decoded;
            payload.assign(message.begin() + control::kHeaderSize, message.end());
            return true;
        }
        return false;
    }

    /// The guest answers its oldest request as the specification says.
    void answer()
    {
        control::Header header;
        ByteVector payload;
        if (!take_request(header, payload)) {
            return;
        }
        control::Buffer out;
        if (header.type == Type::feature_bits) {
            out = payload;
        } else if (header.type == Type::region_read) {
            const auto access = control::decode_region_access(payload);
            control::append(out, *access, ByteVector(access->count));
        } else if (header.type == Type::region_write) {
            control::append(out, control::decode_region_data(payload)->access);
        }
        guest_message(header, control::Status::ok, out);
    }

    /// ... or with a status and bytes of the program's choice.
    void guest_reply()
    {
        const auto status = program_.byte();
        const auto answer = program_.bytes();
        control::Header header;
        ByteVector payload;
        if (take_request(header, payload)) {
            guest_message(header, control::Status{status}, answer);
        }
    }

    void control_request()
    {
        control::Buffer out;
        const auto type = program_.byte();
        control::begin(out, {Type{type}, 0, 0, ++token_, program_.byte(), control::Status::ok});
        const auto payload = program_.bytes();
        out.insert(out.end(), payload.begin(), payload.end());
        control::finish(out);
        core_->control_request(now_, token_, out, kMaxMessageSize);
    }

    void device(std::uint8_t variant)
    {
        control::DeviceInfo info;
        info.op = variant % 4 == 3 ? control::DeviceInfoOp::del : control::DeviceInfoOp::add;
        info.flags = variant % 4 == 2 ? 0u : std::uint32_t{control::kDeviceReset};
        info.features = control::kFeatureWriteMultiple;
        info.regions = {{0, 7, 0x4000, 0, {{0x1000, 0x1000}}}, {2, 1, 0x200000, 0, {}}, {7, 3, 4096, 0, {}}};
        info.irqs = {{0, 1}, {1, 2}, {2, 8}, {3, 1}};
        control::Buffer out;
        control::begin(out, {Type::device_info, 0, 0, ++token_, 0, control::Status::ok});
        control::append(out, info);
        control::finish(out);
        core_->control_request(now_, token_, out, 1000);
    }

    Program program_;
    std::unique_ptr<core::Core> core_;
    Nanoseconds now_ = 100s;
    std::uint64_t token_ = 0;
    std::uint16_t message_id_ = 0;
};

/// The lowest free file descriptor: the same before and after if nothing leaks.
int lowest_free_fd()
{
    const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    ::close(fd);
    return fd;
}

// ---- seeds ----

template <typename... Values>
void add_command(fuzz::Input &input, vfio_user::Command kind, std::uint8_t flags, std::uint8_t fds,
                 const Values &...values)
{
    vfio_user::Buffer payload;
    (vfio_user::append(payload, values), ...);
    input.insert(input.end(), {kPeerCommand, static_cast<std::uint8_t>(kind), flags, fds,
                               static_cast<std::uint8_t>(payload.size())});
    for (const auto byte : payload) {
        input.push_back(std::to_integer<std::uint8_t>(byte));
    }
}

constexpr std::uint8_t kOneEventfd = 1, kOneMemfd = 1 | 1 << 2;

}  // namespace

std::vector<vvfu::fuzz::Input> vvfu::fuzz::seeds()
{
    namespace vu = vfio_user;
    using vu::Command;
    std::vector<Input> out;

    Input memory;
    add_command(memory, Command::dma_map, 0, kOneMemfd, vu::DmaMap{32, 3, 0, 0, 1 << 20});
    add_command(memory, Command::dma_map, 0, 0, vu::DmaMap{32, 3, 0, 1 << 20, 1 << 16});
    memory.insert(memory.end(), {kGuestAnswers, kGuestAnswers});
    add_command(memory, Command::dma_unmap, 0, 0, vu::DmaUnmap{24, 0, 0, 1 << 20});
    memory.insert(memory.end(), {kTick, 60});
    add_command(memory, Command::dma_unmap, 0, 0, vu::DmaUnmap{24, 2, 0, 0});
    memory.insert(memory.end(), {kGuestAnswers, kPeerClose, 0, kGuestAnswers, kPeerConnect});
    out.push_back(memory);

    Input accesses;
    add_command(accesses, Command::region_read, 0, 0, vu::RegionAccess{0, 7, 4096});
    add_command(accesses, Command::region_write, 0x10, 0, vu::RegionAccess{0, 0, 4}, std::uint32_t{1});
    add_command(accesses, Command::region_write, 0, 0, vu::RegionAccess{8, 0, 4}, std::uint32_t{1});
    add_command(accesses, Command::region_write_multi, 0, 0, std::uint64_t{1}, vu::MultiWrite{0, 0, 4, {}});
    add_command(accesses, Command::region_read, 0, 0, vu::RegionAccess{0, 2, 100000});
    accesses.insert(accesses.end(), {kGuestAnswers, kGuestAnswers, kGuestReplies, 2, 0, kTick, 200});
    add_command(accesses, Command::device_reset, 0, 0);
    accesses.insert(accesses.end(), {kBuffers, 0});
    add_command(accesses, Command::region_read, 0, 0, vu::RegionAccess{0, 0, 4});
    accesses.insert(accesses.end(), {kTick, 200, kBuffers, 9});
    out.push_back(accesses);

    Input irqs;
    add_command(irqs, Command::device_set_irqs, 0, kOneEventfd, vu::IrqSet{20, 0x24, 2, 1, 1});
    add_command(irqs, Command::device_set_irqs, 0, kOneEventfd, vu::IrqSet{20, 0x14, 0, 0, 1});
    add_command(irqs, Command::device_set_irqs, 0, 0, vu::IrqSet{20, 0x09, 2, 0, 8});
    irqs.insert(irqs.end(), {kInterrupts, 4, 0});
    add_command(irqs, Command::device_set_irqs, 0, 0, vu::IrqSet{22, 0x12, 2, 0, 2}, std::uint16_t{0x0101});
    add_command(irqs, Command::device_set_irqs, 0, 0, vu::IrqSet{20, 0x21, 2, 0, 0});
    irqs.insert(irqs.end(), {kDriverReset, kDevice, 0, kPeerConnect});
    out.push_back(irqs);

    Input infos;
    add_command(infos, Command::device_get_info, 0, 0, vu::DeviceInfo{16, 0, 0, 0});
    add_command(infos, Command::device_get_region_info, 0, 0, vu::RegionInfo{64, 0, 0, 0, 0, 0});
    add_command(infos, Command::device_get_irq_info, 0, 0, vu::IrqInfo{16, 0, 2, 0});
    add_command(infos, Command::device_get_region_io_fds, 0, 0, vu::RegionIoFds{16, 0, 0, 0});
    infos.insert(infos.end(), {kDevice, 3, kGuestAnswers, kDevice, 1, kPeerConnect});
    out.push_back(infos);

    Input dma;
    add_command(dma, Command::dma_map, 0, 0, vu::DmaMap{32, 3, 0, 0, 1 << 20});
    for (const auto type : {std::uint8_t{12}, std::uint8_t{13}}) {
        dma.insert(dma.end(), {kControlRequest, type, 1, static_cast<std::uint8_t>(type == 12 ? 16 : 20)});
        vu::Buffer access;
        vu::append(access, vu::DmaAccess{0x1000, 4});
        access.resize(type == 12 ? 16 : 20);
        for (const auto byte : access) {
            dma.push_back(std::to_integer<std::uint8_t>(byte));
        }
        dma.insert(dma.end(), {kPeerReply, 3});
    }
    dma.insert(dma.end(),
               {kTick, 250, kControlRequest, 14, 1, 8, 2, 0, 0, 0, 0, 0, 0, 0, kControlRequest, 15, 1, 1, 'x'});
    out.push_back(dma);
    return out;
}

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size)
{
    const int before = lowest_free_fd();
    Machine{Program{data, size}}.run();
    if (lowest_free_fd() != before) {
        fuzz::fail("a file descriptor leaked");
    }
    return 0;
}
