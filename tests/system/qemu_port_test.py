# SPDX-License-Identifier: BSD-3-Clause
"""The QEMU port without a guest: the test is the guest driver (over qtest) and the peer (over the socket)."""

import mmap
import os
import select
import socket
import struct
import subprocess

import pytest

from qemuport import driver as drv
from qemuport import peer as client
from qemuport.machine import (HASTY, SECONDS, Machine, device_option, event_loop_options, eventually, run_to_exit,
                              stopped)
from qemuport.memory import add_range, remove_range
from vmlab import host
from vmlab.qmp import QmpError

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path, path, event_loop, deadlines):
    arguments, properties = event_loop_options(event_loop)
    options = {"window-size": 64 * MIB, "region-memory-size": MIB, "doorbells": 8, "notifications": 3, "in_order": True}
    device = device_option(socket=str(path), **options, **deadlines, **properties)
    with Machine(tmp_path / "qemu.log", [*arguments, "-device", device]) as running:
        yield running


def refused(*options, **properties):
    """What QEMU says about a -device that it does not take."""
    status, output = run_to_exit("-machine", "q35", "-S", "-device", device_option(**properties), *options)
    assert status == 1
    assert len(output.strip().splitlines()) == 1, output
    return output.strip()


# ---- properties ----

def test_help_explains_each_property():
    status, output = run_to_exit("-device", "virtio-vfio-user-pci,help")
    assert status == 0
    lines = {line.split("=")[0].strip(): line for line in output.splitlines() if "=" in line}
    for name in ("socket", "window-size", "region-memory-size", "doorbells", "notifications", "uuid",
                 "trust-peer-memory", "unmap-timeout", "access-timeout", "x-virtio-id"):
        assert " - " in lines[name], name
    assert not {"session-state", "epoch", "mapped-bytes"} & set(lines), "these cannot be set"
    assert "power of two" in lines["window-size"]


@pytest.mark.parametrize("properties, complaint", [
    ({}, "'socket' property is missing"),
    ({"socket": ""}, "path is empty"),
    ({"socket": "/tmp/" + "x" * 110}, "at most 107"),
    ({"socket": "/nonexistent-folder/socket"}, "cannot create a socket in '/nonexistent-folder'"),
    ({"socket": {"type": "inet", "host": "localhost", "port": "1"}}, "only 'unix' and 'fd'"),
    ({"socket": {"type": "unix", "path": "x", "abstract": True}}, "abstract"),
    ({"socket": {"type": "fd", "str": "0"}}, "not a listening UNIX stream socket"),
    ({"socket": {"type": "fd", "str": "2"}}, "not a listening UNIX stream socket"),
    ({"socket": 5}, "socket"),
    ({"socket": "s", "window-size": 0}, "window-size=0"),
    ({"socket": "s", "window-size": 6000}, "window-size=6000"),
    ({"socket": "s", "window-size": 1 << 62}, "window-size"),
    ({"socket": "s", "region-memory-size": 1}, "region-memory-size=1"),
    ({"socket": "s", "doorbells": 0}, "doorbells=0 is not in 1..4096"),
    ({"socket": "s", "doorbells": 4097}, "doorbells=4097"),
    ({"socket": "s", "notifications": 0}, "notifications=0 is not in 1..1024"),
    ({"socket": "s", "notifications": 1025}, "notifications=1025"),
    ({"socket": "s", "unmap-timeout": 0}, "unmap-timeout=0"),
    ({"socket": "s", "access-timeout": 4001}, "access-timeout=4001"),
    ({"socket": "s", "x-virtio-id": 64}, "x-virtio-id=64"),
    ({"socket": "s", "iommu_platform": False}, "iommu_platform=off"),
    ({"socket": "s", "modern-pio-notify": True}, "modern-pio-notify=on"),
])
def test_bad_property_gets_one_clear_line(properties, complaint):
    assert complaint in refused(**properties)


def test_window_above_the_address_width_is_refused():
    complaint = refused("-cpu", "qemu64,phys-bits=36", **{"socket": "s", "window-size": 1 << 36})
    assert "36 physical address bits" in complaint and "64 GiB" in complaint
    complaint = refused("-cpu", "qemu64,phys-bits=36", **{"socket": "s", "region-memory-size": 1 << 35})
    assert "region-memory-size" in complaint and "64 GiB" in complaint


