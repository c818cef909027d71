// SPDX-License-Identifier: BSD-3-Clause
#include "features.hpp"

#include <gtest/gtest.h>

#include "queues.hpp"

namespace vvfu::nvme::test {
namespace {

constexpr std::uint32_t kSave = 1u << 31;

class FeaturesTest : public testing::Test {
protected:
    static SubmissionEntry entry(FeatureId id, std::uint32_t cdw11 = 0, std::uint32_t nsid = 0, std::uint32_t cdw10 = 0)
    {
        SubmissionEntry result;
        result.cdw10 = static_cast<std::uint32_t>(id) | cdw10;
        result.cdw11 = cdw11;
        result.nsid = nsid;
        return result;
    }
    Status set(FeatureId id, std::uint32_t value, std::uint32_t nsid = 0)
    {
        const auto result = features.set(entry(id, value, nsid), false);
        return result ? Status::success : result.error();
    }
    std::uint32_t get(FeatureId id, std::uint32_t select = 0, std::uint32_t cdw11 = 0, std::uint32_t nsid = 1)
    {
        return features.get(entry(id, cdw11, nsid, select << 8)).value();
    }
    Status get_error(FeatureId id, std::uint32_t cdw11 = 0, std::uint32_t nsid = 0, std::uint32_t cdw10 = 0)
    {
        const auto result = features.get(entry(id, cdw11, nsid, cdw10));
        return result ? Status::success : result.error();
    }

