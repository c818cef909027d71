// SPDX-License-Identifier: BSD-3-Clause
#include "data_transfer.hpp"

#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

/// Data in the window and behind messages, page by page, and lists in either.
TEST(DataTransfer, MixesWindowAndMessages)
{
    for (const auto list_place : {Place::window, Place::message}) {
        Host host;
        host.start();
        const auto data = pattern(5 * 4096, 1);
        auto entry = io(IoOpcode::write, 0, 40);
        const auto list = host.allocate(4096, list_place);
        for (unsigned i = 0; i < 5; ++i) {
            const auto page = host.allocate(4096, i % 2 == 0 ? Place::window : Place::message);
            host.store(page, std::span(data).subspan(i * 4096, 4096));
            if (i == 0) {
                entry.prp1 = page;
            } else {
                const Le64 pointer = page;
                std::memcpy(host.at(list + 8 * (i - 1)), &pointer, sizeof(pointer));
            }
        }
        entry.prp2 = list;
        ASSERT_EQ(host.execute(1, entry).status, Status::success);
        EXPECT_EQ(host.read(0, 40), data);
    }
}

TEST(DataTransfer, ChainedListsAreFollowedThroughMessages)
{
    Host host;
    host.start();
    const auto data = pattern(4 * 4096, 2);
    auto entry = io(IoOpcode::write, 0, 32);
    std::uint64_t pages[4];
    for (unsigned i = 0; i < 4; ++i) {
        pages[i] = host.allocate(4096);
        host.store(pages[i], std::span(data).subspan(i * 4096, 4096));
    }
    const auto first = host.allocate(4096, Place::message), second = host.allocate(4096, Place::message);
    const auto put = [&](std::uint64_t at, std::uint64_t value) {
        const Le64 little = value;
        std::memcpy(host.at(at), &little, sizeof(little));
    };
    put(first + 4080, pages[1]);
    put(first + 4088, second);
    put(second, pages[2]);
    put(second + 8, pages[3]);
    entry.prp1 = pages[0];
    entry.prp2 = first + 4080;
    ASSERT_EQ(host.execute(1, entry).status, Status::success);
    EXPECT_EQ(host.read(0, 32), data);
}

TEST(DataTransfer, ReadWritesNothingOutsideItsBuffer)
{
    Host host;
    host.start();
    ASSERT_EQ(host.write(0, pattern(1024, 3)).status, Status::success);
    const auto buffer = host.allocate(4096);
    std::memset(host.at(buffer), 0xaa, 4096);
    auto entry = io(IoOpcode::read, 0, 1);
    entry.prp1 = buffer + 512;
    ASSERT_EQ(host.execute(1, entry).status, Status::success);
    const auto memory = host.load(buffer, 4096);
    EXPECT_EQ(memory[511], std::byte{0xaa});
    EXPECT_EQ(memory[1024], std::byte{0xaa});
    const auto expected = pattern(1024, 3);
    EXPECT_TRUE(std::equal(expected.begin(), expected.begin() + 512, memory.begin() + 512));
}

TEST(DataTransfer, FailedMessageIsDataTransferError)
{
    Host host;
    host.start();
    host.hold_messages = true;
    auto entry = io(IoOpcode::read);
    entry.prp1 = host.allocate(512, Place::message);
    host.submit(1, entry);
    host.ring_sq(1);
    host.run();
    ASSERT_EQ(host.messages.waiting.size(), 1u) << "the bounced data on its way";
    host.dma.clear();  // the session is over: what was under way fails
    host.dma.open();
    host.add_memory();
    host.hold_messages = false;
    host.run();
    const auto completions = host.drain(1);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].status, Status::data_transfer_error);
}

TEST(CopyPieces, InTheirOrder)
{
    auto data = pattern(9, 4);
    const iovec pieces[] = {{&data[0], 3}, {&data[3], 5}, {&data[8], 1}};
    std::vector<std::byte> copy(9);
    copy_from_pieces(pieces, copy);
    EXPECT_EQ(copy, data);
}

}  // namespace
}  // namespace vvfu::nvme::test
