// SPDX-License-Identifier: BSD-3-Clause
//
// The device models as subcommands of a command line, the same for every program that hosts one.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nvme_options.hpp"
#include "testdev.hpp"
#include "vvfu/guest/device_model.hpp"
#include "vvfu/guest/error.hpp"

namespace vvfu::cli {

class DeviceModels {
public:
    /// Adds one subcommand per model to `app`, at most one of which may be given. Outlives `app`'s parsing; not
    /// movable, because the options are written into it.
    explicit DeviceModels(CLI::App &app);
    DeviceModels(const DeviceModels &) = delete;
    DeviceModels &operator=(const DeviceModels &) = delete;

    /// A model was named on the command line. The calls below need it.
    [[nodiscard]] bool chosen() const;
    [[nodiscard]] std::string name() const;
    /// Bytes of region memory that the model needs.
    [[nodiscard]] std::uint64_t region_memory_size() const;
    /// What the model needs and is not there yet: the path of a backing; empty: nothing.
    [[nodiscard]] std::string missing() const;
    /// Creates it. Errors are one line for a person.
    [[nodiscard]] guest::Result<std::unique_ptr<guest::DeviceModel>> create(guest::DeviceServices services) const;

    /// Every model's name.
    [[nodiscard]] static std::vector<std::string> names();

private:
    void add_nvme(CLI::App &app);
    void add_testdev(CLI::App &app);

    CLI::App *nvme_ = nullptr, *testdev_ = nullptr;
    nvme::NvmeOptions nvme_options_;
    testdev::TestdevOptions testdev_options_;
};

}  // namespace vvfu::cli
