# SPDX-License-Identifier: BSD-3-Clause
"""A guest whose CPU runs, under TCG and KVM: doorbells and notifications (KVM's own ioeventfds and irqfds), the window."""

import os
import select
import subprocess

import pytest

from qemuport import driver as drv
from qemuport import peer as client
from qemuport.machine import EVENT_LOOPS, SECONDS, Machine, device_option, event_loop_options, eventually
from qemuport.memory import add_range, remove_range
from qemuport.tiny_guest import TinyGuest, write_image
from vmlab import host

MSI_ADDRESS = 0xFEE00000  # the first CPU's local APIC
VECTOR = 0x41
WINDOW = 0xD0000000  # the guest has no paging
MIB = 1 << 20
UNPLUGS = 40


def kvm_runs_guests():
    """Whether KVM can run the firmware: less than a stock kernel needs, so host.accelerator() does not tell.

    A KVM that cannot hangs, so this wait does not grow with the load.
    """
    with open(os.devnull, "rb") as nothing:
        try:
            output = subprocess.run([host.device_qemu(), "-accel", "kvm", "-nodefaults", "-display", "none", "-no-reboot",
                                     "-debugcon", "stdio", "-global", "isa-debugcon.iobase=0x402", "-boot", "reboot-timeout=1"],
                                    stdin=nothing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                                    timeout=SECONDS).stdout
        except subprocess.TimeoutExpired:
            return False
    return b"No bootable device" in output


@pytest.fixture(scope="module", params=["tcg", "kvm"])
def accelerator(request):
    if request.param == "kvm" and not kvm_runs_guests():
        pytest.skip("KVM runs no guest on this machine")
    return request.param


def guest_machine(accelerator, tmp_path, *options):
    return Machine(tmp_path / "qemu.log", ["-kernel", str(write_image(tmp_path / "guest")), *options],
                   accelerator=accelerator)


@pytest.fixture
def event_loop(request):
    return getattr(request, "param", "main-loop")


@pytest.fixture
def machine(accelerator, event_loop, tmp_path, path):
    arguments, properties = event_loop_options(event_loop)
    options = [*arguments,
               "-device", device_option(socket=str(path), doorbells=8, notifications=3, **properties,
                                         **{"window-size": 64 * MIB, "unmap-timeout": 4000}),
               "-trace", "virtio_vfio_user_doorbell*", "-trace", "virtio_vfio_user_notification*"]
    with guest_machine(accelerator, tmp_path, *options) as running:
        yield running


@pytest.fixture
def guest(machine):
    return TinyGuest(machine)


@pytest.fixture
def driver(guest, driver):
    """Begins when the guest runs, because its firmware places BARs too."""
    return driver


def is_signalled(event):
    return bool(select.select([event], [], [], host.deadline(SECONDS))[0])


@pytest.mark.parametrize("event_loop", EVENT_LOOPS, indirect=True)
def test_doorbell(accelerator, event_loop, machine, guest, driver, session):
    with open(os.eventfd(0, os.EFD_NONBLOCK), "rb", buffering=0) as event:
        session.send(client.SET_IRQS, client.set_irqs(0x24, 2, 0, 1), [event.fileno()])
        driver.reply(driver.expect(drv.IRQ_INFO))
        assert session.receive()[:2] == (client.SET_IRQS, 0)
        guest.store(driver.doorbells + 4, 1)
        guest.store(driver.doorbells + 4, 2)
        assert is_signalled(event)
        assert os.eventfd_read(event.fileno()) == 2
    trace = machine.output()
    if accelerator == "kvm" and event_loop == "main-loop":
        assert "doorbell_set doorbell 1" in trace and "ioeventfd 1" in trace
        assert "doorbell_write" not in trace, "no store left the kernel"
    else:
        assert trace.count("doorbell_write doorbell 1 size 4") == 2


