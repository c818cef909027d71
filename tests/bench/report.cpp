// SPDX-License-Identifier: BSD-3-Clause
#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string_view>

namespace vvfu::bench {

namespace {

std::string number(double value)
{
    std::ostringstream text;
    text << std::fixed << std::setprecision(std::abs(value) < 10 ? 3 : std::abs(value) < 1000 ? 1 : 0) << value;
    return text.str();
}

std::string number(const std::optional<double> &value, std::string_view absent)
{
    return value ? number(*value) : std::string(absent);
}

std::string json_number(const std::optional<double> &value)
{
    std::ostringstream text;
    text << std::setprecision(std::numeric_limits<double>::max_digits10);
    if (value && std::isfinite(*value)) {
        text << *value;
    } else {
        text << "null";
    }
    return text.str();
}

/// Names, units and aims are this program's own: printable ASCII, so quotes and backslashes are all there is to escape.
std::string json_string(std::string_view text)
{
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
        }
        out += c;
    }
    return out + "\"";
}

std::string aim_text(const Row &row)
{
    return row.met ? row.aim + (*row.met ? ": met" : ": MISSED") : row.aim;
}

Row summary(const Item &item, std::vector<double> values)
{
    Row row;
    row.name = item.name;
    row.unit = item.unit;
    row.low = *std::min_element(values.begin(), values.end());
    row.high = *std::max_element(values.begin(), values.end());
    row.result = median(std::move(values));
    return row;
}

}  // namespace

double median(std::vector<double> values)
{
    if (values.empty()) {
        return 0;
    }
    std::sort(values.begin(), values.end());
    const auto middle = values.size() / 2;
    return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Row measure(const Item &item, unsigned rounds)
{
    std::vector<double> values;
    for (unsigned round = 0; round < rounds; ++round) {
        values.push_back(item.once());
    }
    return summary(item, std::move(values));
}

std::pair<Row, Row> measure_beside(const Item &base, const Item &item, unsigned rounds)
{
    std::vector<double> base_values, values, ratios;
    for (unsigned round = 0; round < rounds; ++round) {
        base_values.push_back(base.once());
        values.push_back(item.once());
        ratios.push_back(values.back() / base_values.back());
    }
    auto rows = std::pair(summary(base, std::move(base_values)), summary(item, std::move(values)));
    rows.second.against = base.name;
    rows.second.ratio = median(std::move(ratios));
    return rows;
}

Row &compare(Row &row, const Row &with)
{
    row.against = with.name;
    row.ratio = row.result / with.result;
    return row;
}

void print_table(std::ostream &out, const std::vector<Row> &rows)
{
    std::size_t name_width = 4, against_width = 8;
    for (const auto &row : rows) {
        name_width = std::max(name_width, row.name.size());
        against_width = std::max(against_width, row.against.size());
    }
    const auto line = [&](const std::string &name, const std::string &result, const std::string &unit,
                          const std::string &low, const std::string &high, const std::string &ratio,
                          const std::string &against, const std::string &aim) {
        out << std::left << std::setw(static_cast<int>(name_width)) << name << std::right << std::setw(12) << result
            << ' ' << std::left << std::setw(8) << unit << std::right << std::setw(11) << low << std::setw(11) << high
            << std::setw(9) << ratio << "  " << std::left << std::setw(static_cast<int>(against_width)) << against
            << "  " << aim << '\n';
    };
    line("item", "median", "unit", "lowest", "highest", "ratio", "ratio to", "aim");
    for (const auto &row : rows) {
        line(row.name, number(row.result), row.unit, number(row.low, ""), number(row.high, ""), number(row.ratio, ""),
             row.against, aim_text(row));
    }
}

void print_json(std::ostream &out, const std::vector<Row> &rows)
{
    out << "{\"rows\": [";
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto &row = rows[i];
        out << (i == 0 ? "\n" : ",\n") << "  {\"name\": " << json_string(row.name)
            << ", \"unit\": " << json_string(row.unit) << ", \"result\": " << json_number(row.result)
            << ", \"low\": " << json_number(row.low) << ", \"high\": " << json_number(row.high)
            << ", \"against\": " << json_string(row.against) << ", \"ratio\": " << json_number(row.ratio)
            << ", \"aim\": " << json_string(row.aim)
            << ", \"met\": " << (row.met ? *row.met ? "true" : "false" : "null") << '}';
    }
    out << "\n]}\n";
}

}  // namespace vvfu::bench
