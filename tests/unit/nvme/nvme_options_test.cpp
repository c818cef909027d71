// SPDX-License-Identifier: BSD-3-Clause
#include "nvme_options.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "host.hpp"

namespace vvfu::nvme::test {
namespace {

using testing::HasSubstr;

std::string error(const NvmeOptions &options)
{
    try {
        Host host(options);
    } catch (const std::runtime_error &failure) {
        return failure.what();
    }
    return "";
}

std::string serial(const NvmeOptions &options)
{
    Host host(options);
    host.enable();
    return text(host.fetch(admin(AdminOpcode::identify, 1), 4096), 4, 20);
}

TEST(MakeNvme, BadOptionsGetOneLine)
{
    auto options = Host::memory_options();
    options.backings.clear();
    EXPECT_THAT(error(options), HasSubstr("--backing"));
    options.backings.assign(kMaxNamespaces + 1, "mem:512");
    EXPECT_THAT(error(options), HasSubstr("at most 64"));
    options = Host::memory_options();
    options.backings.push_back("/nonexistent");
    EXPECT_THAT(error(options), HasSubstr("/nonexistent"));
    for (const std::uint16_t pairs : {std::uint16_t{0}, std::uint16_t{33}}) {
        options = Host::memory_options();
        options.queue_pairs = pairs;
        EXPECT_THAT(error(options), HasSubstr("queue pairs"));
    }
    for (const auto *bad : {"123456789012345678901", "tab\t", "\xc3\xa4"}) {
        options = Host::memory_options();
        options.identity.serial = bad;
        EXPECT_THAT(error(options), HasSubstr("serial"));
    }
}

TEST(MakeNvme, OneFileUnderTwoNamesIsRefusedUnlessReadOnly)
{
    TemporaryFile one(512), other(512);
    const auto link = one.path() + ".link";
    std::filesystem::create_symlink(one.path(), link);
    auto options = Host::file_options(one);
    options.backings.push_back(other.path());
    options.backings.insert(options.backings.end(), 2, "mem:512");
    EXPECT_EQ(error(options), "");
    options.backings.push_back(link);
    EXPECT_THAT(error(options),
                testing::AllOf(HasSubstr(link), HasSubstr(one.path() + "\""), HasSubstr("--read-only")));
    options.read_only = true;
    EXPECT_EQ(error(options), "");
    std::filesystem::remove(link);
}

TEST(MakeNvme, OffersWhatTheOptionsSay)
{
    auto options = Host::memory_options();
    options.queue_pairs = 3;
    options.backings.assign(kMaxNamespaces, "mem:512");
    Host host(options);
    const auto info = host.device().describe();
    EXPECT_EQ(info.class_revision >> 8, 0x010802u);
    const auto msix = std::find_if(info.irqs.begin(), info.irqs.end(),
                                   [](const auto &irq) { return irq.index == control::kIrqMsix; });
    ASSERT_NE(msix, info.irqs.end());
    EXPECT_EQ(msix->count, 4u);
    host.enable();
    EXPECT_EQ(host.execute(0, admin(AdminOpcode::get_features, 7)).dw0, 2u << 16 | 2u);
    EXPECT_EQ(field<Le32>(host.fetch(admin(AdminOpcode::identify, 1), 4096), 516), 64u);
}

TEST(MakeNvme, InterruptsAreOfTheKindThatIsAskedFor)
{
    using control::IrqCount;
    const IrqCount intx{control::kIrqIntx, 1};
    const auto irqs = [](guest::InterruptKind kind, std::uint16_t queue_pairs) {
        auto options = Host::memory_options();
        options.interrupts = kind;
        options.queue_pairs = queue_pairs;
        return Host(options).device().describe().irqs;
    };
    EXPECT_THAT(irqs(guest::InterruptKind::msix, 32), testing::ElementsAre(intx, IrqCount{control::kIrqMsix, 33}));
    EXPECT_THAT(irqs(guest::InterruptKind::msi, 32), testing::ElementsAre(intx, IrqCount{control::kIrqMsi, 32}));
    EXPECT_THAT(irqs(guest::InterruptKind::msi, 4), testing::ElementsAre(intx, IrqCount{control::kIrqMsi, 8}));
    EXPECT_THAT(irqs(guest::InterruptKind::intx, 32), testing::ElementsAre(intx));
}

TEST(MakeNvme, SerialNumberIsTheGivenOne)
{
    auto options = Host::memory_options();
    options.identity.serial = "12345678901234567890";
    EXPECT_EQ(serial(options), "12345678901234567890");
}

TEST(MakeNvme, IdentityComesFromTheFunction)
{
    TemporaryFile file(512);
    auto options = Host::file_options(file);
    options.identity = {};
    TestExecutor executor;
    TestWorkers workers{executor};
    TestIrqs irqs;
    guest::DmaSpace dma{nullptr};
    testing::internal::CaptureStdout();
    ASSERT_TRUE(make_nvme(options, {executor, workers, dma, irqs, {}, Uuid{1, 2, 3}}));
    EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
    testing::internal::CaptureStdout();
    ASSERT_TRUE(make_nvme(options, {executor, workers, dma, irqs, {}}));
    EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::AllOf(HasSubstr("uuid="), HasSubstr("--serial")));
}

TEST(MakeNvme, SerialNumberOfANamelessDiskIsNeverTheSame)
{
    TemporaryFile file(512);
    auto options = Host::file_options(file);
    options.identity = {};
    EXPECT_NE(serial(options), serial(options));
    options.backings = {"mem:1M"};
    EXPECT_NE(serial(options), serial(options));
}

}  // namespace
}  // namespace vvfu::nvme::test
