// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "backing.hpp"
#include "buffer_pool.hpp"
#include "vvfu/base/fd.hpp"

namespace vvfu::nvme {

/// A regular file or block device, through the page cache (the peer's memory in the window cannot be pinned, which
/// O_DIRECT would need). Every operation runs on a worker, in a lane of the file's own: when it hangs, the
/// others go on.
class FileBacking final : public Backing {
public:
    /// Fails when the file cannot be used, or another backing or process uses it and one of the two writes; that a QEMU
    /// uses it only a writer notices.
    [[nodiscard]] static guest::Result<std::unique_ptr<Backing>> open(const std::string &path, bool read_only,
                                                                      guest::Workers &workers);

    [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }
    [[nodiscard]] bool volatile_cache() const noexcept override { return true; }
    [[nodiscard]] bool discard_zeroes() const noexcept override;
    [[nodiscard]] std::string unfinished() const override;
    [[nodiscard]] std::string name() const override { return '"' + file_->path + '"'; }
    void read(ByteRange range, ReadDone done) override;
    void write(std::uint64_t offset, std::span<const iovec> data, Done done) override;
    void write_zeroes(ByteRange range, bool deallocate, Done done) override;
    void discard(std::vector<ByteRange> ranges, Done done) override;

    /// What workers use; they may outlive the backing.
    struct File {
        Fd fd;
        bool block_device = false;
        std::string path;
        std::shared_ptr<BufferPool> buffers = std::make_shared<BufferPool>();
        std::atomic<unsigned> unfinished{0};  ///< operations whose `done` has not been called
    };

protected:
    void sync(Done done) override;

private:
    FileBacking(std::shared_ptr<File> file, std::uint64_t size, guest::Workers &workers)
        : file_(std::move(file)), size_(size), workers_(workers)
    {
    }
    /// Runs work(file), which returns an errno, on a worker.
    template <typename Work>
    void submit(Work work, Done done);

    std::shared_ptr<File> file_;
    std::uint64_t size_;
    guest::Workers &workers_;
};

}  // namespace vvfu::nvme
