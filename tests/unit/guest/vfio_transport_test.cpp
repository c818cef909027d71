// SPDX-License-Identifier: BSD-3-Clause
//
// Finding and refusing functions; bringing one up needs a VM and is part of the system tests.
#include "vvfu/guest/vfio_transport.hpp"

#include <gmock/gmock.h>

#include "fake_sysfs.hpp"

namespace vvfu::guest {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

TEST(Uuid, ParsesAndFormats)
{
    const std::string text = "12345678-9abc-def0-1234-56789abcdef0";
    const auto uuid = parse_uuid(text);
    ASSERT_TRUE(uuid);
    EXPECT_EQ((*uuid)[0], 0x12);
    EXPECT_EQ((*uuid)[15], 0xf0);
    EXPECT_EQ(to_string(*uuid), text);
    EXPECT_EQ(parse_uuid("123456789ABCDEF0123456789ABCDEF0"), uuid);
    for (const char *bad : {"", "12345678-9abc-def0-1234-56789abcdef", "12345678-9abc-def0-1234-56789abcdef00",
                            "1234-56789abc-def0-1234-56789abcdef0", "g2345678-9abc-def0-1234-56789abcdef0",
                            "12345678--9abc-def0-1234-56789abcdef0", "12345678-9abc-def01234-56789abcdef0",
                            "12345678-9abcdef0123456789abcdef0", "12345678-9abc-def0-1234-56789abcdef-",
                            "123456789abcdef0123456789abcdef0-"}) {
        EXPECT_FALSE(parse_uuid(bad)) << bad;
    }
}

struct VfioTransportTest : testing::Test {
    test::FakeSysfs fake;

    void SetUp() override
    {
        auto without_window = test::vfio_user_caps();
        without_window.pop_back();
        fake.add({"0000:00:01.0", 0x8086, 0x10d3, "e1000e", 1, {}});
        fake.add({"0000:00:02.0", 0x1af4, 0x1041, "virtio-pci", 2,
                  test::config_with({{VIRTIO_PCI_CAP_COMMON_CFG, 4, 0, 0, 0x1000, 0}})});
        fake.add({"0000:00:03.0", 0x1af4, 0x107f, "vfio-pci", 3, test::config_with(without_window)});
        fake.add({"0000:00:04.0", 0x1af4, 0x107f, "", {}, test::config_with(test::vfio_user_caps())});
        fake.add({"0000:00:05.0", 0x1af4, 0x1050, "virtio-pci", 5, test::config_with(test::vfio_user_caps())});
    }
    std::string refusal(std::string_view address)
    {
        const auto result = open_vfio_transport(address, fake.root());
        const auto text = result ? std::string{"opened"} : result.error().message;
        EXPECT_THAT(text, Not(HasSubstr("\n")));
        return text;
    }
};

//= VVFU-ID-3
//= type=test
//# The driver MUST NOT drive a function that lacks a doorbell capability or a shared memory capability for the
//# window.
TEST_F(VfioTransportTest, OtherFunctionsAreRefused)
{
    EXPECT_THAT(refusal("zero"), HasSubstr("is not a PCI address"));
    EXPECT_THAT(refusal("00:09.0"), HasSubstr("there is no such PCI function"));
    EXPECT_THAT(refusal("00:01.0"), AllOf(HasSubstr("not a virtio-vfio-user function"), HasSubstr("8086:10d3")));
    EXPECT_THAT(refusal("00:02.0"), AllOf(HasSubstr("not a virtio-vfio-user function"), HasSubstr("doorbell")));
    EXPECT_THAT(refusal("00:03.0"), AllOf(HasSubstr("not a virtio-vfio-user function"), HasSubstr("shared memory")));
    EXPECT_THAT(refusal("00:04.0"), HasSubstr("is in no IOMMU group"));
    EXPECT_THAT(refusal("0000:00:05.0"), HasSubstr("is bound to virtio-pci"));
}

TEST_F(VfioTransportTest, ListShowsFunctionsWithTheCapabilitiesWhateverTheirId)
{
    const auto functions = list_functions(fake.root());
    ASSERT_EQ(functions.size(), 2u);
    EXPECT_EQ(functions[0].address, "0000:00:04.0");
    EXPECT_EQ(functions[0].driver, "");
    EXPECT_EQ(functions[0].iommu_group, "");
    EXPECT_EQ(functions[0].window_size, std::uint64_t{8} << 30);
    EXPECT_FALSE(functions[0].uuid);
    EXPECT_THAT(functions[0].state, testing::StartsWith("is in no IOMMU group"));
    EXPECT_EQ(functions[1].address, "0000:00:05.0");
    EXPECT_EQ(functions[1].iommu_group, "5");
    EXPECT_THAT(list_functions("/nonexistent"), IsEmpty());
}

TEST_F(VfioTransportTest, WithoutPrivilegeTheCapabilitiesAreLeftToVfio)
{
    auto header = test::config_with(test::vfio_user_caps());
    header.resize(64);
    fake.add({"0000:00:06.0", 0x1af4, 0x107f, "vfio-pci", {}, header});
    fake.add({"0000:00:07.0", 0x1af4, 0x1041, "virtio-pci", 7, header});
    EXPECT_THAT(refusal("00:06.0"), HasSubstr("is in no IOMMU group")) << "it went on to VFIO";
    EXPECT_THAT(refusal("00:07.0"), HasSubstr("is bound to virtio-pci"));
    const auto functions = list_functions(fake.root());
    ASSERT_EQ(functions.size(), 3u) << "those of SetUp(), and what VFIO can look at";
    EXPECT_EQ(functions[2].address, "0000:00:06.0");
}

TEST_F(VfioTransportTest, UnknownUuidSaysWhatCouldNotBeLookedAt)
{
    const auto result = open_vfio_transport(Uuid{1}, fake.root());
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message,
                AllOf(HasSubstr("01000000-0000"), HasSubstr("0000:00:04.0"), HasSubstr("0000:00:05.0")));
}

}  // namespace
}  // namespace vvfu::guest
