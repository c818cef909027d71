// SPDX-License-Identifier: BSD-3-Clause
//
// vvfu-bench runs, and every row is there with a sensible value. Nothing here depends on how fast the machine is.
#include <gtest/gtest.h>
#include <sched.h>

#include <boost/json.hpp>
#include <cmath>
#include <set>

#include "process.hpp"
#include "report.hpp"

namespace vvfu::test {
namespace {

TEST(Report, MedianOfOddAndEvenCounts)
{
    EXPECT_EQ(bench::median({}), 0);
    EXPECT_EQ(bench::median({3, 1, 2}), 2);
    EXPECT_EQ(bench::median({4, 1, 2, 3}), 2.5);
}

TEST(Report, MeasureKeepsTheExtremesAndCompareDivides)
{
    double next = 5;
    auto row = bench::measure({"x", "us", [&] { return next--; }}, 3);
    EXPECT_EQ(row.result, 4);
    EXPECT_EQ(row.low, 3);
    EXPECT_EQ(row.high, 5);
    bench::Row base;
    base.name = "base";
    base.result = 2;
    EXPECT_EQ(*bench::compare(row, base).ratio, 2);
    EXPECT_EQ(row.against, "base");
}

TEST(Report, MeasureBesideTakesTheMedianOfTheRoundsRatios)
{
    // The machine is slow in the second round: 1 and 2, 10 and 20, 1 and 3.
    double slow[] = {1, 10, 1}, ratios[] = {2, 2, 3};
    unsigned base_round = 0, round = 0;
    const auto [base, item] = bench::measure_beside({"base", "us", [&] { return slow[base_round++]; }},
                                                    {"item", "us",
                                                     [&] {
                                                         const auto i = round++;
                                                         return slow[i] * ratios[i];
                                                     }},
                                                    3);
    EXPECT_EQ(base.result, 1);
    EXPECT_EQ(item.result, 3);
    EXPECT_EQ(item.against, "base");
    EXPECT_EQ(*item.ratio, 2);
}

TEST(Benchmark, QuickRunPrintsEveryRowWithASensibleValue)
{
    Process bench({VVFU_BENCH, "--quick", "--json", "--loopback", VVFU_LOOPBACK});
    ASSERT_EQ(bench.wait(std::chrono::seconds{90}), 0) << bench.errors();
    const auto report = boost::json::parse(bench.output());
    // What may well be nothing at all.
    const std::set<std::string> may_be_zero{"idle CPU of vvfu-loopback", "idle wake-ups of vvfu-loopback"};
    std::set<std::string> names;
    for (const auto &row : report.at("rows").as_array()) {
        const auto name = std::string(row.at("name").as_string());
        EXPECT_TRUE(names.insert(name).second) << name << " twice";
        const auto result = row.at("result").to_number<double>();
        EXPECT_TRUE(std::isfinite(result)) << name;
        EXPECT_TRUE(result > 0 || (result == 0 && may_be_zero.contains(name))) << name << ": " << result;
        EXPECT_FALSE(row.at("unit").as_string().empty()) << name;
    }
    for (const auto *name :
         {"raw socket+eventfd round trip", "trapped register read", "raw socket one-way message",
          "raw socket one-way message, 64 per send", "posted register write", "posted register write, 64 per send",
          "DMA map and unmap of 2 MiB", "copy command of 64 bytes, interrupt", "memcpy of shared memory",
          "copy through the window, net", "NVMe 4 KiB random read, QD 1", "NVMe 4 KiB random read, QD 64",
          "idle memory of vvfu-loopback (RSS)", "idle CPU of vvfu-loopback"}) {
        EXPECT_TRUE(names.contains(name)) << name;
    }
}

TEST(Benchmark, TableNamesUnitsAimsAndRatios)
{
    Process bench({VVFU_BENCH, "--quick", "--cpu=" + std::to_string(::sched_getcpu()), "--loopback", VVFU_LOOPBACK});
    ASSERT_EQ(bench.wait(std::chrono::seconds{90}), 0) << bench.errors();
    for (const auto *text : {"median", "unit", "ratio", "aim", "<= 2 x raw", "IOPS", "MiB/s"}) {
        EXPECT_NE(bench.output().find(text), std::string::npos) << text;
    }
}

TEST(Benchmark, BadArgumentsGetOneLine)
{
    Process unknown({VVFU_BENCH, "--no-such-option"});
    EXPECT_EQ(unknown.wait(), 2);
    EXPECT_EQ(unknown.errors().rfind("vvfu-bench: ", 0), 0u);
    Process no_cpu({VVFU_BENCH, "--cpu=1023"});
    EXPECT_EQ(no_cpu.wait(), 1);
    EXPECT_EQ(no_cpu.errors().rfind("vvfu-bench: cannot run on CPU 1023", 0), 0u);
    Process missing({VVFU_BENCH, "--quick", "--loopback=/nonexistent"});
    EXPECT_EQ(missing.wait(), 1);
    EXPECT_EQ(missing.errors().rfind("vvfu-bench: ", 0), 0u);
}

}  // namespace
}  // namespace vvfu::test
