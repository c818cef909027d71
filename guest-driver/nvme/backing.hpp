// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "vvfu/guest/error.hpp"
#include "vvfu/guest/executor.hpp"

namespace vvfu::nvme {

struct ByteRange {
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
};

/// Where a namespace keeps its data. Executor's thread only; callers check ranges against size(). `done` gets 0 or an
/// errno, on the executor's thread, inside the call or later. Operations that overlap in time and range may happen in
/// any order.
///
/// Linux reports a failed write-back once and then takes the pages for clean: a later fdatasync succeeds although the
/// data is gone. So a flush that failed is remembered here, and all that follow fail.
class Backing {
public:
    using Done = std::function<void(int error)>;
    using ReadDone = std::function<void(int error, std::span<const std::byte> data)>;  ///< empty with an error

    virtual ~Backing() = default;

    [[nodiscard]] virtual std::uint64_t size() const noexcept = 0;  ///< bytes, a multiple of 512
    /// flush() matters: what is written may be lost with the power until then.
    [[nodiscard]] virtual bool volatile_cache() const noexcept = 0;
    /// Discarded bytes read as zeroes.
    [[nodiscard]] virtual bool discard_zeroes() const noexcept = 0;

    /// Operations that are not done, in words: "16 requests to backing \"disk.img\""; empty: none. Any thread.
    [[nodiscard]] virtual std::string unfinished() const { return {}; }

    [[nodiscard]] virtual std::string name() const { return "memory"; }  ///< for a line that a person reads

    /// The data comes in memory of the backing, valid during the call: whoever wants it in the peer's memory puts it
    /// there on the executor's thread, if that may still be done.
    virtual void read(ByteRange range, ReadDone done) = 0;
    /// The data is the peer's memory, valid during the call: a backing that writes it later writes a copy. What the
    /// peer has there by then is not what it wanted written.
    virtual void write(std::uint64_t offset, std::span<const iovec> data, Done done) = 0;
    /// `deallocate`: may give up the space, too.
    virtual void write_zeroes(ByteRange range, bool deallocate, Done done) = 0;
    /// A hint: success also when the backing cannot do it.
    virtual void discard(std::vector<ByteRange> ranges, Done done) = 0;

    /// Done when all whose `done` was called before would survive a power loss. Once it has failed it always fails,
    /// with the first errno, until the backing is opened anew.
    void flush(Done done);

protected:
    /// The flush itself. One at a time: of two at once, the one that the error is not reported to would succeed.
    virtual void sync(Done done) = 0;

private:
    struct Flushes {
        std::vector<Done> waiting;  ///< for the next sync()
        bool running = false;
        int lost = 0;  ///< errno of the first that failed
    };
    void start_sync();

    std::shared_ptr<Flushes> flushes_ = std::make_shared<Flushes>();  ///< expires with the backing
};

/// `name` is "mem:SIZE", or there is something at that path.
[[nodiscard]] bool backing_exists(const std::string &name);

/// Opens "mem:SIZE", a file or a block device. `workers` outlives the backing.
[[nodiscard]] guest::Result<std::unique_ptr<Backing>> open_backing(const std::string &name, bool read_only,
                                                                   guest::Workers &workers);

}  // namespace vvfu::nvme
