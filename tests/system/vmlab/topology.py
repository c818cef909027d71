# SPDX-License-Identifier: BSD-3-Clause
"""The cast: a device VM that implements a device, the driver VM that uses it, and vvfu-loopback in place of the former."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import tempfile

from . import guestio, host, initramfs
from .agent import GuestError
from .vm import Vm, wait_until

FUNCTION = "0000:00:04.0"  # of virtio-vfio-user-pci in the device guest
SOCKET_NAME = "device.sock"


class Lab:
    """A directory with one kernel, the guests' images, sockets and logs; ends every process it started."""

    def __init__(self, directory=None, outlive=False):
        """outlive: what it starts may go on after this program, see release()."""
        self.outlive = outlive
        self.kernel = host.Kernel()  # what the machine may lack comes first: no directory is left behind then
        self.accelerator = host.accelerator()
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="vvfu-"))
        self.socket = self.directory / SOCKET_NAME
        self._images = {}
        self._processes = []
        self._drivers = []  # those of new_driver()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for process in reversed(self._processes):
            process.kill()
        self._processes = []

    def release(self):
        """Leaves everything running; the caller's user ends it."""
        self._processes = []

    def keep_track(self, process):
        process.outlive = self.outlive
        self._processes.append(process)
        return process

    def processes(self):
        return list(self._processes)

    def _image(self, name, modules, **contents):
        if name not in self._images:
            self._images[name] = initramfs.build(self.directory / f"{name}.initramfs", self.kernel, modules, **contents)
        return self._images[name]

    def _stripped(self, program):
        """Without debug information, which would fill the guest's memory."""
        target = self.directory / program.name
        subprocess.run(["strip", "-o", target, program], check=True)
        return target

    def device_image(self):
        return self._image("device", ["virtio_blk", "vfio_iommu_type1", "vfio-pci"],
                           static_programs=[self._stripped(host.program("vvfu-guest"))])

    def driver_image(self, extra=()):
        """extra: more programs than every driver guest has."""
        programs = ["mke2fs", "nvme", *extra]
        # virtio_blk: for the disk with the data to write. virtio_iommu: devices behind one wait for it.
        return self._image("-".join(["driver", *extra]), ["virtio_iommu", "virtio_blk"],
                           programs=[host.GuestProgram(name) for name in programs])

    def device_vm(self, backing=None, name="device", **options):
        return self.keep_track(DeviceVm(self, name, backing, **options))

    def driver_vm(self, name="driver", **options):
        return self.keep_track(driver_vm(self, name, **options))

    def new_driver(self, source, **options):
        """One more driver VM, with its disk ready if it has one. Ends what a failed case left behind."""
        for leftover in self._drivers:
            leftover.kill()
        driver = self.driver_vm(f"driver{len(self._drivers) + 1}", source=source, **options)
        self._drivers.append(driver)
        driver.start()
        driver.wait_ready()
        if not options.get("slot"):
            guestio.wait_for_disk(driver)
        return driver

    def loopback(self, *arguments):
        """vvfu-loopback with a device model and its arguments."""
        return self.keep_track(Loopback(self, arguments))


def _machine(accelerator, intremap=False):
    # The vIOMMU's interrupt remapping needs a split irqchip under KVM.
    split = ",kernel-irqchip=split" if intremap and accelerator == "kvm" else ""
    cpu = ["-cpu", "host"] if accelerator == "kvm" else []
    return f"q35{split}", ["-accel", accelerator, *cpu]


def _disk(identifier, path, address, readonly=False):
    options = "readonly=on" if readonly else "cache=writeback"
    return ["-drive", f"id={identifier},if=none,format=raw,file={path},{options}",
            "-device", f"virtio-blk-pci,drive={identifier},addr={address}"]


