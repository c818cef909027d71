// SPDX-License-Identifier: BSD-3-Clause
#include "memory_backing.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>
#include <string>

namespace vvfu::nvme {
namespace {

/// Binary exponent of a size suffix; -1: not one.
int suffix_shift(std::string_view suffix)
{
    if (suffix.empty()) {
        return 0;
    }
    constexpr std::string_view kSuffixes = "KMGT";
    const auto upper = static_cast<char>(suffix[0] & ~0x20);
    const auto index = kSuffixes.find(upper);
    return suffix.size() == 1 && index != std::string_view::npos ? 10 * (static_cast<int>(index) + 1) : -1;
}

}  // namespace

guest::Result<std::uint64_t> parse_size(std::string_view text)
{
    std::uint64_t value = 0;
    const auto *end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    const int shift = suffix_shift({rest, static_cast<std::size_t>(end - rest)});
    if (error != std::errc{} || shift < 0 || value > (std::numeric_limits<std::uint64_t>::max() >> shift)) {
        return guest::failure("\"" + std::string(text) + "\" is not a size: use bytes or a suffix K, M, G or T");
    }
    return value << shift;
}

guest::Result<std::unique_ptr<Backing>> MemoryBacking::create(std::uint64_t size)
{
    void *data = MAP_FAILED;
    if (size <= std::numeric_limits<std::size_t>::max() / 2) {
        data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    } else {
        errno = ENOMEM;
    }
    if (data == MAP_FAILED) {
        return guest::failure("cannot reserve " + std::to_string(size) + " bytes of memory: " + std::strerror(errno));
    }
    return std::unique_ptr<Backing>(new MemoryBacking(static_cast<std::byte *>(data), size));
}

MemoryBacking::~MemoryBacking()
{
    munmap(data_, size_);
}

void MemoryBacking::read(ByteRange range, ReadDone done)
{
    done(0, {data_ + range.offset, range.size});
}

void MemoryBacking::write(std::uint64_t offset, std::span<const iovec> data, Done done)
{
    std::byte *to = data_ + offset;
    for (const auto &piece : data) {
        std::memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
    }
    done(0);
}

/// Whole pages are given back, which is also the fastest way to make them zero.
int MemoryBacking::zero(ByteRange range)
{
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    const auto end = range.offset + range.size;
    const auto first_page = (range.offset + page - 1) / page * page;
    const auto last_page = end / page * page;
    if (first_page >= last_page) {
        std::memset(data_ + range.offset, 0, range.size);
        return 0;
    }
    std::memset(data_ + range.offset, 0, first_page - range.offset);
    std::memset(data_ + last_page, 0, end - last_page);
    return madvise(data_ + first_page, last_page - first_page, MADV_DONTNEED) == 0 ? 0 : errno;
}

void MemoryBacking::write_zeroes(ByteRange range, bool /*deallocate*/, Done done)
{
    done(zero(range));
}

void MemoryBacking::discard(std::vector<ByteRange> ranges, Done done)
{
    int error = 0;
    for (const auto &range : ranges) {
        const int result = zero(range);
        error = error != 0 ? error : result;
    }
    done(error);
}

}  // namespace vvfu::nvme
