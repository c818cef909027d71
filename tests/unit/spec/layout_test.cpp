// SPDX-License-Identifier: BSD-3-Clause
//
// The tables and examples of docs/spec/virtio-vfio-user.md against the codecs: what a stranger would build from the
// document is what this code sends.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu {
namespace {

using namespace control;

std::vector<std::string> specification()
{
    std::ifstream file(VVFU_SPEC);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
        lines.push_back(line);
    }
    return lines;
}

/// The lines from a heading ("### 9.1 ") or a caption ("Area:") to the next one.
std::vector<std::string> section(const std::string &heading)
{
    std::vector<std::string> result;
    bool inside = false;
    for (const auto &line : specification()) {
        if (line.starts_with("#") || (line.ends_with(":") && line.size() < 20)) {
            inside = line.starts_with(heading);
        }
        if (inside) {
            result.push_back(line);
        }
    }
    EXPECT_FALSE(result.empty()) << "no section " << heading;
    return result;
}

std::vector<std::string> cells(const std::string &row)
{
    std::vector<std::string> result;
    std::istringstream stream(row);
    std::string cell;
    std::getline(stream, cell, '|');
    while (std::getline(stream, cell, '|')) {
        const auto first = cell.find_first_not_of(' ');
        result.push_back(first == std::string::npos ? "" : cell.substr(first, cell.find_last_not_of(' ') - first + 1));
    }
    return result;
}

struct Field {
    std::size_t offset = 0, size = 0;
};

std::size_t bytes_of(const std::string &size)
{
    static const std::map<std::string, std::size_t> kTypes{{"u8", 1}, {"le16", 2}, {"le32", 4}, {"le64", 8}};
    const auto it = kTypes.find(size);
    return it != kTypes.end() ? it->second : std::stoul(size);
}

/// Field tables: "| offset | size | `name` | ...".
std::map<std::string, Field> fields(const std::string &heading)
{
    std::map<std::string, Field> result;
    for (const auto &line : section(heading)) {
        const auto row = cells(line);
        if (row.size() >= 3 && !row[0].empty() && std::isdigit(static_cast<unsigned char>(row[0][0])) != 0 &&
            row[2].starts_with("`")) {
            result[row[2].substr(1, row[2].find('`', 1) - 1)] = {std::stoul(row[0]), bytes_of(row[1])};
        }
    }
    return result;
}

/// Value tables: "| number | NAME | ...".
std::map<std::uint32_t, std::string> values(const std::string &heading)
{
    std::map<std::uint32_t, std::string> result;
    for (const auto &line : section(heading)) {
        const auto row = cells(line);
        if (row.size() >= 2 && !row[0].empty() && std::isdigit(static_cast<unsigned char>(row[0][0])) != 0) {
            result[static_cast<std::uint32_t>(std::stoul(row[0]))] = row[1];
        }
    }
    return result;
}

std::uint64_t little(std::span<const std::byte> bytes, Field field)
{
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < field.size; ++i) {
        value |= std::uint64_t{std::to_integer<std::uint8_t>(bytes[field.offset + i])} << (8 * i);
    }
    return value;
}

/// Checks every field of the table `heading` against `bytes`; `expected` names all of them.
void expect_fields(const std::string &heading, std::span<const std::byte> bytes,
                   const std::map<std::string, std::uint64_t> &expected)
{
    const auto table = fields(heading);
    EXPECT_EQ(table.size(), expected.size()) << heading;
    std::size_t end = 0;
    for (const auto &[name, value] : expected) {
        ASSERT_TRUE(table.contains(name)) << heading << " " << name;
        const auto field = table.at(name);
        ASSERT_LE(field.offset + field.size, bytes.size()) << name;
        EXPECT_EQ(little(bytes, field), value) << heading << " " << name;
        end = std::max(end, field.offset + field.size);
    }
    EXPECT_EQ(end, bytes.size()) << heading << ": the table and the structure differ in size";
}

