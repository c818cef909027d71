// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "process.hpp"
#include "temporary_directory.hpp"
#include "vfio_user_client.hpp"

namespace vvfu::test {

/// vvfu-loopback as a child on a listening socket that it inherits: it can be connected to at once.
class LoopbackProcess {
public:
    /// `program` is its path; `arguments` follow the options for the socket and the deadlines: further options, the
    /// model and its options.
    /// `inherit` and `environment` as for Process.
    LoopbackProcess(const std::string &program, const std::vector<std::string> &arguments,
                    std::vector<int> inherit = {}, const std::vector<std::string> &environment = {});

    [[nodiscard]] Fd connect_socket() const;
    [[nodiscard]] VfioUserClient connect() const { return VfioUserClient(connect_socket()); }
    [[nodiscard]] Process &process() { return *process_; }

private:
    TemporaryDirectory directory_;
    std::string socket_path_;
    std::unique_ptr<Process> process_;
};

}  // namespace vvfu::test
