// SPDX-License-Identifier: BSD-3-Clause
#include "device_models.hpp"

#include <cassert>

#include "choice.hpp"

namespace vvfu::cli {
namespace {

const Choices<guest::InterruptKind> kInterrupts{
    {"msix", guest::InterruptKind::msix}, {"msi", guest::InterruptKind::msi}, {"intx", guest::InterruptKind::intx}};

void add_interrupts(CLI::App &model, guest::InterruptKind &interrupts)
{
    add_choice(model, "--interrupts",
               "What the device interrupts with (default: msix); stock QEMU cannot unplug a device that has MSI-X",
               kInterrupts, interrupts);
}

}  // namespace

DeviceModels::DeviceModels(CLI::App &app)
{
    app.require_subcommand(0, 1);
    add_nvme(app);
    add_testdev(app);
    for (auto *model : {nvme_, testdev_}) {
        model->fallthrough();  // the program's own options may follow the model's name
    }
}

void DeviceModels::add_nvme(CLI::App &app)
{
    nvme_ = app.add_subcommand("nvme", "NVMe controller with one namespace per backing");
    nvme_
        ->add_option("--backing", nvme_options_.backings,
                     "File or block device, or mem:SIZE (suffixes K, M, G, T); repeat it for more namespaces")
        ->required()
        ->type_name("PATH|mem:SIZE")
        ->allow_extra_args(false);
    nvme_->add_flag("--read-only", nvme_options_.read_only, "Write protect every namespace");
    auto &identity = nvme_options_.identity;
    nvme_->add_option("--serial", identity.serial, "Serial number (default: from the function's UUID, else random)")
        ->type_name("TEXT");
    nvme_->add_option("--subsystem-nqn", identity.subsystem_nqn, "Name of the NVM subsystem (default: as --serial)")
        ->type_name("NQN");
    nvme_->add_option("--cntlid", identity.cntlid, "Controller ID in a subsystem of several controllers")
        ->check(CLI::Range(std::uint16_t{0}, nvme::kMaxCntlid));
    nvme_->add_option("--nguid", identity.nguids, "NGUID of a namespace, in the order of the backings (default: none)")
        ->type_name("HEX")
        ->allow_extra_args(false);
    nvme_->add_option("--queue-pairs", nvme_options_.queue_pairs, "I/O queue pairs")
        ->check(CLI::Range(std::uint16_t{1}, nvme::kMaxQueuePairs))
        ->capture_default_str();
    add_interrupts(*nvme_, nvme_options_.interrupts);
}

void DeviceModels::add_testdev(CLI::App &app)
{
    testdev_ = app.add_subcommand("testdev", "Device for tests and benchmarks: registers, DMA engine, interrupts");
    testdev_->add_flag("--no-mmap", testdev_options_.no_mmap,
                       "Nothing of BAR 2 can be mapped; the peer may then post writes to BARs");
    add_interrupts(*testdev_, testdev_options_.interrupts);
}

bool DeviceModels::chosen() const
{
    return nvme_->parsed() || testdev_->parsed();
}

std::string DeviceModels::name() const
{
    assert(chosen());
    return nvme_->parsed() ? nvme_->get_name() : testdev_->get_name();
}

std::uint64_t DeviceModels::region_memory_size() const
{
    assert(chosen());
    return testdev_->parsed() ? testdev::region_memory_size(testdev_options_) : 0;
}

std::string DeviceModels::missing() const
{
    assert(chosen());
    return nvme_->parsed() ? nvme::missing_backing(nvme_options_) : std::string{};
}

guest::Result<std::unique_ptr<guest::DeviceModel>> DeviceModels::create(guest::DeviceServices services) const
{
    assert(chosen());
    return nvme_->parsed() ? nvme::make_nvme(nvme_options_, services)
                           : testdev::make_testdev(testdev_options_, services);
}

std::vector<std::string> DeviceModels::names()
{
    return {"nvme", "testdev"};
}

}  // namespace vvfu::cli
