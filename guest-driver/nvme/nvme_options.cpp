// SPDX-License-Identifier: BSD-3-Clause
#include "nvme_options.hpp"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "controller.hpp"

namespace vvfu::nvme {
namespace {

/// What tells one backing from another, under whatever name: device and inode, or block device and 0.
using FileId = std::pair<dev_t, ino_t>;

/// nullopt: memory, or not there.
std::optional<FileId> file_id(const std::string &name)
{
    struct stat status {};
    if (name.starts_with("mem:") || stat(name.c_str(), &status) != 0) {
        return std::nullopt;
    }
    return S_ISBLK(status.st_mode) ? FileId{status.st_rdev, 0} : FileId{status.st_dev, status.st_ino};
}

/// Two writable namespaces on one file would destroy each other's data.
guest::Result<void> check_distinct(const std::vector<std::string> &backings)
{
    std::map<FileId, std::string> seen;
    for (const auto &name : backings) {
        if (const auto id = file_id(name)) {
            const auto [first, is_new] = seen.emplace(*id, name);
            if (!is_new) {
                return guest::failure("backing \"" + name + "\" is the same as \"" + first->second +
                                      "\": give each file or device once, or use --read-only");
            }
        }
    }
    return {};
}

guest::Result<void> check(const NvmeOptions &options)
{
    if (options.backings.empty()) {
        return guest::failure("nvme needs at least one --backing");
    }
    if (options.backings.size() > kMaxNamespaces) {
        return guest::failure("nvme takes at most " + std::to_string(kMaxNamespaces) + " backings");
    }
    if (options.queue_pairs == 0 || options.queue_pairs > kMaxQueuePairs) {
        return guest::failure("nvme takes 1 to " + std::to_string(kMaxQueuePairs) + " queue pairs, not " +
                              std::to_string(options.queue_pairs));
    }
    return options.read_only ? guest::Result<void>{} : check_distinct(options.backings);
}

}  // namespace

std::string missing_backing(const NvmeOptions &options)
{
    const auto &backings = options.backings;
    const auto missing = std::find_if_not(backings.begin(), backings.end(), backing_exists);
    return missing == backings.end() ? std::string{} : *missing;
}

guest::Result<std::unique_ptr<guest::DeviceModel>> make_nvme(const NvmeOptions &options, guest::DeviceServices services)
{
    if (const auto checked = check(options); !checked) {
        return make_unexpected(checked.error());
    }
    auto identity = choose_identity(options.identity, services.uuid, options.backings);
    if (!identity) {
        return make_unexpected(identity.error());
    }
    Controller::Config config;
    config.identity = std::move(*identity);
    config.queue_pairs = options.queue_pairs;
    config.interrupts = options.interrupts;
    for (const auto &name : options.backings) {
        auto backing = open_backing(name, options.read_only, services.workers);
        if (!backing) {
            return make_unexpected(backing.error());
        }
        config.namespaces.push_back({std::move(*backing), options.read_only});
    }
    const bool lasting_data = std::any_of(options.backings.begin(), options.backings.end(),
                                          [](const auto &name) { return !name.starts_with("mem:"); });
    if (!config.identity.persistent && lasting_data) {
        spdlog::info(
            "nvme: serial number {} and the other identifiers of this disk are new at each start: give the function a "
            "uuid= of its own, or use --serial",
            config.identity.serial);
    }
    return std::unique_ptr<guest::DeviceModel>(new Controller(std::move(config), services));
}

}  // namespace vvfu::nvme
