// SPDX-License-Identifier: BSD-3-Clause
#include "backing.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "file_backing.hpp"
#include "memory_backing.hpp"
#include "spec.hpp"

namespace vvfu::nvme {
namespace {

constexpr std::string_view kMemoryPrefix = "mem:";

guest::Result<void> check_size(const std::string &name, std::uint64_t size)
{
    if (size == 0) {
        return guest::failure("backing \"" + name + "\" is empty; give it a size that is a multiple of 512 bytes");
    }
    if (size % kBlockSize != 0) {
        return guest::failure("backing \"" + name + "\" has " + std::to_string(size) +
                              " bytes; the size must be a multiple of 512");
    }
    return {};
}

guest::Result<std::unique_ptr<Backing>> open_memory(const std::string &name)
{
    const auto size = parse_size(std::string_view(name).substr(kMemoryPrefix.size()));
    if (!size) {
        return guest::failure("backing \"" + name + "\": " + size.error().message);
    }
    if (const auto checked = check_size(name, *size); !checked) {
        return make_unexpected(checked.error());
    }
    return MemoryBacking::create(*size);
}

}  // namespace

void Backing::flush(Done done)
{
    flushes_->waiting.push_back(std::move(done));
    if (!flushes_->running) {
        start_sync();
    }
}

void Backing::start_sync()
{
    auto batch = std::exchange(flushes_->waiting, {});
    const auto finish = [this, weak = std::weak_ptr<Flushes>(flushes_), batch = std::move(batch)](int error) {
        if (const auto state = weak.lock()) {
            state->running = false;
            state->lost = state->lost != 0 ? state->lost : error;
            error = state->lost;
        }
        for (const auto &done : batch) {
            done(error);
        }
        const auto state = weak.lock();  // a callback may have destroyed the backing
        if (state && !state->running && !state->waiting.empty()) {
            start_sync();
        }
    };
    if (flushes_->lost != 0) {
        finish(flushes_->lost);
        return;
    }
    flushes_->running = true;
    sync(finish);
}

bool backing_exists(const std::string &name)
{
    struct stat status {};
    return name.starts_with(kMemoryPrefix) || ::stat(name.c_str(), &status) == 0 ||
           (errno != ENOENT && errno != ENOTDIR);
}

guest::Result<std::unique_ptr<Backing>> open_backing(const std::string &name, bool read_only, guest::Workers &workers)
{
    if (name.starts_with(kMemoryPrefix)) {
        return open_memory(name);
    }
    auto backing = FileBacking::open(name, read_only, workers);
    if (!backing) {
        return backing;
    }
    if (const auto checked = check_size(name, (*backing)->size()); !checked) {
        return make_unexpected(checked.error());
    }
    return backing;
}

}  // namespace vvfu::nvme
