// SPDX-License-Identifier: BSD-3-Clause
#include "identity.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace vvfu::nvme::test {
namespace {

constexpr Uuid kFunction{0x12, 0x34}, kOther{0x12, 0x35};

DiskIdentity choose(const IdentityOptions &options, const std::optional<Uuid> &function,
                    const std::vector<std::string> &backings = {"/dev/vdb"})
{
    return choose_identity(options, function, backings).value();
}

std::string error(const IdentityOptions &options)
{
    const auto identity = choose_identity(options, kFunction, {"/dev/vdb"});
    return identity ? "" : identity.error().message;
}

TEST(Identity, FollowsTheFunctionAndNothingElse)
{
    const auto first = choose({}, kFunction), again = choose({}, kFunction), other = choose({}, kOther);
    EXPECT_TRUE(first.persistent);
    EXPECT_EQ(first.serial.size(), kSerialSize);
    EXPECT_EQ(first.serial, again.serial);
    EXPECT_EQ(first.subsystem_nqn, again.subsystem_nqn);
    EXPECT_EQ(first.namespaces[0].uuid, again.namespaces[0].uuid);
    EXPECT_NE(first.serial, other.serial);
    EXPECT_NE(first.subsystem_nqn, other.subsystem_nqn);
    EXPECT_NE(first.namespaces[0].uuid, other.namespaces[0].uuid);
    EXPECT_EQ(first.subsystem_nqn.size(), 32u + 36u);
    EXPECT_EQ(first.namespaces[0].uuid[6] >> 4, 5) << "version";
    EXPECT_EQ(first.namespaces[0].uuid[8] >> 6, 2) << "variant";
    EXPECT_FALSE(first.namespaces[0].nguid);
}

TEST(Identity, OfTheSameConfigurationInAThousandMachinesIsNeverTheSame)
{
    std::set<std::string> serials, names;
    std::set<Uuid> namespaces;
    for (int i = 0; i < 1000; ++i) {
        const auto identity = choose({}, {});
        EXPECT_FALSE(identity.persistent);
        serials.insert(identity.serial);
        names.insert(identity.subsystem_nqn);
        namespaces.insert(identity.namespaces[0].uuid);
    }
    EXPECT_EQ(serials.size(), 1000u);
    EXPECT_EQ(names.size(), 1000u);
    EXPECT_EQ(namespaces.size(), 1000u);
}

TEST(Identity, OfANamespaceGoesWithItsBacking)
{
    const auto before = choose({}, kFunction, {"/a", "/b"}), after = choose({}, kFunction, {"/b", "/c"});
    EXPECT_EQ(before.namespaces[1].uuid, after.namespaces[0].uuid) << "it has moved";
    EXPECT_NE(before.namespaces[0].uuid, after.namespaces[1].uuid);
    const auto twice = choose({}, kFunction, {"/a", "/a"});
    EXPECT_NE(twice.namespaces[0].uuid, twice.namespaces[1].uuid) << "two namespaces of one read-only file";
    EXPECT_NE(choose({}, kFunction, {"mem:1M"}).namespaces[0].uuid,
              choose({}, kFunction, {"mem:1M"}).namespaces[0].uuid)
        << "memory is empty again after a restart";
}

TEST(Identity, WhatIsGivenIsTaken)
{
    IdentityOptions options;
    options.serial = "S";
    options.nguids = {"0011223344556677889900AABBCCDDEE"};
    const auto identity = choose(options, {});
    EXPECT_TRUE(identity.persistent);
    EXPECT_EQ(identity.serial, "S");
    EXPECT_EQ(identity.subsystem_nqn, choose(options, {}).subsystem_nqn);
    ASSERT_TRUE(identity.namespaces[0].nguid);
    EXPECT_EQ(identity.namespaces[0].nguid->at(11), 0xaa);
    EXPECT_NE(choose(options, kFunction).subsystem_nqn, choose(options, kOther).subsystem_nqn)
        << "one serial number in two functions";
}

TEST(Identity, ControllersOfOneSubsystemShowTheSameNamespaces)
{
    IdentityOptions options;
    options.subsystem_nqn = "nqn.2026-01.org.example:disk";
    EXPECT_FALSE(choose(options, kFunction).shared);
    options.cntlid = 7;
    const auto one = choose(options, kFunction), two = choose(options, kOther);
    EXPECT_TRUE(one.shared);
    EXPECT_EQ(one.cntlid, 7);
    EXPECT_EQ(one.subsystem_nqn, options.subsystem_nqn);
    EXPECT_EQ(one.serial, two.serial);
    EXPECT_EQ(one.namespaces[0].uuid, two.namespaces[0].uuid);
}

TEST(Identity, BadOptionsGetOneLine)
{
    using testing::HasSubstr;
    IdentityOptions options;
    for (const auto *bad : {"disk", "nqn.with space", "nqn.\xc3\xa4"}) {
        options.subsystem_nqn = bad;
        EXPECT_THAT(error(options), HasSubstr("NVMe qualified name"));
    }
    options.subsystem_nqn = "nqn." + std::string(kMaxNqn, 'x');
    EXPECT_THAT(error(options), HasSubstr("at most 223"));
    options = {};
    options.cntlid = 0xfff0;
    EXPECT_THAT(error(options), HasSubstr("controller ID"));
    options = {};
    for (const auto *bad : {"", "1", "0011223344556677889900aabbccddeg", "00000000000000000000000000000000"}) {
        options.nguids = {bad};
        EXPECT_THAT(error(options), HasSubstr("NGUID"));
    }
    options.nguids = {"0011223344556677889900aabbccddee", "0011223344556677889900aabbccddef"};
    EXPECT_THAT(error(options), HasSubstr("1 backings and 2 NGUIDs"));
}

}  // namespace
}  // namespace vvfu::nvme::test
