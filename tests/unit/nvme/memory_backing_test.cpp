// SPDX-License-Identifier: BSD-3-Clause
#include "memory_backing.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace vvfu::nvme::test {
namespace {

TEST(ParseSize, TakesBinarySuffixes)
{
    EXPECT_EQ(parse_size("12345").value(), 12345u);
    EXPECT_EQ(parse_size("3K").value(), 3u << 10);
    EXPECT_EQ(parse_size("256m").value(), 256u << 20);
    EXPECT_EQ(parse_size("2G").value(), std::uint64_t{2} << 30);
    EXPECT_EQ(parse_size("1t").value(), std::uint64_t{1} << 40);
    EXPECT_FALSE(parse_size("1\x8b"));
}

/// The same operations on a plain vector.
TEST(MemoryBacking, AgreesWithAVector)
{
    constexpr std::uint64_t kSize = 64 * 1024;
    auto backing = MemoryBacking::create(kSize);
    ASSERT_TRUE(backing);
    std::vector<std::byte> model(kSize);
    std::mt19937 random(3);
    for (int i = 0; i < 2000; ++i) {
        const auto offset = random() % kSize;
        const auto size = random() % (kSize - offset) + 1;
        int error = -1;
        const auto done = [&](int result) { error = result; };
        switch (random() % 4) {
            case 0: {
                std::vector<std::byte> data(size, static_cast<std::byte>(random()));
                const auto half = size / 2;
                const iovec pieces[] = {{data.data(), half}, {data.data() + half, size - half}};
                (*backing)->write(offset, pieces, done);
                std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
                break;
            }
            case 1:
                (*backing)->write_zeroes({offset, size}, random() % 2 == 0, done);
                std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), size, std::byte{0});
                break;
            case 2:
                (*backing)->discard({{offset, size}, {0, 0}}, done);
                std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), size, std::byte{0});
                break;
            default: {
                std::vector<std::byte> data;
                (*backing)->read({offset, size}, [&](int result, std::span<const std::byte> bytes) {
                    done(result);
                    data.assign(bytes.begin(), bytes.end());
                });
                ASSERT_EQ(data.size(), size);
                ASSERT_TRUE(std::equal(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset)));
                break;
            }
        }
        ASSERT_EQ(error, 0) << "completes inside the call";
    }
}

TEST(MemoryBacking, MayBeLargerThanTheMachine)
{
    auto backing = MemoryBacking::create(std::uint64_t{1} << 39);
    ASSERT_TRUE(backing);
    bool read = false;
    (*backing)->read({(std::uint64_t{1} << 39) - 1, 1}, [&](int error, std::span<const std::byte> data) {
        EXPECT_EQ(error, 0);
        read = data.size() == 1 && data[0] == std::byte{0};
    });
    EXPECT_TRUE(read);
}

}  // namespace
}  // namespace vvfu::nvme::test
