# SPDX-License-Identifier: BSD-3-Clause
"""Two VMs: the driver guest drives testdev (guest-driver/testdev/README.md) by its BARs, without any driver."""

import zlib

import pytest

# Kept away from the guest's kernel, so that /dev/mem may be used for it.
BUFFER = 0x10000000
BUFFER_SIZE = 5 << 20
MAPPED, TRAPPED = 0x1000, 0x8000  # offsets in BAR 2
IDENTITY = 0x44545656
DONE, FAULT, TOO_LARGE, BAD_COMMAND, NO_BUS_MASTER = 2, 0x10, 0x14, 0x15, 0x16


class Testdev:
    """testdev, as the driver guest reaches it through /dev/mem."""

    __test__ = False  # not a test class

    def __init__(self, vm):
        self.vm = vm
        self.path = vm.run("dirname $(grep -l 0x7664 /sys/bus/pci/devices/*/device)").strip()
        vm.run(f"echo 1 >{self.path}/enable")
        resources = vm.run(f"cat {self.path}/resource").splitlines()
        self.bars = [int(line.split()[0], 16) for line in resources[:6]]
        self.bus_master(True)

    def bus_master(self, on):
        self.vm.run(f"printf '\\x0{6 if on else 2}' | dd of={self.path}/config bs=1 seek=4 conv=notrunc 2>/dev/null")

    def memory_read(self, address, width=32):
        return int(self.vm.run(f"devmem {address:#x} {width}"), 16)

    def memory_write(self, address, value, width=32):
        self.vm.run(f"devmem {address:#x} {width} {value:#x}")

    def read(self, offset, width=32, bar=0):
        return self.memory_read(self.bars[bar] + offset, width)

    def write(self, offset, value, width=32, bar=0):
        self.memory_write(self.bars[bar] + offset, value, width)

    def transfer(self, command, source=0, destination=0, length=0):
        """Runs a DMA command; returns its final status."""
        base = self.bars[0]
        return int(self.vm.run(
            f"devmem {base + 0xc0:#x} 64 {source:#x}; devmem {base + 0xc8:#x} 64 {destination:#x}; "
            f"devmem {base + 0xd0:#x} 64 {length:#x}; devmem {base + 0xd8:#x} 32 {command}; "
            f"while s=$(devmem {base + 0xdc:#x} 32); [ $((s)) = 1 ]; do :; done; echo $s"), 16)


def start(lab, **options):
    vm = lab.driver_vm(append=f"memmap={BUFFER_SIZE:#x}${BUFFER:#x}", **options).start()
    vm.wait_ready()
    return Testdev(vm)


@pytest.fixture(scope="module")
def device_vm(lab):
    machine = lab.device_vm().start()
    machine.wait_ready()
    machine.bind()
    machine.start_guest_driver("testdev")
    return machine


@pytest.fixture(scope="module")
def device(lab, device_vm):
    return start(lab, name="driver")


def test_identity(device):
    assert device.read(0) == IDENTITY


@pytest.mark.parametrize("offset, width, value", [
    (0x10, 8, 0x5a), (0x12, 16, 0xbeef), (0x14, 32, 0xdeadbeef), (0x18, 64, 0x0123456789abcdef)])
def test_scratch_registers_of_every_width(device, offset, width, value):
    device.write(offset, value, width)
    assert device.read(offset, width) == value
    assert device.read(0) == IDENTITY, "a neighbour changed"


def test_bytes_of_no_register_read_as_ones(device):
    assert device.read(0x100) == 0xffffffff


def test_mapped_area_is_reached_without_the_device(device):
    before = device.read(0x50, 64), device.read(0x58, 64)
    device.write(MAPPED, 0x11223344, bar=2)
    assert device.read(MAPPED, bar=2) == 0x11223344
    assert (device.read(0x50, 64), device.read(0x58, 64)) == before, "the access was trapped"


def test_trapped_page_is_served_by_the_device(device):
    before = device.read(0x50, 64), device.read(0x58, 64)
    device.write(TRAPPED, 0x55667788, bar=2)
    assert device.read(TRAPPED, bar=2) == 0x55667788
    assert device.read(0x50, 64) == before[0] + 1 and device.read(0x58, 64) == before[1] + 1


def test_device_sees_what_the_driver_guest_wrote_through_the_mapping(device):
    device.write(MAPPED + 0x100, 0xcafef00d, bar=2)
    assert device.transfer(5, source=MAPPED + 0x100, destination=BUFFER, length=4) == DONE
    assert device.memory_read(BUFFER) == 0xcafef00d


def test_driver_guest_sees_through_the_mapping_what_the_device_wrote(device):
    device.memory_write(BUFFER + 8, 0x0badcafe)
    assert device.transfer(4, source=BUFFER + 8, destination=MAPPED + 0x200, length=4) == DONE
    assert device.read(MAPPED + 0x200, bar=2) == 0x0badcafe


def dma_round_trip(device, length):
    """Fill, copy, checksum; the expected CRC is computed here."""
    device.write(0xe4, 0xa1b2c3d4)
    assert device.transfer(2, destination=BUFFER, length=length) == DONE
    destination = BUFFER + (2 << 20)
    assert device.transfer(1, source=BUFFER, destination=destination, length=length) == DONE
    pattern = (bytes.fromhex("d4c3b2a1") * (length // 4 + 1))[:length]
    assert device.memory_read(destination + 4 * (length // 4 - 1)) == 0xa1b2c3d4
    assert device.transfer(3, source=destination, length=length) == DONE
    assert device.read(0xe8) == zlib.crc32(pattern)


@pytest.mark.parametrize("length", [4, 4095, 4096, 65537, 2 << 20])
def test_dma_engine_fills_copies_and_checks_driver_memory(device, length):
    dma_round_trip(device, length)


def test_dma_to_nowhere_is_a_fault(device):
    assert device.transfer(3, source=0x7fffffff0000, length=4096) == FAULT
    assert device.transfer(2, destination=(1 << 64) - 4096, length=8192) == FAULT
    dma_round_trip(device, 4096)


def test_dma_limits(device):
    assert device.transfer(3, source=BUFFER, length=(4 << 20) + 1) == TOO_LARGE
    assert device.transfer(77, source=BUFFER, length=4) == BAD_COMMAND


def test_dma_needs_bus_master(device):
    device.bus_master(False)
    assert device.transfer(3, source=BUFFER, length=4) == NO_BUS_MASTER
    device.bus_master(True)
    assert device.transfer(3, source=BUFFER, length=4) == DONE


def test_function_reset_clears_registers_and_bar2(device):
    device.write(0x14, 0x12345678)
    device.write(MAPPED, 0x31415926, bar=2)
    resets = device.read(0x70, 64)
    device.vm.run(f"echo 1 >{device.path}/reset", 60)
    assert device.read(0x14) == 0
    assert device.read(0x70, 64) > resets
    assert device.read(MAPPED, bar=2) == 0
    device.bus_master(True)
    dma_round_trip(device, 4096)


def test_dma_by_message_when_memory_is_not_shared(lab, device_vm, device):
    device.vm.power_off()
    unshared = start(lab, name="unshared", share=False)
    dma_round_trip(unshared, 65537)
    unshared.vm.power_off()
    device_vm.await_state("listening")
