// SPDX-License-Identifier: BSD-3-Clause
#include "identity.hpp"

#include <algorithm>
#include <boost/uuid/name_generator_sha1.hpp>
#include <boost/uuid/uuid.hpp>
#include <boost/uuid/uuid_io.hpp>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string_view>

namespace vvfu::nvme {
namespace {

using boost::uuids::uuid;

/// A UUID of version 5 (RFC 9562 5.5): the same for the same base and name.
uuid derive(const uuid &base, std::string_view name)
{
    return boost::uuids::name_generator_sha1(base)(name.data(), name.size());
}

uuid random_uuid()
{
    std::random_device random;
    uuid result;
    std::generate(result.begin(), result.end(), [&] { return static_cast<std::uint8_t>(random()); });
    result.data[6] = static_cast<std::uint8_t>((result.data[6] & 0x0f) | 0x40);
    result.data[8] = static_cast<std::uint8_t>((result.data[8] & 0x3f) | 0x80);
    return result;
}

Uuid bytes_of(const uuid &value)
{
    Uuid bytes;
    std::copy(value.begin(), value.end(), bytes.begin());
    return bytes;
}

guest::Result<Nguid> parse_nguid(const std::string &text)
{
    constexpr std::string_view kDigits = "0123456789abcdef";
    Nguid nguid{};
    bool good = text.size() == 2 * nguid.size();
    for (std::size_t i = 0; good && i < text.size(); ++i) {
        const auto digit = kDigits.find(static_cast<char>(text[i] >= 'A' && text[i] <= 'F' ? text[i] | 0x20 : text[i]));
        good = digit != std::string_view::npos;
        nguid[i / 2] = static_cast<std::uint8_t>(nguid[i / 2] << 4 | (digit & 0xf));
    }
    if (!good || nguid == Nguid{}) {
        return guest::failure("the NGUID \"" + text + "\" is not 32 hexadecimal digits, of which one is not 0");
    }
    return nguid;
}

bool printable(const std::string &text, char first)
{
    return std::all_of(text.begin(), text.end(), [first](char c) { return c >= first && c <= '~'; });
}

guest::Result<void> check(const IdentityOptions &options, std::size_t backings)
{
    if (options.serial.size() > kSerialSize || !printable(options.serial, ' ')) {
        return guest::failure("the serial number \"" + options.serial + "\" is not one of at most " +
                              std::to_string(kSerialSize) + " printable ASCII characters");
    }
    const auto &nqn = options.subsystem_nqn;
    if (!nqn.empty() && (nqn.size() > kMaxNqn || !nqn.starts_with("nqn.") || !printable(nqn, '!'))) {
        return guest::failure("\"" + nqn + "\" is not an NVMe qualified name: \"nqn.\" and more, at most " +
                              std::to_string(kMaxNqn) + " printable characters");
    }
    if (options.cntlid > kMaxCntlid) {
        return guest::failure("the controller ID is 0 to " + std::to_string(kMaxCntlid));
    }
    if (!options.nguids.empty() && options.nguids.size() != backings) {
        return guest::failure("there are " + std::to_string(backings) + " backings and " +
                              std::to_string(options.nguids.size()) + " NGUIDs: give one for each, or none");
    }
    return {};
}

/// A name that goes with the data: another backing is another namespace, and memory is new at each start.
std::string data_name(const std::string &backing)
{
    return backing.starts_with("mem:") ? boost::uuids::to_string(random_uuid())
                                       : std::filesystem::absolute(backing).lexically_normal().string();
}

guest::Result<std::vector<NamespaceIds>> namespace_ids(const IdentityOptions &options, const uuid &base,
                                                       const std::vector<std::string> &backings)
{
    std::vector<NamespaceIds> all;
    std::map<std::string, unsigned> seen;
    std::set<Nguid> given;
    for (const auto &backing : backings) {
        const auto name = data_name(backing);
        NamespaceIds ids;
        ids.uuid = bytes_of(derive(base, "namespace/" + std::to_string(seen[name]++) + "/" + name));
        if (!options.nguids.empty()) {
            const auto nguid = parse_nguid(options.nguids[all.size()]);
            if (!nguid) {
                return make_unexpected(nguid.error());
            }
            if (!given.insert(*nguid).second) {
                return guest::failure("two namespaces have the NGUID " + options.nguids[all.size()]);
            }
            ids.nguid = *nguid;
        }
        all.push_back(ids);
    }
    return all;
}

/// What everything else follows from; nullopt: nothing that lasts.
std::optional<uuid> persistent_base(const IdentityOptions &options, const std::optional<Uuid> &function, bool shared)
{
    // Controllers of one subsystem agree on their namespaces.
    if (!shared && function) {
        uuid base;
        std::copy(function->begin(), function->end(), base.begin());
        return base;
    }
    const auto &name = !options.subsystem_nqn.empty() ? options.subsystem_nqn : options.serial;
    return name.empty() ? std::optional<uuid>{} : derive(boost::uuids::ns::oid(), name);
}

}  // namespace

guest::Result<DiskIdentity> choose_identity(const IdentityOptions &options, const std::optional<Uuid> &function,
                                            const std::vector<std::string> &backings)
{
    if (const auto checked = check(options, backings.size()); !checked) {
        return make_unexpected(checked.error());
    }
    DiskIdentity identity;
    identity.cntlid = options.cntlid.value_or(0);
    identity.shared = options.cntlid && !options.subsystem_nqn.empty();
    const auto persistent = persistent_base(options, function, identity.shared);
    identity.persistent = persistent.has_value();
    const auto base = persistent ? *persistent : random_uuid();
    identity.subsystem_nqn = options.subsystem_nqn;
    if (identity.subsystem_nqn.empty()) {
        identity.subsystem_nqn =
            "nqn.2014-08.org.nvmexpress:uuid:" + boost::uuids::to_string(derive(base, "subsystem"));
    }
    identity.serial = options.serial;
    if (identity.serial.empty()) {
        std::string digits = boost::uuids::to_string(derive(base, "serial"));
        std::erase(digits, '-');
        identity.serial = "VVFU" + digits.substr(0, kSerialSize - 4);
        std::transform(identity.serial.begin(), identity.serial.end(), identity.serial.begin(),
                       [](char c) { return static_cast<char>(c >= 'a' && c <= 'f' ? c & ~0x20 : c); });
    }
    auto namespaces = namespace_ids(options, base, backings);
    if (!namespaces) {
        return make_unexpected(namespaces.error());
    }
    identity.namespaces = std::move(*namespaces);
    return identity;
}

}  // namespace vvfu::nvme