    Features features{{2, 8, 9, true}};
};

TEST_F(FeaturesTest, ValuesAreKept)
{
    struct {
        FeatureId id;
        std::uint32_t value;
    } cases[] = {{FeatureId::arbitration, 0x01020307},       {FeatureId::power_management, 0x20},
                 {FeatureId::volatile_write_cache, 0},       {FeatureId::interrupt_coalescing, 0x0a05},
                 {FeatureId::write_atomicity_normal, 1},     {FeatureId::async_event_configuration, 0x1f},
                 {FeatureId::temperature_threshold, 0x0150}, {FeatureId::error_recovery, 0x1234}};
    for (const auto &test : cases) {
        ASSERT_EQ(set(test.id, test.value, test.id == FeatureId::error_recovery ? 1 : 0), Status::success);
        EXPECT_EQ(get(test.id), test.value);
    }
}

TEST_F(FeaturesTest, SelectGivesDefaultSavedAndCapabilities)
{
    ASSERT_EQ(set(FeatureId::interrupt_coalescing, 0x0a05), Status::success);
    EXPECT_EQ(get(FeatureId::interrupt_coalescing, 0), 0x0a05u);
    EXPECT_EQ(get(FeatureId::interrupt_coalescing, 1), 0u);
    EXPECT_EQ(get(FeatureId::interrupt_coalescing, 2), 0u);
    EXPECT_EQ(get(FeatureId::interrupt_coalescing, 3), 4u) << "changeable";
    EXPECT_EQ(get(FeatureId::error_recovery, 3), 6u) << "changeable, by namespace";
    EXPECT_EQ(get_error(FeatureId::arbitration, 0, 0, 4u << 8), Status::invalid_field);
}

TEST_F(FeaturesTest, NothingCanBeSaved)
{
    const auto result = features.set(entry(FeatureId::arbitration, 0, 0, kSave), false);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error(), Status::feature_not_saveable);
}

TEST_F(FeaturesTest, UnknownFeatureIsInvalidField)
{
    for (const unsigned id : {0x00u, 0x03u, 0x0cu, 0x0eu, 0x10u, 0x80u, 0xffu}) {
        EXPECT_EQ(get_error(static_cast<FeatureId>(id)), Status::invalid_field);
        EXPECT_EQ(set(static_cast<FeatureId>(id), 0), Status::invalid_field);
    }
}

TEST_F(FeaturesTest, WriteCacheFeatureNeedsAWriteCache)
{
    EXPECT_TRUE(features.write_cache_enabled());
    Features without({1, 1, 2, false});
    EXPECT_FALSE(without.write_cache_enabled());
    EXPECT_EQ(without.get(entry(FeatureId::volatile_write_cache)).error(), Status::invalid_field);
}

TEST_F(FeaturesTest, NamespaceScopeIsChecked)
{
    EXPECT_EQ(set(FeatureId::arbitration, 0, 1), Status::feature_not_namespace_specific);
    EXPECT_EQ(set(FeatureId::arbitration, 0, 3), Status::invalid_namespace);
    EXPECT_EQ(set(FeatureId::arbitration, 0, kBroadcastNsid), Status::success);
    EXPECT_EQ(set(FeatureId::error_recovery, 5, 0), Status::invalid_namespace);
    EXPECT_EQ(set(FeatureId::error_recovery, 5, 3), Status::invalid_namespace);
    EXPECT_EQ(set(FeatureId::error_recovery, 5, kBroadcastNsid), Status::success);
    EXPECT_EQ(set(FeatureId::error_recovery, 7, 2), Status::success);
    EXPECT_EQ(get(FeatureId::error_recovery, 0, 0, 1), 5u);
    EXPECT_EQ(get(FeatureId::error_recovery, 0, 0, 2), 7u);
    EXPECT_EQ(get_error(FeatureId::error_recovery, 0, 0), Status::invalid_namespace);
}

TEST_F(FeaturesTest, ValuesThatDoNotExistAreInvalidField)
{
    EXPECT_EQ(set(FeatureId::power_management, 1), Status::invalid_field) << "one power state";
    EXPECT_EQ(set(FeatureId::error_recovery, 1u << 16, 1), Status::invalid_field) << "DULBE";
    EXPECT_EQ(set(FeatureId::temperature_threshold, 1u << 16 | 300), Status::invalid_field) << "sensor 1";
    EXPECT_EQ(set(FeatureId::temperature_threshold, 2u << 20 | 300), Status::invalid_field) << "type 2";
    EXPECT_EQ(set(FeatureId::number_of_queues, 0xffff), Status::invalid_field);
    EXPECT_EQ(set(FeatureId::number_of_queues, 0xffff0000), Status::invalid_field);
    EXPECT_EQ(set(FeatureId::interrupt_vector_configuration, 9), Status::invalid_field);
    EXPECT_EQ(get_error(FeatureId::interrupt_vector_configuration, 9), Status::invalid_field);
}

TEST_F(FeaturesTest, TemperatureThresholdsDecideTheWarning)
{
    EXPECT_FALSE(features.temperature_warning());
    ASSERT_EQ(set(FeatureId::temperature_threshold, kTemperature), Status::success);
    EXPECT_TRUE(features.temperature_warning());
    ASSERT_EQ(set(FeatureId::temperature_threshold, kTemperature + 1), Status::success);
    EXPECT_FALSE(features.temperature_warning());
    ASSERT_EQ(set(FeatureId::temperature_threshold, 1u << 20 | kTemperature), Status::success);
    EXPECT_TRUE(features.temperature_warning());
    EXPECT_EQ(get(FeatureId::temperature_threshold, 0, 1u << 20), kTemperature) << "under temperature";
}

TEST_F(FeaturesTest, QueuesAreAllAllocated)
{
    EXPECT_EQ(features.set(entry(FeatureId::number_of_queues, 0x00010001), false).value(), 7u << 16 | 7u);
    EXPECT_EQ(get(FeatureId::number_of_queues), 7u << 16 | 7u);
    EXPECT_EQ(features.set(entry(FeatureId::number_of_queues, 0), true).error(), Status::command_sequence_error);
}

TEST_F(FeaturesTest, CoalescingNeedsTimeThresholdAndAVectorThatAllowsIt)
{
    EXPECT_EQ(features.coalescing_threshold(1), 0u);
    ASSERT_EQ(set(FeatureId::interrupt_coalescing, 9), Status::success);
    EXPECT_EQ(features.coalescing_threshold(1), 0u) << "no time";
    ASSERT_EQ(set(FeatureId::interrupt_coalescing, 3u << 8 | 9), Status::success);
    EXPECT_EQ(features.coalescing_threshold(1), 9u);
    EXPECT_EQ(features.coalescing_threshold(0), 0u) << "the admin queue";
    ASSERT_EQ(set(FeatureId::interrupt_vector_configuration, 1u << 16 | 1), Status::success);
    EXPECT_EQ(features.coalescing_threshold(1), 0u);
    EXPECT_EQ(get(FeatureId::interrupt_vector_configuration, 0, 1), 1u << 16 | 1u);
    EXPECT_EQ(features.coalescing_threshold(2), 9u);
}

TEST_F(FeaturesTest, ArbitrationBurstIsAPowerOfTwo)
{
    EXPECT_EQ(features.arbitration_burst(), 16u);
    ASSERT_EQ(set(FeatureId::arbitration, 0), Status::success);
    EXPECT_EQ(features.arbitration_burst(), 1u);
    ASSERT_EQ(set(FeatureId::arbitration, 7), Status::success);
    EXPECT_EQ(features.arbitration_burst(), kFetchBatch) << "no limit but our own";
}

TEST_F(FeaturesTest, ResetRestoresDefaults)
{
    ASSERT_EQ(set(FeatureId::volatile_write_cache, 0), Status::success);
    ASSERT_EQ(set(FeatureId::error_recovery, 1, 2), Status::success);
    features.reset();
    EXPECT_TRUE(features.write_cache_enabled());
    EXPECT_EQ(get(FeatureId::error_recovery, 0, 0, 2), 0u);
}

}  // namespace
}  // namespace vvfu::nvme::test
