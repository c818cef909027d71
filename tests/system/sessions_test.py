# SPDX-License-Identifier: BSD-3-Clause
"""Two VMs: what happens when a driver VM, the guest driver or a guest comes and goes."""

import os
import pathlib
import types

import pytest

from vmlab import guestio
from vmlab.diskimage import MIB, random_file
from vmlab.topology import FUNCTION

SIZE = 16 * MIB


@pytest.fixture(scope="module")
def stage(lab):
    source = lab.directory / "source.img"
    digest = random_file(source, SIZE)
    image = lab.directory / "disk.img"  # begins with the same data, so that no case depends on the one before
    image.write_bytes(source.read_bytes())
    os.truncate(image, 64 * MIB)
    device = lab.device_vm(image).start()
    device.wait_ready()
    device.bind()
    device.start_guest_driver()
    return types.SimpleNamespace(lab=lab, image=image, source=source, digest=digest, device=device)


def open_files(process):
    return sorted(os.readlink(entry) for entry in pathlib.Path(f"/proc/{process.pid}/fd").iterdir())


def mapped_guest_memory(process):
    """Mappings of a driver VM's RAM in a device VMM."""
    maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return [line for line in maps if "memfd:memory-backend-memfd" in line]


def write_source(driver):
    guestio.write_direct(driver, "/dev/vda", "/dev/nvme0n1", SIZE)


def reads_the_same(stage, driver):
    return guestio.read_direct(driver, "/dev/nvme0n1", SIZE)[1] == stage.digest


def test_second_driver_vm_finds_what_the_first_wrote(stage):
    idle_files = open_files(stage.device.process)
    first = stage.lab.new_driver(stage.source)
    guestio.write_direct(first, "/dev/vda", "/dev/nvme0n1 seek=32", SIZE)
    assert mapped_guest_memory(stage.device.process)
    first.power_off()
    stage.device.await_state("listening")
    assert mapped_guest_memory(stage.device.process) == []
    assert open_files(stage.device.process) == idle_files

    second = stage.lab.new_driver(stage.source)
    assert stage.device.property("epoch") == 2
    assert guestio.read_direct(second, "/dev/nvme0n1 skip=32", SIZE)[1] == stage.digest
    second.power_off()


def test_second_peer_is_refused_while_one_is_served(stage):
    first = stage.lab.new_driver(stage.source)
    refused = stage.lab.driver_vm("refused").start()
    assert refused.wait_exit() != 0
    refused.close()
    write_source(first)
    assert reads_the_same(stage, first)
    first.power_off()


def test_killed_driver_vm_costs_only_its_session(stage):
    stage.device.await_state("listening")
    idle_files = open_files(stage.device.process)
    victim = stage.lab.new_driver(stage.source)
    write_source(victim)
    victim.run("(while :; do dd if=/dev/zero of=/dev/nvme0n1 seek=32 bs=1M count=16 oflag=direct; done >/dev/null 2>&1 & "
               "while :; do dd if=/dev/nvme0n1 of=/dev/null bs=4k count=4096 iflag=direct; done >/dev/null 2>&1 &)")
    guestio.wait_for_requests(victim, 500)
    victim.kill()
    stage.device.await_state("listening")
    assert mapped_guest_memory(stage.device.process) == []
    assert open_files(stage.device.process) == idle_files

    successor = stage.lab.new_driver(stage.source)
    assert reads_the_same(stage, successor)
    write_source(successor)
    assert reads_the_same(stage, successor)
    successor.power_off()


def test_driver_vm_without_shared_memory_does_io_by_message(stage):
    driver = stage.lab.new_driver(stage.source, share=False)
    assert stage.device.property("session-state") == "connected"
    assert mapped_guest_memory(stage.device.process) == []
    assert "share=on" in stage.device.qemu_log.read_text(), "the warning names the remedy"
    assert guestio.read_direct(driver, "/dev/nvme0n1", SIZE)[1] == stage.digest
    driver.run("dd if=/dev/vda of=/dev/nvme0n1 bs=1M skip=4 count=4 oflag=direct conv=fsync 2>/dev/null", 120)
    expected = driver.run("dd if=/dev/vda bs=1M skip=4 count=4 2>/dev/null | sha256sum")
    assert driver.run("dd if=/dev/nvme0n1 bs=1M count=4 iflag=direct 2>/dev/null | sha256sum", 120) == expected
    driver.power_off()
    stage.device.run("sync", 60)
    with open(stage.image, "rb") as image, open(stage.source, "rb") as source:
        source.seek(4 * MIB)
        assert image.read(4 * MIB) == source.read(4 * MIB)


