// SPDX-License-Identifier: BSD-3-Clause
#include "device_models.hpp"

#include <gmock/gmock.h>

#include <deque>
#include <map>

#include "program.hpp"

namespace vvfu::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class NoExecutor : public guest::Executor {
public:
    void post(Task) override {}
    [[nodiscard]] bool current() const noexcept override { return true; }
    void after(std::chrono::nanoseconds, Task) override {}
};
class NoWorkers : public guest::Workers {
public:
    void submit(Lane, std::function<void()>, std::function<void()>) override {}
};
class NoIrqs : public guest::IrqSink {
public:
    void trigger(std::uint32_t, std::uint32_t) override {}
    std::vector<std::uint32_t> withdraw(std::uint32_t) override { return {}; }
    bool pending(std::uint32_t, std::uint32_t) override { return false; }
};

struct DeviceModelsTest : testing::Test {
    CLI::App app{"test", "prog"};
    ProgramInfo info{"prog", "vfio-user", {"one"}};
    guest::LogOptions log;
    DeviceModels models{app};
    NoExecutor executor;
    NoWorkers workers;
    NoIrqs irqs;
    guest::DmaSpace dma;
    std::vector<std::byte> region_memory;
    std::string out, err;

    DeviceModelsTest() { add_common_options(app, info, log); }

    std::optional<int> parse(std::vector<const char *> arguments)
    {
        arguments.insert(arguments.begin(), "prog");
        testing::internal::CaptureStdout();
        testing::internal::CaptureStderr();
        const auto code = parse_command_line(app, info, log, static_cast<int>(arguments.size()), arguments.data());
        out = testing::internal::GetCapturedStdout();
        err = testing::internal::GetCapturedStderr();
        return code;
    }
    auto create()
    {
        region_memory.resize(models.region_memory_size());
        return models.create({executor, workers, dma, irqs, region_memory});
    }
};

TEST_F(DeviceModelsTest, TestdevIsCreatedWithTheRegionMemoryItAsksFor)
{
    ASSERT_EQ(parse({"testdev"}), std::nullopt) << err;
    EXPECT_TRUE(models.chosen());
    EXPECT_EQ(models.name(), "testdev");
    EXPECT_EQ(models.region_memory_size(), 0x10000u);
    const auto model = create();
    ASSERT_TRUE(model);
    EXPECT_EQ((*model)->describe().vendor_id, 0x1234);
}

TEST_F(DeviceModelsTest, NvmeIsCreatedWithItsOptions)
{
    ASSERT_EQ(
        parse({"nvme", "--backing=mem:1M", "--backing", "mem:2M", "--read-only", "--serial=abc", "--queue-pairs=3"}),
        std::nullopt)
        << err;
    EXPECT_EQ(models.name(), "nvme");
    const auto model = create();
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ((*model)->describe().class_revision >> 8, 0x010802u);
}

TEST_F(DeviceModelsTest, EveryModelTakesTheKindOfInterrupts)
{
    const std::vector<std::vector<const char *>> all = {{"nvme", "--backing=mem:1M"}, {"testdev"}};
    for (auto arguments : all) {
        const auto kinds = [&](const char *option) {
            CLI::App program{"test", "prog"};
            DeviceModels parsed{program};
            auto words = arguments;
            words.insert(words.begin(), "prog");
            if (option) {
                words.push_back(option);
            }
            program.parse(static_cast<int>(words.size()), words.data());
            region_memory.resize(parsed.region_memory_size());
            const auto model = parsed.create({executor, workers, dma, irqs, region_memory});
            std::vector<std::uint32_t> indices;
            for (const auto &irq : model.value()->describe().irqs) {
                indices.push_back(irq.index);
            }
            return indices;
        };
        EXPECT_THAT(kinds(nullptr), ElementsAre(control::kIrqIntx, control::kIrqMsix));
        EXPECT_THAT(kinds("--interrupts=msix"), ElementsAre(control::kIrqIntx, control::kIrqMsix));
        EXPECT_THAT(kinds("--interrupts=msi"), ElementsAre(control::kIrqIntx, control::kIrqMsi));
        EXPECT_THAT(kinds("--interrupts=intx"), ElementsAre(control::kIrqIntx));
        arguments.push_back("--interrupts=pci");
        EXPECT_EQ(parse(arguments), kExitUsage);
        EXPECT_THAT(err, testing::AllOf(HasSubstr("--interrupts"), HasSubstr("'pci' is not one of msix|msi|intx")));
    }
}

