// SPDX-License-Identifier: BSD-3-Clause
//
// What the log says about commands that are refused.
#include "refusal.hpp"

#include <algorithm>

#include "core_fixture.hpp"
#include "vvfu/base/rate_limit.hpp"

namespace vvfu::test {
namespace {

using core::LogLevel;

class RefusalTest : public CoreTest {
protected:
    /// The last line, which must be of this level, without the message ID.
    std::string last_line(LogLevel level)
    {
        if (port.lines.empty()) {
            return "nothing logged";
        }
        EXPECT_EQ(level, port.lines.back().level) << port.lines.back().text;
        auto text = port.lines.back().text;
        char id[32];
        std::snprintf(id, sizeof id, " (message 0x%x)", message_id);
        const auto at = text.find(id);
        EXPECT_NE(std::string::npos, at) << text;
        return at == std::string::npos ? text : text.erase(at, std::strlen(id));
    }
    std::string refused(vu::Command kind, const ByteVector &payload, LogLevel level = LogLevel::warning)
    {
        port.lines.clear();
        EXPECT_NE(0, call_errno(kind, payload));
        return last_line(level);
    }
};

TEST_F(RefusalTest, TheLogNamesCommandErrnoAndField)
{
    start_session();
    EXPECT_EQ("DMA_MAP refused, EINVAL: less than the structure, argsz 0x1f",
              refused(vu::Command::dma_map, concat(vu::DmaMap{31, 3, 0, 0, 4096})));
    EXPECT_EQ("DMA_MAP refused, EINVAL: message too short, payload size 0x8",
              refused(vu::Command::dma_map, filled(8, 0)));
    EXPECT_EQ("DMA_MAP refused, EINVAL: undefined flags, flags 0x7",
              refused(vu::Command::dma_map, dma_map_payload(0, 4096, 0, 7)));
    ASSERT_EQ(0, map(0x10000, 0x1000));
    EXPECT_EQ("DMA_MAP refused, EEXIST: overlaps a range, address 0x10000 size 0x2000",
              refused(vu::Command::dma_map, dma_map_payload(0x10000, 0x2000)));
    EXPECT_EQ("DMA_UNMAP refused, EINVAL: cuts a range, address 0x10000 size 0x800",
              refused(vu::Command::dma_unmap, dma_unmap_payload(0x10000, 0x800)));
    EXPECT_EQ("REGION_READ refused, EINVAL: too long, or outside of the region, region 0x0 offset 0x3fff count 0x2",
              refused(vu::Command::region_read, concat(vu::RegionAccess{0x3fff, 0, 2})));
    EXPECT_EQ("DEVICE_SET_IRQS refused, EINVAL: no such vectors, index 0x2 start 0x7 count 0x2",
              refused(vu::Command::device_set_irqs, concat(vu::IrqSet{20, 0x21, 2, 7, 2})));
    EXPECT_EQ("DEVICE_GET_REGION_INFO refused, EINVAL: no such region, index 0x9",
              refused(vu::Command::device_get_region_info, concat(vu::RegionInfo{32, 0, 9, 0, 0, 0})));
    EXPECT_EQ("UNKNOWN refused, EINVAL: not a command that may come now, command 0x63", refused(vu::Command{99}, {}));
}

TEST_F(RefusalTest, WhatAClientProbesForIsNoWarning)
{
    start_session();
    EXPECT_EQ("DEVICE_FEATURE refused, ENOTSUP: not supported, flags 0x10001",
              refused(vu::Command::device_feature, concat(vu::DeviceFeature{8, 0x10001}), LogLevel::debug));
    EXPECT_EQ("DEVICE_GET_REGION_IO_FDS refused, ENOTSUP: not supported",
              refused(vu::Command::device_get_region_io_fds, concat(vu::RegionIoFds{16, 0, 0, 0}), LogLevel::debug));
    // vIOMMUs unmap dozens of spans in which there is nothing.
    EXPECT_EQ("DMA_UNMAP refused, ENOENT: no range is in that span, address 0x11000 size 0x2000",
              refused(vu::Command::dma_unmap, dma_unmap_payload(0x11000, 0x2000), LogLevel::debug));
}

TEST_F(RefusalTest, ABadVersionIsExplainedThoughThereIsNoSession)
{
    create();
    device_add(sample_device());
    const auto refused_version = [&](const ByteVector &bytes) {
        connect();
        port.lines.clear();
        feed(bytes);
        EXPECT_STREQ("listening", core->state().state);
        return last_line(LogLevel::warning);
    };
    EXPECT_EQ("VERSION refused, EINVAL: another major version, major 0x1",
              refused_version(command(vu::Command::version, version_payload("", 1))));
    EXPECT_EQ("VERSION refused, EINVAL: malformed version data, payload size 0x6",
              refused_version(command(vu::Command::version, version_payload("{"))));
    EXPECT_EQ("DEVICE_RESET refused, EINVAL: the first command is not VERSION, command 0xd",
              refused_version(command(vu::Command::device_reset, {})));
}

TEST_F(RefusalTest, AnOutOfStepStreamIsExplainedBeforeTheSessionEnds)
{
    start_session();
    port.lines.clear();
    feed(concat(vu::Header{7, 10, 3, 0, 0}));
    ASSERT_EQ(2u, port.lines.size());
    EXPECT_EQ("REGION_WRITE (message 0x7) refused, EINVAL: impossible message size, size 0x3", port.lines[0].text);
    EXPECT_EQ(LogLevel::warning, port.lines[0].level);
}

TEST_F(RefusalTest, APeerThatReadsNothingIsExplained)
{
    start_session();
    port.backlog = 5 * 1024 * 1024;
    feed(raw_command(8, {}, vu::kTypeReply));
    EXPECT_TRUE(port.logged("the peer violated the protocol: it reads none of its replies"));
}

TEST_F(RefusalTest, EachCommandHasALimitOfItsOwn)
{
    start_session();
    port.lines.clear();
    for (int i = 0; i < 100; ++i) {
        call_errno(vu::Command::region_read, {});
    }
    EXPECT_EQ(RateLimit::kBurst, port.lines.size());
    EXPECT_EQ("DMA_MAP refused, EINVAL: message too short, payload size 0x0", refused(vu::Command::dma_map, {}));
    advance(RateLimit::kInterval);
    EXPECT_EQ(0u, port.lines.back().text.find(std::to_string(100 - RateLimit::kBurst) +
                                              " more times: REGION_READ was refused; the last: "))
        << port.lines.back().text;
}

}  // namespace
}  // namespace vvfu::test
