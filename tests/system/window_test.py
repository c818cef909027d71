# SPDX-License-Identifier: BSD-3-Clause
"""The window of the QEMU port among the other parts of the device VM's QEMU: memory map, locked memory, dumps, disks."""

import os
import struct

import pytest

from qemuport import driver as drv
from qemuport import peer as client
from qemuport.block import DONE_OK, Disk
from qemuport.machine import Machine, device_option, eventually
from qemuport.memory import add_range, remove_range
from qemuport.nbd import StallingServer
from vmlab import host

MIB = 1 << 20
DISK_SIZE = MIB


class Setup:
    """A machine with a session; `extra` are further arguments of its QEMU."""

    def __init__(self, folder, *extra, **properties):
        path = folder / "device.sock"
        options = {"window-size": 1024 * MIB, "unmap-timeout": 4000, "access-timeout": 4000, **properties}
        self.machine = Machine(folder / "qemu.log", ["-device", device_option(socket=str(path), **options), *extra])
        try:
            self.driver = drv.Driver(self.machine)
            self.driver.initialise()
            self.driver.register()
            self._session = self.driver.session(path)
            self.peer = self._session.__enter__()
        except BaseException:
            self.machine.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.__exit__(None, None, None)
        self.machine.__exit__()

    def add(self, address, size, fd, flags=client.READ | client.WRITE, offset=0):
        """Where the range is in the machine's memory; it must not be message-only."""
        window_offset = add_range(self.driver, self.peer, address, size, fd, flags, offset)
        assert window_offset is not None
        return self.driver.window + window_offset

    def remove(self, address, size):
        remove_range(self.driver, self.peer, address, size)


@pytest.fixture
def setup(tmp_path):
    with Setup(tmp_path) as running:
        yield running


def memory_of(process, name):
    with open(f"/proc/{process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) << 10


# ---- QEMU's memory map ----

def test_memory_map_and_slots_do_not_change_with_ranges(setup):
    def maps():
        return setup.machine.monitor("info mtree -f"), setup.machine.monitor("info ramblock")

    before = maps()
    assert "ramd" in next(line for line in before[0].splitlines() if "virtio-vfio-user-window" in line)
    fd, _ = client.shared_memory(MIB)
    for index in range(20):
        setup.add(index << 24, 4096, fd, flags=client.READ if index % 2 else client.READ | client.WRITE,
                  offset=8192 * index)
    assert maps() == before
    for index in range(0, 20, 2):
        setup.remove(index << 24, 4096)
    assert maps() == before


def test_range_and_hole_side_by_side(setup):
    """Every page of a range is the peer's, none of its neighbours is; later ranges find the room of earlier ones."""
    fd, memory = client.shared_memory(64 * 4096)
    windows = [setup.add(index << 24, 4096, fd, offset=4096 * index) for index in range(64)]
    for index in range(0, 64, 2):
        setup.remove(index << 24, 4096)
    for window in windows:
        setup.machine.write(window, b"W")
    assert [memory[4096 * i] for i in range(64)] == [0, ord("W")] * 32
    for index in range(0, 64, 2):
        window = setup.add(index << 24, 4096, fd, offset=4096 * index)
        setup.machine.write(window, b"X")
    assert [memory[4096 * i] for i in range(64)] == [ord("X"), ord("W")] * 32


#= VVFU-WINDOW-2
#= type=test
def test_too_much_read_only_memory_is_message_only(setup):
    fd, _ = client.shared_memory(300 * MIB)
    assert add_range(setup.driver, setup.peer, 0, 257 * MIB, fd, client.READ) is None
    assert add_range(setup.driver, setup.peer, 1 << 40, 200 * MIB, fd, client.READ) is not None
    assert add_range(setup.driver, setup.peer, 2 << 40, 100 * MIB, fd, client.READ) is None
    setup.remove(1 << 40, 200 * MIB)
    assert add_range(setup.driver, setup.peer, 3 << 40, 100 * MIB, fd, client.READ) is not None


#= VVFU-WINDOW-5
#= type=test
def test_scratch_memory_is_bounded(setup):
    for offset in range(0, 1024 * MIB, 64 << 10):
        setup.machine.write(setup.driver.window + offset, b"fill")
    files = [f"/proc/{setup.machine.process.pid}/fd/{fd}" for fd in os.listdir(f"/proc/{setup.machine.process.pid}/fd")]
    scratch = [os.stat(file) for file in files if "memfd:virtio-vfio-user-window" in os.readlink(file)]
    assert len(scratch) == 1 and scratch[0].st_blocks * 512 <= 2 * MIB


def test_unplug_with_ranges_in_the_window(tmp_path):
    path = tmp_path / "device.sock"
    with Machine(tmp_path / "qemu.log", ["-device", "pcie-root-port,id=rp,addr=05.0"]) as machine:
        port = drv.Driver.__new__(drv.Driver)
        port.machine, port.bus, port.slot = machine, 0, 5
        for offset, value in ((0x18, 0x010100), (0x20, 0xFE30FE00), (0x24, 0xFFF10001), (0x28, 0x10), (0x2C, 0x40), (4, 6)):
            port.set_config(offset, value)
        fd, memory = client.shared_memory(MIB)
        for round_number in range(3):
            machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path),
                                **{"window-size": 64 * MIB})
            driver = drv.Driver(machine, slot=0, bus=1)
            driver.initialise()
            driver.register()
            with driver.session(path) as peer:
                window = driver.window + add_range(driver, peer, 0, MIB, fd)
                add_range(driver, peer, 1 << 40, MIB, fd, client.READ)
                machine.write(window + round_number, b"W")
                assert memory[round_number] == ord("W")
                machine.qmp.execute("device_del", id="vvfu")
                machine.qmp.execute("system_reset")  # nobody runs the guest's side of the hot-unplug
                eventually(lambda: "vvfu" not in machine.monitor("info qtree"), "the function is gone")
            eventually(lambda: not mapped_lines(machine.process, "memfd:"), "its addresses are free")
            for offset, value in ((0x18, 0x010100), (0x20, 0xFE30FE00), (0x24, 0xFFF10001), (0x28, 0x10), (0x2C, 0x40),
                                  (4, 6)):
                port.set_config(offset, value)