TEST_F(DeviceModelsTest, ErrorOfTheModelIsHandedOn)
{
    ASSERT_EQ(parse({"nvme", "--backing=/nonexistent/disk"}), std::nullopt);
    const auto model = create();
    ASSERT_FALSE(model);
    EXPECT_THAT(model.error().message, HasSubstr("/nonexistent/disk"));
}

TEST_F(DeviceModelsTest, NoModelIsAllowedHere)
{
    EXPECT_EQ(parse({}), std::nullopt);
    EXPECT_FALSE(models.chosen());
}

TEST_F(DeviceModelsTest, UsageErrorsAreOneLineAndExitCodeTwo)
{
    const std::vector<std::vector<const char *>> bad = {{"--nonsense"},
                                                        {"nvme"},
                                                        {"nvme", "--backing=mem:1M", "--queue-pairs=0"},
                                                        {"nvme", "--backing=mem:1M", "--queue-pairs=33"},
                                                        {"nvme", "--backing=mem:1M", "stray"},
                                                        {"nvme", "--backing=mem:1M", "testdev"},
                                                        {"testdev", "--log-level=loud"},
                                                        {"testdev", "--log-format=xml"}};
    for (const auto &arguments : bad) {
        EXPECT_EQ(parse(arguments), kExitUsage) << arguments.back();
        EXPECT_THAT(err, testing::StartsWith("prog: "));
        EXPECT_THAT(err, HasSubstr("--help"));
        EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
        EXPECT_EQ(out, "");
    }
}

TEST_F(DeviceModelsTest, UnknownModelIsNamedWithTheKnownOnes)
{
    app.require_subcommand(1);
    EXPECT_EQ(parse({"no-such-model"}), kExitUsage);
    EXPECT_THAT(err, testing::AllOf(HasSubstr("no-such-model"), HasSubstr("nvme, testdev")));
    EXPECT_EQ(parse({}), kExitUsage);
    EXPECT_THAT(err, HasSubstr("required"));
}

TEST_F(DeviceModelsTest, HelpOfProgramAndModel)
{
    EXPECT_EQ(parse({"--help"}), kExitOk);
    EXPECT_THAT(out, testing::AllOf(HasSubstr("nvme"), HasSubstr("testdev"), HasSubstr("--log-format text|json")));
    EXPECT_EQ(parse({"nvme", "--help"}), kExitOk);
    EXPECT_THAT(out, testing::AllOf(HasSubstr("--backing"), HasSubstr("--serial"), HasSubstr("--read-only")));
}

TEST_F(DeviceModelsTest, VersionNamesTheProtocol)
{
    EXPECT_EQ(parse({"--version"}), kExitOk);
    EXPECT_THAT(out, HasSubstr("control protocol"));
}

TEST_F(DeviceModelsTest, CapabilitiesIgnoreOtherArguments)
{
    EXPECT_EQ(parse({"--nonsense", "nvme", "--print-capabilities"}), kExitOk);
    EXPECT_EQ(err, "");
    EXPECT_EQ(out, capabilities_json(info));
    EXPECT_THAT(out,
                testing::AllOf(HasSubstr("\"type\": \"vfio-user\""), HasSubstr("\"models\": [\"nvme\", \"testdev\"]"),
                               HasSubstr("\"features\": [\"one\"]")));
}

TEST_F(DeviceModelsTest, ProgramOptionsMayFollowTheModel)
{
    EXPECT_EQ(parse({"testdev", "--log-level=debug", "--log-format", "json"}), std::nullopt) << err;
    EXPECT_EQ(log.level, spdlog::level::debug);
    EXPECT_EQ(log.format, guest::LogFormat::json);
}

}  // namespace
}  // namespace vvfu::cli