class DeviceVm(Vm):
    """The VM that implements the device: our QEMU, a vIOMMU with interrupt remapping, vvfu-guest.

    backing: an image that the guest sees as /dev/vda. properties: more for -device virtio-vfio-user-pci.
    iommu=False: a machine without a vIOMMU, for the set-up error it must give. hot_plug: an empty slot that plug() puts
    the function into, in place of the function that is there from the start. functions: how many, see
    self.sockets; those after the first have the properties `more`.
    """

    HOT_PLUGGED = "0000:01:00.0"

    def __init__(self, lab, name, backing, memory=384, properties=None, iommu=True, function=True, smp=1, hot_plug=False,
                 functions=1, more="trust-peer-memory=off"):
        machine, accelerator = _machine(lab.accelerator, iommu)
        self.socket = lab.socket
        self.sockets = [self.socket, *(lab.directory / f"device{number}.sock" for number in range(2, functions + 1))]
        arguments = ["-machine", machine, *accelerator, "-m", memory, "-smp", smp]
        if iommu:
            arguments += ["-device", "intel-iommu,intremap=on"]
        for number in range(2, functions + 1):
            arguments += ["-device", f"virtio-vfio-user-pci,socket={self.sockets[number - 1]},addr={9 + number:x},id=vvfu{number},{more}"]
        if hot_plug:
            arguments += ["-device", "pcie-root-port,id=rootport,chassis=1,addr=6,pref64-reserve=256M"]
        elif function:
            values = {"socket": self.socket, "addr": "4", "id": "vvfu", **(properties or {})}
            options = ",".join(f"{key}={value}" for key, value in values.items())
            arguments += ["-device", f"virtio-vfio-user-pci,{options}"]
        if backing:
            arguments += _disk("backing", backing, 5)
        append = "intel_iommu=on" if iommu else ""
        super().__init__(name, lab.directory, host.device_qemu(), lab.kernel, lab.device_image(), arguments, append)
        self._guest_runs = 0

    def bind(self, function=FUNCTION):
        self.run(f"vfio-bind {function}")

    def plug(self, **properties):
        """device_add, and vfio-pci as the function's driver: what a rule of udev would do."""
        self.qmp.execute("device_add", driver="virtio-vfio-user-pci", bus="rootport", id="vvfu", socket=str(self.socket),
                         **{"window-size": 64 << 20, **properties})
        wait_until(lambda: self.run(f"test -e /sys/bus/pci/devices/{self.HOT_PLUGGED}/iommu_group", check=False)[0] == 0,
                   30, "the guest sees the function")
        self.bind(self.HOT_PLUGGED)

    def wait_unplugged(self, seconds=30):
        """After device_del: until the guest has let go of the function and QEMU has freed it."""
        wait_until(lambda: self.qmp.deleted("vvfu"), seconds, "the function is unplugged")

    def start_guest_driver(self, model="nvme --backing=/dev/vda", options=f"--device={FUNCTION}", seconds=60):
        """Starts vvfu-guest and waits until it serves: the socket then exists."""
        self._guest_runs += 1
        log = f"/tmp/vvfu-guest.{self._guest_runs}.log"
        self.run(f"vvfu-guest {options} {model} >{log} 2>&1 & echo $! >/tmp/vvfu-guest.pid")
        self.guest_log = log

        def serves():
            if self.socket.is_socket():
                return True
            if self.run("kill -0 $(cat /tmp/vvfu-guest.pid)", check=False)[0] != 0:
                raise GuestError(f"vvfu-guest ended: {self.run(f'cat {log}')}")
            return False

        wait_until(serves, seconds, "vvfu-guest serves")

    def stop_guest_driver(self, signal_name="TERM", seconds=30):
        """Signals vvfu-guest and waits until it is gone."""
        self.run(f"kill -{signal_name} $(cat /tmp/vvfu-guest.pid)")
        wait_until(lambda: self.run("kill -0 $(cat /tmp/vvfu-guest.pid)", check=False)[0] != 0, seconds,
                   "vvfu-guest ends")

    def property(self, name, function="vvfu"):
        """As it is now. QEMU may not have noticed yet what a peer or the guest just did: await_property() is for that."""
        return self.qmp.get(f"/machine/peripheral/{function}", name)

    def await_property(self, name, value, function="vvfu", seconds=20):
        """Waits until a property has a value."""
        wait_until(lambda: self.property(name, function) == value, seconds, f"{name} of {function} is {value!r}")

    def await_state(self, state):
        self.await_property("session-state", state)


def device_json(socket, identifier="vfu0", address=4):
    """The value of a driver VM's -device for the function behind a socket."""
    return json.dumps({"driver": "vfio-user-pci", "id": identifier, "addr": f"0x{address:x}",
                       "socket": {"type": "unix", "path": str(socket)}})


