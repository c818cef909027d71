# SPDX-License-Identifier: BSD-3-Clause
"""QEMU under qtest: its memory, ports and monitor are the test's."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from vmlab import host
from vmlab.qmp import Qmp

SECONDS = 20
COMMON = ["-nodefaults", "-no-user-config", "-display", "none"]


def device_option(**properties):
    """The value of -device, in JSON."""
    return json.dumps({"driver": "virtio-vfio-user-pci", "id": "vvfu", "addr": "04.0", **properties})


# Properties: the longest deadlines, for tests that a slow machine must not turn into something else, and some that are
# worth waiting for.
PATIENT = {"unmap-timeout": 4000, "access-timeout": 4000}
HASTY = {"unmap-timeout": 500, "access-timeout": 1000}

EVENT_LOOPS = ("main-loop", "iothread")


def event_loop_options(event_loop):
    """QEMU's options and the device's properties for a device whose socket is served there."""
    return (["-object", "iothread,id=io"], {"iothread": "io"}) if event_loop == "iothread" else ([], {})


def run_to_exit(*arguments):
    """Status and output of a QEMU that is expected to end by itself."""
    result = subprocess.run([host.device_qemu(), *COMMON, *arguments], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                            timeout=host.deadline(SECONDS))
    return result.returncode, result.stdout


def eventually(condition, what):
    """Waits for what nothing announces; the condition asks QEMU, which works meanwhile."""
    until = time.monotonic() + host.deadline(SECONDS)
    while not condition():
        assert time.monotonic() < until, f"not within {SECONDS} s: {what}"


@contextlib.contextmanager
def stopped(process):
    """None of its threads runs meanwhile: what happens to it all is there when it goes on."""
    def states():
        tasks = pathlib.Path(f"/proc/{process.pid}/task").glob("*/stat")
        return {task.read_text().rpartition(")")[2].split()[0] for task in tasks}

    os.kill(process.pid, signal.SIGSTOP)
    eventually(lambda: states() == {"T"}, "it is stopped")
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


class Machine:
    """A q35 machine; its vCPU does not run under the default accelerator."""

    def __init__(self, log, arguments, pass_fds=(), accelerator="qtest"):
        self.log = log
        qtest, qtest_qemu = socket.socketpair()
        qmp, qmp_qemu = socket.socketpair()
        fds = [qtest_qemu.fileno(), qmp_qemu.fileno()]
        command = [str(host.device_qemu()), *COMMON, "-machine", "q35", "-accel", accelerator, "-m", "64",
                   "-chardev", f"socket,id=qtest,fd={fds[0]}", "-qtest", "chardev:qtest",
                   "-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control", *arguments]
        with open(log, "ab") as file:
            self.process = host.start_process(command, file, pass_fds=[*fds, *pass_fds])
        qtest_qemu.close()
        qmp_qemu.close()
        qtest.settimeout(host.deadline(SECONDS))
        self._qtest = qtest
        self._answers = qtest.makefile("rb")
        self._qmp_socket = qmp
        self.qmp = Qmp(qmp)
        self.qmp.connect()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._answers.close()
        self._qtest.close()
        self._qmp_socket.close()

    def quit(self):
        """An orderly end; returns the exit status."""
        self.qmp.execute("quit")
        return self.process.wait(host.deadline(SECONDS))

    def output(self):
        return self.log.read_text(errors="replace")

    def command(self, text):
        self._qtest.sendall(text.encode() + b"\n")
        line = self._answers.readline().decode().split()
        assert line and line[0] == "OK", f"{text}: {line}\n{self.output()}"
        return line[1] if len(line) > 1 else None

    def read(self, address, size):
        return bytes.fromhex(self.command(f"read {address:#x} {size:#x}")[2:])

    def write(self, address, data):
        if data:
            self.command(f"write {address:#x} {len(data):#x} 0x{bytes(data).hex()}")

    def load(self, width, address):
        """One access of `width` bytes."""
        return int(self.command(f"read{'_bwlq'[width.bit_length()]} {address:#x}"), 16)

    def store(self, width, address, value):
        self.command(f"write{'_bwlq'[width.bit_length()]} {address:#x} {value:#x}")

    def property(self, name, path="/machine/peripheral/vvfu"):
        return self.qmp.get(path, name)

    def monitor(self, line):
        return self.qmp.execute("human-monitor-command", **{"command-line": line})
