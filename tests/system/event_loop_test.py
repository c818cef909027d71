# SPDX-License-Identifier: BSD-3-Clause
"""The QEMU port in its event loop: what an event costs, by counts; a blocked main loop, a stopped VM.

The test is guest driver and peer.
"""

import contextlib
import os
import struct
import threading

import pytest

from qemuport import driver as drv
from qemuport import peer as client
from qemuport.machine import HASTY, Machine, device_option, event_loop_options, eventually, stopped
from qemuport.memory import add_range

PAGE = 4096
NO_NOTIFY = 1
BUFFERS = drv.QUEUE_SIZE // 2
SETTLE = "virtio_vfio_user_settle"
OPENAT = "257"  # of x86-64
UNPLUGS = 10


@pytest.fixture
def machine(tmp_path, path, event_loop, deadlines):
    options, properties = event_loop_options(event_loop)
    device = device_option(socket=str(path), **properties, **deadlines,
                           **{"window-size": 1 << 20, "region-memory-size": 1 << 20})
    with Machine(tmp_path / "qemu.log", [*options, "-device", device, "-trace", "virtio_vfio_user_*"]) as running:
        yield running


def wants_kicks(driver, queue):
    return not struct.unpack("<H", driver.machine.read(driver.queues[queue].used, 2))[0] & NO_NOTIFY


def start_read(session, offset):
    session.send(client.REGION_READ, struct.pack("=QII", offset, 0, 4))


def answer_read(driver, session, request):
    driver.reply(request, request.payload + b"\x12\x34\x56\x78")
    assert session.receive()[2][16:] == b"\x12\x34\x56\x78"


def test_requests_need_no_kicks_while_there_are_buffers(machine, driver, session):
    assert not wants_kicks(driver, drv.REQUEST)
    driver.kick = lambda queue, kick=driver.kick: queue == drv.REQUEST or kick(queue)
    for i in range(3 * BUFFERS):
        start_read(session, 4 * i)
        answer_read(driver, session, driver.expect(drv.REGION_READ))
    assert not wants_kicks(driver, drv.REQUEST)
    # The device runs out of buffers: the next one is announced.
    driver.post = lambda index: None
    for i in range(BUFFERS):
        start_read(session, 4 * i)
        answer_read(driver, session, driver.expect(drv.REGION_READ))
    eventually(lambda: wants_kicks(driver, drv.REQUEST), "the device asks for a kick")
    del driver.kick, driver.post
    start_read(session, 0)
    driver.post(driver.queues[drv.REQUEST].produced % BUFFERS)
    driver.kick(drv.REQUEST)
    answer_read(driver, session, driver.expect(drv.REGION_READ))


def test_kicks_are_suppressed_while_chains_are_taken(machine, driver, session):
    for i in range(3):
        start_read(session, 4 * i)
    requests = [driver.expect(drv.REGION_READ) for _ in range(3)]
    assert wants_kicks(driver, drv.REPLY)
    before = len(machine.output())
    for i, request in enumerate(requests):
        data = drv.message(request.type, request.id, request.payload + bytes(4), drv.FLAG_REPLY, request.epoch)
        machine.write(drv.RAM + 0xC0000 + PAGE * i, data)
        driver.queues[drv.REPLY].add((drv.RAM + 0xC0000 + PAGE * i, len(data), False))
    driver.kick(drv.REPLY)
    for _ in range(3):
        session.receive()
    trace = machine.output()[before:]
    assert trace.count(f"kicks queue {drv.REPLY} on 0") == 1
    assert trace.count(f"kicks queue {drv.REPLY} on 1") == 1
    assert trace.count("virtio_vfio_user_reply") == 3
    assert trace.count(SETTLE) == 1, trace
    assert wants_kicks(driver, drv.REPLY)


def test_what_one_readable_socket_brought_is_settled_once(machine, event_loop, driver, session):
    # The kernel ends a recvmsg() behind file descriptors, so these are five.
    fd, _ = client.shared_memory(5 * PAGE)
    before = len(machine.output())
    with stopped(machine.process):
        for i in range(5):
            session.send(client.DMA_MAP, client.dma_map(i * PAGE, PAGE, offset=i * PAGE), [fd])
    for _ in range(5):
        assert session.receive()[:2] == (client.DMA_MAP, 0)
    trace = machine.output()[before:]
    assert trace.count("virtio_vfio_user_receive") == 5
    # With an iothread, once there and once in the main loop.
    assert trace.count(SETTLE) <= (2 if event_loop == "iothread" else 1), trace
    os.close(fd)


