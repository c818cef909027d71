// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace vvfu::test {

/// While one lives and is armed, every allocation of this thread with operator new fails.
class NoMemory {
public:
    explicit NoMemory(bool armed = true) { arm(armed); }
    ~NoMemory() { arm(false); }
    NoMemory(const NoMemory &) = delete;
    NoMemory &operator=(const NoMemory &) = delete;

    void arm(bool armed) noexcept;
};

}  // namespace vvfu::test