def mapped_lines(process, text):
    with open(f"/proc/{process.pid}/maps", encoding="ascii") as maps:
        return [line for line in maps if text in line]


# ---- locked memory ----

def test_locked_memory_does_not_allocate_the_peers(tmp_path):
    with Setup(tmp_path, "-overcommit", "mem-lock=on") as setup:
        fd, memory = client.shared_memory(768 * MIB)
        window = setup.add(1 << 32, 512 * MIB, fd)
        read_only = setup.add(2 << 32, 128 * MIB, fd, client.READ, offset=512 * MIB)
        assert os.fstat(fd).st_blocks == 0, "nothing of the peer's memory was touched"
        memory[512 * MIB:512 * MIB + 4] = b"live"
        assert setup.machine.read(read_only, 4) == b"live", "the range is no copy"
        setup.machine.write(window, b"W")
        resident = memory_of(setup.machine.process, "VmRSS")
        setup.remove(1 << 32, 512 * MIB)
        setup.remove(2 << 32, 128 * MIB)
        assert os.fstat(fd).st_blocks * 512 <= 2 * 4096
        assert memory_of(setup.machine.process, "VmRSS") <= resident + 2 * MIB


# ---- dumps ----

def test_dump_of_the_guest_holds_nothing_of_the_peer(setup, tmp_path):
    marker = os.urandom(32)
    fd, memory = client.shared_memory(MIB)
    memory[:32] = marker
    window = setup.add(0, MIB, fd)
    assert setup.machine.read(window, 32) == marker
    setup.machine.write(0x100, b"the device guest's own memory")
    setup.machine.qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{tmp_path / 'dump'}")
    dump = (tmp_path / "dump").read_bytes()
    assert b"the device guest's own memory" in dump
    assert marker not in dump


# ---- disks of the device VM ----

@pytest.fixture
def disk_image(tmp_path):
    image = tmp_path / "disk"
    image.write_bytes(b"D" * DISK_SIZE)
    return image


def disk_options(image, **properties):
    """A disk whose reads can be stopped on their way."""
    text = "".join(f",{name}={value}" for name, value in properties.items())
    return ("-blockdev", f"driver=file,node-name=file,filename={image}",
            "-blockdev", "driver=blkdebug,node-name=debug,image=file",
            "-blockdev", "driver=raw,node-name=raw,file=debug",
            "-device", f"virtio-blk-pci,id=disk,addr=05.0,drive=raw,disable-legacy=on,iommu_platform=on{text}")


#= VVFU-WINDOW-4
#= type=test
def test_disk_read_under_way_does_not_reach_memory_that_was_unmapped(tmp_path, disk_image):
    with Setup(tmp_path, *disk_options(disk_image)) as setup:
        disk = Disk(setup.machine)
        fd, memory = client.shared_memory(MIB)
        window = setup.add(0, MIB, fd)
        disk.start_read(window, 4096)
        assert eventually_status(disk) == DONE_OK and memory[:4096] == b"D" * 4096
        memory[:4096] = bytes(4096)
        debug_disk(setup.machine, "break read_aio held")
        disk.start_read(window, 4096)
        debug_disk(setup.machine, "wait_break held")
        setup.remove(0, MIB)
        assert disk.status() is None
        debug_disk(setup.machine, "resume held")
        assert eventually_status(disk) == DONE_OK
        assert memory[:4096] == bytes(4096)


