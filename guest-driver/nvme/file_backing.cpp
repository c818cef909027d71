// SPDX-License-Identifier: BSD-3-Clause
#include "file_backing.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "data_transfer.hpp"

namespace vvfu::nvme {
namespace {

using File = FileBacking::File;

/// preadv or pwritev until all bytes are through.
template <typename Call>
int transfer_all(Call call, int fd, std::uint64_t offset, std::span<const iovec> iov)
{
    std::vector<iovec> left(iov.begin(), iov.end());
    for (std::size_t first = 0; first < left.size();) {
        const auto count = std::min<std::size_t>(left.size() - first, IOV_MAX);
        const ssize_t moved = call(fd, &left[first], static_cast<int>(count), static_cast<off_t>(offset));
        if (moved < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno;
        }
        if (moved == 0) {
            return EIO;  // the file has been truncated, or the device shrunk
        }
        offset += static_cast<std::uint64_t>(moved);
        for (auto bytes = static_cast<std::size_t>(moved); bytes > 0;) {
            const auto taken = std::min(bytes, left[first].iov_len);
            left[first].iov_base = static_cast<std::byte *>(left[first].iov_base) + taken;
            left[first].iov_len -= taken;
            bytes -= taken;
            first += left[first].iov_len == 0 ? 1 : 0;
        }
        while (first < left.size() && left[first].iov_len == 0) {
            ++first;
        }
    }
    return 0;
}

int sync_data(const File &file)
{
    int result;
    do {
        result = fdatasync(file.fd.get());
    } while (result < 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

int fallocate_range(const File &file, int mode, ByteRange range)
{
    int result;
    do {
        result = fallocate(file.fd.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.offset),
                           static_cast<off_t>(range.size));
    } while (result < 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

int block_ioctl(const File &file, unsigned long request, ByteRange range)
{
    std::array<std::uint64_t, 2> argument{range.offset, range.size};
    return ioctl(file.fd.get(), request, argument.data()) == 0 ? 0 : errno;
}

/// Plain writes, for file systems and devices that have no better way.
int write_zero_bytes(const File &file, ByteRange range)
{
    static const std::array<std::byte, 64 * 1024> zeroes{};
    std::vector<iovec> iov;
    constexpr std::uint64_t kChunk = 4u * 1024 * 1024;
    while (range.size > 0) {
        iov.clear();
        const auto chunk = std::min(range.size, kChunk);
        for (std::uint64_t filled = 0; filled < chunk; filled += iov.back().iov_len) {
            // pwritev only reads from it.
            iov.push_back(
                {const_cast<std::byte *>(zeroes.data()), std::min<std::uint64_t>(chunk - filled, zeroes.size())});
        }
        if (const int error = transfer_all(pwritev, file.fd.get(), range.offset, iov); error != 0) {
            return error;
        }
        range = {range.offset + chunk, range.size - chunk};
    }
    return 0;
}

int make_zero(const File &file, ByteRange range, bool deallocate)
{
    int error = file.block_device
                    ? block_ioctl(file, BLKZEROOUT, range)
                    : fallocate_range(file, deallocate ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE, range);
    // EINVAL: a block device whose logical blocks are larger than ours.
    if (error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL) {
        error = write_zero_bytes(file, range);
    }
    return error;
}

int discard_one(const File &file, ByteRange range)
{
    const int error =
        file.block_device ? block_ioctl(file, BLKDISCARD, range) : fallocate_range(file, FALLOC_FL_PUNCH_HOLE, range);
    const bool cannot = error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL;
    return cannot ? 0 : error;
}

std::string open_error(const std::string &path, bool read_only, int error)
{
    std::string text = "backing \"" + path + "\": " + std::strerror(error);
    if (error == ENOENT) {
        text += "; create it first, for example with truncate --size=1G";
    } else if (!read_only && (error == EACCES || error == EROFS || error == EPERM)) {
        text += "; make it writable or use --read-only";
    }
    return text;
}

guest::Result<std::uint64_t> size_of(const File &file, const struct stat &status, const std::string &path)
{
    std::uint64_t size = static_cast<std::uint64_t>(status.st_size);
    if (file.block_device && ioctl(file.fd.get(), BLKGETSIZE64, &size) != 0) {
        return guest::failure("backing \"" + path + "\": cannot get its size: " + std::strerror(errno));
    }
    return size;
}

/// One writer or any number of readers. A writer's lock covers the bytes that QEMU locks in images it uses
/// (block/file-posix.c), a reader's does not: QEMU would take it for a writer.
guest::Result<void> lock_file(const File &file, const std::string &path, bool read_only)
{
    struct flock lock {};
    lock.l_type = read_only ? F_RDLCK : F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_len = read_only ? 1 : 0;
    // A file system without locks is no reason to refuse.
    if (fcntl(file.fd.get(), F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES)) {
        return guest::failure("backing \"" + path + "\" is in use by another process: stop it" +
                              (read_only ? "" : ", or let all that share it use it read-only"));
    }
    return {};
}

}  // namespace

guest::Result<std::unique_ptr<Backing>> FileBacking::open(const std::string &path, bool read_only,
                                                          guest::Workers &workers)
{
    struct stat status {};
    // Looked at before it is opened: opening a FIFO would block, and opening some devices has effects.
    if (stat(path.c_str(), &status) != 0) {
        return guest::failure(open_error(path, read_only, errno));
    }
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
        return guest::failure("backing \"" + path + "\" is neither a regular file nor a block device");
    }
    auto file = std::make_shared<File>();
    file->fd.reset(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK));
    if (!file->fd.valid() || fstat(file->fd.get(), &status) != 0) {
        return guest::failure(open_error(path, read_only, errno));
    }
    file->block_device = S_ISBLK(status.st_mode);
    file->path = path;
    if (const auto locked = lock_file(*file, path, read_only); !locked) {
        return make_unexpected(locked.error());
    }
    const auto size = size_of(*file, status, path);
    if (!size) {
        return make_unexpected(size.error());
    }
    return std::unique_ptr<Backing>(new FileBacking(std::move(file), *size, workers));
}

bool FileBacking::discard_zeroes() const noexcept
{
    return !file_->block_device;  // BLKDISCARD promises nothing about what is read afterwards
}

std::string FileBacking::unfinished() const
{
    const auto count = file_->unfinished.load(std::memory_order_relaxed);
    return count == 0
               ? std::string{}
               : std::to_string(count) + (count == 1 ? " request" : " requests") + " to backing \"" + file_->path + '"';
}

template <typename Work>
void FileBacking::submit(Work work, Done done)
{
    const auto error = std::make_shared<int>(0);
    file_->unfinished.fetch_add(1, std::memory_order_relaxed);
    workers_.submit(
        file_.get(), [file = file_, work = std::move(work), error]() mutable { *error = work(*file); },
        [file = file_, error, done = std::move(done)] {
            file->unfinished.fetch_sub(1, std::memory_order_relaxed);
            done(*error);
        });
}

void FileBacking::read(ByteRange range, ReadDone done)
{
    const auto buffer = std::make_shared<std::shared_ptr<std::byte[]>>();
    const auto work = [range, buffer](const File &file) {
        // Taken here, so that only requests being served and their results need memory.
        *buffer = BufferPool::take(file.buffers, range.size);
        const iovec piece{buffer->get(), range.size};
        return *buffer ? transfer_all(preadv, file.fd.get(), range.offset, {&piece, 1}) : ENOMEM;
    };
    submit(work, [range, buffer, done = std::move(done)](int error) {
        done(error, error == 0 ? std::span<const std::byte>{buffer->get(), range.size} : std::span<const std::byte>{});
    });
}

void FileBacking::write(std::uint64_t offset, std::span<const iovec> data, Done done)
{
    std::size_t size = 0;
    for (const auto &piece : data) {
        size += piece.iov_len;
    }
    const auto copy = BufferPool::take(file_->buffers, size);
    if (!copy) {
        done(ENOMEM);
        return;
    }
    copy_from_pieces(data, {copy.get(), size});
    const auto work = [offset, copy, size](const File &file) {
        const iovec piece{copy.get(), size};
        return transfer_all(pwritev, file.fd.get(), offset, {&piece, 1});
    };
    submit(work, std::move(done));
}

void FileBacking::sync(Done done)
{
    submit(sync_data, std::move(done));
}

void FileBacking::write_zeroes(ByteRange range, bool deallocate, Done done)
{
    submit([range, deallocate](const File &file) { return make_zero(file, range, deallocate); }, std::move(done));
}

void FileBacking::discard(std::vector<ByteRange> ranges, Done done)
{
    const auto work = [ranges = std::move(ranges)](const File &file) {
        int error = 0;
        for (const auto &range : ranges) {
            const int result = range.size == 0 ? 0 : discard_one(file, range);
            error = error != 0 ? error : result;
        }
        return error;
    };
    submit(work, std::move(done));
}

}  // namespace vvfu::nvme
