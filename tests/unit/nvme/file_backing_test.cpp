// SPDX-License-Identifier: BSD-3-Clause
#include "file_backing.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <sys/stat.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

class FileBackingTest : public testing::Test {
protected:
    FileBackingTest() : backing(std::move(*FileBacking::open(file.path(), false, workers))) {}
    int finish()
    {
        executor.run();
        return error;
    }
    Backing::Done done()
    {
        error = -1;
        return [this](int result) { error = result; };
    }

    Backing::ReadDone read_done(std::vector<std::byte> &out)
    {
        error = -1;
        return [this, &out](int result, std::span<const std::byte> data) {
            error = result;
            out.assign(data.begin(), data.end());
        };
    }

    TemporaryFile file{1 << 20};
    TestExecutor executor;
    TestWorkers workers{executor};
    std::unique_ptr<Backing> backing;
    int error = -1;
};

TEST_F(FileBackingTest, MorePiecesThanOneCallTakes)
{
    // Every piece is small, and there are more than IOV_MAX of them.
    auto data = pattern((IOV_MAX + 100) * 16, 1);
    std::vector<iovec> pieces;
    for (std::size_t offset = 0; offset < data.size(); offset += 16) {
        pieces.push_back({&data[offset], 16});
    }
    backing->write(512, pieces, done());
    ASSERT_EQ(finish(), 0);
    const auto contents = file.contents();
    EXPECT_TRUE(std::equal(data.begin(), data.end(), contents.begin() + 512));
    const auto written = data;
    std::fill(data.begin(), data.end(), std::byte{0});
    backing->read({512, data.size()}, read_done(data));
    ASSERT_EQ(finish(), 0);
    EXPECT_EQ(data, written);
}

TEST_F(FileBackingTest, RunsOnAWorkerAndSurvivesItsOwner)
{
    workers.deferred = true;
    auto data = pattern(512, 2);
    const iovec piece{data.data(), data.size()};
    backing->write(0, {&piece, 1}, done());
    EXPECT_EQ(finish(), -1) << "not before the worker ran";
    const auto written = data;
    std::fill(data.begin(), data.end(), std::byte{0xee});
    backing.reset();
    workers.run();
    EXPECT_EQ(finish(), 0);
    EXPECT_TRUE(std::equal(written.begin(), written.end(), file.contents().begin())) << "as it was during the call";
}

TEST_F(FileBackingTest, ShrunkFileIsAnError)
{
    std::filesystem::resize_file(file.path(), 1024);
    std::vector<std::byte> data;
    backing->read({512, 1024}, read_done(data));
    EXPECT_EQ(finish(), EIO);
}

TEST_F(FileBackingTest, DiscardGivesSpaceBackAndKeepsTheSize)
{
    const auto data = pattern(1 << 20, 3);
    const iovec piece{const_cast<std::byte *>(data.data()), data.size()};
    backing->write(0, {&piece, 1}, done());
    ASSERT_EQ(finish(), 0);
    backing->discard({{0, 512 * 1024}, {512 * 1024, 0}, {768 * 1024, 4096}}, done());
    ASSERT_EQ(finish(), 0);
    auto expected = data;
    std::fill_n(expected.begin(), 512 * 1024, std::byte{0});
    std::fill_n(expected.begin() + 768 * 1024, 4096, std::byte{0});
    EXPECT_EQ(file.contents(), expected);
    struct stat status {};
    ASSERT_EQ(stat(file.path().c_str(), &status), 0);
    EXPECT_LE(status.st_blocks * 512, 600 * 1024);
}

TEST_F(FileBackingTest, OneWriterOrAnyNumberOfReaders)
{
    for (const bool read_only : {false, true}) {
        const auto second = FileBacking::open(file.path(), read_only, workers);
        ASSERT_FALSE(second);
        EXPECT_THAT(second.error().message, testing::HasSubstr("is in use by another process"));
    }
    backing.reset();
    const auto reader = FileBacking::open(file.path(), true, workers);
    EXPECT_TRUE(reader);
    EXPECT_TRUE(FileBacking::open(file.path(), true, workers));
    EXPECT_FALSE(FileBacking::open(file.path(), false, workers));
}

TEST_F(FileBackingTest, ReadOnlyFileCannotBeWritten)
{
    backing.reset();
    const auto read_only = FileBacking::open(file.path(), true, workers);
    ASSERT_TRUE(read_only);
    std::byte byte{};
    const iovec piece{&byte, 1};
    (*read_only)->write(0, {&piece, 1}, done());
    EXPECT_EQ(finish(), EBADF);
    (*read_only)->flush(done());
    EXPECT_EQ(finish(), 0);
}

}  // namespace
}  // namespace vvfu::nvme::test