Buffer example(const std::string &name)
{
    Buffer bytes;
    bool inside = false;
    for (const auto &line : specification()) {
        if (line.starts_with("```")) {
            inside = line == "```hex " + name;
        } else if (inside) {
            std::istringstream stream(line);
            for (std::string byte; stream >> byte;) {
                bytes.push_back(static_cast<std::byte>(std::stoul(byte, nullptr, 16)));
            }
        }
    }
    return bytes;
}

template <typename... Parts>
Buffer message(Header header, const Parts &...parts)
{
    Buffer out;
    begin(out, header);
    (append(out, parts...));
    finish(out);
    return out;
}

//= VVFU-MSG-1
//= type=test
TEST(SpecLayout, HeaderFieldsAreWhereTheTableSaysAndReservedIsZero)
{
    Buffer out;
    begin(out, {Type{0x0102}, 0x0304, 0, 0x1122334455667788, 0x99aabbcc, Status{0xddeeff01}});
    finish(out);
    expect_fields("### 9.1 ", out,
                  {{"type", 0x0102},
                   {"flags", 0x0304},
                   {"length", kHeaderSize},
                   {"request_id", 0x1122334455667788},
                   {"epoch", 0x99aabbcc},
                   {"status", 0xddeeff01},
                   {"reserved", 0}});
}

TEST(SpecLayout, TypeNumbersAreThoseOfTheTable)
{
    const auto table = values("### 9.3 ");
    EXPECT_EQ(table.size(), 15u);
    for (const auto &[value, text] : table) {
        EXPECT_EQ(name(Type{static_cast<std::uint16_t>(value)}), text);
    }
}

TEST(SpecLayout, StatusNumbersAreThoseOfTheTable)
{
    const auto table = values("### 9.2 ");
    EXPECT_EQ(table.size(), 12u);
    for (const auto &[value, text] : table) {
        EXPECT_EQ(name(Status{value}), text);
    }
}

//= VVFU-CONF-1
//= type=test
TEST(SpecLayout, DeviceConfigurationFieldsAreWhereTheTableSays)
{
    DeviceConfig config;
    config.uuid[0] = 0xaa;
    config.uuid[15] = 0xbb;
    config.window_size = 0x1000000000000002;
    config.region_memory_size = 0x3000000000000004;
    config.doorbells = 5;
    config.notifications = 6;
    config.access_queue_pairs = 7;
    config.max_message_size = 8;
    config.request_buffer_size = 9;
    config.max_regions = 10;
    config.unmap_timeout = 11;
    config.access_timeout = 12;
    std::array<std::byte, kDeviceConfigSize> bytes{};
    encode(config, bytes);
    auto table = fields("## 5 ");
    EXPECT_EQ(table.at("uuid").offset, 0u);
    EXPECT_EQ(table.at("uuid").size, 16u);
    EXPECT_EQ(bytes[0], std::byte{0xaa});
    EXPECT_EQ(bytes[15], std::byte{0xbb});
    const std::map<std::string, std::uint64_t> expected{{"window_size", config.window_size},
                                                        {"region_memory_size", config.region_memory_size},
                                                        {"doorbells", 5},
                                                        {"notifications", 6},
                                                        {"access_queue_pairs", 7},
                                                        {"max_message_size", 8},
                                                        {"request_buffer_size", 9},
                                                        {"max_regions", 10},
                                                        {"unmap_timeout", 11},
                                                        {"access_timeout", 12}};
    for (const auto &[name, value] : expected) {
        EXPECT_EQ(little(bytes, table.at(name)), value) << name;
    }
    EXPECT_EQ(table.size(), expected.size() + 1);
}

