// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vvfu/guest/error.hpp"
#include "vvfu/protocol/device_config.hpp"

namespace vvfu::nvme {

inline constexpr std::size_t kSerialSize = 20;
using Nguid = std::array<std::uint8_t, 16>;

/// What tells a namespace from all others.
struct NamespaceIds {
    Uuid uuid{};
    std::optional<Nguid> nguid;  ///< only one that was given: a true one begins with somebody's OUI
};

/// What tells a controller and its namespaces from all others (NVMe 7.9, 7.10). docs/decisions/0013 has the reasons.
struct DiskIdentity {
    std::string serial;         ///< at most kSerialSize characters
    std::string subsystem_nqn;  ///< at most kMaxNqn characters
    std::uint16_t cntlid = 0;
    bool shared = false;      ///< other controllers of the subsystem may show the same namespaces
    bool persistent = false;  ///< the same after a restart
    std::vector<NamespaceIds> namespaces;
};

/// What the user has said; empty: not.
struct IdentityOptions {
    std::string serial;
    std::string subsystem_nqn;
    std::optional<std::uint16_t> cntlid;  ///< with subsystem_nqn: the subsystem has more controllers
    std::vector<std::string> nguids;      ///< 32 hexadecimal digits each; none, or one for each backing
};

inline constexpr std::size_t kMaxNqn = 223;
inline constexpr std::uint16_t kMaxCntlid = 0xffef;

/// From the options, else the function's UUID, else new and random. `backings` as NvmeOptions has them. Errors are one
/// line for a person.
[[nodiscard]] guest::Result<DiskIdentity> choose_identity(const IdentityOptions &options,
                                                          const std::optional<Uuid> &function,
                                                          const std::vector<std::string> &backings);

}  // namespace vvfu::nvme
