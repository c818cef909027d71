// SPDX-License-Identifier: BSD-3-Clause
//
// A vfio-user client for tests and benchmarks (protocol: QEMU docs/interop/vfio-user.rst), written without protocol/.
// It can send anything, well-formed or not. One thread at a time. Every wait has a deadline.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "guest_ram.hpp"
#include "packer.hpp"
#include "vvfu/base/fd.hpp"

namespace vvfu::test {

enum Command : std::uint16_t {
    kVersion = 1,
    kDmaMap = 2,
    kDmaUnmap = 3,
    kGetInfo = 4,
    kGetRegionInfo = 5,
    kGetRegionIoFds = 6,
    kGetIrqInfo = 7,
    kSetIrqs = 8,
    kRegionRead = 9,
    kRegionWrite = 10,
    kDmaRead = 11,
    kDmaWrite = 12,
    kReset = 13,
    kDirtyPages = 14,
    kRegionWriteMulti = 15,
    kDeviceFeature = 16,
    kMigDataRead = 17,
    kMigDataWrite = 18,
};

inline constexpr std::uint32_t kTypeReply = 1, kTypeMask = 0xf, kNoReply = 1u << 4, kError = 1u << 5;
inline constexpr std::size_t kHeaderBytes = 16;

inline constexpr std::uint32_t kMapRead = 1, kMapWrite = 2;
inline constexpr std::uint32_t kUnmapDirtyBitmap = 1, kUnmapAll = 2;

/// SET_IRQS flags.
inline constexpr std::uint32_t kDataNone = 0x01, kDataBool = 0x02, kDataEventfd = 0x04, kActionMask = 0x08,
                               kActionUnmask = 0x10, kActionTrigger = 0x20;

/// The server hung up.
struct PeerClosed : std::runtime_error {
    using std::runtime_error::runtime_error;
};
/// Nothing came (or nothing was taken) in time.
struct TimedOut : std::runtime_error {
    using std::runtime_error::runtime_error;
};
/// An error reply where the caller needs success, or a message that no server may send.
struct ProtocolError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Message {
    std::uint16_t id = 0, command = 0;
    std::uint32_t size = 0, flags = 0, error = 0;
    Bytes payload;
    std::vector<Fd> fds;

    [[nodiscard]] bool is_reply() const { return (flags & kTypeMask) == kTypeReply; }
    [[nodiscard]] bool is_error() const { return (flags & kError) != 0; }
    /// 0, or the errno of an error reply.
    [[nodiscard]] int result() const { return is_error() ? static_cast<int>(error) : 0; }
};

/// The header as bytes.
Bytes header(std::uint16_t id, std::uint16_t command, std::uint32_t size, std::uint32_t flags = 0,
             std::uint32_t error = 0);

struct VersionReply {
    std::uint16_t major = 0, minor = 0;
    std::string json;  ///< without its NUL
    std::uint32_t message_size = 0;
};

struct DeviceInfoReply {
    std::uint32_t argsz = 0, flags = 0, num_regions = 0, num_irqs = 0;
};

struct SparseArea {
    std::uint64_t offset = 0, size = 0;
};

struct RegionInfoReply {
    std::uint32_t argsz = 0, flags = 0, index = 0, cap_offset = 0;
    std::uint64_t size = 0, offset = 0;
    std::vector<SparseArea> areas;
    std::vector<Fd> fds;
    static constexpr std::uint32_t kRead = 1, kWrite = 2, kMmap = 4, kCaps = 8;
};

struct IrqInfoReply {
    std::uint32_t argsz = 0, flags = 0, index = 0, count = 0;
};

struct MultiWriteEntry {
    std::uint64_t offset = 0;
    std::uint32_t region = 0, count = 0;
    std::uint64_t data = 0;
};

class VfioUserClient {
public:
    /// Connects to `path`, trying again until `timeout` while nothing listens there yet.
    static VfioUserClient connect(const std::string &path,
                                  std::chrono::milliseconds timeout = std::chrono::seconds{10});
    /// Takes a connected stream socket.
    explicit VfioUserClient(Fd socket);

    /// How long one receive or send may take (default 10 s).
    void set_timeout(std::chrono::milliseconds timeout);
    [[nodiscard]] int socket() const { return socket_.get(); }
    void close() { socket_.reset(); }

    // ---- bytes ----

    /// Sends all bytes; the fds go with the first one. Throws PeerClosed or TimedOut.
    void send_raw(std::span<const std::byte> bytes, std::span<const int> fds = {});
    /// The next message of any kind, or nullopt at end of file. The header must arrive in one piece, as QEMU's client
    /// demands (reference of clients, framing): otherwise ProtocolError.
    std::optional<Message> receive();
    /// True when the server closes within the timeout; messages before that are dropped.
    bool closed_by_server();

