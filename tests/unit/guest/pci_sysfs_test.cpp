// SPDX-License-Identifier: BSD-3-Clause
#include "pci_sysfs.hpp"

#include <gmock/gmock.h>

#include "fake_sysfs.hpp"

namespace vvfu::guest {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(PciAddress, TakesBothForms)
{
    EXPECT_EQ(parse_pci_address("0000:00:04.0"), (PciAddress{0, 0, 4, 0}));
    EXPECT_EQ(parse_pci_address("00:1f.7"), (PciAddress{0, 0, 0x1f, 7}));
    EXPECT_EQ(parse_pci_address("10000:fe:1F.2"), (PciAddress{0x10000, 0xfe, 0x1f, 2}));
    EXPECT_EQ(to_string(PciAddress{1, 0xab, 0x1c, 3}), "0001:ab:1c.3");
}

TEST(PciAddress, RefusesEverythingElse)
{
    for (const char *text : {"", "0", "00:04", "00:04.8", "00:20.0", "100:04.0", "0000:00:04.0 ", "0000:00:04.",
                             ":00:04.0", "0000:00:04.00x", "-1:00.0", "00.04.0", "1:2:3:4.0", "0000:00:0x4.0"}) {
        EXPECT_FALSE(parse_pci_address(text)) << text;
    }
}

TEST(PciSysfs, ReadsWhatLinuxShows)
{
    test::FakeSysfs fake;
    fake.add({"0000:00:04.0", 0x1af4, 0x107f, "vfio-pci", 7, {}});
    fake.add({"0000:00:02.0", 0x8086, 0x10d3, "", {}, {}});
    const PciSysfs sysfs{fake.root()};
    const PciAddress four{0, 0, 4, 0}, two{0, 0, 2, 0};
    EXPECT_THAT(sysfs.functions(), ElementsAre(two, four));
    EXPECT_TRUE(sysfs.exists(four));
    EXPECT_EQ(sysfs.vendor_id(four), 0x1af4);
    EXPECT_EQ(sysfs.device_id(four), 0x107f);
    EXPECT_EQ(sysfs.driver(four), "vfio-pci");
    EXPECT_EQ(sysfs.iommu_group(four), 7u);
    EXPECT_EQ(sysfs.driver(two), "");
    EXPECT_EQ(sysfs.iommu_group(two), std::nullopt);
    EXPECT_THAT(sysfs.group_members(7), ElementsAre(four));
}

TEST(PciSysfs, AbsentThingsAreEmpty)
{
    const PciSysfs sysfs{"/nonexistent"};
    const PciAddress address{0, 0, 4, 0};
    EXPECT_THAT(sysfs.functions(), IsEmpty());
    EXPECT_FALSE(sysfs.exists(address));
    EXPECT_EQ(sysfs.vendor_id(address), 0);
    EXPECT_THAT(sysfs.config(address), IsEmpty());
    EXPECT_THAT(sysfs.group_members(1), IsEmpty());
}

}  // namespace
}  // namespace vvfu::guest
