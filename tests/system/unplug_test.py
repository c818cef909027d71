# SPDX-License-Identifier: BSD-3-Clause
"""The function is plugged into and out of the device VM, under load. The test plays the driver VM."""

import os
import re
import struct
import threading

import pytest

from qemuport import peer as client
from vmlab.topology import DeviceVm
from vmlab.vm import wait_until

TIMES = 20
MEMORY = 4 << 20
HALF = MEMORY // 2
BAR0, CONFIG = 0, 7
COMMAND = 4
SOURCE, DESTINATION, LENGTH, START, STATUS = 0xC0, 0xC8, 0xD0, 0xD8, 0xDC
COPY, BUSY, DONE = 1, 1, 2
UUID = "12345678-9abc-def0-1234-56789abcdef0"
EXIT_GONE = 4


@pytest.fixture(scope="module")
def device(lab):
    machine = lab.device_vm(hot_plug=True).start()
    machine.wait_ready()
    return machine


class Engine(client.Peer):
    """The DMA engine of testdev, by trapped accesses."""

    def __init__(self, path):
        super().__init__(path)
        self.fd, self.memory = client.shared_memory(MEMORY)
        self.copies = 0
        self.send_version()
        assert self.receive()[:2] == (client.VERSION, 0)
        assert self.call(client.DMA_MAP, struct.pack("=IIQQQ", 32, client.READ | client.WRITE, 0, 0, MEMORY),
                         [self.fd])[1] == 0
        self.write(CONFIG, COMMAND, struct.pack("<H", 6))  # memory space, bus master

    def close(self):
        super().close()
        os.close(self.fd)

    def write(self, region, offset, data):
        assert self.call(client.REGION_WRITE, struct.pack("=QII", offset, region, len(data)) + data)[1] == 0

    def read32(self, region, offset):
        _, error, payload, _ = self.call(client.REGION_READ, struct.pack("=QII", offset, region, 4))
        assert error == 0
        return struct.unpack("<I", payload[16:20])[0]

    def start_copy(self):
        self.write(BAR0, SOURCE, struct.pack("<Q", 0))
        self.write(BAR0, DESTINATION, struct.pack("<Q", HALF))
        self.write(BAR0, LENGTH, struct.pack("<Q", HALF))
        self.write(BAR0, START, struct.pack("<I", COPY))

    def copy(self, data):
        self.memory[:HALF] = data
        self.start_copy()
        wait_until(lambda: self.read32(BAR0, STATUS) != BUSY, 20, "the copy ends")
        assert self.read32(BAR0, STATUS) == DONE
        assert self.memory[HALF:] == data

    def copy_until_closed(self):
        """Keeps the engine busy until the device ends the connection, and counts in self.copies."""
        try:
            while True:
                self.start_copy()
                while self.read32(BAR0, STATUS) == BUSY:
                    pass
                self.copies += 1
        except (EOFError, ConnectionError):
            pass


def start_guest(device, options, name):
    device.run(f"vvfu-guest {options} testdev >/tmp/{name}.log 2>&1 & echo $! >/tmp/{name}.pid")


def ended(device, name):
    """The guest driver's exit status, when it has one. The agent's shell is its parent only for the command."""
    return device.run(f"kill -0 $(cat /tmp/{name}.pid)", check=False)[0] != 0


def log_of(device, name):
    """Its messages so far; the shell that starts it in the background may not even have made the file."""
    return device.run(f"touch /tmp/{name}.log; cat /tmp/{name}.log")


def serves(device):
    wait_until(device.socket.is_socket, 60, "vvfu-guest serves")


def test_function_is_unplugged_under_io_twenty_times(device):
    start_guest(device, f"--wait --uuid={UUID}", "wait")
    device.qmp.execute("object-add", **{"qom-type": "iothread", "id": "io"})
    for round_number in range(TIMES):
        device.plug(uuid=UUID, **({"iothread": "io"} if round_number % 2 else {}))
        serves(device)
        with Engine(device.socket) as peer:
            peer.copy(os.urandom(HALF))
            load = threading.Thread(target=peer.copy_until_closed)
            load.start()
            wait_until(lambda: peer.copies >= 5, 20, "copies are made")
            device.qmp.execute("device_del", id="vvfu")
            device.wait_unplugged()
            load.join()
        assert not ended(device, "wait"), f"round {round_number}: {log_of(device, 'wait')}"
    assert log_of(device, "wait").count("is being unplugged") == TIMES
    assert "abandoned" not in log_of(device, "wait")
    device.run("kill $(cat /tmp/wait.pid)")
    wait_until(lambda: ended(device, "wait"), 20, "vvfu-guest ends")


def test_without_wait_it_exits_with_a_status_of_its_own(device):
    device.plug()
    device.run(f"(vvfu-guest --device={DeviceVm.HOT_PLUGGED} testdev >/tmp/once.log 2>&1; echo $? >/tmp/once.status) &")
    serves(device)
    with Engine(device.socket) as peer:
        peer.copy(os.urandom(HALF))
        device.qmp.execute("device_del", id="vvfu")
        assert peer.closed_by_device()
        device.wait_unplugged()
    wait_until(lambda: device.run("test -s /tmp/once.status", check=False)[0] == 0, 20, "vvfu-guest ends")
    assert int(device.run("cat /tmp/once.status")) == EXIT_GONE, log_of(device, "once")


def test_it_waits_for_its_backing_too(device):
    device.plug()
    device.run(f"vvfu-guest --wait --device={DeviceVm.HOT_PLUGGED} nvme --backing=/tmp/late.img >/tmp/late.log 2>&1 & "
               "echo $! >/tmp/late.pid")
    wait_until(lambda: 'backing "/tmp/late.img" does not exist' in log_of(device, "late"), 20, "vvfu-guest waits")
    assert not device.socket.exists()
    device.run("truncate -s 16M /tmp/late.img")
    serves(device)
    device.run("kill $(cat /tmp/late.pid)")
    wait_until(lambda: ended(device, "late"), 20, "vvfu-guest ends")
    assert not device.socket.exists()


def test_it_is_confined_while_it_serves(device):
    for name, options in (("narrow", f"--device={DeviceVm.HOT_PLUGGED}"),
                          ("wide", f"--wait --device={DeviceVm.HOT_PLUGGED}"),
                          ("user", f"--user=65534:65534 --device={DeviceVm.HOT_PLUGGED}")):
        start_guest(device, options, name)
        serves(device)
        with Engine(device.socket) as peer:
            peer.copy(os.urandom(HALF))
            status = device.run(f"cat /proc/$(cat /tmp/{name}.pid)/task/*/status")
        threads = len(re.findall(r"^Name:", status, re.M))
        assert len(re.findall(r"^Seccomp:\s2$", status, re.M)) == threads
        assert len(re.findall(r"^NoNewPrivs:\s1$", status, re.M)) == threads
        assert len(re.findall(r"^CapPrm:\s0+$", status, re.M)) == threads
        assert len(re.findall(r"^Uid:\s65534\s", status, re.M)) == (threads if name == "user" else 0)
        device.run(f"kill $(cat /tmp/{name}.pid)")
        wait_until(lambda: ended(device, name), 20, "vvfu-guest ends")
        assert "stopping" in log_of(device, name)
