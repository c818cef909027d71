// SPDX-License-Identifier: BSD-3-Clause
//
// Every decoder of protocol/ over any bytes; what decodes must survive encoding and decoding again.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "fuzz_target.hpp"
#include "vvfu/protocol/control.hpp"
#include "vvfu/protocol/device_config.hpp"
#include "vvfu/protocol/vfio_user.hpp"

namespace {

using namespace vvfu;

template <typename Value, typename Decode>
void round_trip(control::Bytes bytes, const Decode &decode)
{
    const control::Decoded<Value> first = decode(bytes);
    if (!first) {
        return;
    }
    control::Buffer out;
    control::append(out, *first);
    const auto second = decode(out);
    if (!second || !(*second == *first)) {
        fuzz::fail("a control message changes when it is encoded and decoded");
    }
}

void fuzz_control(control::Bytes bytes)
{
    (void)control::decode_header(bytes);
    round_trip<control::DeviceInfo>(bytes, control::decode_device_info);
    round_trip<control::Peer>(bytes, control::decode_peer);
    round_trip<control::FeatureBits>(bytes, control::decode_feature_bits);
    round_trip<control::MemoryInfo>(bytes, control::decode_memory_info);
    round_trip<control::RegionAccess>(bytes, control::decode_region_access);
    round_trip<control::IrqInfo>(bytes, control::decode_irq_info);
    round_trip<control::IrqTrigger>(bytes, control::decode_irq_trigger);
    round_trip<control::DmaAccess>(bytes, control::decode_dma_access);
    (void)control::decode_region_data(bytes);
    (void)control::decode_dma_data(bytes);
    (void)control::decode_multi_write(bytes);
    if (control::decode_text(bytes).size() > control::kTextMax) {
        fuzz::fail("text longer than its limit");
    }
}

void fuzz_vfio_user(vfio_user::Bytes bytes)
{
    namespace vu = vfio_user;
    (void)vu::decode_header(bytes);
    (void)vu::decode_argsz<vu::DmaMap>(bytes);
    (void)vu::decode_argsz<vu::DmaUnmap>(bytes);
    (void)vu::decode_region_data(bytes);
    (void)vu::decode_dma_write(bytes);
    (void)vu::decode_dma_read_reply(bytes, {0, bytes.size() / 2});
    (void)vu::decode_dma_write_reply(bytes, {0, 0});
    (void)vu::decode_multi_write(bytes);
    (void)vu::decode_set_irqs(bytes);
    (void)vu::decode_region_info_reply(bytes);
    const auto version = vu::decode_version(bytes);
    if (!version || !version->has_json) {
        return;
    }
    vu::Buffer out;
    vu::append_version(out, *version);
    const auto again = vu::decode_version(out);
    if (!again || !(again->capabilities == version->capabilities)) {
        fuzz::fail("VERSION changes when it is encoded and decoded");
    }
}

void fuzz_device_config(control::Bytes bytes)
{
    (void)decode_pci_cap(bytes);
    std::array<std::byte, kDeviceConfigSize> config{};
    std::copy_n(bytes.begin(), std::min(bytes.size(), config.size()), config.begin());
    std::array<std::byte, kDeviceConfigSize> again{};
    encode(decode_device_config(config), again);
    if (again != config) {
        fuzz::fail("device configuration changes when it is decoded and encoded");
    }
}

fuzz::Input to_input(const control::Buffer &bytes)
{
    fuzz::Input out(bytes.size());
    if (!bytes.empty()) {
        std::memcpy(out.data(), bytes.data(), bytes.size());
    }
    return out;
}

}  // namespace

std::vector<vvfu::fuzz::Input> vvfu::fuzz::seeds()
{
    std::vector<Input> out;
    const auto add = [&](const auto &value) {
        control::Buffer bytes;
        control::append(bytes, value);
        out.push_back(to_input(bytes));
    };
    control::DeviceInfo info;
    info.regions = {{0, 7, 0x4000, 0x1000, {{0x1000, 0x1000}}}, {7, 3, 4096, 0, {}}};
    info.irqs = {{2, 8}};
    add(info);
    add(control::Peer{});
    add(control::MemoryInfo{});
    add(control::IrqInfo{});
    add(control::RegionAccess{8, 0, 4});
    control::Buffer bytes;
    const std::vector<control::MultiWrite> writes(3, {{0, 0, 4}, {}});
    control::append(bytes, writes);
    out.push_back(to_input(bytes));
    vfio_user::Version version;
    version.capabilities = {16, 1048576, 65535, 4096, true};
    bytes.clear();
    vfio_user::append_version(bytes, version);
    out.push_back(to_input(bytes));
    return out;
}

int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size)
{
    const auto bytes = std::as_bytes(std::span{data, size});
    fuzz_control(bytes);
    fuzz_vfio_user(bytes);
    fuzz_device_config(bytes);
    return 0;
}
