// SPDX-License-Identifier: BSD-3-Clause
#include "device_registry.hpp"

#include "core_fixture.hpp"

namespace vvfu::test {
namespace {

using control::Status;

constexpr std::uint32_t kRead = control::kRegionRead;
constexpr std::uint32_t kMmap = control::kRegionRead | control::kRegionMmap;

class DeviceRegistryTest : public CoreTest {
protected:
    /// ok, or the status of the refusal, which has a reason and no other effect.
    Status add(const std::function<void(control::DeviceInfo &)> &change)
    {
        if (!core) {
            create();
        }
        auto info = sample_device();
        change(info);
        const auto reply = device_add(info);
        if (reply.header.status == Status::ok) {
            EXPECT_TRUE(port.listening);
            device_del();
        } else {
            EXPECT_FALSE(reply.text().empty());
            EXPECT_FALSE(port.listening);
        }
        return reply.header.status;
    }
};

//= VVFU-DEVICE-1
//= type=test
TEST_F(DeviceRegistryTest, EveryRuleIsChecked)
{
    using Info = control::DeviceInfo;
    EXPECT_EQ(Status::ok, add([](Info &) {}));
    EXPECT_EQ(Status::unsupported, add([](Info &i) { i.flags |= control::kDeviceRetain; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.flags |= 8; }));
    // Regions
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions.push_back({9, kRead, 4096, 0, {}}); }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions.push_back({2, kRead, 4096, 0, {}}); }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions.push_back({6, 8, 4096, 0, {}}); }));
    EXPECT_EQ(Status::invalid, add([](Info &i) {
                  i.regions.push_back({6, kRead, (std::uint64_t{1} << 56) + 1, 0, {}});
              }));
    EXPECT_EQ(Status::ok, add([](Info &i) { i.regions.push_back({6, kRead, std::uint64_t{1} << 56, 0, {}}); }));
    // Configuration space
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions.clear(); }));
    EXPECT_EQ(Status::ok, add([](Info &i) { i.regions = {{7, 3, 256, 0, {}}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions = {{7, 3, 257, 0, {}}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.regions = {{7, kMmap, 4096, 0, {{0, 4096}}}}; }));
    // Areas
    const auto with_areas = [&](std::vector<control::Area> areas, std::uint64_t offset = 0,
                                std::uint32_t flags = kMmap) {
        return add([&](Info &i) {
            i.regions[0].flags = kRead;
            i.regions[0].areas.clear();
            i.regions.push_back({1, flags, 0x8000, offset, areas});
        });
    };
    EXPECT_EQ(Status::ok, with_areas({{0x1000, 0x1000}, {0x3000, 0x5000}}));
    EXPECT_EQ(Status::ok, with_areas({{0x3000, 0x5000}, {0x1000, 0x2000}}));  // adjacent, in any order
    EXPECT_EQ(Status::invalid, with_areas({}));
    EXPECT_EQ(Status::invalid, with_areas({{0, 0x1000}}, 0, kRead));
    EXPECT_EQ(Status::invalid, with_areas({{0x1000, 0x2000}, {0x2000, 0x1000}}));
    EXPECT_EQ(Status::invalid, with_areas({{0x1000, 0}}));
    EXPECT_EQ(Status::invalid, with_areas({{0x800, 0x1000}}));
    EXPECT_EQ(Status::invalid, with_areas({{0x1000, 0x800}}));
    EXPECT_EQ(Status::invalid, with_areas({{0x7000, 0x2000}}));
    EXPECT_EQ(Status::invalid, with_areas({{~std::uint64_t{0xfff}, 0x1000}}));
    EXPECT_EQ(Status::invalid, with_areas({{0x1000, 0x1000}}, 0x800));
    EXPECT_EQ(Status::ok, with_areas({{0x7000, 0x1000}}, kRegionMemory - 0x8000));
    EXPECT_EQ(Status::no_space, with_areas({{0x7000, 0x1000}}, kRegionMemory - 0x7000));
    EXPECT_EQ(Status::no_space, with_areas({{0x1000, 0x1000}}, ~std::uint64_t{0xfff}));
    // Interrupts
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.irqs = {{0, 2}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.irqs = {{3, 2}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.irqs = {{4, 2}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.irqs = {{5, 1}}; }));
    EXPECT_EQ(Status::invalid, add([](Info &i) { i.irqs = {{2, 1}, {2, 1}}; }));
    EXPECT_EQ(Status::ok, add([](Info &i) { i.irqs = {{0, 1}, {1, 32}, {2, 31}}; }));
    EXPECT_EQ(Status::no_space, add([](Info &i) { i.irqs = {{0, 1}, {1, 32}, {2, 32}}; }));
    EXPECT_EQ(Status::no_space, add([](Info &i) { i.irqs = {{1, 0xffffffff}, {2, 0xffffffff}}; }));
    EXPECT_EQ(Status::ok, add([](Info &i) { i.irqs.clear(); }));
}

//= VVFU-DEVICE-1
//= type=test
TEST_F(DeviceRegistryTest, RegionsShareNoRegionMemory)
{
    const auto with = [&](std::uint64_t offset) {
        return add([&](control::DeviceInfo &i) { i.regions[1] = {2, 7, 0x2000, offset, {{0x1000, 0x1000}}}; });
    };
    EXPECT_EQ(Status::ok, with(0));
    EXPECT_EQ(Status::ok, with(0x9000));
    EXPECT_EQ(Status::invalid, with(0x8000));
    EXPECT_EQ(Status::invalid, with(0x7000));
    EXPECT_EQ(Status::invalid, with(0x6000));
    EXPECT_EQ(Status::ok, with(0x5000));
}

TEST_F(DeviceRegistryTest, WithoutRegionMemoryNothingIsMappable)
{
    config.region_memory_size = 0;
    EXPECT_EQ(Status::no_space, add([](control::DeviceInfo &) {}));
    EXPECT_EQ(Status::ok, add([](control::DeviceInfo &i) {
                  i.regions[0].flags = 3;
                  i.regions[0].areas.clear();
              }));
}

}  // namespace
}  // namespace vvfu::test