def test_path_of_a_live_server_is_refused(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert "live server" in refused(socket=str(path))
    assert path.exists()


def test_path_of_a_function_that_does_not_listen_yet_is_refused(machine, path):
    assert machine.property("session-state") == "no driver"
    assert not path.exists()
    assert "live server" in refused(socket=str(path))
    driver = drv.Driver(machine)
    driver.initialise()
    driver.register()
    assert path.is_socket()
    assert "live server" in refused(socket=str(path))
    assert machine.property("epoch") == 0, "nobody connected to find that out"
    assert machine.quit() == 0
    assert not list(path.parent.glob("device.sock*")), "nothing is left"


def test_path_of_a_file_is_refused(path):
    path.write_text("precious")
    assert "not a socket" in refused(socket=str(path))
    assert path.read_text() == "precious"


def test_migration_is_refused_with_the_reason(machine):
    with pytest.raises(Exception, match="cannot be moved to another host"):
        machine.qmp.execute("migrate", uri="exec:cat >/dev/null")


# ---- function ----

#= VVFU-ID-1
#= type=test
#= VVFU-PCI-1
#= type=test
#= VVFU-PCI-2
#= type=test
#= VVFU-PCI-3
#= type=test
def test_function_and_capabilities(machine):
    function = drv.Driver(machine)
    assert function.config(0) == 0x107F1AF4
    assert function.sizes[0] == 8192
    assert function.sizes[2] == 64 * MIB, "as large as the window"
    assert function.config(0x10) & 0xF == 0  # 32 bit, not prefetchable
    assert function.config(0x18) & 0xF == 0xC  # 64 bit, prefetchable
    assert function.capability(6)[1:] == (0, 0, 0, 32, 4, 20)
    assert function.capability(7)[1:] == (0, 0, 4096, 4, 0, 16)
    assert function.capability(8, 0)[1:5] == (2, 0, 0, 64 * MIB)
    assert function.capability(8, 1)[1:5] == (4, 1, 16384, MIB)
    assert function.config(0x20) & 0xF == 0xC  # 64 bit, prefetchable
    assert [c[0] for c in function.capabilities].count(6) == 1


#= VVFU-FEAT-1
#= type=test
#= VVFU-FEAT-3
#= type=test
#= VVFU-FEAT-6
#= type=test
def test_features(machine):
    features = drv.Driver(machine).features()
    assert features >> drv.VERSION_1 & 1
    assert features >> drv.ACCESS_PLATFORM & 1
    assert not features >> drv.RING_RESET & 1
    assert not features & 1


#= VVFU-CONF-1
#= type=test
def test_device_configuration(tmp_path, path):
    uuid = "11223344-5566-7788-99aa-bbccddeeff00"
    option = device_option(socket=str(path), uuid=uuid, doorbells=33, **{"x-virtio-id": 62, "region-memory-size": 0})
    with Machine(tmp_path / "qemu.log", ["-device", option]) as machine:
        function = drv.Driver(machine)
        raw = machine.read(function.address(4), 64)
        assert raw[:16].hex() == uuid.replace("-", "")
        assert struct.unpack_from("<QQIIIIIIII", raw, 16) == (8 << 30, 0, 33, 8, 0, 262144, 8192, 9, 1000, 2000)
        assert function.config(0) >> 16 == 0x1040 + 62
        assert [c[2] for c in function.capabilities if c[0] == 8] == [0]
        assert function.sizes[2] == 8 << 30


def test_all_capabilities_fit_behind_a_root_port(tmp_path, path):
    option = device_option(socket=str(path), bus="rp", addr="0")
    with Machine(tmp_path / "qemu.log", ["-device", "pcie-root-port,id=rp", "-device", option]) as machine:
        assert machine.property("session-state") == "no driver"


#= VVFU-QUEUE-1
#= type=test
def test_three_queues(machine):
    function = drv.Driver(machine)
    sizes = []
    for index in range(4):
        function.common(0x16, 2, index)
        sizes.append(function.common(0x18, 2))
    assert all(size >= 256 for size in sizes[:3]) and sizes[3] == 0


def test_an_unassigned_virtio_id_does_not_upset_the_monitor(machine):
    device = machine.qmp.execute("x-query-virtio")[0]
    status = machine.qmp.execute("x-query-virtio-status", path=device["path"])
    assert status["device-id"] == 63 and status["name"] == "virtio-vfio-user"


# ---- life of the socket ----

#= VVFU-INIT-2
#= type=test
def test_socket_exists_while_a_device_is_registered(machine, path):
    driver = drv.Driver(machine)
    driver.initialise()
    assert not path.exists()
    assert machine.property("session-state") == "no device"
    driver.register()
    assert path.is_socket()
    assert machine.property("session-state") == "listening"
    assert driver.control(drv.DEVICE_INFO, struct.pack("<II", 2, 0) + bytes(24)).status == 0
    assert not path.exists()


def test_what_a_killed_server_left_is_replaced(tmp_path, path):
    option = device_option(socket=str(path))
    with Machine(tmp_path / "killed.log", ["-device", option]) as killed:
        driver = drv.Driver(killed)
        driver.initialise()
        driver.register()
    assert path.exists()
    with Machine(tmp_path / "qemu.log", ["-device", option]) as machine:
        driver = drv.Driver(machine)
        driver.initialise()
        driver.register()
        with driver.session(path):
            pass


def test_stale_socket_is_replaced(machine, path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    driver = drv.Driver(machine)
    driver.initialise()
    driver.register()
    with driver.session(path):
        pass


def test_registration_fails_while_another_server_has_the_path(machine, path):
    driver = drv.Driver(machine)
    driver.initialise()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert driver.control(drv.DEVICE_INFO, drv.device_info()).status != 0
        assert path.exists()
    driver.register()  # the socket is stale now


def test_quitting_removes_the_socket(machine, driver, path):
    assert path.is_socket()
    assert machine.quit() == 0
    assert not path.exists()


def test_quitting_leaves_the_socket_of_another(machine, driver, path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert machine.quit() == 0
        assert path.exists()


def test_passed_listening_socket(tmp_path, path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    option = device_option(socket={"type": "fd", "str": str(listener.fileno())})
    with Machine(tmp_path / "qemu.log", ["-device", option], pass_fds=[listener.fileno()]) as machine:
        driver = drv.Driver(machine)
        driver.initialise()
        driver.register()
        with driver.session(path):
            pass
    listener.close()


def plug_with_passed_socket(machine, passed):
    machine.qmp.execute("getfd", fdname="listener", fds=[passed.fileno()])
    machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp",
                        socket={"type": "fd", "str": "listener"})


def test_passed_socket_that_is_refused_is_closed(tmp_path, path):
    kept, passed = socket.socketpair()
    with kept, passed, Machine(tmp_path / "qemu.log", ["-device", drv.RootPort.DEVICE]) as machine:
        with pytest.raises(QmpError, match="'listener' is not a listening UNIX stream socket"):
            plug_with_passed_socket(machine, passed)
        passed.close()
        assert select.select([kept], [], [], 0)[0] and kept.recv(1) == b"", "nobody else holds the other end"


def test_socket_passed_by_the_monitor_is_taken(tmp_path, path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Machine(tmp_path / "qemu.log", ["-device", drv.RootPort.DEVICE]) as machine:
            plug_with_passed_socket(machine, listener)
            assert machine.property("session-state") == "no driver"


def test_hot_plug_and_unplug(tmp_path, path):
    with Machine(tmp_path / "qemu.log", ["-device", drv.RootPort.DEVICE]) as machine:
        machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path))
        assert machine.property("session-state") == "no driver"
        machine.qmp.execute("device_del", id="vvfu")
        # Nobody runs the guest's side of the hot-unplug; a reset of the machine completes it.
        machine.qmp.execute("system_reset")
        eventually(lambda: "vvfu" not in machine.monitor("info qtree"), "the function is gone")
        eventually(lambda: machine.qmp.deleted("vvfu"), "nothing refers to the function any more, as libvirt waits for")
        machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path))
        assert machine.property("session-state") == "no driver"


