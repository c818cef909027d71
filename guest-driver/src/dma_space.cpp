// SPDX-License-Identifier: BSD-3-Clause
#include "vvfu/guest/dma_space.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

namespace vvfu::guest {
namespace {

constexpr std::size_t kBounceAlignment = 4096;  // so that a backing file can be accessed with O_DIRECT

struct Free {
    void operator()(std::byte *p) const noexcept { std::free(p); }
};
using BounceBuffer = std::unique_ptr<std::byte[], Free>;

BounceBuffer make_bounce_buffer(std::uint64_t size)
{
    const auto rounded = (size + kBounceAlignment - 1) & ~std::uint64_t{kBounceAlignment - 1};
    auto *memory = static_cast<std::byte *>(std::aligned_alloc(kBounceAlignment, rounded));
    if (memory != nullptr) {
        // A device that fills only part of the mapping must not write our heap into the peer's memory.
        std::memset(memory, 0, rounded);
    }
    return BounceBuffer{memory};
}

/// Last byte of a range that is not empty; nullopt when it wraps.
std::optional<std::uint64_t> last_byte(DmaAddress address, std::uint64_t size)
{
    if (size - 1 > std::numeric_limits<std::uint64_t>::max() - raw(address)) {
        return std::nullopt;
    }
    return raw(address) + (size - 1);
}

void copy_bytes(std::byte *host, std::byte *buffer, std::uint64_t size, DmaDirection direction)
{
    if (direction == DmaDirection::from_peer) {
        std::copy_n(host, size, buffer);  // unlike memcpy, also for null pointers and 0
    } else {
        std::copy_n(buffer, size, host);
    }
}

}  // namespace

const char *describe(DmaError error) noexcept
{
    switch (error) {
        case DmaError::fault: return "address outside the peer's memory";
        case DmaError::permission: return "the memory does not allow this access";
        case DmaError::io: return "the peer refused the transfer or is gone";
        case DmaError::timeout: return "the peer did not answer in time";
        case DmaError::too_large: return "transfer too large";
        case DmaError::disabled: return "the function may not do DMA";
    }
    return "unknown error";
}

struct DmaSpace::Entry {
    DmaRange range;
    std::uint64_t last = 0;  // address of the last byte
    unsigned users = 0;
    bool removed = false;  // no longer in the table
    bool cleared = false;  // the session that it belonged to is over
    std::vector<std::function<void()>> idle;
};

/// One use of an entry.
class DmaSpace::Pin {
public:
    explicit Pin(std::shared_ptr<Entry> entry) noexcept : entry_(std::move(entry)) { ++entry_->users; }
    Pin(Pin &&) noexcept = default;
    Pin &operator=(Pin &&) = delete;
    ~Pin()
    {
        if (entry_ && --entry_->users == 0 && entry_->removed) {
            // Taken out first: a callback may destroy whatever owns the entry.
            const auto idle = std::exchange(entry_->idle, {});
            for (const auto &callback : idle) {
                callback();
            }
        }
    }
    [[nodiscard]] bool cleared() const noexcept { return entry_->cleared; }
    [[nodiscard]] bool removed() const noexcept { return entry_->removed; }

private:
    std::shared_ptr<Entry> entry_;
};

/// A run of bytes inside one entry.
struct DmaSpace::Piece {
    std::shared_ptr<Entry> entry;
    DmaAddress address{};
    std::uint64_t size = 0;
    [[nodiscard]] std::byte *host() const noexcept
    {
        return entry->range.host == nullptr ? nullptr : entry->range.host + (raw(address) - raw(entry->range.address));
    }
};

/// A group of DMA_READs or DMA_WRITEs that complete together; the last one runs `done`.
struct DmaSpace::Transfer {
    explicit Transfer(std::shared_ptr<const Gate> its_gate) : gate(std::move(its_gate)), closed(gate->closed) {}

    std::shared_ptr<const Gate> gate;
    std::uint64_t closed;
    std::vector<Pin> pins;
    unsigned outstanding = 0;
    std::optional<DmaError> error;
    DmaCallback done;

    static void start(const std::shared_ptr<Transfer> &self, MessageDma *dma, DmaAddress address, std::byte *buffer,
                      std::uint64_t size, DmaDirection direction)
    {
        ++self->outstanding;
        auto completed = [self](Expected<void, DmaError> result) { self->complete(result); };
        if (direction == DmaDirection::from_peer) {
            dma->dma_read(address, {buffer, size}, std::move(completed));
        } else {
            dma->dma_write(address, {buffer, size}, std::move(completed));
        }
    }

