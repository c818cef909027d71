# SPDX-License-Identifier: BSD-3-Clause
"""A driver VM with a vIOMMU against vvfu-loopback: what its guest and its resets no longer map is mapped nowhere."""

import types

import pytest

from vmlab import guestio
from vmlab.diskimage import MIB, DiskImage, random_file
from vmlab.vm import wait_until

SIZE = 2 * MIB
MEMORY = 384
DISK = "/dev/nvme0n1p1"


@pytest.fixture(scope="module")
def stage(lab):
    image = DiskImage(lab.directory / "disk.img", SIZE, SIZE)
    source = lab.directory / "source.img"
    digest = random_file(source, SIZE)
    server = lab.loopback("nvme", "--serial=VIOMMU", f"--backing={image.path}").start()
    return types.SimpleNamespace(lab=lab, source=source, digest=digest, server=server)


def mapped(stage):
    """Bytes in the window, and ranges that are there or reached by messages."""
    core = stage.server.counters()["core"]
    return core["mapped_bytes"], core["mapped_ranges"] + core["message_ranges"]


def unbind(driver, address):
    driver.run(f"echo {address} >/sys/bus/pci/drivers/nvme/unbind", 60)


def bind(driver, address):
    driver.run(f"echo {address} >/sys/bus/pci/drivers/nvme/bind", 60)
    guestio.wait_for_disk(driver)


def reads_the_same(stage, driver):
    return guestio.read_direct(driver, DISK, SIZE)[1] == stage.digest


# intel: unmaps power-of-two spans of the whole address space. virtio: exact ranges, and all of them at once.
@pytest.mark.parametrize("iommu", ["intel", "virtio"])
def test_nothing_stays_mapped_that_was_not_mapped_again(stage, iommu):
    driver = stage.lab.new_driver(stage.source, iommu=iommu, memory=MEMORY)
    address = guestio.controller(driver)["address"]
    domain = f"/sys/bus/pci/devices/{address}/iommu_group/type"
    guestio.write_direct(driver, "/dev/vda", DISK, SIZE)
    assert reads_the_same(stage, driver)
    assert mapped(stage)[0] < MEMORY * MIB // 2, "the vIOMMU is at work"

    # The driver lets go; another domain, which shows all memory, and back; the device goes and comes.
    unbind(driver, address)
    assert mapped(stage) == (0, 0)
    driver.run(f"echo identity >{domain}")
    bind(driver, address)
    assert mapped(stage)[0] == MEMORY * MIB
    assert reads_the_same(stage, driver)
    unbind(driver, address)
    driver.run(f"echo DMA >{domain}")
    assert mapped(stage) == (0, 0)
    driver.run(f"echo 1 >/sys/bus/pci/devices/{address}/remove && echo 1 >/sys/bus/pci/rescan", 60)
    guestio.wait_for_disk(driver)
    assert reads_the_same(stage, driver)

    # The whole machine is reset during transfers; what it has then is what one has that was just switched on.
    driver.run(f"(while :; do dd if={DISK} of=/dev/null bs=64k iflag=direct; done >/dev/null 2>&1 &)")
    guestio.wait_for_requests(driver, 100)
    driver.qmp.execute("stop")
    driver.qmp.execute("system_reset")
    wait_until(lambda: mapped(stage)[0] == MEMORY * MIB, 30, "the reset has mapped all memory and nothing else")
    driver.qmp.execute("cont")
    driver.wait_ready()
    guestio.wait_for_disk(driver)
    assert reads_the_same(stage, driver)
    unbind(driver, address)
    assert mapped(stage) == (0, 0)
    bind(driver, address)
    assert reads_the_same(stage, driver)
    driver.power_off()
    assert "EEXIST" not in stage.server.qemu_log.read_text()
    assert "File exists" not in driver.qemu_log.read_text()
