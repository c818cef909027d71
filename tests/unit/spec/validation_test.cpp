// SPDX-License-Identifier: BSD-3-Clause
//
// The table of checks: the rows of the document are those of the code, and the device does what they say.
#include "vvfu/protocol/validation.hpp"

#include <fstream>
#include <functional>
#include <set>

#include "device_bench.hpp"

namespace vvfu::spec {
namespace {

using control::Check;
using control::Consequence;
using control::kRules;

/// The rows of the table in section 12, as they stand there.
std::vector<std::string> rows_of_the_document()
{
    std::ifstream file(VVFU_SPEC);
    std::vector<std::string> rows;
    bool inside = false;
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("| Field or condition |")) {
            inside = true;
            std::getline(file, line);  // what separates the heading
        } else if (inside && line.starts_with("|")) {
            rows.push_back(line);
        } else {
            inside = false;
        }
    }
    return rows;
}

TEST(Checks, TableOfTheDocumentIsTheOneOfTheCode)
{
    const auto rows = rows_of_the_document();
    ASSERT_EQ(rows.size(), kRules.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        std::string row;
        for (const auto cell :
             {kRules[i].condition, kRules[i].checked_by, control::name(kRules[i].consequence), kRules[i].clauses}) {
            row.append("| ").append(cell).append(" ");
        }
        EXPECT_EQ(rows[i], row + "|");
    }
}

// ---- what the device does ----

/// Status of the reply to a request that is sent as it is.
std::string status_of(DeviceBench &bench, Bytes request, std::size_t capacity = 512)
{
    const auto token = bench.send_control(request, capacity);
    const auto reply = bench.replies.find(token);
    return reply == bench.replies.end() ? "" : std::string{control::name(parse(reply->second).header.status)};
}

Buffer request_of(Type type, Bytes bytes = {}, std::uint32_t epoch = 1)
{
    return message({type, 0, 0, 1, epoch, Status::ok}, bytes);
}

Message read_request(DeviceBench &bench)
{
    bench.read(control::kRegionBar0, 0, 4);
    return bench.next(Type::region_read);
}

Buffer dma_read_of(std::uint64_t count)
{
    return request_of(Type::dma_read, payload(control::DmaAccess{0, count}));
}

/// Provokes a violation in a session with a range of message-only memory at 0; returns the consequence if it is none
/// that breaks the device.
using Provoke = std::function<std::string(DeviceBench &)>;

const std::map<Check, Provoke> &provocations()
{
    static const std::map<Check, Provoke> kProvocations{
        {Check::header, [](auto &b) { return status_of(b, Buffer(31)); }},
        {Check::direction,
         [](auto &b) {
             auto bytes = request_of(Type::irq_trigger);
             bytes[2] = std::byte{control::kFlagPosted};
             return status_of(b, bytes);
         }},
        {Check::reply_part, [](auto &b) { return status_of(b, request_of(Type::irq_trigger), 287); }},
        {Check::request_id,
         [](auto &b) {
             b.send_control(dma_read_of(4));
             return status_of(b, dma_read_of(4));
         }},
        {Check::request_type, [](auto &b) { return status_of(b, request_of(Type{77})); }},
        {Check::device_info_epoch,
         [](auto &b) { return status_of(b, request_of(Type::device_info, payload(example_device()))); }},
        {Check::payload, [](auto &b) { return status_of(b, request_of(Type::irq_trigger, Buffer(7))); }},
        {Check::dma_read_reply_part, [](auto &b) { return status_of(b, dma_read_of(1000), 1047); }},
        {Check::session,
         [](auto &b) {
             const auto trigger = payload(control::IrqTrigger{control::kIrqMsix, 0});
             const auto unborn = status_of(b, request_of(Type::irq_trigger, trigger, 2));
             b.core().peer_closed(b.now, 0);
             b.answer_all();
             const auto ended = status_of(b, request_of(Type::irq_trigger, trigger, 1));
             return ended + ", " + unborn + " or " + status_of(b, request_of(Type::irq_trigger, trigger, 2));
         }},
        {Check::ignored_in_device_info,
         [](auto &b) {
             control::DeviceInfo info;
             info.op = control::DeviceInfoOp::del;
             auto body = payload(info);
             body.resize(body.size() + 3, std::byte{0xff});
             const bool deleted = status_of(b, request_of(Type::device_info, body, 0)) == "OK";
             info = example_device();
             info.features = ~std::uint64_t{0};
             body = payload(info);
             body[32 + 28] = std::byte{1};  // `reserved` of the first region
             return deleted && status_of(b, request_of(Type::device_info, body, 0)) == "OK" ? "ignored" : "refused";
         }},
        {Check::request_buffer,
         [](auto &b) {
             b.buffer_size = 40;
             b.read(control::kRegionBar0, 0, 4);
             return "";
         }},
        {Check::reply_id,
         [](auto &b) {
             auto request = read_request(b);
             request.header.request_id += 1000;
             const auto before = b.core().state().unknown_replies;
             b.answer(request);
             return b.core().state().unknown_replies == before + 1 ? "counted and ignored" : "";
         }},
        {Check::reply_type,
         [](auto &b) {
             auto request = read_request(b);
             request.header.type = Type::irq_info;
             b.reply(request);
             return "";
         }},
        {Check::reply_epoch,
         [](auto &b) {
             auto request = read_request(b);
             request.header.epoch = 2;
             b.answer(request);
             return "";
         }},
        {Check::reply_status,
         [](auto &b) {
             const auto id = b.read(control::kRegionBar0, 0, 4);
             b.reply(b.next(Type::region_read), {}, Status{77});
             const auto *reply = b.reply_to(id);
             const bool all_ones = reply && reply->error() == 0 && reply->payload.back() == std::byte{0xff};
             return all_ones ? "as any status but OK" : "";
         }},
        {Check::reply_payload,
         [](auto &b) {
             const auto request = read_request(b);
             b.reply(request, request.payload);
             return "";
         }},
        {Check::reply_text,
         [](auto &b) {
             b.reply(read_request(b), Buffer(control::kTextMax + 1), Status::io);
             return "";
         }},
        {Check::accepted_features,
         [](auto &b) {
             b.core().peer_closed(b.now, 0);
             b.answer_all();
             EXPECT_EQ(b.connect(), 0);
             b.version("{}");
             b.answer(b.next(Type::peer));
             b.reply(b.next(Type::feature_bits), payload(control::FeatureBits{1}));
             return "";
         }},
    };
    return kProvocations;
}

TEST(Checks, DeviceDoesWhatTheTableSays)
{
    for (const auto &rule : kRules) {
        // Rings are the ports' (loopback: DeviceSide; QEMU: qemu_port_test.py).
        if (rule.checked_by.find("device") == rule.checked_by.npos || rule.check == Check::ring) {
            continue;
        }
        SCOPED_TRACE(std::string{rule.condition});
        ASSERT_TRUE(provocations().contains(rule.check)) << "a row without a test";
        DeviceBench bench;
        bench.start_session();
        bench.map(0, 0x1000, -1);
        bench.answer_all();
        const auto consequence = provocations().at(rule.check)(bench);
        const bool breaks = rule.consequence == Consequence::needs_reset;
        EXPECT_EQ(bench.broken.has_value(), breaks);
        EXPECT_EQ(consequence, breaks ? "" : control::name(rule.consequence));
    }
}

}  // namespace
}  // namespace vvfu::spec