# ---- queues ----

def test_packed_rings(tmp_path, path):
    with Machine(tmp_path / "qemu.log", ["-device", device_option(socket=str(path), packed=True)]) as machine:
        driver = drv.Driver(machine)
        driver.initialise(packed=True)
        driver.register()
        with driver.session(path) as peer:
            for value in range(5 * drv.QUEUE_SIZE):  # several times around each ring
                peer.send(client.REGION_READ, struct.pack("=QII", 4 * (value % 64), 0, 4))
                request = driver.expect(drv.REGION_READ)
                driver.reply(request, request.payload + struct.pack("<I", value))
                assert peer.receive()[2][16:] == struct.pack("=I", value)
                assert driver.control(drv.IRQ_TRIGGER, struct.pack("<II", 2, 99), epoch=1).status == drv.NOT_FOUND
        driver.end_session()


# ---- sessions ----

def test_state_properties_follow_the_session(machine, driver, session):
    assert machine.property("session-state") == "connected"
    assert machine.property("epoch") == 1
    assert machine.property("peer-pid") == os.getpid()
    assert machine.property("requests") == 1
    assert "session-state" not in machine.monitor("info qtree")
    with pytest.raises(QmpError):
        machine.qmp.execute("qom-set", path="/machine/peripheral/vvfu", property="epoch", value=7)
    session.close()
    driver.end_session()
    eventually(lambda: machine.property("session-state") == "listening", "the session ended")
    assert machine.property("peer-pid") == 0


#= VVFU-SESSION-2
#= type=test
def test_second_peer_is_refused(driver, session, path):
    with client.Peer(path) as second:
        assert second.closed_by_device()
    assert session.call(client.REGION_INFO, struct.pack("=IIIIQQ", 32, 0, 7, 0, 0, 0))[1] == 0


@pytest.mark.parametrize("last_words", [0, 500])
def test_successor_of_a_peer_that_just_died_is_served(machine, driver, session, path, last_words):
    # Stopped meanwhile, QEMU finds the end of one connection and the next one at the same time.
    with stopped(machine.process):
        session.socket.sendall(struct.pack("=HHIIIQII", 9, client.REGION_READ, 32, 0, 0, 0, 0, 4) * last_words)
        session.close()
        successor = client.Peer(path)
        successor.send_version()
    with successor:
        request = driver.request()
        while request.type == drv.REGION_READ:
            driver.reply(request, request.payload + bytes(4))
            request = driver.request()
        assert (request.type, request.payload[0]) == (drv.PEER, 2)
        driver.reply(request)
        assert driver.begin_session().epoch == 2
        assert successor.receive()[:2] == (client.VERSION, 0)


#= VVFU-INIT-3
#= type=test
def test_device_reset_ends_the_session(machine, driver, session, path):
    driver.reset()
    with pytest.raises(EOFError):
        session.receive()
    assert not path.exists()
    assert machine.property("session-state") == "no driver"
    driver.initialise()
    driver.register()
    with driver.session(path, epoch=2):
        pass


def test_losing_bus_master_ends_the_session(machine, driver, session, path):
    # All that the device hears when vfio-pci takes it from a driver that was killed.
    driver.set_config(4, 2, 2)
    with pytest.raises(EOFError):
        session.receive()
    assert not path.exists()
    driver.set_config(4, 6, 2)
    driver.initialise()
    driver.register()


