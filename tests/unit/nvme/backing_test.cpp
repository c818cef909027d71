// SPDX-License-Identifier: BSD-3-Clause
#include "backing.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class OpenBacking : public testing::Test {
protected:
    std::string error(const std::string &name, bool read_only = false)
    {
        const auto backing = open_backing(name, read_only, workers);
        return backing ? "" : backing.error().message;
    }

    TestExecutor executor;
    TestWorkers workers{executor};
};

TEST_F(OpenBacking, MissingFileSaysSoAndHowToMakeOne)
{
    EXPECT_THAT(error("/nonexistent/disk.img"), AllOf(HasSubstr("/nonexistent/disk.img"), HasSubstr("No such file")));
}

TEST_F(OpenBacking, OddSizeNamesTheSize)
{
    TemporaryFile file(1000);
    EXPECT_THAT(error(file.path()), AllOf(HasSubstr("1000 bytes"), HasSubstr("multiple of 512")));
}

TEST_F(OpenBacking, EmptyFileIsRefused)
{
    TemporaryFile file(0);
    EXPECT_THAT(error(file.path()), HasSubstr("empty"));
}

TEST_F(OpenBacking, OtherKindsOfFileAreRefused)
{
    EXPECT_THAT(error("/"), HasSubstr("neither a regular file nor a block device"));
    EXPECT_THAT(error("/dev/null"), HasSubstr("neither a regular file nor a block device"));
    TemporaryFile file(0);
    const auto fifo = file.path() + ".fifo";
    ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
    EXPECT_THAT(error(fifo), HasSubstr("neither a regular file nor a block device")) << "and it did not block";
    unlink(fifo.c_str());
}

TEST_F(OpenBacking, FileWithoutPermissionSuggestsReadOnly)
{
    TemporaryFile file(512);
    ASSERT_EQ(chmod(file.path().c_str(), 0444), 0);
    const auto user = geteuid();
    constexpr uid_t kNobody = 65534;
    // Root may write to any file.
    ASSERT_EQ(user == 0 ? seteuid(kNobody) : 0, 0);
    const auto writable = error(file.path()), read_only = error(file.path(), true);
    ASSERT_EQ(seteuid(user), 0);
    EXPECT_THAT(writable, AllOf(HasSubstr("Permission denied"), HasSubstr("--read-only")));
    EXPECT_EQ(read_only, "");
}

TEST_F(OpenBacking, MemorySizesAreParsed)
{
    EXPECT_EQ(error("mem:512"), "");
    EXPECT_EQ(error("mem:1M"), "");
    for (const auto *name :
         {"mem:", "mem:x", "mem:-512", "mem:1MB", "mem:1 M", "mem:99999999999999999999", "mem:16777216T"}) {
        EXPECT_THAT(error(name), HasSubstr("not a size")) << name;
    }
    EXPECT_THAT(error("mem:0"), HasSubstr("empty"));
    EXPECT_THAT(error("mem:513"), HasSubstr("multiple of 512"));
    EXPECT_THAT(error("mem:8000000T"), HasSubstr("cannot reserve"));
}

}  // namespace
}  // namespace vvfu::nvme::test