TEST(SpecLayout, ConfigurationDefaultsAreThoseOfTheTable)
{
    const DeviceConfig config;
    const auto text = section("## 5 ");
    const auto has = [&](const std::string &words) {
        return std::any_of(text.begin(), text.end(), [&](const auto &line) { return line.find(words) != line.npos; });
    };
    EXPECT_TRUE(has("(default " + std::to_string(config.max_message_size) + ")"));
    EXPECT_TRUE(has("(default " + std::to_string(config.request_buffer_size) + ")"));
    EXPECT_TRUE(has("(default " + std::to_string(config.max_regions) + ")"));
    EXPECT_TRUE(has("1 to " + std::to_string(kMaxDoorbells)));
    EXPECT_TRUE(has("1 to " + std::to_string(kMaxNotifications)));
}

TEST(SpecLayout, CapabilityFieldsAreWhereTheTableSays)
{
    std::array<std::byte, kPciCap64Size> bytes{};
    const auto table = fields("### 6.2 ");
    ASSERT_EQ(encode_pci_cap({kCapDoorbell, 3, 4, 0x11223344, 0x55667788, 0x99aabbcc}, bytes), 20u);
    EXPECT_EQ(little(bytes, table.at("cap_vndr")), 0x09u);
    EXPECT_EQ(little(bytes, table.at("cap_len")), 20u);
    EXPECT_EQ(little(bytes, table.at("cfg_type")), 6u);
    EXPECT_EQ(little(bytes, table.at("bar")), 3u);
    EXPECT_EQ(little(bytes, table.at("id")), 4u);
    EXPECT_EQ(little(bytes, table.at("offset")), 0x11223344u);
    EXPECT_EQ(little(bytes, table.at("length")), 0x55667788u);
    EXPECT_EQ(little(bytes, table.at("doorbell_off_multiplier")), 0x99aabbccu);
    ASSERT_EQ(encode_pci_cap({kCapSharedMemory, 2, 1, 0x1122334455667788, 0x2233445566778899, 0}, bytes), 24u);
    EXPECT_EQ(little(bytes, {table.at("doorbell_off_multiplier").offset, 4}), 0x11223344u) << "offset_hi";
    EXPECT_EQ(little(bytes, table.at("length_hi")), 0x22334455u);
}

TEST(SpecLayout, DeviceInfoPartsAreWhereTheTablesSay)
{
    DeviceInfo info;
    info.flags = 2;
    info.features = 0x300000004;
    info.vendor_id = 5;
    info.device_id = 6;
    info.subsystem_vendor_id = 7;
    info.subsystem_id = 8;
    info.class_revision = 9;
    info.regions = {{10, 11, 12, 13, {{14, 15}, {16, 17}}}};
    info.irqs = {{18, 19}};
    Buffer out;
    append(out, info);
    ASSERT_EQ(out.size(), 32u + 32u + 8u + 2 * 16u);
    const std::span<const std::byte> bytes{out};
    expect_fields("### 10.1 ", bytes.first(32),
                  {{"op", 1},
                   {"flags", 2},
                   {"features", 0x300000004},
                   {"vendor_id", 5},
                   {"device_id", 6},
                   {"subsystem_vendor_id", 7},
                   {"subsystem_id", 8},
                   {"class_revision", 9},
                   {"region_count", 1},
                   {"irq_count", 1}});
    expect_fields(
        "Region entry:", bytes.subspan(32, 32),
        {{"index", 10}, {"flags", 11}, {"size", 12}, {"region_memory_offset", 13}, {"area_count", 2}, {"reserved", 0}});
    expect_fields("Interrupt entry:", bytes.subspan(64, 8), {{"index", 18}, {"count", 19}});
    expect_fields("Area:", bytes.subspan(88, 16), {{"offset", 16}, {"size", 17}});
}