    // ---- messages ----

    /// Sends a command and returns its message ID.
    std::uint16_t send(std::uint16_t command, std::span<const std::byte> payload, std::span<const int> fds = {},
                       std::uint32_t flags = 0);
    /// The reply to `id`. Meanwhile serves DMA_READ and DMA_WRITE, and keeps other replies for their own callers.
    Message wait_reply(std::uint16_t id);
    Message transact(std::uint16_t command, std::span<const std::byte> payload, std::span<const int> fds = {});
    /// Handles what the server sends until `done` holds or the timeout expires (false). Also wakes up when `extra_fd`
    /// (an interrupt's eventfd) becomes readable.
    bool serve_until(const std::function<bool()> &done, int extra_fd = -1);
    /// Replies that arrived and that nobody waited for yet.
    [[nodiscard]] std::size_t unclaimed_replies() const { return replies_.size(); }

    // ---- commands; int results are 0 or the errno of the error reply ----

    /// `json` empty: no JSON at all, otherwise sent with its NUL. Throws on an error reply.
    VersionReply version(std::uint16_t minor = 0, std::string_view json = kDefaultJson);
    int dma_map(std::uint64_t address, std::uint64_t size, std::uint64_t offset, std::uint32_t flags, int fd);
    /// Maps all of `ram` with its fd.
    int dma_map(const GuestRam &ram, std::uint32_t flags = kMapRead | kMapWrite);
    int dma_unmap(std::uint64_t address, std::uint64_t size, std::uint32_t flags = 0);
    DeviceInfoReply device_info();
    RegionInfoReply region_info(std::uint32_t index);  ///< both passes
    IrqInfoReply irq_info(std::uint32_t index);
    int set_irqs(std::uint32_t flags, std::uint32_t index, std::uint32_t start, std::uint32_t count,
                 std::span<const int> fds = {}, std::span<const std::byte> bools = {});
    /// Throws ProtocolError on an error reply.
    Bytes region_read(std::uint32_t region, std::uint64_t offset, std::uint32_t count);
    int region_write(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data);
    /// With NO_REPLY.
    void region_post(std::uint32_t region, std::uint64_t offset, std::span<const std::byte> data);
    int write_multi(std::span<const MultiWriteEntry> entries, bool posted = false);
    int reset();

    template <typename T>
    T read(std::uint32_t region, std::uint64_t offset)
    {
        return field<T>(region_read(region, offset, sizeof(T)), 0);
    }
    /// Throws on an error reply.
    template <typename T>
    void write(std::uint32_t region, std::uint64_t offset, T value)
    {
        if (const auto error = region_write(region, offset, std::as_bytes(std::span(&value, 1)))) {
            throw ProtocolError("REGION_WRITE failed with errno " + std::to_string(error));
        }
    }
    template <typename T>
    void post(std::uint32_t region, std::uint64_t offset, T value)
    {
        region_post(region, offset, std::as_bytes(std::span(&value, 1)));
    }

    // ---- DMA_READ and DMA_WRITE from the server ----

    /// `memory` (borrowed) answers accesses to [address, address + its size).
    void serve_memory(std::uint64_t address, std::span<std::byte> memory);
    void serve_memory(const GuestRam &ram) { serve_memory(ram.address(), ram.bytes()); }
    /// Replaces the default handling of DMA commands (nullptr: the default again).
    void on_dma(std::function<void(Message)> handler) { dma_handler_ = std::move(handler); }
    /// The default handling: copies and replies as QEMU 11.1 does, or EFAULT outside served memory.
    void answer_dma(const Message &command);
    void reply(const Message &command, std::span<const std::byte> payload);
    void reply_error(const Message &command, int error);

    struct DmaCounters {
        std::uint64_t reads = 0, writes = 0, largest = 0, failed = 0;
    };
    [[nodiscard]] const DmaCounters &dma_counters() const { return dma_; }

    static constexpr std::string_view kDefaultJson =
        R"({"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"write_multiple":true}})";

private:
    void receive_exactly(std::span<std::byte> out, std::vector<Fd> &fds);
    /// One message from the socket: DMA commands are answered, replies kept. Throws PeerClosed at end of file.
    void dispatch_one();
    std::span<std::byte> served(std::uint64_t address, std::uint64_t count);

    Fd socket_;
    std::chrono::milliseconds timeout_{10000};
    std::uint16_t next_id_ = 0;
    std::map<std::uint16_t, Message> replies_;
    std::map<std::uint64_t, std::span<std::byte>> memory_;
    std::function<void(Message)> dma_handler_;
    DmaCounters dma_;
    Bytes out_;
};

}  // namespace vvfu::test