def system_call(process):
    """The number of the one that the process's main thread is in, as text."""
    with open(f"/proc/{process.pid}/syscall", encoding="ascii") as file:
        return file.read().split()[0]


@contextlib.contextmanager
def blocked_main_loop(machine, fifo):
    """QEMU waits, with its lock, for somebody who reads what it wants to write."""
    os.mkfifo(fifo)
    command = threading.Thread(target=machine.qmp.execute, args=("pmemsave",),
                               kwargs={"val": 0, "size": PAGE, "filename": str(fifo)})
    command.start()
    eventually(lambda: system_call(machine.process) == OPENAT, "the main loop is blocked")
    yield
    assert system_call(machine.process) == OPENAT
    with open(fifo, "rb") as file:
        assert len(file.read()) == PAGE
    command.join()


def shows_peer_memory(machine):
    with open(f"/proc/{machine.process.pid}/maps", encoding="ascii") as maps:
        return "memfd:memory" in maps.read()


#= VVFU-DEADLINE-1
#= type=test
#= VVFU-WINDOW-4
#= type=test
@pytest.mark.parametrize("event_loop", ["iothread"], indirect=True)
@pytest.mark.parametrize("deadlines", [HASTY], ids=["hasty"])
def test_a_blocked_main_loop_does_not_block_the_peer(machine, driver, session, tmp_path):
    fd, memory = client.shared_memory(2 * PAGE)
    window = driver.window + add_range(driver, session, 0, PAGE, fd)
    with blocked_main_loop(machine, tmp_path / "fifo"):
        start_read(session, 0)
        assert session.receive()[2][16:] == b"\xff" * 4
        assert session.call(client.DMA_UNMAP, client.dma_unmap(0, PAGE))[1] == 0
        assert not shows_peer_memory(machine)
        assert session.call(client.DMA_MAP, client.dma_map(PAGE, PAGE, offset=PAGE), [fd])[1] == 0
        assert shows_peer_memory(machine)
        session.close()
        eventually(lambda: not shows_peer_memory(machine), "the memory of a peer that is gone is cut off")
    machine.write(window, b"late")
    assert memory[:] == bytes(2 * PAGE)
    os.close(fd)


@pytest.mark.parametrize("deadlines", [HASTY], ids=["hasty"])
def test_accesses_while_the_vm_is_stopped_are_counted(machine, driver, session):
    machine.qmp.execute("stop")
    for _ in range(2):
        start_read(session, 0)
        assert session.receive()[2][16:] == b"\xff" * 4
    assert machine.property("paused-requests") == 2
    machine.qmp.execute("cont")
    driver.reply(driver.expect(drv.REGION_READ), bytes(20))  # late, but a sign of life
    start_read(session, 4)
    answer_read(driver, session, driver.expect(drv.REGION_READ))
    assert machine.property("paused-requests") == 2


def test_unplug_while_the_peer_talks(tmp_path, path, event_loop):
    options, properties = event_loop_options(event_loop)
    with Machine(tmp_path / "qemu.log", [*options, "-device", drv.RootPort.DEVICE, *drv.RootPort.NATIVE_HOT_PLUG]) as machine:
        port = drv.RootPort(machine)
        for _ in range(UNPLUGS):
            machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path),
                                **properties, **{"window-size": 1 << 20})
            port.set_power(True)
            driver = drv.Driver(machine, slot=0, bus=1)
            driver.initialise()
            driver.register()
            with driver.session(path) as session:
                talk = threading.Thread(target=talk_until_closed, args=(session,))
                talk.start()
                machine.qmp.execute("device_del", id="vvfu")
                port.set_power(False)
                talk.join()
            eventually(lambda: machine.qmp.deleted("vvfu"), "nothing refers to the function any more")
            assert not path.exists()


def talk_until_closed(session):
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            session.call(client.REGION_INFO, struct.pack("=IIIIQQ", 32, 0, 7, 0, 0, 0))
