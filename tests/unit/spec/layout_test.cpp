// SPDX-License-Identifier: BSD-3-Clause
//
// The structures, tables and examples of docs/spec/virtio-vfio-user.md against the codecs: what a stranger would build
// from the document is what this code sends.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstddef>
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

/// The structures of the document, as a C compiler on a little-endian machine lays them out.
namespace text {
static_assert(std::endian::native == std::endian::little);
using u8 = std::uint8_t;
using le16 = std::uint16_t;
using le32 = std::uint32_t;
using le64 = std::uint64_t;
#include "virtio_vfio_user_text.h"
}  // namespace text

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

/// The lines from a heading ("### 9.1 ") to the next one.
std::vector<std::string> section(const std::string &heading)
{
    std::vector<std::string> result;
    bool inside = false;
    for (const auto &line : specification()) {
        if (line.starts_with("#")) {
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

/// The bytes of a codec as the structure of the document; they must fill it. A member that is missing, too much or in
/// another place reads as the wrong one of the distinct values that the tests use.
template <typename Struct>
Struct as(std::span<const std::byte> bytes)
{
    Struct result{};
    EXPECT_EQ(bytes.size(), sizeof result);
    std::memcpy(&result, bytes.data(), std::min(bytes.size(), sizeof result));
    return result;
}

template <typename Struct, typename... Parts>
Struct as_payload(const Parts &...parts)
{
    Buffer out;
    (append(out, parts...));
    return as<Struct>(out);
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
TEST(SpecLayout, HeaderIsTheStructureOfTheTextAndReservedIsZero)
{
    Buffer out;
    begin(out, {Type{0x0102}, 0x0304, 0, 0x1122334455667788, 0x99aabbcc, Status{0xddeeff01}});
    finish(out);
    const auto header = as<text::virtio_vfio_user_hdr>(out);
    EXPECT_EQ(header.type, 0x0102u);
    EXPECT_EQ(header.flags, 0x0304u);
    EXPECT_EQ(header.length, kHeaderSize);
    EXPECT_EQ(header.request_id, 0x1122334455667788u);
    EXPECT_EQ(header.epoch, 0x99aabbccu);
    EXPECT_EQ(header.status, 0xddeeff01u);
    EXPECT_EQ(header.reserved, 0u);
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

TEST(SpecLayout, ActionNumbersAndFeatureBitsAreThoseOfTheTables)
{
    EXPECT_EQ(values("### 10.7 "),
              (std::map<std::uint32_t, std::string>{{static_cast<std::uint32_t>(IrqAction::assign), "ASSIGN"},
                                                    {static_cast<std::uint32_t>(IrqAction::deassign), "DEASSIGN"},
                                                    {static_cast<std::uint32_t>(IrqAction::mask), "MASK"},
                                                    {static_cast<std::uint32_t>(IrqAction::unmask), "UNMASK"},
                                                    {static_cast<std::uint32_t>(IrqAction::disable), "DISABLE"}}));
    EXPECT_EQ(values("### 10.3 "), (std::map<std::uint32_t, std::string>{
                                       {std::countr_zero(std::uint64_t{kFeatureWriteMultiple}), "WRITE_MULTIPLE"},
                                       {std::countr_zero(std::uint64_t{kFeatureMigration}), "MIGRATION"}}));
}

//= VVFU-CONF-1
//= type=test
TEST(SpecLayout, DeviceConfigurationIsTheStructureOfTheText)
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
    const auto fields = as<text::virtio_vfio_user_config>(bytes);
    EXPECT_EQ(fields.uuid[0], 0xaau);
    EXPECT_EQ(fields.uuid[15], 0xbbu);
    EXPECT_EQ(fields.window_size, config.window_size);
    EXPECT_EQ(fields.region_memory_size, config.region_memory_size);
    EXPECT_EQ(fields.doorbells, 5u);
    EXPECT_EQ(fields.notifications, 6u);
    EXPECT_EQ(fields.access_queue_pairs, 7u);
    EXPECT_EQ(fields.max_message_size, 8u);
    EXPECT_EQ(fields.request_buffer_size, 9u);
    EXPECT_EQ(fields.max_regions, 10u);
    EXPECT_EQ(fields.unmap_timeout, 11u);
    EXPECT_EQ(fields.access_timeout, 12u);
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

TEST(SpecLayout, CapabilitiesAreTheStructuresOfTheText)
{
    std::array<std::byte, kPciCap64Size> bytes{};
    const auto encode = [&](const PciCap &cap) {
        return std::span<const std::byte>{bytes}.first(encode_pci_cap(cap, bytes));
    };
    const auto doorbells =
        as<text::virtio_pci_doorbell_cap>(encode({kCapDoorbell, 3, 4, 0x11223344, 0x55667788, 0x99aabbcc}));
    EXPECT_EQ(doorbells.cap.cap_vndr, 0x09u);
    EXPECT_EQ(doorbells.cap.cap_len, sizeof doorbells);
    EXPECT_EQ(doorbells.cap.cfg_type, 6u);
    EXPECT_EQ(doorbells.cap.bar, 3u);
    EXPECT_EQ(doorbells.cap.id, 4u);
    EXPECT_EQ(doorbells.cap.offset, 0x11223344u);
    EXPECT_EQ(doorbells.cap.length, 0x55667788u);
    EXPECT_EQ(doorbells.doorbell_off_multiplier, 0x99aabbccu);
    const auto notifications = as<text::virtio_pci_notification_cap>(encode({kCapNotification, 3, 4, 5, 6, 7}));
    EXPECT_EQ(notifications.cap.cap_len, sizeof notifications);
    EXPECT_EQ(notifications.cap.cfg_type, 7u);
    const auto memory =
        as<text::virtio_pci_cap64>(encode({kCapSharedMemory, 2, 1, 0x1122334455667788, 0x2233445566778899, 0}));
    EXPECT_EQ(memory.cap.cap_len, sizeof memory);
    EXPECT_EQ(memory.cap.cfg_type, 8u);
    EXPECT_EQ(memory.cap.offset, 0x55667788u);
    EXPECT_EQ(memory.offset_hi, 0x11223344u);
    EXPECT_EQ(memory.cap.length, 0x66778899u);
    EXPECT_EQ(memory.length_hi, 0x22334455u);
}

TEST(SpecLayout, NotificationRegistersAreTheStructureOfTheText)
{
    using Registers = text::virtio_vfio_user_notification_cfg;
    EXPECT_EQ(sizeof(Registers), 4u);
    EXPECT_EQ(offsetof(Registers, notification_select), kNotificationSelect);
    EXPECT_EQ(offsetof(Registers, notification_msix_vector), kNotificationVector);
}

TEST(SpecLayout, DeviceInfoPartsAreTheStructuresOfTheText)
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
    info.irqs = {{18, 19}, {20, 21}, {22, 23}};
    Buffer out;
    append(out, info);
    struct Message {
        text::virtio_vfio_user_device_info info;
        text::virtio_vfio_user_region regions[1];
        text::virtio_vfio_user_irq irqs[3];
        text::virtio_vfio_user_area areas[2];
    };
    const auto message = as<Message>(out);
    EXPECT_EQ(message.info.op, 1u);
    EXPECT_EQ(message.info.flags, 2u);
    EXPECT_EQ(message.info.features, 0x300000004u);
    EXPECT_EQ(message.info.vendor_id, 5u);
    EXPECT_EQ(message.info.device_id, 6u);
    EXPECT_EQ(message.info.subsystem_vendor_id, 7u);
    EXPECT_EQ(message.info.subsystem_id, 8u);
    EXPECT_EQ(message.info.class_revision, 9u);
    EXPECT_EQ(message.info.region_count, 1u);
    EXPECT_EQ(message.info.irq_count, 3u);
    EXPECT_EQ(message.regions[0].index, 10u);
    EXPECT_EQ(message.regions[0].flags, 11u);
    EXPECT_EQ(message.regions[0].size, 12u);
    EXPECT_EQ(message.regions[0].region_memory_offset, 13u);
    EXPECT_EQ(message.regions[0].area_count, 2u);
    EXPECT_EQ(message.regions[0].reserved, 0u);
    EXPECT_EQ(message.irqs[2].index, 22u);
    EXPECT_EQ(message.irqs[2].count, 23u);
    EXPECT_EQ(message.areas[1].offset, 16u);
    EXPECT_EQ(message.areas[1].size, 17u);
}

TEST(SpecLayout, PayloadsAreTheStructuresOfTheText)
{
    const auto peer = as_payload<text::virtio_vfio_user_peer>(
        Peer{PeerOp::down, DownReason::guest_closed, 4, 5, 6, 0x700000008, 9, 10, 11});
    EXPECT_EQ(peer.op, 2u);
    EXPECT_EQ(peer.reason, 3u);
    EXPECT_EQ(peer.major, 4u);
    EXPECT_EQ(peer.minor, 5u);
    EXPECT_EQ(peer.max_msg_fds, 6u);
    EXPECT_EQ(peer.max_data_xfer_size, 0x700000008u);
    EXPECT_EQ(peer.pid, 9u);
    EXPECT_EQ(peer.uid, 10u);
    EXPECT_EQ(peer.gid, 11u);
    EXPECT_EQ(peer.reserved, 0u);
    EXPECT_EQ(as_payload<text::virtio_vfio_user_feature_bits>(FeatureBits{0x100000002}).features, 0x100000002u);
    const auto memory = as_payload<text::virtio_vfio_user_memory_info>(
        MemoryInfo{MemoryOp::del, 3, 0x400000005, 0x600000007, 0x800000009});
    EXPECT_EQ(memory.op, 2u);
    EXPECT_EQ(memory.flags, 3u);
    EXPECT_EQ(memory.address, 0x400000005u);
    EXPECT_EQ(memory.size, 0x600000007u);
    EXPECT_EQ(memory.window_offset, 0x800000009u);
    const auto access = as_payload<text::virtio_vfio_user_region_access>(RegionAccess{0x100000002, 3, 4});
    EXPECT_EQ(access.offset, 0x100000002u);
    EXPECT_EQ(access.region, 3u);
    EXPECT_EQ(access.count, 4u);
    const auto irq = as_payload<text::virtio_vfio_user_irq_info>(IrqInfo{1, 2, 3, IrqAction::unmask});
    EXPECT_EQ(irq.index, 1u);
    EXPECT_EQ(irq.start, 2u);
    EXPECT_EQ(irq.count, 3u);
    EXPECT_EQ(irq.action, 4u);
    const auto dma = as_payload<text::virtio_vfio_user_dma_access>(DmaAccess{0x100000002, 0x300000004});
    EXPECT_EQ(dma.address, 0x100000002u);
    EXPECT_EQ(dma.count, 0x300000004u);
    const auto trigger = as_payload<text::virtio_vfio_user_irq_trigger>(IrqTrigger{1, 2});
    EXPECT_EQ(trigger.index, 1u);
    EXPECT_EQ(trigger.vector, 2u);
}

TEST(SpecLayout, MultiWriteIsTheStructuresOfTheText)
{
    struct Message {
        text::virtio_vfio_user_region_write_multi multi;
        text::virtio_vfio_user_write writes[2];
    };
    const std::array<MultiWrite, 2> writes{{{{1, 2, 3}, {}}, {{0x100000002, 3, 4}, {std::byte{0xee}}}}};
    const auto message = as_payload<Message>(writes);
    EXPECT_EQ(message.multi.write_count, 2u);
    EXPECT_EQ(message.writes[1].access.offset, 0x100000002u);
    EXPECT_EQ(message.writes[1].access.region, 3u);
    EXPECT_EQ(message.writes[1].access.count, 4u);
    EXPECT_EQ(message.writes[1].data[0], 0xeeu);
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
