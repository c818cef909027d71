// SPDX-License-Identifier: BSD-3-Clause
#include "nvme_options.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <random>
#include <string_view>
#include <utility>

#include "controller.hpp"

namespace vvfu::nvme {
namespace {

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
    const bool printable =
        std::all_of(options.serial.begin(), options.serial.end(), [](char c) { return c >= ' ' && c <= '~'; });
    if (options.serial.size() > kSerialSize || !printable) {
        return guest::failure("the serial number \"" + options.serial + "\" is not one of at most " +
                              std::to_string(kSerialSize) + " printable ASCII characters");
    }
    return {};
}

/// Two disks with one serial number would be paths to one disk for the driver: hence not from the name alone.
std::string make_serial(const std::vector<std::string> &backings)
{
    std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
    bool found = false;
    const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100'0000'01b3; };
    for (const auto &name : backings) {
        struct stat status {};
        if (!name.starts_with("mem:") && stat(name.c_str(), &status) == 0) {
            found = true;
            mix(S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev);
            mix(S_ISBLK(status.st_mode) ? 0 : status.st_ino);
        }
    }
    if (!found) {
        std::random_device random;
        mix(random());
        mix(random());
    }
    std::string serial = "VVFU";
    for (int shift = 60; shift >= 0; shift -= 4) {
        serial += "0123456789ABCDEF"[hash >> shift & 0xf];
    }
    return serial;
}

}  // namespace

guest::Result<std::unique_ptr<guest::DeviceModel>> make_nvme(const NvmeOptions &options, guest::DeviceServices services)
{
    if (const auto checked = check(options); !checked) {
        return make_unexpected(checked.error());
    }
    Controller::Config config;
    config.serial = options.serial.empty() ? make_serial(options.backings) : options.serial;
    config.queue_pairs = options.queue_pairs;
    for (const auto &name : options.backings) {
        auto backing = open_backing(name, options.read_only, services.workers);
        if (!backing) {
            return make_unexpected(backing.error());
        }
        config.namespaces.push_back({std::move(*backing), options.read_only});
    }
    return std::unique_ptr<guest::DeviceModel>(new Controller(std::move(config), services));
}

}  // namespace vvfu::nvme