def test_driver_guest_behind_a_viommu_maps_and_unmaps_for_every_transfer(stage):
    driver = stage.lab.new_driver(stage.source, iommu="intel")
    before = stage.device.property("requests")
    write_source(driver)
    assert reads_the_same(stage, driver)
    # 128 KiB is the largest transfer that dd's 1 MiB blocks become at most; each is mapped and unmapped at least once.
    assert stage.device.property("requests") - before > 100
    driver.power_off()
    stage.device.await_state("listening")
    assert mapped_guest_memory(stage.device.process) == []


def test_terminated_guest_driver_ends_the_session_and_serves_again(stage):
    driver = stage.lab.new_driver(stage.source)
    stage.device.stop_guest_driver("TERM")
    stage.device.await_state("no driver")
    assert mapped_guest_memory(stage.device.process) == []
    assert driver.alive(), "the driver VM loses a device, not its life"
    driver.kill()
    stage.device.start_guest_driver()
    driver = stage.lab.new_driver(stage.source)
    write_source(driver)
    assert reads_the_same(stage, driver)
    driver.power_off()


def test_killed_guest_driver_ends_the_session_and_serves_again(stage):
    driver = stage.lab.new_driver(stage.source)
    driver.run("(while :; do dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct; done >/dev/null 2>&1 &)")
    stage.device.stop_guest_driver("KILL")
    stage.device.await_state("no driver")
    assert mapped_guest_memory(stage.device.process) == []
    assert not stage.device.socket.exists()
    driver.kill()
    stage.device.start_guest_driver()
    driver = stage.lab.new_driver(stage.source)
    assert reads_the_same(stage, driver)
    driver.power_off()


def test_stopped_guest_driver_does_not_hang_the_driver_vm(stage):
    """The device guest answers nothing: reads get all-ones in time, and the peer's VMM stays responsive."""
    driver = stage.lab.new_driver(stage.source)
    address = guestio.controller(driver)["address"]
    stage.device.run("kill -STOP $(cat /tmp/vvfu-guest.pid)")
    # A configuration read goes all the way to vvfu-guest; access-timeout is 2 s, QEMU's client gives up after 5 s.
    value = driver.run(f"dd if=/sys/bus/pci/devices/{address}/config bs=1 skip=64 count=1 2>/dev/null | od -An -tx1", 30)
    assert value.split() and driver.qmp.execute("query-status")["running"]
    assert stage.device.property("session-state") == "connected"
    driver.kill()
    stage.device.run("kill -CONT $(cat /tmp/vvfu-guest.pid)")
    stage.device.await_state("listening")
    driver = stage.lab.new_driver(stage.source)
    assert reads_the_same(stage, driver)
    driver.power_off()


def test_device_guest_reboot_ends_the_session_and_serves_again(stage):
    driver = stage.lab.new_driver(stage.source)
    stage.device.agent.post("reboot -f")
    stage.device.wait_ready()
    stage.device.await_state("no driver")
    assert mapped_guest_memory(stage.device.process) == []
    assert driver.alive()
    driver.kill()
    stage.device.bind(FUNCTION)
    stage.device.start_guest_driver()
    driver = stage.lab.new_driver(stage.source)
    assert reads_the_same(stage, driver)
    driver.power_off()


def test_killed_device_vm_leaves_the_driver_vm_alive(stage):
    driver = stage.lab.new_driver(stage.source)
    stage.device.kill()
    assert driver.qmp.execute("query-status")["running"]
    assert driver.run("echo alive").strip() == "alive"
    driver.kill()
