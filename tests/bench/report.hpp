// SPDX-License-Identifier: BSD-3-Clause
//
// Rows of the benchmark and how they are printed.
#pragma once

#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace vvfu::bench {

struct Row {
    std::string name, unit;
    double result = 0;                ///< median over the rounds
    std::optional<double> low, high;  ///< over the rounds
    /// What `result` is compared with: another row's result.
    std::string against;
    std::optional<double> ratio;  ///< result / that
    std::string aim;              ///< in words; empty: none
    std::optional<bool> met;      ///< whether the aim is met
};

/// Median of the values; 0 if there is none.
double median(std::vector<double> values);

/// Something to measure; `once` returns one value in `unit`.
struct Item {
    std::string name, unit;
    std::function<double()> once;
};

/// Measures `rounds` times; fills result, low and high.
Row measure(const Item &item, unsigned rounds);
/// Sets `against` and `ratio`.
Row &compare(Row &row, const Row &with);
/// Measures both in turn in each round, so that a busy machine hits both alike. The second row's ratio is the median of
/// the rounds' ratios.
std::pair<Row, Row> measure_beside(const Item &base, const Item &item, unsigned rounds);

void print_table(std::ostream &out, const std::vector<Row> &rows);
/// One JSON object: {"rows": [...]}, keys as the fields of Row; absent ones are null.
void print_json(std::ostream &out, const std::vector<Row> &rows);

}  // namespace vvfu::bench