TEST(SpecLayout, PayloadFieldsAreWhereTheTablesSay)
{
    Buffer out;
    append(out, Peer{PeerOp::down, DownReason::guest_closed, 4, 5, 6, 0x700000008, 9, 10, 11});
    expect_fields("### 10.2 ", out,
                  {{"op", 2},
                   {"reason", 3},
                   {"major", 4},
                   {"minor", 5},
                   {"max_msg_fds", 6},
                   {"max_data_xfer_size", 0x700000008},
                   {"pid", 9},
                   {"uid", 10},
                   {"gid", 11},
                   {"reserved", 0}});
    out.clear();
    append(out, FeatureBits{0x100000002});
    expect_fields("### 10.3 ", out, {{"features", 0x100000002}});
    out.clear();
    append(out, MemoryInfo{MemoryOp::del, 3, 0x400000005, 0x600000007, 0x800000009});
    expect_fields(
        "### 10.4 ", out,
        {{"op", 2}, {"flags", 3}, {"address", 0x400000005}, {"size", 0x600000007}, {"window_offset", 0x800000009}});
    out.clear();
    append(out, RegionAccess{0x100000002, 3, 4});
    expect_fields("### 10.5 ", out, {{"offset", 0x100000002}, {"region", 3}, {"count", 4}});
    out.clear();
    append(out, IrqInfo{1, 2, 3, IrqAction::unmask});
    expect_fields("### 10.7 ", out, {{"index", 1}, {"start", 2}, {"count", 3}, {"action", 4}});
    out.clear();
    append(out, DmaAccess{0x100000002, 0x300000004});
    expect_fields("### 10.9 ", out, {{"address", 0x100000002}, {"count", 0x300000004}});
    out.clear();
    append(out, IrqTrigger{1, 2});
    expect_fields("### 10.10 ", out, {{"index", 1}, {"vector", 2}});
}

TEST(SpecLayout, MultiWriteEntryIsWhereTheTableSays)
{
    const auto table = fields("### 10.6 ");
    MultiWrite write{{0x100000002, 3, 4}, {std::byte{0xee}}};
    Buffer out;
    append(out, std::array{write});
    EXPECT_EQ(little(out, table.at("write_count")), 1u);
    EXPECT_EQ(little(out, table.at("offset")), 0x100000002u);
    EXPECT_EQ(little(out, table.at("region")), 3u);
    EXPECT_EQ(little(out, table.at("count")), 4u);
    EXPECT_EQ(out[table.at("data").offset], std::byte{0xee});
    EXPECT_EQ(out.size(), 8u + 24u);
}

TEST(SpecExamples, RegionRead)
{
    const Header request{Type::region_read, 0, 0, 7, 1, Status::ok};
    const RegionAccess access{0x1c, kRegionBar0, 4};
    EXPECT_EQ(message(request, access), example("region_read_request"));
    Header reply = request;
    reply.flags = kFlagReply;
    const std::array<std::byte, 4> data{std::byte{1}};
    EXPECT_EQ(message(reply, access, Bytes{data}), example("region_read_reply"));
}

TEST(SpecExamples, MemoryInfo)
{
    const MemoryInfo info{MemoryOp::add, kMemoryRead | kMemoryWrite, 0x100000000, 512u << 20, 2u << 20};
    EXPECT_EQ(message(Header{Type::memory_info, 0, 0, 9, 1, Status::ok}, info), example("memory_info_add"));
}

TEST(SpecExamples, DeviceInfoDelAndItsRefusal)
{
    DeviceInfo info;
    info.op = DeviceInfoOp::del;
    EXPECT_EQ(message(Header{Type::device_info, 0, 0, 3, 0, Status::ok}, info), example("device_info_del"));
    Buffer refusal;
    begin(refusal, {Type::device_info, kFlagReply, 0, 3, 0, Status::not_found});
    append_text(refusal, "no device");
    finish(refusal);
    EXPECT_EQ(refusal, example("device_info_del_refused"));
}

TEST(SpecExamples, EveryExampleIsWellFormed)
{
    for (const auto &line : specification()) {
        if (line.starts_with("```hex ")) {
            const auto bytes = example(line.substr(7));
            EXPECT_TRUE(decode_header(bytes).has_value()) << line;
        }
    }
}

}  // namespace
}  // namespace vvfu