def test_unplug_ends_the_session(tmp_path, path):
    with Machine(tmp_path / "qemu.log", ["-device", drv.RootPort.DEVICE]) as machine:
        drv.RootPort(machine)
        machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path))
        driver = drv.Driver(machine, slot=0, bus=1)
        driver.initialise()
        driver.register()
        with driver.session(path) as peer:
            fd, _ = client.shared_memory(MIB)
            add_range(driver, peer, 0, MIB, fd)
            machine.qmp.execute("device_del", id="vvfu")
            machine.qmp.execute("system_reset")
            with pytest.raises(EOFError):
                peer.receive()
        eventually(lambda: "vvfu" not in machine.monitor("info qtree"), "the function is gone")
        assert not path.exists()
        eventually(lambda: "memfd:memory" not in open(f"/proc/{machine.process.pid}/maps").read(), "no mapping is left")
        eventually(lambda: machine.qmp.deleted("vvfu"), "nothing refers to the function any more")


def test_interrupt_that_unplugs_the_function(tmp_path, path):
    # MSI-X messages go where the guest says: here to the slot control register, as a write that cuts the slot's power.
    with Machine(tmp_path / "qemu.log", ["-device", drv.RootPort.DEVICE, *drv.RootPort.NATIVE_HOT_PLUG]) as machine:
        bridge = drv.Driver.__new__(drv.Driver)
        bridge.machine, bridge.slot, bridge.bus = machine, 0, 0
        ecam = 0xB0000000
        bridge.set_config(0x64, 0)
        bridge.set_config(0x60, ecam | 1)
        port = drv.RootPort(machine)
        machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp", socket=str(path))
        port.set_power(True)
        driver = drv.Driver(machine, slot=0, bus=1)
        driver.initialise()
        for vector in range(4):
            driver.msix_vector(vector, ecam + (5 << 15) + port.slot_control, 0x0700)
        for queue in range(3):
            driver.common(0x16, 2, queue)
            driver.common(0x1A, 2, queue + 1)
        driver.control_raw(drv.message(drv.DEVICE_INFO, 1, drv.device_info()))
        eventually(lambda: "vvfu" not in machine.monitor("info qtree"), "the function is gone")
        assert not path.exists()


def test_register_access_goes_through(driver, session):
    session.send(client.REGION_READ, struct.pack("=QII", 0x10, 0, 4))
    request = driver.expect(drv.REGION_READ)
    assert struct.unpack("<QII", request.payload) == (0x10, 0, 4)
    driver.reply(request, request.payload + b"\xde\xad\xbe\xef")
    assert session.receive()[2][16:] == b"\xde\xad\xbe\xef"


