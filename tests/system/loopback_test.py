# SPDX-License-Identifier: BSD-3-Clause
"""Stock QEMU against vvfu-loopback: the same core and device models without a device VM."""

import types

import pytest

from vmlab import guestio
from vmlab.diskimage import MIB, DiskImage, random_file

SIZE = 24 * MIB


@pytest.fixture(scope="module")
def stage(lab):
    image = DiskImage(lab.directory / "disk.img", SIZE + 8 * MIB, 48 * MIB)
    source = lab.directory / "source.img"
    digest = random_file(source, SIZE)
    server = lab.loopback("nvme", "--serial=LOOP", f"--backing={image.path}").start()
    return types.SimpleNamespace(lab=lab, image=image, source=source, digest=digest, server=server)


def test_io_filesystem_reboot_and_orderly_end(stage):
    driver = stage.lab.new_driver(stage.source)
    guestio.write_direct(driver, "/dev/vda", "/dev/nvme0n1p1", SIZE)
    assert guestio.read_direct(driver, "/dev/nvme0n1p1", SIZE)[1] == stage.digest
    driver.run("/bin/mke2fs -q -F -t ext4 /dev/nvme0n1p2 && mount -t ext4 /dev/nvme0n1p2 /mnt && "
               "dd if=/dev/vda of=/mnt/data bs=1M count=8 2>/dev/null && umount /mnt", 120)
    driver.agent.post("reboot -f")
    driver.wait_ready()
    guestio.wait_for_disk(driver)
    assert guestio.read_direct(driver, "/dev/nvme0n1p1", SIZE)[1] == stage.digest
    driver.power_off()
    assert stage.image.raw_digest(SIZE) == stage.digest


def test_killed_driver_vm_and_successor(stage):
    victim = stage.lab.new_driver(stage.source)
    victim.run("(while :; do dd if=/dev/nvme0n1p1 of=/dev/null bs=64k iflag=direct; done >/dev/null 2>&1 &)")
    guestio.wait_for_requests(victim, 500)
    victim.kill()
    successor = stage.lab.new_driver(stage.source)
    assert guestio.read_direct(successor, "/dev/nvme0n1p1", SIZE)[1] == stage.digest
    successor.power_off()


def test_memory_that_is_not_shared(stage):
    driver = stage.lab.new_driver(stage.source, share=False)
    assert guestio.read_direct(driver, "/dev/nvme0n1p1", SIZE)[1] == stage.digest
    driver.power_off()
    assert "share=on" in stage.server.qemu_log.read_text()


def test_sigterm_ends_it_and_removes_the_socket(stage):
    assert stage.server.stop() == 0
    assert not stage.server.socket.exists()
