// SPDX-License-Identifier: BSD-3-Clause
//
// DMA_MAP and DMA_UNMAP.
#include <array>

#include "wire_test.hpp"

namespace vvfu::test {
namespace {

VVFU_WIRE_SUITE(Dma);

constexpr std::uint64_t kMiB = 1024 * 1024, kTiB = kMiB * kMiB;
constexpr std::uint32_t kReadWrite = kMapRead | kMapWrite;

Bytes map_request(std::uint32_t argsz, std::uint32_t flags, std::uint64_t offset, std::uint64_t address,
                  std::uint64_t size)
{
    return Packer().u32(argsz).u32(flags).u64(offset).u64(address).u64(size).take();
}

Bytes unmap_request(std::uint32_t argsz, std::uint32_t flags, std::uint64_t address, std::uint64_t size)
{
    return Packer().u32(argsz).u32(flags).u64(address).u64(size).take();
}

TEST_P(Dma, MapThenUnmapLeavesNoMappingAndNoFd)
{
    auto client = session();
    GuestRam ram(0x100000, 4 * kMiB);
    const auto with_mine = server_.open_fds();
    const auto mappings = server_.mappings();
    for (int round = 0; round < 5; ++round) {
        ASSERT_EQ(client.dma_map(ram), 0);
        EXPECT_EQ(server_.mappings(), mappings + 1);
        ASSERT_EQ(client.dma_unmap(ram.address(), ram.size()), 0);
        EXPECT_EQ(server_.mappings(), mappings);
        EXPECT_TRUE(open_fds_become(with_mine));
    }
}

TEST_P(Dma, ManyMapsOfOneFileAtDifferentOffsets)
{
    auto client = session();
    GuestRam ram(0, 4 * kMiB);
    constexpr std::uint64_t kPiece = 64 * 1024;
    const auto mappings = server_.mappings();
    for (std::uint64_t at = 0; at < ram.size(); at += 2 * kPiece) {
        ASSERT_EQ(client.dma_map(at, kPiece, at, kReadWrite, ram.fd()), 0) << at;
    }
    EXPECT_GT(server_.mappings(), mappings);
    for (std::uint64_t at = 0; at < ram.size(); at += 2 * kPiece) {
        ASSERT_EQ(client.dma_unmap(at, kPiece), 0) << at;
    }
    EXPECT_EQ(server_.mappings(), mappings);
}

TEST_P(Dma, OverlapIsEexist)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(client.dma_map(ram), EEXIST);
    EXPECT_EQ(client.dma_map(0x100000 + kMiB - 4096, 8192, 0, kReadWrite, ram.fd()), EEXIST);
    EXPECT_EQ(client.dma_map(0x100000 - 4096, 8192, 0, kReadWrite, ram.fd()), EEXIST);
    EXPECT_EQ(client.dma_map(0x100000 - 4096, 2 * kMiB, 0, kReadWrite, -1), EEXIST);
    EXPECT_EQ(client.dma_map(0x101000, 4096, 0, kReadWrite, -1), EEXIST);
    EXPECT_EQ(client.dma_map(0x100000 + kMiB, 4096, 0, kReadWrite, ram.fd()), 0);
    EXPECT_EQ(client.dma_map(0x100000 - 4096, 4096, 0, kReadWrite, ram.fd()), 0);
}

TEST_P(Dma, MapChecksItsFields)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    const auto with = [&](const Bytes &payload) { return result(client, kDmaMap, payload, {ram.fd()}); };
    const auto fds = server_.open_fds();
    EXPECT_EQ(with(Bytes(31)), EINVAL);
    EXPECT_EQ(with(map_request(31, kReadWrite, 0, 0, kMiB)), EINVAL);
    EXPECT_EQ(with(map_request(32, 0xff00, 0, 0, kMiB)), EINVAL);
    EXPECT_EQ(with(map_request(32, kReadWrite, 0, 0, 0)), EINVAL);
    EXPECT_EQ(with(map_request(32, kReadWrite, 0, ~std::uint64_t{0xfff}, 0x2000)), EINVAL);  // wraps
    EXPECT_EQ(with(map_request(32, kReadWrite, ~std::uint64_t{0xfff}, 0, 0x2000)), EINVAL);  // offset wraps
    EXPECT_EQ(with(map_request(32, kReadWrite, 0, 0, 8 * kTiB + 4096)), ENOSPC);
    EXPECT_EQ(result(client, kDmaMap, map_request(32, kReadWrite, 0, 0, kMiB), {ram.fd(), ram.fd()}), EINVAL);
    EXPECT_TRUE(open_fds_become(fds));
    // None of them had an effect.
    EXPECT_EQ(client.dma_map(ram), 0);
    expect_alive(client);
}

TEST_P(Dma, UnmapChecksItsFields)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(result(client, kDmaUnmap, Bytes(23)), EINVAL);
    EXPECT_EQ(result(client, kDmaUnmap, unmap_request(23, 0, 0x100000, kMiB)), EINVAL);
    EXPECT_EQ(result(client, kDmaUnmap, unmap_request(24, 4, 0x100000, kMiB)), EINVAL);
    EXPECT_EQ(result(client, kDmaUnmap, unmap_request(24, kUnmapAll, 0x100000, 0)), EINVAL);
    EXPECT_EQ(result(client, kDmaUnmap, unmap_request(24, kUnmapAll, 0, kMiB)), EINVAL);
    EXPECT_EQ(result(client, kDmaUnmap, unmap_request(24, kUnmapAll | kUnmapDirtyBitmap, 0, 0)), EINVAL);
    // The bitmap request (pgsize, size) without tracking.
    auto dirty = unmap_request(24 + 16 + 8, kUnmapDirtyBitmap, 0x100000, kMiB);
    EXPECT_EQ(result(client, kDmaUnmap, Packer().bytes(dirty).u64(4096).u64(8).zeros(8).take()), EINVAL);
    // All of it is still mapped.
    EXPECT_EQ(client.dma_unmap(0x100000, kMiB), 0);
}

