// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "backing.hpp"

namespace vvfu::nvme::test {

/// What a TestBacking does, and what was asked of it; the test keeps it when the backing is the controller's.
struct StorageScript {
    int read_error = 0, write_error = 0;  ///< errno of all such operations
    std::deque<int> sync_errors;          ///< of the next syncs; then success
    bool hold_syncs = false;              ///< they hang, in `held`
    std::vector<std::pair<Backing::Done, int>> held;
    std::string calls;  ///< r, w, z, d, s: in their order

    void release_syncs()
    {
        for (const auto &[done, error] : std::exchange(held, {})) {
            done(error);
        }
    }
};

class TestBacking final : public Backing {
public:
    static constexpr std::uint64_t kSize = 1 << 20;

    explicit TestBacking(StorageScript &script) : script_(script) {}
    [[nodiscard]] std::uint64_t size() const noexcept override { return kSize; }
    [[nodiscard]] bool volatile_cache() const noexcept override { return true; }
    [[nodiscard]] bool discard_zeroes() const noexcept override { return true; }
    void read(ByteRange range, ReadDone done) override
    {
        const std::vector<std::byte> zeroes(script_.read_error == 0 ? range.size : 0);
        call('r', script_.read_error, [&](int error) { done(error, zeroes); });
    }
    void write(std::uint64_t, std::span<const iovec>, Done done) override { call('w', script_.write_error, done); }
    void write_zeroes(ByteRange, bool, Done done) override { call('z', script_.write_error, done); }
    void discard(std::vector<ByteRange>, Done done) override { call('d', script_.write_error, done); }

protected:
    void sync(Done done) override
    {
        script_.calls += 's';
        int error = 0;
        if (!script_.sync_errors.empty()) {
            error = script_.sync_errors.front();
            script_.sync_errors.pop_front();
        }
        if (script_.hold_syncs) {
            script_.held.emplace_back(std::move(done), error);
        } else {
            done(error);
        }
    }

private:
    void call(char letter, int error, const Done &done)
    {
        script_.calls += letter;
        done(error);
    }

    StorageScript &script_;
};

}  // namespace vvfu::nvme::test