#= VVFU-QUEUE-12
#= type=test
#= VVFU-QUEUE-13
#= type=test
def test_dma_data_that_waits_for_the_peer_is_bounded(tmp_path, path, monkeypatch, event_loop):
    options, properties = event_loop_options(event_loop)
    monkeypatch.setattr(drv, "QUEUE_SIZE", 64)
    address, message, writes = 0x100000, 256 << 10, 24
    count = message - drv.HEADER.size - 16
    most = -(-(4 * MIB) // count)  # messages that make 4 MiB
    device = device_option(socket=str(path), **{"window-size": 64 * MIB, "access-timeout": 4000, **properties})
    with Machine(tmp_path / "qemu.log", [*options, "-device", device]) as machine:
        driver = drv.Driver(machine)
        driver.initialise()
        driver.register()
        with driver.session(path) as peer:
            peer.send(client.DMA_MAP, client.dma_map(address, MIB))
            driver.reply(driver.expect(drv.MEMORY_INFO))
            assert peer.receive()[1] == 0
            for index in range(writes):
                where = drv.RAM + 0x400000 + message * index
                machine.write(where, drv.HEADER.pack(drv.DMA_WRITE, 0, message, 1000 + index, 1, 0, 0) +
                              struct.pack("<QQ", address, count))
                driver.queues[drv.CONTROL].add((where, message, False), (drv.RAM + 0x80000 + 512 * index, 512, True))
            driver.kick(drv.CONTROL)
            held = []
            for _ in range(most):
                assert peer.receive()[0] == client.DMA_WRITE
                held.append(peer.last_id)
            # No more of them comes, but what the driver has to say does.
            peer.send(client.REGION_READ, struct.pack("=QII", 0x10, 0, 4))
            request = driver.expect(drv.REGION_READ)
            driver.reply(request, request.payload + b"data")
            assert peer.receive()[0] == client.REGION_READ
            for _ in range(writes - most):
                peer.reply(client.DMA_WRITE, held.pop(0), struct.pack("=QQ", address, count))
                assert peer.receive()[0] == client.DMA_WRITE
                held.append(peer.last_id)
            while held:
                peer.reply(client.DMA_WRITE, held.pop(0), struct.pack("=QQ", address, count))
            for _ in range(writes):
                used = []
                eventually(lambda: used.append(driver.queues[drv.CONTROL].take()) or used[-1], "a control reply")


#= VVFU-DEADLINE-1
#= type=test
@pytest.mark.parametrize("deadlines", [HASTY], ids=["hasty"])
def test_silent_guest_costs_the_peer_no_more_than_the_deadline(machine, driver, session):
    before = machine.property("deadline-expiries")
    session.send(client.REGION_READ, struct.pack("=QII", 0, 0, 8))
    assert session.receive()[2][16:] == b"\xff" * 8
    assert machine.property("deadline-expiries") == before + 1


def test_reset_with_an_unanswered_control_request(machine, driver, session):
    # DMA_READ waits for the peer, which does not answer: the chain is open when the device is reset.
    session.send(client.DMA_MAP, client.dma_map(0x100000, MIB))
    driver.reply(driver.expect(drv.MEMORY_INFO))
    assert session.receive()[1] == 0
    data = drv.message(12, 900, struct.pack("<QQ", 0x100000, 16), epoch=1)
    machine.write(drv.RAM + 0x40000, data)
    driver.queues[drv.CONTROL].add((drv.RAM + 0x40000, len(data), False), (drv.RAM + 0x80000, 4096, True))
    driver.kick(drv.CONTROL)
    assert session.receive()[0] == 11  # the peer is asked
    driver.reset()
    with pytest.raises(EOFError):
        session.receive()
    driver.initialise()
    driver.register()


#= VVFU-FEAT-5
#= type=test
#= VVFU-FEAT-4
#= type=test
def test_features_that_do_not_fit_are_refused(machine, driver):
    offered = driver.features()
    assert not offered >> 35 & 1  # VIRTIO_F_IN_ORDER
    version_1, access_platform, in_order = 1 << 32, 1 << 33, 1 << 35
    for features in (0, version_1, access_platform, version_1 | access_platform | in_order,
                     version_1 | access_platform | 1 << 20, version_1 | access_platform | 1 << 60):
        driver.reset()
        driver.common(0x14, 1, 3)
        driver.write_features(features)
        driver.common(0x14, 1, 0xB)
        assert not driver.status() & 8, hex(features)
        driver.common(0x14, 1, 0xF)  # DRIVER_OK without FEATURES_OK
        assert not driver.status() & 8, hex(features)
        assert machine.property("session-state") == "no driver"
    driver.initialise()
    driver.register()


#= VVFU-INIT-4
#= type=test
#= VVFU-INIT-5
#= type=test
def test_a_function_without_driver_ok_serves_nothing(machine, driver, session):
    driver.set_config(4, 2, 2)  # Bus Master Enable is cleared
    with pytest.raises(EOFError):
        session.receive()
    driver.set_config(4, 6, 2)
    assert driver.status() == 0xB
    data = drv.message(drv.DEVICE_INFO, 901, drv.device_info())
    machine.write(drv.RAM + 0x40000, data)
    driver.queues[drv.CONTROL].add((drv.RAM + 0x40000, len(data), False), (drv.RAM + 0x80000, 4096, True))
    driver.kick(drv.CONTROL)
    assert machine.property("session-state") == "no driver"
    assert driver.queues[drv.CONTROL].take() is None
    driver.initialise()
    driver.register()
    assert machine.property("session-state") == "listening"


#= VVFU-ERROR-1
#= type=test
#= VVFU-ERROR-5
#= type=test
#= VVFU-ERROR-6
#= type=test
@pytest.mark.parametrize("garbage", [b"", b"\0" * 7, b"\xff" * 32, b"\xff" * 4096])
def test_malformed_message_breaks_the_device_and_reset_mends_it(machine, driver, session, garbage):
    machine.write(drv.RAM + 0xC0000, garbage)
    driver.queues[drv.REPLY].add((drv.RAM + 0xC0000, len(garbage), False) if garbage else
                                 (drv.RAM + 0x80000, 64, True))
    driver.kick(drv.REPLY)
    eventually(lambda: driver.status() & 0x40, "DEVICE_NEEDS_RESET")
    with pytest.raises(EOFError):
        session.receive()
    assert "vvfu: the guest must reset the device" in machine.output()
    driver.initialise()
    driver.register()
    assert machine.property("session-state") == "listening"


def test_malformed_queue_ends_the_session(machine, driver, session):
    # A descriptor chain that is a loop: QEMU's virtio core gives up on it.
    queue = driver.queues[drv.REPLY]
    head = queue.add((drv.RAM, 32, False))
    machine.write(queue.descriptors + 16 * head, struct.pack("<QIHH", drv.RAM, 32, 1, head))
    driver.kick(drv.REPLY)
    eventually(lambda: driver.status() & 0x40, "DEVICE_NEEDS_RESET")
    with pytest.raises(EOFError):
        session.receive()
    driver.initialise()
    driver.register()
    assert machine.output().count("virtqueues are malformed") == 1


def test_too_long_message_breaks_the_device(machine, driver):
    queue = driver.queues[drv.CONTROL]
    queue.add((0x200000, 256 * 1024, False), (0x200000, 4096, False))
    driver.kick(drv.CONTROL)
    eventually(lambda: driver.status() & 0x40, "DEVICE_NEEDS_RESET")
    assert machine.property("session-state") in ("no driver", "broken")
    assert f"vvfu: the guest sent {256 * 1024 + 4096} bytes at once" in machine.output()


def test_message_in_the_functions_own_registers(machine, driver, session):
    # The guest points a chain at BAR 4 (whose device status would reset the device) and at a doorbell.
    status = driver.address(1) + 0x14
    queue = driver.queues[drv.CONTROL]
    queue.add((driver.doorbells, 32, False), (status & ~0xF, 4096, True))
    driver.kick(drv.CONTROL)
    eventually(lambda: driver.status() & 0x40, "DEVICE_NEEDS_RESET")
    driver.initialise()
    driver.register()


# ---- window ----

#= VVFU-WINDOW-1
#= type=test
#= VVFU-WINDOW-4
#= type=test
#= VVFU-WINDOW-5
#= type=test
def test_window_shows_the_peers_memory_until_it_is_unmapped(machine, driver, session):
    fd, memory = client.shared_memory(4 * MIB)
    memory[MIB:MIB + 8] = b"from VMM"
    offset = add_range(driver, session, 1 << 32, 2 * MIB, fd, offset=MIB)
    window = driver.window + offset
    assert machine.property("mapped-bytes") == 2 * MIB
    assert machine.read(window, 8) == b"from VMM"
    machine.write(window + 2 * MIB - 4, b"back")
    assert memory[3 * MIB - 4:3 * MIB] == b"back"
    machine.write(window + 2 * MIB, b"hole")
    assert memory[3 * MIB:3 * MIB + 4] == bytes(4)
    remove_range(driver, session, 1 << 32, 2 * MIB)
    assert machine.read(window, 8) != b"from VMM"
    machine.write(window, b"too late")
    assert memory[MIB:MIB + 8] == b"from VMM"
    assert machine.property("mapped-ranges") == 0


#= VVFU-WINDOW-2
#= type=test
def test_read_only_range_takes_no_writes(machine, driver, session):
    fd, memory = client.shared_memory(MIB)
    memory[:4] = b"keep"
    window = driver.window + add_range(driver, session, 0x1000000, MIB, fd, client.READ)
    assert machine.read(window, 4) == b"keep"
    memory[4:8] = b"live"
    assert machine.read(window, 8) == b"keeplive"
    machine.write(window, b"lost")
    assert memory[:4] == b"keep"
    machine.write(window + MIB - 4096, b"lost")
    remove_range(driver, session, 0x1000000, MIB)
    assert memory[MIB - 4096:MIB - 4092] == bytes(4)


def test_huge_pages_stay_aligned(machine, driver, session):
    fd, _ = client.shared_memory(8 * MIB)
    offset = add_range(driver, session, 0x10000000, 4 * MIB, fd, offset=MIB)
    assert offset % (2 * MIB) == MIB
    with open(f"/proc/{machine.process.pid}/maps", encoding="ascii") as maps:
        mapping = next(line for line in maps if "memfd:memory" in line)
    assert int(mapping.split("-")[0], 16) % (2 * MIB) == MIB


#= VVFU-WINDOW-3
#= type=test
@pytest.mark.parametrize("deadlines", [HASTY], ids=["hasty"])
def test_unmap_does_not_wait_for_a_silent_guest(machine, driver, session):
    fd, memory = client.shared_memory(MIB)
    window = driver.window + add_range(driver, session, 0, MIB, fd)
    session.send(client.DMA_UNMAP, client.dma_unmap(0, MIB))
    assert session.receive()[:2] == (client.DMA_UNMAP, 0)
    machine.write(window, b"late")
    assert memory[:4] == bytes(4)


def test_no_mapping_nor_fd_outlives_a_killed_peer(machine, driver, session):
    def usage():
        maps = open(f"/proc/{machine.process.pid}/maps").read().count("memfd:memory")
        return maps, len(os.listdir(f"/proc/{machine.process.pid}/fd"))

    before = usage()
    for index in range(20):
        fd, _ = client.shared_memory(MIB)
        add_range(driver, session, index * MIB, MIB, fd)
    events = [os.eventfd(0) for _ in range(4)]
    session.send(client.SET_IRQS, client.set_irqs(0x24, 2, 0, 4), events)
    driver.reply(driver.expect(drv.IRQ_INFO))
    assert session.receive()[1] == 0
    assert machine.property("mapped-ranges") == 20
    assert usage()[0] == 20
    session.close()
    driver.end_session()
    # Two fds less than before: the connection, and the file of the session's region memory.
    eventually(lambda: usage() == (0, before[1] - 2), f"{usage()} as {before}")


def test_burst_of_maps_and_unmaps(machine, driver, session):
    fd, memory = client.shared_memory(MIB)
    count = 40
    for index in range(count):
        session.send(client.DMA_MAP, client.dma_map(index << 20, 4096, 3, index * 4096), [fd])
    offsets = []
    for index in range(count):
        request = driver.expect(drv.MEMORY_INFO)
        offsets.append(struct.unpack("<IIQQQ", request.payload)[4])
        driver.reply(request)
    assert [session.receive()[1] for _ in range(count)] == [0] * count
    for index, offset in enumerate(offsets):
        machine.write(driver.window + offset, struct.pack("<I", index + 1))
    assert [struct.unpack_from("<I", memory, 4096 * i)[0] for i in range(count)] == list(range(1, count + 1))
    for index in range(count):
        session.send(client.DMA_UNMAP, client.dma_unmap(index << 20, 4096))
    for index in range(count):
        driver.reply(driver.expect(drv.MEMORY_INFO))
    assert [session.receive()[1] for _ in range(count)] == [0] * count
    for offset in offsets:
        machine.write(driver.window + offset, b"late")
    assert [struct.unpack_from("<I", memory, 4096 * i)[0] for i in range(count)] == list(range(1, count + 1))


def test_memory_that_could_shrink_is_mapped_only_on_request(tmp_path, path):
    for trust, mapped in ((False, False), (True, True)):
        option = device_option(socket=str(path), **{"trust-peer-memory": trust})
        with Machine(tmp_path / "qemu.log", ["-device", option]) as machine:
            driver = drv.Driver(machine)
            driver.initialise()
            driver.register()
            with driver.session(path) as peer:
                fd, _ = client.shared_memory(MIB, seal=False)
                assert (add_range(driver, peer, 0, MIB, fd) is not None) == mapped


#= VVFU-REGION-1
#= type=test
def test_region_memory_is_shared_with_the_peer(machine, driver, session):
    _, error, payload, fds = session.call(client.REGION_INFO, struct.pack("=IIIIQQ", 4096, 0, 2, 0, 0, 0))
    assert error == 0 and len(fds) == 1
    offset = struct.unpack_from("=Q", payload, 24)[0]
    machine.write(driver.address(8, 1), b"region memory")
    assert os.pread(fds[0], 13, offset) == b"region memory"
    os.pwrite(fds[0], b"REGION", offset)
    assert machine.read(driver.address(8, 1), 13) == b"REGION memory"
    with pytest.raises(PermissionError):
        os.ftruncate(fds[0], 0)


def area(session):
    """A peer's file of the emulated device's BAR 2, and the area's offset in it."""
    _, error, payload, fds = session.call(client.REGION_INFO, struct.pack("=IIIIQQ", 4096, 0, 2, 0, 0, 0))
    assert error == 0 and len(fds) == 1
    return fds[0], struct.unpack_from("=Q", payload, 24)[0]


#= VVFU-REGION-2
#= VVFU-REGION-3
#= type=test
def test_region_memory_of_a_former_peer_is_worthless(machine, driver, path):
    region = driver.address(8, 1)
    with driver.session(path) as first:
        former, offset = area(first)
        view = mmap.mmap(former, 4096, offset=offset)
        view[:6] = b"former"
        machine.write(region + 8192, b"model's")  # no area is there
        assert machine.read(region, 6) == b"former"
    driver.end_session()
    assert machine.read(region, 6) == bytes(6)
    with driver.session(path, epoch=2) as second:
        fd, offset = area(second)
        view[:6] = b"undead"
        assert machine.read(region, 6) == bytes(6) and os.pread(fd, 6, offset) == bytes(6)
        machine.write(region, b"secret")
        assert view[:6] == b"undead" and os.pread(fd, 6, offset) == b"secret"
        assert machine.read(region + 8192, 7) == b"model's"


# ---- doorbells ----

def connect_doorbell(driver, session, vector=0):
    event = os.eventfd(0, os.EFD_NONBLOCK)
    session.send(client.SET_IRQS, client.set_irqs(0x24, 2, vector, 1), [event])
    driver.reply(driver.expect(drv.IRQ_INFO))
    assert session.receive()[1] == 0
    return event


def rings(event):
    """Takes the count of an eventfd, 0 if it is not signalled."""
    try:
        return os.eventfd_read(event)
    except BlockingIOError:
        return 0


#= VVFU-DOORBELL-1
#= type=test
def test_doorbell_signals_the_peers_eventfd(machine, driver, session):
    event = connect_doorbell(driver, session, vector=2)
    doorbell = driver.doorbells + 4 * (1 + 2)  # INTx is doorbell 0
    machine.store(4, doorbell, 0)
    assert rings(event) == 1
    machine.store(4, doorbell, 0xFFFFFFFF)
    machine.store(4, doorbell, 7)
    assert rings(event) == 2
    machine.store(4, doorbell - 4, 1)
    assert rings(event) == 0


#= VVFU-DOORBELL-2
#= type=test
#= VVFU-DOORBELL-3
#= type=test
#= VVFU-DOORBELL-4
#= type=test
def test_doorbell_without_target_is_latched(machine, driver, session):
    doorbell = driver.doorbells + 4
    assert machine.load(4, doorbell) == 0
    machine.store(4, doorbell, 1)
    machine.store(4, doorbell, 1)
    assert machine.load(4, doorbell) == 1
    assert machine.load(4, doorbell + 4) == 0
    event = connect_doorbell(driver, session)
    assert rings(event) == 1
    assert machine.load(4, doorbell) == 0


#= VVFU-DOORBELL-7
#= type=test
def test_doorbell_ignores_other_accesses(machine, driver, session):
    event = connect_doorbell(driver, session)
    for width, offset in ((1, 4), (2, 4), (4, 6), (8, 4)):
        machine.store(width, driver.doorbells + offset, 1)
    machine.store(4, driver.doorbells + 4 * 8, 1)  # behind the last one
    assert rings(event) == 0
    assert machine.load(4, driver.doorbells + 4 * 8) == 0


#= VVFU-DOORBELL-8
#= type=test
@pytest.mark.parametrize("flags", [0x09, 0x24], ids=["masked", "deassigned"])
def test_doorbell_leaves_an_eventfd_alone_that_was_taken_back(machine, driver, session, flags):
    event = connect_doorbell(driver, session)
    session.send(client.SET_IRQS, client.set_irqs(flags, 2, 0, 1))
    driver.reply(driver.expect(drv.IRQ_INFO))
    assert session.receive()[1] == 0
    machine.store(4, driver.doorbells + 4, 1)
    assert rings(event) == 0
    assert machine.load(4, driver.doorbells + 4) == 1


def test_full_eventfd_of_the_peer_does_not_stop_the_machine(machine, driver, session):
    event = os.eventfd(0)  # blocking
    session.send(client.SET_IRQS, client.set_irqs(0x24, 2, 0, 1), [event])
    driver.reply(driver.expect(drv.IRQ_INFO))
    assert session.receive()[1] == 0
    os.eventfd_write(event, 0xFFFFFFFFFFFFFFFE)
    for _ in range(20):
        machine.store(4, driver.doorbells + 4, 1)
    assert machine.property("session-state") == "connected"


# ---- notifications ----

def resample(session):
    """Gives the device an eventfd for notification 0."""
    event = os.eventfd(0)
    assert session.call(client.SET_IRQS, client.set_irqs(0x14, 0, 0, 1), [event])[1] == 0
    return event


#= VVFU-NOTIFY-1
#= type=test
def test_notification_registers(machine, driver):
    select, vector = driver.notifications, driver.notifications + 2
    assert (machine.load(2, select), machine.load(2, vector)) == (0, 0xFFFF)
    machine.store(2, select, 2)
    machine.store(2, vector, 5)
    assert machine.load(4, select) == 0x00050002
    machine.store(2, select, 0)
    assert machine.load(2, vector) == 0xFFFF
    machine.store(2, vector, 7)  # vectors 0 to 6: configuration, 3 queues, 3 notifications
    assert machine.load(2, vector) == 0xFFFF
    machine.store(2, select, 3)  # there are 3 notifications
    machine.store(2, vector, 1)
    assert machine.load(2, vector) == 0xFFFF
    driver.reset()
    machine.store(2, select, 2)
    assert machine.load(2, vector) == 0xFFFF


#= VVFU-NOTIFY-2
#= type=test
def test_notification_raises_its_vector(machine, driver, session):
    target = drv.RAM + 0xF0000
    driver.msix_vector(6, target, 0x1234)
    machine.store(2, driver.notifications + 2, 6)
    event = resample(session)
    machine.write(target, bytes(4))
    os.eventfd_write(event, 1)
    eventually(lambda: machine.read(target, 4) == b"\x34\x12\0\0", "the MSI-X message")
    assert not select.select([event], [], [], 0)[0]  # the count was taken


#= VVFU-NOTIFY-3
#= type=test
def test_notification_without_vector_becomes_a_message(driver, session):
    event = resample(session)
    os.eventfd_write(event, 1)
    request = driver.expect(drv.IRQ_INFO)
    assert struct.unpack("<IIII", request.payload) == (0, 0, 1, 4)
    driver.reply(request)


def test_masked_vector_becomes_pending(machine, driver, session):
    target = drv.RAM + 0xF0000
    driver.msix_vector(6, target, 0x1234)
    machine.store(4, driver.bars[1] + 16 * 6 + 12, 1)
    machine.store(2, driver.notifications + 2, 6)
    event = resample(session)
    machine.write(target, bytes(4))
    os.eventfd_write(event, 1)
    eventually(lambda: machine.property("epoch") == 1 and not select.select([event], [], [], 0)[0], "it is taken")
    assert machine.read(target, 4) == bytes(4)
    machine.store(4, driver.bars[1] + 16 * 6 + 12, 0)
    assert machine.read(target, 4) == b"\x34\x12\0\0"


# ---- the build script ----

def build_qemu(*arguments, seconds=SECONDS):
    return subprocess.run([host.TREE / "scripts" / "build-qemu", *arguments], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, timeout=host.deadline(seconds))


def test_build_script_is_idle_when_nothing_changed():
    built = build_qemu("--print-path").stdout
    assert os.access(built.strip(), os.X_OK)
    assert build_qemu().stdout == built


def test_build_script_prints_the_path_of_a_finished_build_only(tmp_path, monkeypatch):
    monkeypatch.setenv("VVFU_CACHE", str(tmp_path))
    result = build_qemu("--print-path")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip() == "build-qemu: not built yet: run scripts/build-qemu"
    assert not list(tmp_path.iterdir())


def test_device_model_has_no_warnings_and_qemus_style():
    result = build_qemu("--check", seconds=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_build_script_tells_that_no_archive_has_the_source(tmp_path, monkeypatch):
    programs, cache = tmp_path / "bin", tmp_path / "cache"
    programs.mkdir()
    release = "$(. /etc/os-release && echo $VERSION_CODENAME)"
    for name, script in (("apt-get", f'[ "$1" != indextargets ] || echo "{release} file:/nowhere"'), ("apt-cache", ":")):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("VVFU_CACHE", str(cache))
    result = build_qemu("--version=10.2", "--check")
    assert result.returncode == 3, result.stdout + result.stderr
    assert result.stderr.strip().endswith("QEMU 10.2: the archive's sid lists no such version, and no source package of it "
                                          "is in the cache")
    assert not list(cache.glob("qemu/*-*")), "nothing half made"


def test_build_script_refuses_a_version_that_it_does_not_know():
    result = build_qemu("--version=9.0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.strip() == "build-qemu: there is no support for QEMU '9.0', see --help"