def plug_into_driver(driver, socket):
    """device_add of the function behind a socket, into the slot that driver_vm(slot=True) has."""
    driver.qmp.execute("device_add", driver="vfio-user-pci", id="vfu0", bus="rootport",
                       socket={"type": "unix", "path": str(socket)})


def unplug_from_driver(driver, seconds=30):
    """device_del, until the guest has let go of the function and QEMU has freed it."""
    driver.qmp.execute("device_del", id="vfu0")
    wait_until(lambda: driver.qmp.deleted("vfu0"), seconds, "the function is unplugged")


def driver_vm(lab, name, memory=384, smp=2, share=True, source=None, devices=1, iommu=None, programs=(), append="",
              backend=None, hot_plug=None, socket=None, slot=False):
    """A stock VM with the device as a vfio-user PCI function.

    share=False: guest memory that no other process can map, so the device must ask for every byte by message.
    source: a file that the guest sees as /dev/vda, read-only. iommu: a vIOMMU ("intel" or "virtio") in strict mode, so
    that the guest maps and unmaps memory for every transfer. programs: host.GuestProgram names beyond the usual ones.
    backend: the memory object but for its ID and size. hot_plug: MiB of memory that can be added. socket: another one
    than the lab's. slot: an empty one in place of the function, see plug_into_driver().
    """
    machine, accelerator = _machine(lab.accelerator, iommu == "intel")
    more = f",slots=1,maxmem={memory + hot_plug}M" if hot_plug else ""
    arguments = [*accelerator, "-m", f"{memory}M{more}", "-smp", smp]
    if iommu:
        arguments += ["-device", {"intel": "intel-iommu,intremap=on,caching-mode=on", "virtio": "virtio-iommu-pci,addr=3"}[iommu]]
        append = f"intel_iommu=on iommu.strict=1 {append}"
    if share:
        arguments += ["-machine", f"{machine},memory-backend=mem",
                      "-object", f"{backend or 'memory-backend-memfd,share=on'},id=mem,size={memory}M"]
    else:
        arguments += ["-machine", machine]
    if slot:
        arguments += ["-device", "pcie-root-port,id=rootport,chassis=1,addr=6"]
    for index in range(0 if slot else devices):
        arguments += ["-device", device_json(socket or lab.socket, f"vfu{index}", 4 + index)]
    if source:
        arguments += _disk("source", source, 0x10, readonly=True)
    return Vm(name, lab.directory, host.driver_qemu(), lab.kernel, lab.driver_image(programs), arguments, append)


class Loopback:
    """vvfu-loopback: the same core and device models in one host process."""

    def __init__(self, lab, arguments):
        self.name = "loopback"
        self.socket = lab.socket
        self.qemu_log = lab.directory / f"{self.name}.log"
        self._command = [str(host.program("vvfu-loopback")), f"--socket-path={self.socket}", *arguments]
        self.outlive = False
        self.process = None

    def start(self, seconds=20):
        with open(self.qemu_log, "ab") as log:
            log.write((shlex.join(self._command) + "\n").encode())
            log.flush()
            self.process = host.start_process(self._command, log, outlive=self.outlive)

        def serves():
            if not self.alive():
                raise GuestError(f"{self.name}: ended with {self.process.returncode}\n{self.log_tail()}")
            return self.socket.is_socket()

        wait_until(serves, seconds, f"{self.name} listens")
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines=15):
        return "\n".join(self.qemu_log.read_text(errors="replace").splitlines()[-lines:])

    def counters(self):
        """What SIGUSR1 makes it log, by part of the program."""
        def logged():
            return re.findall(r"^.*counters: (\{.*\})\n", self.qemu_log.read_text(errors="replace"), re.MULTILINE)

        before = len(logged())
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(logged()) > before, 10, f"{self.name} logs its counters")
        return json.loads(logged()[-1])

    def stop(self, seconds=20):
        """SIGTERM; returns the exit status."""
        if self.alive():
            self.process.terminate()
        try:
            return self.process.wait(host.deadline(seconds))
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"{self.name}: still running after SIGTERM\n{self.log_tail()}") from error

    def kill(self, signal_number=signal.SIGKILL):
        if self.alive():
            os.kill(self.process.pid, signal_number)
            self.process.wait()