TEST_P(Dma, UnmapOfAnUnknownRangeIsEnoent)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    EXPECT_EQ(client.dma_unmap(0x100000, kMiB), ENOENT);
    ASSERT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(client.dma_unmap(0x200000, kMiB), ENOENT);
    EXPECT_EQ(client.dma_unmap(0x100000, kMiB), 0);
    EXPECT_EQ(client.dma_unmap(0x100000, kMiB), ENOENT);
}

TEST_P(Dma, UnmapAllRemovesEverything)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    const auto mappings = server_.mappings();
    for (std::uint64_t at = 0; at < 8; ++at) {
        ASSERT_EQ(client.dma_map(at * 16 * kMiB, kMiB, 0, kReadWrite, ram.fd()), 0);
    }
    ASSERT_EQ(client.dma_map(0x100000000, kMiB, 0, kReadWrite, -1), 0);
    EXPECT_EQ(client.dma_unmap(0, 0, kUnmapAll), 0);
    EXPECT_EQ(server_.mappings(), mappings);
    EXPECT_EQ(client.dma_unmap(0, kMiB), ENOENT);
    EXPECT_EQ(client.dma_map(ram), 0);
}

TEST_P(Dma, MemoryWithoutFdIsAccepted)
{
    auto client = session();
    EXPECT_EQ(client.dma_map(0, 640 * 1024, 0, kReadWrite, -1), 0);
    EXPECT_EQ(client.dma_map(0xfffc0000, 256 * 1024, 0, kMapRead, -1), 0);
    EXPECT_EQ(client.dma_unmap(0, 640 * 1024), 0);
    EXPECT_EQ(client.dma_unmap(0xfffc0000, 256 * 1024), 0);
}

TEST_P(Dma, MemoryThatCouldShrinkIsNotMapped)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB, GuestRam::Seal::none);
    const auto mappings = server_.mappings();
    const auto fds = server_.open_fds();
    EXPECT_EQ(client.dma_map(ram), 0);
    EXPECT_EQ(server_.mappings(), mappings);
    EXPECT_TRUE(open_fds_become(fds));
    ASSERT_EQ(::ftruncate(ram.fd(), 0), 0);  // would kill a server that had mapped it and touched it
    EXPECT_EQ(client.dma_unmap(0x100000, kMiB), 0);
    expect_alive(client);
}

TEST_P(Dma, FdsOfTheWrongKindAreNotMapped)
{
    auto client = session();
    FdProbe probe;
    EventFd event;
    // Accepted as memory that only messages reach, or refused: either way nothing is kept.
    static_cast<void>(client.dma_map(0x100000, kMiB, 0, kReadWrite, probe.fd()));
    static_cast<void>(client.dma_map(0x1000000, kMiB, 0, kReadWrite, event.fd()));
    probe.given_away();
    EXPECT_TRUE(probe.closed_everywhere());
    expect_alive(client);
}

TEST_P(Dma, BurstsAreAnsweredInFullWithoutWaiting)
{
    auto client = session();
    GuestRam ram(0, 2 * kMiB);
    std::vector<std::uint16_t> ids;
    const int fd = ram.fd();
    for (int round = 0; round < 4; ++round) {
        for (std::uint64_t i = 0; i < 32; ++i) {
            ids.push_back(client.send(kDmaMap, map_request(32, kReadWrite, i * 0x8000, i * 0x8000, 0x8000), {&fd, 1}));
        }
        for (std::uint64_t i = 0; i < 32; ++i) {
            ids.push_back(client.send(kDmaUnmap, unmap_request(24, 0, i * 0x8000, 0x8000)));
        }
    }
    for (const auto id : ids) {
        EXPECT_EQ(client.wait_reply(id).result(), 0);
    }
    EXPECT_EQ(client.dma_unmap(0, 0x8000), ENOENT);
}

TEST_P(Dma, AnFdOnUnmapIsClosedAndIgnored)
{
    auto client = session();
    GuestRam ram(0x100000, kMiB);
    ASSERT_EQ(client.dma_map(ram), 0);
    FdProbe probe;
    const int fd = probe.fd();
    const auto request = unmap_request(24, 0, 0x100000, kMiB);
    const auto reply = client.transact(kDmaUnmap, request, {&fd, 1});
    EXPECT_EQ(reply.result(), 0);
    EXPECT_EQ(reply.payload, request);
    probe.given_away();
    EXPECT_TRUE(probe.closed_everywhere());
}

TEST_P(Dma, EndOfFileReleasesEveryMappingAndFd)
{
    const auto mappings = server_.mappings();
    const auto fds = idle_fds();
    for (int round = 0; round < 3; ++round) {
        auto client = session();
        GuestRam ram(0x100000, 2 * kMiB);
        ASSERT_EQ(client.dma_map(ram), 0);
        client.close();
        EXPECT_TRUE(eventually([&] { return server_.mappings() == mappings; }));
    }
    EXPECT_TRUE(eventually([&] { return server_.open_fds() <= fds; }));
}

}  // namespace
}  // namespace vvfu::test
