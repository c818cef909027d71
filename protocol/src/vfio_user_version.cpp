// SPDX-License-Identifier: BSD-3-Clause
//
// VERSION and its JSON. Boost.JSON is compiled into this file, so that nothing else has to be linked.
#include <boost/json/src.hpp>
#include <set>
#include <string>

#include "vvfu/protocol/vfio_user.hpp"

namespace vvfu::vfio_user {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxText = 16 * 1024;

/// Notices an object that has the same key twice: json::parse() would keep the last one.
struct DuplicateKeys {
    static constexpr std::size_t max_object_size = kMaxText, max_array_size = kMaxText, max_key_size = kMaxText,
                                 max_string_size = kMaxText;
    std::vector<std::set<std::string, std::less<>>> keys;
    std::string partial;

    bool on_document_begin(json::error_code &) { return true; }
    bool on_document_end(json::error_code &) { return true; }
    bool on_array_begin(json::error_code &) { return true; }
    bool on_array_end(std::size_t, json::error_code &) { return true; }
    bool on_object_begin(json::error_code &)
    {
        keys.emplace_back();
        return true;
    }
    bool on_object_end(std::size_t, json::error_code &)
    {
        keys.pop_back();
        return true;
    }
    bool on_string_part(json::string_view, std::size_t, json::error_code &) { return true; }
    bool on_string(json::string_view, std::size_t, json::error_code &) { return true; }
    bool on_key_part(json::string_view part, std::size_t, json::error_code &)
    {
        partial.append(part.data(), part.size());
        return true;
    }
    bool on_key(json::string_view last, std::size_t, json::error_code &ec)
    {
        partial.append(last.data(), last.size());
        const bool is_new = keys.back().insert(partial).second;
        partial.clear();
        if (!is_new) {
            ec = json::error::syntax;
        }
        return is_new;
    }
    bool on_number_part(json::string_view, json::error_code &) { return true; }
    bool on_int64(std::int64_t, json::string_view, json::error_code &) { return true; }
    bool on_uint64(std::uint64_t, json::string_view, json::error_code &) { return true; }
    bool on_double(double, json::string_view, json::error_code &) { return true; }
    bool on_bool(bool, json::error_code &) { return true; }
    bool on_null(json::error_code &) { return true; }
    bool on_comment_part(json::string_view, json::error_code &) { return true; }
    bool on_comment(json::string_view, json::error_code &) { return true; }
};

json::parse_options options()
{
    json::parse_options out;
    out.max_depth = kMaxDepth;
    return out;
}

bool has_duplicate_keys(std::string_view text)
{
    json::basic_parser<DuplicateKeys> parser{options()};
    json::error_code ec;
    const auto used = parser.write_some(false, text.data(), text.size(), ec);
    return ec || used != text.size();
}

/// An optional unsigned number of `object` within [0, max]. False when it is there and anything else.
bool take_number(const json::object &object, std::string_view key, std::uint64_t max, std::optional<std::uint64_t> &out)
{
    const auto *value = object.if_contains(key);
    if (value == nullptr) {
        return true;
    }
    json::error_code ec;
    const auto number = value->to_number<std::uint64_t>(ec);
    // to_number() would also take 1.0; a capability is an integer.
    if (ec || value->is_double() || number > max) {
        return false;
    }
    out = number;
    return true;
}

bool take_bool(const json::object &object, std::string_view key, std::optional<bool> &out)
{
    const auto *value = object.if_contains(key);
    if (value == nullptr) {
        return true;
    }
    if (!value->is_bool()) {
        return false;
    }
    out = value->get_bool();
    return true;
}

/// Capabilities that this server does not use are checked all the same: libvfio-user's tests pin it.
bool check_migration(const json::object &capabilities)
{
    const auto *value = capabilities.if_contains("migration");
    if (value == nullptr) {
        return true;
    }
    std::optional<std::uint64_t> pgsize, max_bitmap_size;
    return value->is_object() && take_number(value->get_object(), "pgsize", UINT64_MAX, pgsize) &&
           take_number(value->get_object(), "max_bitmap_size", UINT64_MAX, max_bitmap_size) &&
           pgsize.value_or(kPageSize) != 0 && pgsize.value_or(kPageSize) % kPageSize == 0;
}

bool check_twin_socket(const json::object &capabilities)
{
    const auto *value = capabilities.if_contains("twin_socket");
    if (value == nullptr) {
        return true;
    }
    std::optional<bool> supported;
    return value->is_object() && take_bool(value->get_object(), "supported", supported);
}

bool read_capabilities(const json::object &object, Capabilities &out)
{
    return take_number(object, "max_msg_fds", kMaxMsgFdsLimit, out.max_msg_fds) &&
           take_number(object, "max_data_xfer_size", UINT64_MAX, out.max_data_xfer_size) &&
           out.max_data_xfer_size != 0 && take_number(object, "max_dma_maps", UINT64_MAX, out.max_dma_maps) &&
           take_number(object, "pgsizes", UINT64_MAX, out.pgsizes) &&
           take_bool(object, "write_multiple", out.write_multiple) && check_migration(object) &&
           check_twin_socket(object);
}

Decoded<Capabilities> parse_capabilities(std::string_view text)
{
    const auto bad = make_unexpected(DecodeError::bad_value);
    if (text.size() > kMaxText || has_duplicate_keys(text)) {
        return bad;
    }
    json::error_code ec;
    const auto document = json::parse(text, ec, {}, options());
    if (ec || !document.is_object()) {
        return bad;
    }
    Capabilities capabilities;
    const auto *value = document.get_object().if_contains("capabilities");
    if (value != nullptr && (!value->is_object() || !read_capabilities(value->get_object(), capabilities))) {
        return bad;
    }
    return capabilities;
}

struct VersionWire {
    std::uint16_t major, minor;
};
static_assert(sizeof(VersionWire) == 4);

template <typename T>
void put(json::object &object, std::string_view key, const std::optional<T> &value)
{
    if (value) {
        object[key] = *value;
    }
}

}  // namespace

Decoded<Version> decode_version(Bytes payload)
{
    const auto wire = decode_prefix<VersionWire>(payload);
    if (!wire) {
        return make_unexpected(wire.error());
    }
    Version version;
    version.major = wire->major;
    version.minor = wire->minor;
    const auto rest = payload.subspan(sizeof *wire);
    if (rest.empty()) {
        return version;
    }
    std::string text(rest.size(), '\0');
    std::memcpy(text.data(), rest.data(), rest.size());
    if (text.back() != '\0') {
        return make_unexpected(DecodeError::bad_value);
    }
    auto capabilities = parse_capabilities(std::string_view{text.c_str()});
    if (!capabilities) {
        return make_unexpected(capabilities.error());
    }
    version.has_json = true;
    version.capabilities = *capabilities;
    return version;
}

void append_version(Buffer &out, const Version &version)
{
    const auto &from = version.capabilities;
    json::object capabilities;
    put(capabilities, "max_msg_fds", from.max_msg_fds);
    put(capabilities, "max_data_xfer_size", from.max_data_xfer_size);
    put(capabilities, "max_dma_maps", from.max_dma_maps);
    put(capabilities, "pgsizes", from.pgsizes);
    put(capabilities, "write_multiple", from.write_multiple);
    const auto text = json::serialize(json::object{{"capabilities", std::move(capabilities)}});
    append(out, VersionWire{version.major, version.minor});
    append_bytes(out, std::as_bytes(std::span{text.c_str(), text.size() + 1}));
}

}  // namespace vvfu::vfio_user