    void complete(const Expected<void, DmaError> &result)
    {
        if (!result && !error) {
            error = result.error();
        }
        if (--outstanding > 0) {
            return;
        }
        if (gate->closed != closed) {
            error = DmaError::disabled;
        }
        if (std::any_of(pins.begin(), pins.end(), [](const Pin &pin) { return pin.cleared(); })) {
            error = DmaError::io;
        }
        auto callback = std::move(done);
        pins.clear();
        callback(error ? Expected<void, DmaError>{make_unexpected(*error)} : Expected<void, DmaError>{});
    }
};

struct DmaMapping::State {
    struct Bounce {
        DmaAddress address{};
        std::byte *data = nullptr;
        std::uint64_t size = 0;
    };
    explicit State(std::shared_ptr<const DmaSpace::Gate> its_gate) : gate(std::move(its_gate)), closed(gate->closed) {}

    std::shared_ptr<const DmaSpace::Gate> gate;
    std::uint64_t closed;
    std::vector<DmaSpace::Pin> pins;
    std::vector<iovec> iov;
    std::uint64_t size = 0;
    DmaDirection direction{};
    BounceBuffer buffer;
    std::vector<Bounce> bounces;
    MessageDma *message_dma = nullptr;

    void append(std::byte *data, std::uint64_t bytes)
    {
        size += bytes;
        if (!iov.empty() && static_cast<std::byte *>(iov.back().iov_base) + iov.back().iov_len == data) {
            iov.back().iov_len += bytes;
        } else {
            iov.push_back({data, bytes});
        }
    }
    /// Why nothing may be read or written any more.
    [[nodiscard]] std::optional<DmaError> dead() const noexcept
    {
        const auto any = [this](auto condition) { return std::any_of(pins.begin(), pins.end(), condition); };
        if (any([](const DmaSpace::Pin &pin) { return pin.cleared(); })) {
            return DmaError::io;
        }
        if (gate->closed != closed) {
            return DmaError::disabled;
        }
        //= VVFU-MEMORY-2
        // Another range may be at these addresses by now.
        if (any([](const DmaSpace::Pin &pin) { return pin.removed(); })) {
            return DmaError::fault;
        }
        return std::nullopt;
    }
    [[nodiscard]] std::span<const iovec> pieces(DmaDirection wanted) const noexcept
    {
        return direction == wanted && !dead() ? std::span<const iovec>{iov} : std::span<const iovec>{};
    }
};

DmaMapping::DmaMapping() noexcept = default;
DmaMapping::DmaMapping(DmaMapping &&) noexcept = default;
DmaMapping &DmaMapping::operator=(DmaMapping &&) noexcept = default;
DmaMapping::~DmaMapping() = default;

std::span<const iovec> DmaMapping::readable() const noexcept
{
    return state_ ? state_->pieces(DmaDirection::from_peer) : std::span<const iovec>{};
}

std::span<const iovec> DmaMapping::writable() const noexcept
{
    return state_ ? state_->pieces(DmaDirection::to_peer) : std::span<const iovec>{};
}

void DmaMapping::store(std::uint64_t offset, std::span<const std::byte> data) const noexcept
{
    for (const auto &piece : writable()) {
        if (offset >= piece.iov_len) {
            offset -= piece.iov_len;
            continue;
        }
        const auto part = data.first(std::min<std::uint64_t>(data.size(), piece.iov_len - offset));
        std::copy(part.begin(), part.end(), static_cast<std::byte *>(piece.iov_base) + offset);
        data = data.subspan(part.size());
        offset = 0;
        if (data.empty()) {
            return;
        }
    }
}

std::uint64_t DmaMapping::size() const noexcept
{
    return state_ ? state_->size : 0;
}

bool DmaMapping::bounced() const noexcept
{
    return state_ && !state_->bounces.empty();
}

void DmaMapping::finish(DmaCallback done) &&
{
    const std::shared_ptr<State> state = std::move(state_);
    if (!state) {
        done({});
        return;
    }
    const auto error = state->dead();
    if (error || state->bounces.empty() || state->direction == DmaDirection::from_peer) {
        state->pins.clear();
        done(error ? Expected<void, DmaError>{make_unexpected(*error)} : Expected<void, DmaError>{});
        return;
    }
    auto transfer = std::make_shared<DmaSpace::Transfer>(state->gate);
    transfer->pins = std::move(state->pins);
    // The callback keeps the bounce buffer alive for as long as a DMA_WRITE may read it.
    transfer->done = [state, done = std::move(done)](Expected<void, DmaError> result) { done(std::move(result)); };
    for (const auto &bounce : state->bounces) {
        DmaSpace::Transfer::start(transfer, state->message_dma, bounce.address, bounce.data, bounce.size,
                                  DmaDirection::to_peer);
    }
}

DmaSpace::DmaSpace(MessageDma *message_dma) : message_dma_(message_dma) {}

DmaSpace::~DmaSpace()
{
    clear();
    for (const auto &weak : leaving_) {
        if (const auto entry = weak.lock()) {
            entry->idle.clear();
        }
    }
}

bool DmaSpace::add(const DmaRange &range)
{
    if (range.size == 0) {
        return false;
    }
    const auto last = last_byte(range.address, range.size);
    if (!last) {
        return false;
    }
    // The first range that ends at or after our first byte is the only candidate for an overlap.
    auto it = ranges_.upper_bound(*last);
    if (it != ranges_.begin() && std::prev(it)->second->last >= raw(range.address)) {
        return false;
    }
    auto entry = std::make_shared<Entry>();
    entry->range = range;
    entry->last = *last;
    ranges_.emplace(raw(range.address), std::move(entry));
    return true;
}

bool DmaSpace::remove(DmaAddress address, std::uint64_t size, std::function<void()> idle)
{
    const auto it = ranges_.find(raw(address));
    if (it == ranges_.end() || it->second->range.size != size) {
        return false;
    }
    const auto entry = it->second;
    //= VVFU-MEMORY-2
    //= VVFU-MEMORY-5
    ranges_.erase(it);
    entry->removed = true;
    //= VVFU-MEMORY-1
    if (entry->users == 0) {
        idle();
        return true;
    }
    entry->idle.push_back(std::move(idle));
    std::erase_if(leaving_, [](const auto &weak) { return weak.expired(); });
    leaving_.push_back(entry);
    return true;
}

void DmaSpace::clear()
{
    close();
    for (const auto &[first, entry] : ranges_) {
        entry->removed = true;
        entry->cleared = true;
    }
    ranges_.clear();
    for (const auto &weak : leaving_) {
        if (const auto entry = weak.lock()) {
            entry->cleared = true;
        }
    }
}

void DmaSpace::close() noexcept
{
    if (std::exchange(gate_->open, false)) {
        ++gate_->closed;
    }
}

void DmaSpace::open() noexcept
{
    gate_->open = true;
}

bool DmaSpace::is_open() const noexcept
{
    return gate_->open;
}

std::uint64_t DmaSpace::closings() const noexcept
{
    return gate_->closed;
}

std::size_t DmaSpace::ranges() const noexcept
{
    return ranges_.size();
}

Expected<void, DmaError> DmaSpace::locate(DmaSegment segment, DmaDirection direction, std::vector<Piece> &out) const
{
    if (segment.size == 0) {
        return {};
    }
    const auto last = last_byte(segment.address, segment.size);
    if (!last) {
        return make_unexpected(DmaError::fault);
    }
    for (auto first = raw(segment.address);;) {
        const auto it = ranges_.upper_bound(first);
        if (it == ranges_.begin() || std::prev(it)->second->last < first) {
            return make_unexpected(DmaError::fault);
        }
        const auto &entry = std::prev(it)->second;
        const auto &range = entry->range;
        //= VVFU-WINDOW-9
        if (direction == DmaDirection::from_peer ? !range.readable : !range.writable) {
            return make_unexpected(DmaError::permission);
        }
        const auto end = std::min(*last, entry->last);
        out.push_back({entry, DmaAddress{first}, end - first + 1});
        if (end == *last) {
            return {};
        }
        first = end + 1;
    }
}

std::byte *DmaSpace::host_range(DmaAddress address, std::uint64_t size, DmaDirection direction) const noexcept
{
    const auto it = ranges_.upper_bound(raw(address));
    if (it == ranges_.begin()) {
        return nullptr;
    }
    const auto &range = std::prev(it)->second->range;
    const auto offset = raw(address) - raw(range.address);
    const bool allowed = direction == DmaDirection::from_peer ? range.readable : range.writable;
    //= VVFU-WINDOW-9
    if (range.host == nullptr || !allowed || offset >= range.size || size > range.size - offset) {
        return nullptr;
    }
    return range.host + offset;
}

void DmaSpace::map(std::span<const DmaSegment> segments, DmaDirection direction, MapCallback done)
{
    if (!gate_->open) {
        done(make_unexpected(DmaError::disabled));
        return;
    }
    std::vector<Piece> pieces;
    for (const auto &segment : segments) {
        if (const auto located = locate(segment, direction, pieces); !located) {
            done(make_unexpected(located.error()));
            return;
        }
    }
    std::uint64_t bounce_size = 0;
    for (const auto &piece : pieces) {
        if (piece.host() != nullptr) {
            continue;
        }
        if (piece.size > kMaxBounce - bounce_size) {
            done(make_unexpected(DmaError::too_large));
            return;
        }
        bounce_size += piece.size;
    }
    DmaMapping mapping;
    mapping.state_ = std::make_unique<DmaMapping::State>(gate_);
    auto &state = *mapping.state_;
    state.direction = direction;
    state.message_dma = message_dma_;
    state.pins.reserve(pieces.size());
    if (bounce_size > 0) {
        state.buffer = message_dma_ == nullptr ? nullptr : make_bounce_buffer(bounce_size);
        if (!state.buffer) {
            done(make_unexpected(DmaError::io));
            return;
        }
    }
    std::byte *bounce = state.buffer.get();
    for (const auto &piece : pieces) {
        state.pins.emplace_back(piece.entry);
        std::byte *data = piece.host();
        if (data == nullptr) {
            data = std::exchange(bounce, bounce + piece.size);
            state.bounces.push_back({piece.address, data, piece.size});
        }
        state.append(data, piece.size);
    }
    if (bounce_size == 0 || direction == DmaDirection::to_peer) {
        done(std::move(mapping));
        return;
    }
    auto transfer = std::make_shared<Transfer>(gate_);
    for (const auto &piece : pieces) {
        transfer->pins.emplace_back(piece.entry);
    }
    const auto bounces = state.bounces;
    const auto filled = std::make_shared<DmaMapping>(std::move(mapping));
    transfer->done = [filled, done = std::move(done)](Expected<void, DmaError> result) {
        const auto dead = filled->state_->dead();
        if (result && !dead) {
            done(std::move(*filled));
        } else {
            *filled = DmaMapping{};
            done(make_unexpected(result ? *dead : result.error()));
        }
    };
    for (const auto &piece : bounces) {
        Transfer::start(transfer, message_dma_, piece.address, piece.data, piece.size, direction);
    }
}

void DmaSpace::copy(DmaAddress address, std::byte *buffer, std::uint64_t size, DmaDirection direction, DmaCallback done)
{
    if (!gate_->open) {
        done(make_unexpected(DmaError::disabled));
        return;
    }
    // Queue entries and small registers: one mapped range, no bookkeeping.
    if (std::byte *host = host_range(address, size, direction); host != nullptr) {
        copy_bytes(host, buffer, size, direction);
        done({});
        return;
    }
    std::vector<Piece> pieces;
    if (const auto located = locate({address, size}, direction, pieces); !located) {
        done(make_unexpected(located.error()));
        return;
    }
    std::vector<std::pair<const Piece *, std::byte *>> messages;
    for (const auto &piece : pieces) {
        std::byte *part = buffer + (raw(piece.address) - raw(address));
        if (std::byte *host = piece.host(); host == nullptr) {
            messages.emplace_back(&piece, part);
        } else {
            copy_bytes(host, part, piece.size, direction);
        }
    }
    if (messages.empty()) {
        done({});
        return;
    }
    if (message_dma_ == nullptr) {
        done(make_unexpected(DmaError::io));
        return;
    }
    const auto transfer = std::make_shared<Transfer>(gate_);
    transfer->done = std::move(done);
    for (const auto &[piece, part] : messages) {
        transfer->pins.emplace_back(piece->entry);
    }
    for (const auto &[piece, part] : messages) {
        Transfer::start(transfer, message_dma_, piece->address, part, piece->size, direction);
    }
}

void DmaSpace::read(DmaAddress address, std::span<std::byte> out, DmaCallback done)
{
    copy(address, out.data(), out.size(), DmaDirection::from_peer, std::move(done));
}

void DmaSpace::write(DmaAddress address, std::span<const std::byte> data, DmaCallback done)
{
    // Only read from: copy() writes to the buffer with from_peer alone.
    copy(address, const_cast<std::byte *>(data.data()), data.size(), DmaDirection::to_peer, std::move(done));
}

}  // namespace vvfu::guest
