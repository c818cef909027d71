// SPDX-License-Identifier: BSD-3-Clause
#include "identify.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string_view>

#include "async_events.hpp"
#include "features.hpp"
#include "log_pages.hpp"

namespace vvfu::nvme {
namespace {

constexpr std::size_t kPageSize = 4096;
/// Microseconds. Coming back costs nothing; a shutdown flushes what the page cache holds, so it gets as long as CAP.TO
/// gives an enable. Linux gives up a shutdown after 5 s without it.
constexpr std::uint32_t kResumeLatency = 100'000, kShutdownLatency = kTransitionTimeout * 1'000'000;

/// NVMe 5.15.2: Controller or Namespace Structure.
enum class Cns : std::uint8_t { name_space = 0, controller = 1, active_namespaces = 2, descriptors = 3 };

/// NVMe 5.15.2.2: Identify Controller.
struct IdentifyController {
    Le16 vid = 0, ssvid = 0;
    char sn[20] = {}, mn[40] = {}, fr[8] = {};
    std::uint8_t rab = 0, ieee[3] = {}, cmic = 0, mdts = 0;
    Le16 cntlid = 0;
    Le32 ver = 0, rtd3r = 0, rtd3e = 0, oaes = 0, ctratt = 0;
    Le16 rrls = 0;
    std::uint8_t reserved102[9] = {}, cntrltype = 0, fguid[16] = {}, reserved128[128] = {};
    Le16 oacs = 0;
    std::uint8_t acl = 0, aerl = 0, frmw = 0, lpa = 0, elpe = 0, npss = 0, avscc = 0, apsta = 0;
    Le16 wctemp = 0, cctemp = 0;
    std::uint8_t reserved270[242] = {};
    std::uint8_t sqes = 0, cqes = 0;
    Le16 maxcmd = 0;
    Le32 nn = 0;
    Le16 oncs = 0, fuses = 0;
    std::uint8_t fna = 0, vwc = 0;
    Le16 awun = 0, awupf = 0;
    std::uint8_t nvscc = 0, nwpc = 0;
    Le16 acwu = 0, reserved534 = 0;
    Le32 sgls = 0, mnan = 0;
    std::uint8_t reserved544[224] = {};
    char subnqn[256] = {};
    std::uint8_t reserved1024[1024] = {};
    struct PowerState {
        Le16 mp = 0;  // centiwatts
        std::uint8_t reserved[30] = {};
    } psd[32];
    std::uint8_t vendor[1024] = {};
};
static_assert(sizeof(IdentifyController) == kPageSize);
static_assert(offsetof(IdentifyController, rab) == 72 && offsetof(IdentifyController, mdts) == 77);
static_assert(offsetof(IdentifyController, ver) == 80 && offsetof(IdentifyController, cntrltype) == 111);
static_assert(offsetof(IdentifyController, oacs) == 256 && offsetof(IdentifyController, wctemp) == 266);
static_assert(offsetof(IdentifyController, sqes) == 512 && offsetof(IdentifyController, nn) == 516);
static_assert(offsetof(IdentifyController, vwc) == 525 && offsetof(IdentifyController, sgls) == 536);
static_assert(offsetof(IdentifyController, subnqn) == 768 && offsetof(IdentifyController, psd) == 2048);

/// NVMe 5.15.2.1: Identify Namespace.
struct IdentifyNamespace {
    Le64 nsze = 0, ncap = 0, nuse = 0;
    std::uint8_t nsfeat = 0, nlbaf = 0, flbas = 0, mc = 0, dpc = 0, dps = 0, nmic = 0, rescap = 0, fpi = 0, dlfeat = 0;
    Le16 nawun = 0, nawupf = 0, nacwu = 0, nabsn = 0, nabo = 0, nabspf = 0, noiob = 0;
    Le64 nvmcap_low = 0, nvmcap_high = 0;
    Le16 npwg = 0, npwa = 0, npdg = 0, npda = 0, nows = 0;
    std::uint8_t reserved74[18] = {};
    Le32 anagrpid = 0;
    std::uint8_t reserved96[3] = {}, nsattr = 0;
    Le16 nvmsetid = 0, endgid = 0;
    std::uint8_t nguid[16] = {}, eui64[8] = {};
    Le32 lbaf[16] = {};
    std::uint8_t reserved192[3904] = {};
};
static_assert(sizeof(IdentifyNamespace) == kPageSize);
static_assert(offsetof(IdentifyNamespace, dlfeat) == 33 && offsetof(IdentifyNamespace, nvmcap_low) == 48);
static_assert(offsetof(IdentifyNamespace, npwg) == 64 && offsetof(IdentifyNamespace, nsattr) == 99);
static_assert(offsetof(IdentifyNamespace, nguid) == 104 && offsetof(IdentifyNamespace, lbaf) == 128);

template <typename T>
std::vector<std::byte> page_of(const T &page)
{
    const auto bytes = std::as_bytes(std::span(&page, 1));
    return {bytes.begin(), bytes.end()};
}

template <std::size_t N>
void put_padded(char (&field)[N], std::string_view text)
{
    std::memset(field, ' ', N);
    std::memcpy(field, text.data(), std::min(text.size(), N));
}

std::vector<std::byte> controller_page(const ControllerIdentity &identity)
{
    IdentifyController page;
    page.vid = kPciVendorId;
    page.ssvid = kPciVendorId;
    put_padded(page.sn, identity.disk.serial);
    put_padded(page.mn, "virtio-vfio-user NVMe");
    put_padded(page.fr, kFirmwareRevision);
    page.rab = 4;
    constexpr std::uint8_t kSeveralControllers = 1u << 1;
    page.cmic = identity.disk.shared ? kSeveralControllers : 0;
    page.mdts = kMdts;
    page.cntlid = identity.disk.cntlid;
    page.ver = kVersion;
    page.rtd3r = kResumeLatency;
    page.rtd3e = kShutdownLatency;
    page.cntrltype = 1;  // I/O controller
    constexpr std::uint16_t kDoorbellBufferConfig = 1u << 8;
    page.oacs = kDoorbellBufferConfig;
    page.acl = 3;
    page.aerl = kAsyncEventRequests - 1;
    page.frmw = 1u << 1 | 1u << 0;  // one slot, read only
    page.lpa = 1u << 1 | 1u << 2;   // commands supported and effects; offsets and 32-bit lengths
    page.elpe = kErrorLogEntries - 1;
    page.wctemp = kWarningTemperature;
    page.cctemp = kCriticalTemperature;
    page.sqes = 0x66;
    page.cqes = 0x44;
    page.nn = static_cast<std::uint32_t>(identity.namespaces.size());
    constexpr std::uint16_t kCompare = 1u << 0, kDatasetManagement = 1u << 2, kWriteZeroes = 1u << 3, kSelect = 1u << 4;
    page.oncs = kCompare | kDatasetManagement | kWriteZeroes | kSelect;
    constexpr std::uint8_t kFlushTakesBroadcast = 3u << 1;
    page.vwc = static_cast<std::uint8_t>(kFlushTakesBroadcast | (identity.volatile_cache ? 1 : 0));
    const auto &name = identity.disk.subsystem_nqn;
    std::memcpy(page.subnqn, name.data(), name.size());
    page.psd[0].mp = 2500;
    return page_of(page);
}

std::vector<std::byte> namespace_page(const ControllerIdentity &identity, std::uint32_t nsid)
{
    const auto &ns = identity.namespaces[nsid - 1];
    IdentifyNamespace page;
    page.nsze = ns.blocks;
    page.ncap = ns.blocks;
    page.nuse = ns.blocks;
    constexpr std::uint8_t kOptimalSizes = 1u << 4;
    page.nsfeat = kOptimalSizes;
    // The backing works in pages: writes and deallocations of 8 blocks avoid read-modify-write (0's based).
    page.npwg = 7;
    page.npwa = 7;
    page.npdg = 7;
    page.npda = 7;
    page.nows = 7;
    constexpr std::uint8_t kReadsZero = 1, kWriteZeroesDeallocates = 1u << 3;
    page.dlfeat = ns.discard_zeroes ? kReadsZero | kWriteZeroesDeallocates : 0;
    page.nvmcap_low = ns.blocks * kBlockSize;
    page.nsattr = ns.write_protected ? 1 : 0;
    page.nmic = identity.disk.shared ? 1 : 0;
    if (ns.ids.nguid) {
        std::copy(ns.ids.nguid->begin(), ns.ids.nguid->end(), page.nguid);
    }
    page.lbaf[0] = kBlockShift << 16;
    return page_of(page);
}

/// NVMe 5.15.2.3: identifiers above `after`, in ascending order.
std::vector<std::byte> active_namespaces_page(const ControllerIdentity &identity, std::uint32_t after)
{
    std::vector<std::byte> page(kPageSize);
    std::size_t offset = 0;
    for (auto nsid = std::uint64_t{after} + 1; nsid <= identity.namespaces.size() && offset < kPageSize; ++nsid) {
        const Le32 entry = static_cast<std::uint32_t>(nsid);
        std::memcpy(&page[offset], &entry, sizeof(entry));
        offset += sizeof(entry);
    }
    return page;
}

/// NVMe 5.15.2.4: Namespace Identification Descriptors.
std::vector<std::byte> descriptors_page(const ControllerIdentity &identity, std::uint32_t nsid)
{
    std::vector<std::byte> page(kPageSize);
    const auto &ids = identity.namespaces[nsid - 1].ids;
    std::size_t offset = 0;
    const auto add = [&](std::uint8_t type, const std::array<std::uint8_t, 16> &id) {
        page[offset] = std::byte{type};
        page[offset + 1] = static_cast<std::byte>(id.size());
        std::memcpy(&page[offset + 4], id.data(), id.size());
        offset += 4 + id.size();
    };
    constexpr std::uint8_t kNguid = 2, kUuid = 3;
    if (ids.nguid) {
        add(kNguid, *ids.nguid);
    }
    add(kUuid, ids.uuid);
    return page;
}

}  // namespace

Expected<std::vector<std::byte>, Status> identify(const ControllerIdentity &identity, const SubmissionEntry &command)
{
    const std::uint32_t nsid = command.nsid;
    const bool active = nsid != 0 && nsid <= identity.namespaces.size();
    switch (static_cast<Cns>(command.cdw10 & 0xff)) {
        case Cns::name_space:
            // kBroadcastNsid would ask for what namespace management can do; there is none.
            if (!active) {
                return make_unexpected(Status::invalid_namespace);
            }
            return namespace_page(identity, nsid);
        case Cns::controller: return controller_page(identity);
        case Cns::active_namespaces:
            if (nsid >= kBroadcastNsid - 1) {
                return make_unexpected(Status::invalid_namespace);
            }
            return active_namespaces_page(identity, nsid);
        case Cns::descriptors:
            if (!active) {
                return make_unexpected(Status::invalid_namespace);
            }
            return descriptors_page(identity, nsid);
    }
    return make_unexpected(Status::invalid_field);
}

}  // namespace vvfu::nvme
