// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace vvfu::core {

/// Numbers sessions: 1, 2, ... 2^32 - 1, and then 1 again, for 0 means "no session" (VVFU-SESSION-1).
class Epochs {
public:
    /// After `sessions` sessions.
    explicit Epochs(std::uint64_t sessions = 0) : sessions_(sessions) {}

    /// A session begins: its epoch.
    std::uint32_t next() noexcept
    {
        ++sessions_;
        return latest();
    }
    /// Of the session in progress, or of the last one; 0: there was none.
    [[nodiscard]] std::uint32_t latest() const noexcept
    {
        return sessions_ == 0 ? 0 : static_cast<std::uint32_t>((sessions_ - 1) % UINT32_MAX + 1);
    }
    /// Whether any session had this number.
    [[nodiscard]] bool used(std::uint32_t epoch) const noexcept { return epoch != 0 && epoch <= sessions_; }

private:
    std::uint64_t sessions_;
};

}  // namespace vvfu::core