#= VVFU-WINDOW-4
#= type=test
def test_kernel_copies_no_disk_data_into_memory_that_was_unmapped(tmp_path):
    server = StallingServer(tmp_path / "nbd", DISK_SIZE, b"D", stall_from=4096)
    disk_arguments = ("-blockdev", f"driver=nbd,node-name=raw,server.type=unix,server.path={tmp_path / 'nbd'}",
                      "-device", "virtio-blk-pci,id=disk,addr=05.0,drive=raw,disable-legacy=on,iommu_platform=on")
    with Setup(tmp_path, *disk_arguments) as setup:
        disk = Disk(setup.machine)
        fd, memory = client.shared_memory(MIB)
        window = setup.add(0, MIB, fd)
        server.stalls = True

        def start_read(address):
            disk.start_read(address, 4096)
            assert server.half_way.wait(host.deadline(20))
            eventually(server.delivered, "the first half is where QEMU wants it")

        # Into the machine's own memory the host's kernel copies by itself: from a socket, as from a file with cache=none.
        own = drv.RAM + 0x200000
        start_read(own)
        assert setup.machine.read(own, 4096) == b"D" * 2048 + bytes(2048)
        server.resume()
        assert eventually_status(disk) == DONE_OK
        # Not so into the window, of which nobody can say when the kernel has done with it.
        start_read(window)
        assert memory[:4096] == bytes(4096)
        server.resume()
        assert eventually_status(disk) == DONE_OK and memory[:4096] == b"D" * 4096
        memory[:4096] = bytes(4096)
        start_read(window)
        setup.remove(0, MIB)
        server.resume()
        assert eventually_status(disk) == DONE_OK
        assert memory[:4096] == bytes(4096)


def debug_disk(machine, command):
    machine.monitor(f'qemu-io -d /machine/peripheral/disk/virtio-backend "{command}"')


def eventually_status(disk):
    result = []
    eventually(lambda: result.append(disk.status()) or result[-1] is not None, "the disk's answer")
    return result[-1]


def test_disk_reads_into_a_hole_complete(tmp_path, disk_image):
    with Setup(tmp_path, *disk_options(disk_image, **{"x-max-bounce-buffer-size": MIB})) as setup:
        disk = Disk(setup.machine)
        fd, memory = client.shared_memory(MIB)
        window = setup.add(0, MIB, fd)
        disk.start_read(window, 65536)
        assert eventually_status(disk) == DONE_OK and memory[:65536] == b"D" * 65536
        memory[:65536] = bytes(65536)
        setup.remove(0, MIB)
        for _ in range(4):
            disk.start_read(window, 65536)
            assert eventually_status(disk) == DONE_OK
        assert not disk.needs_reset()
        assert memory[:65536] == bytes(65536)


# ---- figures ----

COUNTS = (10, 1000, 30000)
PAIRS = 200
IN_FLIGHT = 6


def cpu_time(process):
    """Nanoseconds that all threads of a process ran."""
    total = 0
    for task in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{task}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


def add_many(setup, fd, first, count):
    """Maps single pages far apart in the file, so that the kernel joins none; returns how many are message-only."""
    refused = 0
    for start in range(first, first + count, IN_FLIGHT):
        batch = range(start, min(start + IN_FLIGHT, first + count))
        for index in batch:
            setup.peer.send(client.DMA_MAP, client.dma_map(index << 20, 4096, 3, 8192 * index), [fd])
        for _ in batch:
            request = setup.driver.expect(drv.MEMORY_INFO)
            refused += bool(struct.unpack_from("<II", request.payload)[1] & 4)
            setup.driver.reply(request)
        assert [setup.peer.receive()[1] for _ in batch] == [0] * len(batch)
    return refused


def cost_of_a_pair(setup, fd):
    """Microseconds of mapping and unmapping a page, and of the same messages for a message-only page, in turns."""
    costs = [0, 0]
    for turn in range(2 * PAIRS):
        before = cpu_time(setup.machine.process)
        add_range(setup.driver, setup.peer, 1 << 50, 4096, None if turn % 2 else fd)
        remove_range(setup.driver, setup.peer, 1 << 50, 4096)
        costs[turn % 2] += cpu_time(setup.machine.process) - before
    return [cost / PAIRS / 1000 for cost in costs]


def test_tens_of_thousands_of_ranges(setup, capsys):
    fd, memory = client.shared_memory(8192 * 32768)
    costs, mapped = [], 0
    for count in COUNTS:
        assert add_many(setup, fd, mapped, count - mapped) == 0
        mapped = count
        costs.append(cost_of_a_pair(setup, fd))
    assert add_many(setup, fd, mapped, 32768 - mapped) == 0
    assert setup.machine.property("mapped-ranges") == 32768
    with capsys.disabled():
        print("\nQEMU's CPU time for DMA_MAP and DMA_UNMAP of a page: " +
              ", ".join(f"{cost:.0f} us with {count} ranges ({messages:.0f} of it messages over qtest)"
                        for count, (cost, messages) in zip(COUNTS, costs)))
    setup.peer.close()
    setup.driver.end_session()
    assert not mapped_lines(setup.machine.process, "memfd:memory")
    memory[0] = 0