def test_doorbells_beyond_what_kvm_is_given(accelerator, tmp_path, path):
    vectors = 1056
    options = ["-device", device_option(socket=str(path), doorbells=1 + vectors), "-trace", "virtio_vfio_user_doorbell*"]
    with guest_machine(accelerator, tmp_path, *options) as machine, \
            open(os.eventfd(0, os.EFD_NONBLOCK), "rb", buffering=0) as event:
        guest = TinyGuest(machine)
        driver = drv.Driver(machine)
        driver.initialise()
        driver.register(msix=vectors)
        with driver.session(path) as peer:
            for start in range(0, vectors, 16):
                peer.send(client.SET_IRQS, client.set_irqs(0x24, 2, start, 16), [event.fileno()] * 16)
                driver.reply(driver.expect(drv.IRQ_INFO))
                assert peer.receive()[:2] == (client.SET_IRQS, 0)
            assert machine.output().count(" ioeventfd 1") == (1024 if accelerator == "kvm" else 0)
            for doorbell in (1, vectors):  # 0 is INTx
                guest.store(driver.doorbells + 4 * doorbell, 1)
            assert is_signalled(event)
            assert os.eventfd_read(event.fileno()) == 2
        trace = machine.output()
        assert trace.count("doorbell_write doorbell 1 ") == (0 if accelerator == "kvm" else 1)
        assert trace.count(f"doorbell_write doorbell {vectors} ") == 1


def test_notification(accelerator, machine, guest, driver, session):
    driver.msix_vector(6, MSI_ADDRESS, VECTOR)
    machine.store(2, driver.notifications + 2, 6)  # of notification 0, the INTx resample eventfd
    with open(os.eventfd(0, os.EFD_NONBLOCK), "rb", buffering=0) as event:
        assert session.call(client.SET_IRQS, client.set_irqs(0x14, 0, 0, 1), [event.fileno()])[1] == 0
        assert VECTOR not in guest.pending_interrupts()
        os.eventfd_write(event.fileno(), 1)
        eventually(lambda: VECTOR in guest.pending_interrupts(), "the interrupt is pending in the guest")
    trace = machine.output()
    if accelerator == "kvm":
        assert "notification_irqfd notification 0 on 1 ret 0" in trace
        assert "notification_fired" not in trace, "no signal left the kernel"
    else:
        assert "notification_fired notification 0" in trace


@pytest.fixture
def window(driver):
    """Where the guest sees the window."""
    driver.set_config(0x18, WINDOW)
    driver.set_config(0x1C, 0)
    return WINDOW


#= VVFU-WINDOW-2
#= type=test
#= VVFU-WINDOW-4
#= type=test
def test_stores_of_the_guest_into_the_window(guest, driver, session, window):
    fd, memory = client.shared_memory(2 * MIB)
    writable = window + add_range(driver, session, 0, MIB, fd)
    read_only = window + add_range(driver, session, MIB, MIB, fd, client.READ, MIB)
    guest.store(writable, 0x11111111)
    assert memory[:4] == b"\x11" * 4
    guest.store(read_only, 0x22222222)
    guest.store(read_only + MIB - 4096, 0x22222222)
    assert memory[MIB:] == bytes(MIB)
    guest.store(window + 32 * MIB, 0x33333333)  # a hole
    remove_range(driver, session, 0, MIB)
    remove_range(driver, session, MIB, MIB)
    guest.store(writable, 0x44444444)
    guest.store(read_only, 0x44444444)
    assert memory[:4] == b"\x11" * 4 and memory[4:] == bytes(2 * MIB - 4)
    writable = window + add_range(driver, session, 0, MIB, fd, offset=MIB)
    guest.store(writable + 8, 0x55555555)
    assert memory[MIB + 8:MIB + 12] == b"\x55" * 4


def test_a_cpu_that_stores_to_registers_survives_unplug(accelerator, tmp_path, path):
    # It has found the register and waits for QEMU's lock while the function goes.
    with guest_machine(accelerator, tmp_path, "-device", drv.RootPort.DEVICE, *drv.RootPort.NATIVE_HOT_PLUG) as machine:
        guest = TinyGuest(machine)
        port = drv.RootPort(machine)  # after the firmware's
        for _ in range(UNPLUGS):
            machine.qmp.execute("device_add", driver="virtio-vfio-user-pci", id="vvfu", bus="rp",
                                socket=str(path), **{"window-size": MIB})
            port.set_power(True)
            driver = drv.Driver(machine, slot=0, bus=1)
            guest.store_again_and_again(driver.address(6), driver.address(7) + 2)
            eventually(lambda: machine.load(4, driver.address(6)), "a store arrives")
            machine.qmp.execute("device_del", id="vvfu")
            port.set_power(False)
            eventually(lambda: machine.qmp.deleted("vvfu"), "nothing refers to the function any more")
