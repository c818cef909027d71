// SPDX-License-Identifier: BSD-3-Clause
#include "vfio_device.hpp"

#include <gmock/gmock.h>
#include <linux/vfio.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "fake_sysfs.hpp"

namespace vvfu::guest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

/// Appends the bytes of `value`.
template <typename T>
void append(std::vector<std::byte> &out, const T &value)
{
    const auto *bytes = reinterpret_cast<const std::byte *>(&value);
    out.insert(out.end(), bytes, bytes + sizeof value);
}

std::vector<std::byte> region_reply(std::uint32_t flags, std::uint32_t cap_offset)
{
    vfio_region_info info{};
    info.flags = flags;
    info.cap_offset = cap_offset;
    info.size = 0x4000;
    info.offset = 0x10000000000;
    std::vector<std::byte> reply;
    append(reply, info);
    return reply;
}

auto areas(const VfioRegion &region)
{
    std::vector<std::pair<std::uint64_t, std::uint64_t>> out;
    for (const auto &area : region.mappable) {
        out.emplace_back(area.offset, area.size);
    }
    return out;
}

TEST(VfioRegionInfo, WholeRegionOrNothingWithoutTheSparseCapability)
{
    const auto whole = decode_region_info(region_reply(VFIO_REGION_INFO_FLAG_MMAP, 0));
    EXPECT_EQ(whole.size, 0x4000u);
    EXPECT_EQ(whole.file_offset, 0x10000000000u);
    EXPECT_THAT(areas(whole), ElementsAre(testing::Pair(0, 0x4000)));
    EXPECT_THAT(areas(decode_region_info(region_reply(0, 0))), IsEmpty());
    EXPECT_EQ(decode_region_info({}).size, 0u) << "the ioctl failed";
}

TEST(VfioRegionInfo, SparseAreasAreFoundBehindOtherCapabilities)
{
    auto reply = region_reply(VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS, sizeof(vfio_region_info));
    append(reply, vfio_info_cap_header{.id = 3, .version = 1, .next = sizeof(vfio_region_info) + 8});
    append(reply, vfio_info_cap_header{.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1, .next = 0});
    append(reply, std::uint32_t{2});
    append(reply, std::uint32_t{0});
    append(reply, vfio_region_sparse_mmap_area{.offset = 0x1000, .size = 0x1000});
    append(reply, vfio_region_sparse_mmap_area{.offset = 0x3000, .size = 0x1000});
    EXPECT_THAT(areas(decode_region_info(reply)),
                ElementsAre(testing::Pair(0x1000, 0x1000), testing::Pair(0x3000, 0x1000)));
    reply.resize(reply.size() - 1);
    EXPECT_EQ(decode_region_info(reply).mappable.size(), 2u) << "cut short: what is left of it has size 0";
    EXPECT_EQ(decode_region_info(reply).mappable[1].size, 0u);
}

TEST(VfioRegionInfo, DamagedChainEnds)
{
    auto reply = region_reply(VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS, sizeof(vfio_region_info));
    append(reply, vfio_info_cap_header{.id = 3, .version = 1, .next = sizeof(vfio_region_info)});
    EXPECT_EQ(decode_region_info(reply).mappable.size(), 1u);
    reply = region_reply(VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS, 0xfffffff0);
    EXPECT_EQ(decode_region_info(reply).mappable.size(), 1u);
}

TEST(VfioIommuInfo, RangesAndPageSize)
{
    vfio_iommu_type1_info info{};
    info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
    info.iova_pgsizes = 0x40201000;
    info.cap_offset = sizeof info;
    std::vector<std::byte> reply;
    append(reply, info);
    append(reply, vfio_info_cap_header{.id = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, .version = 1, .next = 0});
    append(reply, std::uint32_t{2});
    append(reply, std::uint32_t{0});
    append(reply, vfio_iova_range{.start = 0, .end = 0xfedfffff});
    append(reply, vfio_iova_range{.start = 0xfef00000, .end = 0x7fffffffff});
    const auto decoded = decode_iommu_info(reply);
    EXPECT_EQ(decoded.page_size, 4096u);
    ASSERT_EQ(decoded.ranges.size(), 2u);
    EXPECT_EQ(decoded.ranges[1].first, 0xfef00000u);
    EXPECT_EQ(decoded.ranges[1].last, 0x7fffffffffu);
    EXPECT_EQ(decode_iommu_info({}).ranges.size(), 1u) << "an old kernel";
}

TEST(VfioBinding, EachObstacleNamesItsRemedy)
{
    test::FakeSysfs fake;
    fake.add({"0000:00:04.0", 0x1af4, 0x107f, "virtio-pci", {}, {}});
    fake.add({"0000:00:05.0", 0x1af4, 0x107f, "virtio-pci", 3, {}});
    fake.add({"0000:00:06.0", 0x1af4, 0x107f, "", 4, {}});
    fake.add({"0000:00:07.0", 0x1af4, 0x107f, "vfio-pci", 5, {}});
    const PciSysfs sysfs{fake.root()};
    const auto message = [&](std::uint8_t device) {
        const auto result = check_vfio_binding(sysfs, {0, 0, device, 0});
        const auto text = result ? std::string{} : result.error().message;
        EXPECT_THAT(text, Not(HasSubstr("\n")));
        return text;
    };
    EXPECT_THAT(message(4), testing::AllOf(HasSubstr("IOMMU group"), HasSubstr("intel-iommu,intremap=on"),
                                           HasSubstr("intel_iommu=on")));
    EXPECT_THAT(message(5),
                testing::AllOf(HasSubstr("is bound to virtio-pci, not to vfio-pci"),
                               HasSubstr("echo vfio-pci > /sys/bus/pci/devices/0000:00:05.0/driver_override"),
                               HasSubstr("echo 0000:00:05.0 > /sys/bus/pci/devices/0000:00:05.0/driver/unbind"),
                               HasSubstr("echo 0000:00:05.0 > /sys/bus/pci/drivers_probe")));
    EXPECT_THAT(message(6), testing::AllOf(HasSubstr("is bound to no driver"), Not(HasSubstr("unbind"))));
    EXPECT_EQ(message(7), "");
    EXPECT_EQ(check_vfio_binding(sysfs, {0, 0, 7, 0}).value(), 5u);
}

TEST(VfioErrors, EachNamesItsRemedyInOneLine)
{
    const struct {
        std::string text;
        const char *what, *remedy;
    } cases[] = {
        {explain_container_error(ENOENT), "/dev/vfio/vfio", "load the modules"},
        {explain_container_error(EACCES), "/dev/vfio/vfio", "run as root"},
        {explain_group_error("f", 7, ENOENT), "f: cannot open /dev/vfio/7", "intel-iommu,intremap=on"},
        {explain_group_error("f", 7, EACCES), "/dev/vfio/7", "run as root"},
        {explain_group_error("f", 7, EBUSY), "/dev/vfio/7", "another program uses it"},
        {explain_iommu_error("f", EPERM), "no interrupt remapping", "intel-iommu,intremap=on"},
        {explain_map_error("f", 4096, 65536, ENOMEM), "4096 bytes", "limit 65536 bytes): raise it"},
    };
    for (const auto &test : cases) {
        EXPECT_THAT(test.text, testing::AllOf(HasSubstr(test.what), HasSubstr(test.remedy), Not(HasSubstr("\n"))));
    }
    EXPECT_THAT(explain_map_error("f", 4096, RLIM_INFINITY, ENOMEM), Not(HasSubstr("limit"))) << "it is not that";
}

}  // namespace
}  // namespace vvfu::guest
