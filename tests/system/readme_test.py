# SPDX-License-Identifier: BSD-3-Clause
"""README.md's command lines, as they are but for the accelerator and the places of programs and files."""

import html
import re
import shlex
import socket
import struct

import pytest

from vmlab import host
from vmlab.qmp import Qmp
from vmlab.vm import wait_until

MIB = 1 << 20
DEVICE_VM = ("/opt/vvfu/bin/qemu-system-x86_64", "virtio-vfio-user-pci", "disk.img")
DRIVER_VM = ("qemu-system-x86_64", "vfio-user-pci", "memory-backend-memfd")


def empty_qcow2(path, size):
    """Version 2: the header, a table of reference counts and an L1 table without entries (docs/interop/qcow2.rst)."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, 2 * cluster, cluster, 1, 0, 0)
    path.write_bytes(header.ljust(3 * cluster, b"\0"))


class Readme:
    """The document, as if it had been written for this machine and the files in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.processes = []
        self.sockets = []
        for name in ("device-vm.qcow2", "driver-vm.qcow2"):
            empty_qcow2(folder / name, 64 * MIB)
        with open(folder / "disk.img", "wb") as file:
            file.truncate(64 * MIB)
        self.text = (host.TREE / "README.md").read_text().replace("/run/vvfu", str(folder))
        if host.accelerator() == "tcg":
            self.text = self.text.replace("accel=kvm", "accel=tcg").replace("-cpu host", "-cpu max")

    def command(self, *words):
        """The first command that has all the words, continuation lines joined."""
        for block in re.findall(r"^```sh\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if all(word in line for word in words):
                    return shlex.split(line)
        raise AssertionError(f"README.md has no command with {words}")

    def libvirt_arguments(self, driver):
        """What the domain with -device `driver` passes to QEMU."""
        values = [html.unescape(value) for value in re.findall(r"<qemu:arg value='(.*)'/>", self.text)]
        index = next(i for i, value in enumerate(values) if f'"driver":"{driver}"' in value)
        return values[index - 1:index + 1]

    def start(self, arguments, pass_fds=()):
        places = {"/opt/vvfu/bin/qemu-system-x86_64": host.device_qemu, "qemu-system-x86_64": host.driver_qemu}
        program, *rest = arguments
        path = places[program]() if program in places else host.program(program)
        with open(self.folder / "log", "ab") as log:
            self.processes.append(host.start_process([path, *rest], log, pass_fds, directory=self.folder))
        return self.processes[-1]

    def qemu(self, arguments):
        """Starts a QEMU whose CPUs do not run; returns its monitor."""
        ours, theirs = socket.socketpair()
        self.sockets.append(ours)
        with theirs:
            fd = theirs.fileno()
            self.start([*arguments, "-S", "-display", "none", "-chardev", f"socket,id=qmp,fd={fd}",
                        "-mon", "chardev=qmp,mode=control"], pass_fds=[fd])
        monitor = Qmp(ours)
        monitor.connect()
        return monitor

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def readme(tmp_path):
    document = Readme(tmp_path)
    yield document
    document.close()


def device_vm_is_ready(monitor):
    functions = [f"/machine/peripheral-anon/{device['name']}" for device in
                 monitor.execute("qom-list", path="/machine/peripheral-anon")
                 if device["type"] == "child<virtio-vfio-user-pci>"]
    return [(monitor.get(path, "session-state"), monitor.get(path, "window-size")) for path in functions] == [
        ("no driver", 8 << 30)]


def test_device_vm(readme):
    assert device_vm_is_ready(readme.qemu(readme.command(*DEVICE_VM)))


def test_device_vm_of_libvirt(readme):
    base = readme.command(*DEVICE_VM)
    index = next(i for i, word in enumerate(base) if "virtio-vfio-user-pci" in word)
    assert device_vm_is_ready(readme.qemu([*base[:index - 1], *readme.libvirt_arguments("virtio-vfio-user-pci")]))


def nvme_functions(monitor):
    return [device for bus in monitor.execute("query-pci") for device in bus["devices"]
            if device["class_info"]["class"] == 0x0108]


def serve(readme, backing):
    server = readme.start(readme.command("vvfu-loopback", backing))
    wait_until(lambda: server.poll() is not None or (readme.folder / "nvme.sock").is_socket(), 20, "vvfu-loopback listens")
    return server


@pytest.fixture
def served(readme):
    """An NVMe disk on the socket that the driver VMs of the document use."""
    serve(readme, "mem:256M")


def test_driver_vm(readme, served):
    assert len(nvme_functions(readme.qemu(readme.command(*DRIVER_VM)))) == 1


def test_driver_vm_of_libvirt(readme, served):
    base = readme.command(*DRIVER_VM)
    index = next(i for i, word in enumerate(base) if "vfio-user-pci" in word)
    assert len(nvme_functions(readme.qemu([*base[:index - 1], *readme.libvirt_arguments("vfio-user-pci")]))) == 1


def test_vvfu_loopback_with_a_file(readme):
    server = serve(readme, "disk.img")
    server.terminate()
    assert server.wait(host.deadline(20)) == 0
