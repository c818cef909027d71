// SPDX-License-Identifier: BSD-3-Clause
//
// The peer's memory as a device model sees it. This is the only place that turns a DMA address into a
// pointer. Not thread-safe: executor's thread only, and so are the pointers that it hands out.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "vvfu/base/expected.hpp"

namespace vvfu::guest {

/// An address in the peer's DMA address space (IOVA).
enum class DmaAddress : std::uint64_t {};
constexpr std::uint64_t raw(DmaAddress address) noexcept
{
    return static_cast<std::uint64_t>(address);
}
/// Wraps around like the address bus does; a range that wraps is rejected where it is used.
constexpr DmaAddress operator+(DmaAddress address, std::uint64_t bytes) noexcept
{
    return DmaAddress{raw(address) + bytes};
}

struct DmaSegment {
    DmaAddress address{};
    std::uint64_t size = 0;  ///< bytes
};

enum class DmaDirection {
    from_peer,  ///< the device reads the peer's memory
    to_peer,    ///< the device writes it
};

enum class DmaError {
    fault,       ///< some byte is outside every range of the peer
    permission,  ///< the range does not allow this direction
    io,          ///< the peer refused or resets the device, or the session ended
    timeout,     ///< the peer did not answer in time
    too_large,   ///< more bytes than a transfer may have
    disabled,    ///< the function may not do DMA (DmaSpace::close())
};
[[nodiscard]] const char *describe(DmaError error) noexcept;

using DmaCallback = std::function<void(Expected<void, DmaError>)>;

/// Access to message-only memory: DMA_READ and DMA_WRITE control messages. Implemented by Session.
class MessageDma {
public:
    virtual ~MessageDma() = default;
    /// Fills `out` (which stays valid until `done`). `done` is never called from inside the call.
    virtual void dma_read(DmaAddress address, std::span<std::byte> out, DmaCallback done) = 0;
    virtual void dma_write(DmaAddress address, std::span<const std::byte> data, DmaCallback done) = 0;
};

struct DmaRange {
    DmaAddress address{};
    std::uint64_t size = 0;
    bool readable = false;      ///< the device may read it
    bool writable = false;      ///< the device may write it
    std::byte *host = nullptr;  ///< first byte in the window; nullptr: message-only
};

class DmaSpace;

/// Bytes of the peer's memory, until finish() or destruction. Window-mapped pieces are the peer's memory itself;
/// message-only pieces are bounce buffers. Move-only. While it lives, the acknowledgement of an unmap of any range that
/// it touches waits.
///
/// Only the executor's thread touches the peer's memory, through the accessors below: what a worker or the kernel wrote
/// or read there by itself could do so after the function was told to stop its DMA, when the memory holds something
/// else (docs/decisions/0011). What others work with is a copy.
///
/// A mapping is dead, for good, once the function may do no DMA any more, a range is gone, or the session is over. It
/// is alive when it is handed out, until the executor's thread returns to its loop.
class DmaMapping {
public:
    DmaMapping() noexcept;
    DmaMapping(DmaMapping &&) noexcept;
    DmaMapping &operator=(DmaMapping &&) noexcept;
    ~DmaMapping();  ///< releases without writing bounced data back

    /// With from_peer: the bytes in segment order, to be read by the executor's thread until it returns to its loop.
    /// Pieces that are neighbours in memory are one iovec. Empty with to_peer, and when the mapping is dead.
    [[nodiscard]] std::span<const iovec> readable() const noexcept;
    /// With to_peer: likewise, to be written.
    [[nodiscard]] std::span<const iovec> writable() const noexcept;
    /// With to_peer: writes `data` from byte `offset` on, as far as it fits. Executor's thread. Does nothing when the
    /// mapping is dead; finish() then says why.
    void store(std::uint64_t offset, std::span<const std::byte> data) const noexcept;
    [[nodiscard]] std::uint64_t size() const noexcept;
    /// True if any piece is a bounce buffer.
    [[nodiscard]] bool bounced() const noexcept;

    /// Ends the access. With DmaDirection::to_peer, bounced bytes are written back first; `done` runs when all
    /// of it is visible to the peer: inside the call if nothing was bounced, else later. A mapping that is dead writes
    /// nothing back; `done` then gets DmaError::disabled, fault when the peer has removed a range, or io when it is
    /// gone.
    void finish(DmaCallback done) &&;

private:
    friend class DmaSpace;
    struct State;
    std::unique_ptr<State> state_;
};

class DmaSpace {
public:
    /// Called inside map() when every piece is window-mapped (or on an error), else later.
    using MapCallback = std::function<void(Expected<DmaMapping, DmaError>)>;

    /// Bytes that one mapping may bounce; a larger one fails with DmaError::too_large.
    static constexpr std::uint64_t kMaxBounce = 8u * 1024 * 1024;

    /// `message_dma` (not owned, may be null: message-only ranges then fail with io) outlives the space.
    explicit DmaSpace(MessageDma *message_dma = nullptr);
    DmaSpace(const DmaSpace &) = delete;
    DmaSpace &operator=(const DmaSpace &) = delete;
    ~DmaSpace();

    /// Adds a range. False if it is empty, wraps or overlaps one that is there.
    bool add(const DmaRange &range);
    /// Removes the range that has exactly this address and size: no new access reaches it, and
    /// `idle` runs when no mapping uses it (inside the call if none does), and never once the space is
    /// destroyed. False: no such range.
    bool remove(DmaAddress address, std::uint64_t size, std::function<void()> idle);
    /// Closes the gate and removes every range at once (the session is over). What is under way, and mappings that
    /// live, end with io.
    void clear();

    /// The gate of the function, closed at first. From close() on, nothing of the time before reaches the peer or is
    /// read from it: mappings are dead, operations under way and new ones end with DmaError::disabled. DMA_WRITE
    /// messages that were sent may still take effect (Session holds back the answer to what closed the gate until they
    /// are over).
    void close() noexcept;
    void open() noexcept;
    [[nodiscard]] bool is_open() const noexcept;
    /// How often it was closed: what has begun at a lower number is of a time before.
    [[nodiscard]] std::uint64_t closings() const noexcept;

    /// Maps segments (each may cross ranges that are neighbours). With from_peer, bounced pieces are filled before
    /// the callback. An empty list gives an empty mapping.
    void map(std::span<const DmaSegment> segments, DmaDirection direction, MapCallback done);

    /// Copies; `done` runs inside the call when all of it is window-mapped. Buffers stay valid until `done`.
    void read(DmaAddress address, std::span<std::byte> out, DmaCallback done);
    void write(DmaAddress address, std::span<const std::byte> data, DmaCallback done);

    [[nodiscard]] std::size_t ranges() const noexcept;

private:
    friend class DmaMapping;
    struct Entry;
    struct Piece;
    class Pin;
    struct Transfer;
    struct Gate {
        bool open = false;
        std::uint64_t closed = 0;  // how often
    };

    [[nodiscard]] Expected<void, DmaError> locate(DmaSegment segment, DmaDirection direction,
                                                  std::vector<Piece> &out) const;
    [[nodiscard]] std::byte *host_range(DmaAddress address, std::uint64_t size, DmaDirection direction) const noexcept;
    void copy(DmaAddress address, std::byte *buffer, std::uint64_t size, DmaDirection direction, DmaCallback done);

    std::map<std::uint64_t, std::shared_ptr<Entry>> ranges_;  // by first address
    std::vector<std::weak_ptr<Entry>> leaving_;               // removed, but still used by a mapping
    MessageDma *message_dma_;
    std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();  // shared with mappings, which may outlive the space
};

}  // namespace vvfu::guest
