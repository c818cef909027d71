# SPDX-License-Identifier: BSD-3-Clause
"""What one event costs the QEMU port: counts of kicks, of rounds through the event loop. The test is guest driver and peer."""

import os
import signal
import struct

import pytest

from qemuport import driver as drv
from qemuport import peer as client
from qemuport.machine import Machine, device_option, eventually

PAGE = 4096
NO_NOTIFY = 1
BUFFERS = drv.QUEUE_SIZE // 2
SETTLE = "virtio_vfio_user_settle"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "device.sock"


@pytest.fixture
def machine(tmp_path, path):
    options = device_option(socket=str(path), **{"window-size": 1 << 20, "region-memory-size": 1 << 20})
    with Machine(tmp_path / "qemu.log", ["-device", options, "-trace", "virtio_vfio_user_*"]) as running:
        yield running


@pytest.fixture
def driver(machine):
    result = drv.Driver(machine)
    result.initialise()
    result.register()
    return result


@pytest.fixture
def session(driver, path):
    with driver.session(path) as peer:
        yield peer


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


def test_what_one_readable_socket_brought_is_settled_once(machine, driver, session):
    # The kernel ends a recvmsg() behind file descriptors, so these are five.
    fd, _ = client.shared_memory(5 * PAGE)
    before = len(machine.output())
    os.kill(machine.process.pid, signal.SIGSTOP)
    for i in range(5):
        session.send(client.DMA_MAP, client.dma_map(i * PAGE, PAGE, offset=i * PAGE), [fd])
    os.kill(machine.process.pid, signal.SIGCONT)
    for _ in range(5):
        assert session.receive()[:2] == (client.DMA_MAP, 0)
    trace = machine.output()[before:]
    assert trace.count("virtio_vfio_user_receive") == 5
    assert trace.count(SETTLE) == 1, trace
    os.close(fd)
