# SPDX-License-Identifier: BSD-3-Clause
"""One device VM and driver VMs of unusual build: hot-plugged memory, memory in files, three at once, each with another kind
of interrupts, functions that come and go, booted from the disk."""

import os
import shutil
import struct
import subprocess
import types

import pytest

from vmlab import guestio, host
from vmlab.diskimage import MIB, random_file
from vmlab.topology import DeviceVm, device_json, plug_into_driver, unplug_from_driver
from vmlab.vm import wait_until

SIZE = 16 * MIB
EXIT_PORT = 0x501
BOOTED, UEFI_BOOTED, READ_FAILED = 0x21, 0x22, 1


def exit_status(value):
    """QEMU's, for a byte written to isa-debug-exit."""
    return value << 1 | 1


@pytest.fixture(scope="module")
def stage(lab):
    source = lab.directory / "source.img"
    digest = random_file(source, SIZE)
    image = lab.directory / "disk.img"
    image.write_bytes(source.read_bytes())
    os.truncate(image, 64 * MIB)
    device = lab.device_vm(image, functions=3, more="trust-peer-memory=on").start()
    device.wait_ready()
    device.bind()
    device.start_guest_driver()
    for function, socket, interrupts in zip(("0000:00:0b.0", "0000:00:0c.0"), device.sockets[1:], ("intx", "msi")):
        device.bind(function)
        device.run(f"vvfu-guest --device={function} nvme --interrupts={interrupts} --backing=mem:64M >/tmp/{function}.log 2>&1 &")
        wait_until(socket.is_socket, 60, "vvfu-guest serves")
    return types.SimpleNamespace(lab=lab, image=image, source=source, digest=digest, device=device)


def writes_and_reads(stage, driver):
    guestio.write_direct(driver, "/dev/vda", "/dev/nvme0n1 seek=32", SIZE)
    return guestio.read_direct(driver, "/dev/nvme0n1 skip=32", SIZE)[1] == stage.digest


def test_memory_plugged_in_while_the_device_is_used(stage):
    base, more = 320, 512
    driver = stage.lab.new_driver(stage.source, memory=base, hot_plug=more, append="memhp_default_state=online")
    mapped, by_message = (stage.device.property(name) for name in ("mapped-bytes", "message-ranges"))
    driver.qmp.execute("object-add", **{"qom-type": "memory-backend-memfd", "id": "more", "size": more * MIB, "share": True})
    driver.qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
    stage.device.await_property("mapped-bytes", mapped + more * MIB)
    total = "$(awk '/MemTotal/ {print $2}' /proc/meminfo)"
    driver.run(f"until [ {total} -gt {(base + more // 2) << 10} ]; do usleep 50000; done", 60)
    # One buffer that the old memory could not hold.
    expected = driver.run("(cat /dev/nvme0n1 | sha256sum) </dev/null", 120)
    assert driver.run(f"dd if=/dev/nvme0n1 bs={base}M iflag=direct,fullblock 2>/dev/null | sha256sum", 120) == expected
    assert writes_and_reads(stage, driver)
    assert stage.device.property("message-ranges") == by_message, "all of it is in the window"
    driver.power_off()


def test_memory_in_a_file_that_could_shrink_is_reached_by_messages(stage):
    memory = stage.lab.directory / "memory"
    driver = stage.lab.new_driver(stage.source, backend=f"memory-backend-file,share=on,mem-path={memory}")
    assert stage.device.property("mapped-bytes") == 0
    assert stage.device.property("message-ranges") > 0
    assert "F_SEAL_SHRINK" in stage.device.qemu_log.read_text()
    assert guestio.read_direct(driver, "/dev/nvme0n1", MIB)[1] == driver.run(
        "dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum").split()[0]
    driver.power_off()
    memory.unlink()


