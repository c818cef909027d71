// SPDX-License-Identifier: BSD-3-Clause
#include "identify.hpp"

#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

class IdentifyTest : public testing::Test {
protected:
    std::vector<std::byte> page(std::uint8_t cns, std::uint32_t nsid = 0)
    {
        return identify(identity, entry(cns, nsid)).value();
    }
    Status error(std::uint8_t cns, std::uint32_t nsid = 0)
    {
        const auto result = identify(identity, entry(cns, nsid));
        return result ? Status::success : result.error();
    }
    static SubmissionEntry entry(std::uint8_t cns, std::uint32_t nsid)
    {
        auto result = admin(AdminOpcode::identify, cns);
        result.nsid = nsid;
        return result;
    }

    static ControllerIdentity make_identity()
    {
        ControllerIdentity identity;
        identity.disk.serial = "SERIAL";
        identity.disk.subsystem_nqn = "nqn.2014-08.org.nvmexpress:uuid:x";
        identity.volatile_cache = true;
        identity.namespaces = {{2048, false, true, {Uuid{1}, {}}}, {100, true, false, {Uuid{2}, {}}}};
        return identity;
    }

    ControllerIdentity identity = make_identity();
};

TEST_F(IdentifyTest, ControllerFields)
{
    const auto data = page(1);
    ASSERT_EQ(data.size(), 4096u);
    EXPECT_EQ(field<Le16>(data, 0), kPciVendorId);
    EXPECT_EQ(text(data, 4, 20), "SERIAL              ");
    EXPECT_EQ(text(data, 24, 40), "virtio-vfio-user NVMe                   ");
    EXPECT_EQ(field<std::uint8_t>(data, 77), kMdts);
    EXPECT_EQ(field<Le32>(data, 80), 0x00010400u);
    EXPECT_EQ(field<Le16>(data, 256), 0x100u) << "OACS: doorbell buffer config";
    EXPECT_EQ(field<std::uint8_t>(data, 512), 0x66u);
    EXPECT_EQ(field<std::uint8_t>(data, 513), 0x44u);
    EXPECT_EQ(field<Le32>(data, 516), 2u) << "NN";
    EXPECT_EQ(field<Le16>(data, 520), 0x1du) << "ONCS: compare, dataset management, write zeroes, select";
    EXPECT_EQ(field<std::uint8_t>(data, 525), 7u) << "VWC";
    EXPECT_EQ(text(data, 768, 34), std::string("nqn.2014-08.org.nvmexpress:uuid:x\0", 34));
    EXPECT_EQ(field<std::uint8_t>(data, 76), 0u) << "CMIC";
    EXPECT_EQ(field<Le16>(data, 78), 0u) << "CNTLID";
    EXPECT_GE(field<Le32>(data, 88), 5'000'000u) << "RTD3E: more than the 5 s that Linux gives anyway";
    EXPECT_GT(field<Le32>(data, 84), 0u) << "RTD3R";
    identity.volatile_cache = false;
    EXPECT_EQ(field<std::uint8_t>(page(1), 525), 6u);
}

TEST_F(IdentifyTest, NamespaceFields)
{
    const auto first = page(0, 1), second = page(0, 2);
    EXPECT_EQ(field<Le64>(first, 0), 2048u) << "NSZE";
    EXPECT_EQ(field<Le64>(first, 8), 2048u) << "NCAP";
    EXPECT_EQ(field<std::uint8_t>(first, 33), 0x09u) << "DLFEAT: zeroes, DEAC";
    EXPECT_EQ(field<std::uint8_t>(first, 99), 0u) << "NSATTR";
    EXPECT_EQ(field<Le32>(first, 128), 9u << 16) << "LBAF0: 512 bytes, no metadata";
    EXPECT_EQ(field<Le64>(second, 0), 100u);
    EXPECT_EQ(field<std::uint8_t>(second, 33), 0u);
    EXPECT_EQ(field<std::uint8_t>(second, 99), 1u) << "write protected";
    EXPECT_EQ(text(first, 104, 16), std::string(16, '\0')) << "NGUID: none";
}

TEST_F(IdentifyTest, NamespacesThatDoNotExist)
{
    for (const std::uint32_t nsid : {0u, 3u, kBroadcastNsid}) {
        EXPECT_EQ(error(0, nsid), Status::invalid_namespace);
        EXPECT_EQ(error(3, nsid), Status::invalid_namespace);
    }
    EXPECT_EQ(error(2, kBroadcastNsid), Status::invalid_namespace);
    EXPECT_EQ(error(2, kBroadcastNsid - 1), Status::invalid_namespace);
}

TEST_F(IdentifyTest, ActiveListStartsBehindTheGivenNamespace)
{
    const auto all = page(2, 0);
    EXPECT_EQ(field<Le32>(all, 0), 1u);
    EXPECT_EQ(field<Le32>(all, 4), 2u);
    EXPECT_EQ(field<Le32>(all, 8), 0u);
    EXPECT_EQ(field<Le32>(page(2, 1), 0), 2u);
    EXPECT_EQ(field<Le32>(page(2, 2), 0), 0u);
    EXPECT_EQ(field<Le32>(page(2, kBroadcastNsid - 2), 0), 0u);
}

TEST_F(IdentifyTest, DescriptorsNameTheUuidAndAGivenNguid)
{
    auto data = page(3, 2);
    EXPECT_EQ(field<std::uint8_t>(data, 0), 3u) << "UUID";
    EXPECT_EQ(field<std::uint8_t>(data, 1), 16u);
    EXPECT_EQ(field<std::uint8_t>(data, 4), 2u);
    EXPECT_EQ(field<std::uint8_t>(data, 21), 0u) << "end of the list";
    identity.namespaces[1].ids.nguid = Nguid{7};
    data = page(3, 2);
    EXPECT_EQ(field<std::uint8_t>(data, 0), 2u) << "NGUID";
    EXPECT_EQ(field<std::uint8_t>(data, 4), 7u);
    EXPECT_EQ(field<std::uint8_t>(data, 20), 3u) << "UUID";
    EXPECT_EQ(field<std::uint8_t>(data, 41), 0u) << "end of the list";
    EXPECT_EQ(field<std::uint8_t>(page(0, 2), 104), 7u);
}

TEST_F(IdentifyTest, ASharedSubsystemSaysSo)
{
    identity.disk.shared = true;
    identity.disk.cntlid = 0x1234;
    const auto data = page(1);
    EXPECT_EQ(field<std::uint8_t>(data, 76), 2u) << "CMIC";
    EXPECT_EQ(field<Le16>(data, 78), 0x1234u);
    EXPECT_EQ(field<std::uint8_t>(page(0, 1), 30), 1u) << "NMIC";
}

TEST_F(IdentifyTest, StructuresOfAbsentFeaturesAreInvalidField)
{
    for (const unsigned cns : {0x04u, 0x05u, 0x10u, 0x11u, 0x12u, 0x13u, 0x14u, 0x15u, 0x17u, 0xffu}) {
        EXPECT_EQ(error(static_cast<std::uint8_t>(cns), 1), Status::invalid_field);
    }
}

}  // namespace
}  // namespace vvfu::nvme::test