def test_memory_in_a_file_is_mapped_if_the_peer_is_trusted(stage):
    memory = stage.lab.directory / "memory"
    driver = stage.lab.new_driver(stage.source, backend=f"memory-backend-file,share=on,mem-path={memory}",
                                  socket=stage.device.sockets[1])
    assert stage.device.property("mapped-bytes", "vvfu2") > 0
    assert writes_and_reads(stage, driver)
    driver.power_off()
    memory.unlink()


def test_three_driver_vms_on_three_functions(stage):
    drivers = []
    for number, socket in enumerate(stage.device.sockets):
        drivers.append(stage.lab.driver_vm(f"one-of-three-{number}", source=stage.source, socket=socket).start())
    for driver in drivers:
        driver.wait_ready()
        guestio.wait_for_disk(driver)
    # All at the same time, each with its own data.
    for number, driver in enumerate(drivers):
        driver.run(f"(tr '\\000-\\377' '\\00{number}-\\377' </dev/vda | head -c {SIZE} >/tmp/data; "
                   "for i in 1 2 3; do dd if=/tmp/data of=/dev/nvme0n1 bs=64k oflag=direct; done; touch /tmp/done) "
                   ">/dev/null 2>&1 &")
    for driver in drivers:
        driver.run("until [ -e /tmp/done ]; do usleep 50000; done", 120)
    for driver in drivers:
        assert guestio.read_direct(driver, "/dev/nvme0n1", SIZE)[1] == guestio.digest(driver, "/tmp/data")
    for driver in drivers:
        driver.power_off()


def test_msi_with_interrupt_remapping_gives_each_queue_its_vector(stage):
    driver = stage.lab.new_driver(stage.source, iommu="intel", socket=stage.device.sockets[2])
    for cpu in (0, 1):
        driver.run(f"taskset {cpu + 1} dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null")
    seen = guestio.interrupts(driver)
    assert set(seen) == {"nvme0q0", "nvme0q1", "nvme0q2"}
    for queue in ("nvme0q1", "nvme0q2"):
        assert "MSI-" in seen[queue][1] and "MSIX" not in seen[queue][1].replace("-", "")
        assert seen[queue][0] >= 32, seen
    driver.power_off()


# Without MSI-X, which stock QEMU does not survive.
@pytest.mark.parametrize("function, kind, times", [(3, "MSI-", 20), (2, "IO-APIC", 3)])
def test_function_comes_and_goes_under_io(stage, function, kind, times):
    socket, identifier = stage.device.sockets[function - 1], f"vvfu{function}"
    driver = stage.lab.new_driver(stage.source, slot=True)
    first_session = stage.device.property("epoch", identifier) + 1
    for number in range(times):
        plug_into_driver(driver, socket)
        guestio.wait_for_disk(driver)
        assert stage.device.property("epoch", identifier) == first_session + number
        if number == 0:
            guestio.write_direct(driver, "/dev/vda", "/dev/nvme0n1", SIZE)
            assert all(kind in chip for _, chip in guestio.interrupts(driver).values())
            head = driver.run("dd if=/dev/vda bs=1M count=2 2>/dev/null | sha256sum")
        assert driver.run("dd if=/dev/nvme0n1 bs=1M count=2 iflag=direct 2>/dev/null | sha256sum") == head
        for copy in ("if=/dev/nvme0n1 of=/dev/null iflag=direct", "if=/dev/vda of=/dev/nvme0n1 seek=512 oflag=direct"):
            driver.run(f"(while [ -b /dev/nvme0n1 ]; do dd bs=64k {copy}; done; echo >>/tmp/over) >/dev/null 2>&1 &")
        guestio.wait_for_requests(driver, 100)
        unplug_from_driver(driver)
        # dd leaves a file behind when the disk goes just before it opens it.
        driver.run("until [ $(cat /tmp/over | wc -l) -eq 2 ] && [ ! -e /sys/class/nvme/nvme0 ]; do usleep 20000; done; "
                   "rm -f /tmp/over /dev/nvme0n1", 60)
        wait_until(lambda: stage.device.property("session-state", identifier) == "listening", 20, "the session is over")
    driver.power_off()


# ---- booting from the disk ----

def boot_disk(script):
    """A FAT volume without partitions that BIOS and UEFI both boot.

    BIOS: its boot sector reads the next one with INT 13h and writes the first byte of that to the exit port. UEFI: the
    firmware's shell runs startup.nsh.
    """
    start, reserved, total, fat_sectors, root_entries = 0x3E, 2, 2048, 6, 16
    parameters = struct.pack("<8sHBHBHHBHHHII", b"VVFU    ", 512, 1, reserved, 1, root_entries, total, 0xF8, fat_sectors,
                             32, 2, 0, 0) + struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 1, b"VVFU       ", b"FAT12   ")
    packet = 0x7C00 + start + 0x20  # disk address packet: one sector to 0000:8000
    code = bytes([0x31, 0xC0, 0x8E, 0xD8, 0xBE, packet & 0xFF, packet >> 8,  # ds = 0, si = packet
                  0xB4, 0x42, 0xCD, 0x13, 0x72, 0x09,  # extended read; to "failed" on carry
                  0xA0, 0x00, 0x80,  # al = [0x8000]
                  0xBA, EXIT_PORT & 0xFF, EXIT_PORT >> 8, 0xEE, 0xF4, 0xF4,  # out; hlt
                  0xB0, READ_FAILED, 0xEB, 0xF6])  # failed: al = 1; back to the out
    packet_bytes = struct.pack("<BBHHHQ", 16, 0, 1, 0x8000, 0, 1)
    boot = (bytes([0xEB, start - 2, 0x90]) + parameters + code.ljust(0x20, b"\0") + packet_bytes).ljust(510, b"\0")
    payload = bytes([BOOTED]).ljust(512, b"\0")
    fat = bytes([0xF8, 0xFF, 0xFF, 0xFF, 0x0F, 0x00]).ljust(fat_sectors * 512, b"\0")  # cluster 2 ends the file
    entry = struct.pack("<8s3sB10sHHHI", b"STARTUP ", b"NSH", 0x20, bytes(10), 0, 0x21, 2, len(script))
    return boot + b"\x55\xaa" + payload + fat + entry.ljust(root_entries * 32, b"\0") + script.ljust(512, b"\0")


def boot(stage, firmware=(), seconds=120):
    """A driver VM with nothing but the function to boot from; returns QEMU's exit status."""
    log = stage.lab.directory / "boot.qemu.log"
    with open(log, "ab") as file:
        process = host.start_process(
            [str(host.driver_qemu()), "-nodefaults", "-no-user-config", "-display", "none", "-m", "256M",
             "-machine", "q35,memory-backend=mem", "-object", "memory-backend-memfd,id=mem,size=256M,share=on",
             "-accel", "tcg", "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x}", "-serial", f"file:{log}.serial", *firmware,
             "-device", device_json(stage.lab.socket)], file)
    try:
        return process.wait(host.deadline(seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


@pytest.fixture(scope="module")
def bootable(stage):
    """The disk behind the first function, with what firmware looks for."""
    stage.device.stop_guest_driver()
    with open(stage.image, "r+b") as image:
        image.write(boot_disk(f"mm {EXIT_PORT:x} {UEFI_BOOTED:x} -w 1 -IO -n\r\n".encode()))
    stage.device.run("echo 3 >/proc/sys/vm/drop_caches")
    stage.device.start_guest_driver()
    return stage


def test_bios_boots_from_the_disk(bootable):
    assert boot(bootable) == exit_status(BOOTED)


def test_uefi_boots_from_the_disk(bootable):
    variables = bootable.lab.directory / "OVMF_VARS.fd"
    shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", variables)
    pflash = ["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
              "-drive", f"if=pflash,format=raw,file={variables}"]
    assert boot(bootable, pflash) == exit_status(UEFI_BOOTED)
