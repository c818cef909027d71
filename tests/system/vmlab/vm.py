# SPDX-License-Identifier: BSD-3-Clause
"""One QEMU process with a kernel, an initramfs, an agent and logs."""

import os
import pathlib
import shlex
import signal
import socket
import subprocess
import time

from . import host
from .agent import Agent, GuestError
from .qmp import Qmp


class Vm:
    """A virtual machine whose files (console, logs) are in `directory`.

    `arguments` come after the common ones: machine, devices. Paths are the host's.
    """

    def __init__(self, name, directory, qemu, kernel, initramfs, arguments, append=""):
        self.name = name
        self.directory = pathlib.Path(directory)
        self.console_socket = self.directory / f"{name}.console"
        self.console_log = self.directory / f"{name}.console.log"
        self.qemu_log = self.directory / f"{name}.qemu.log"
        self.agent_log = self.directory / f"{name}.agent.log"
        self._command = [
            str(qemu), "-nodefaults", "-no-user-config", "-display", "none", "-name", name,
            "-kernel", str(kernel.image), "-initrd", str(initramfs),
            "-append", f"console=ttyS0 panic=-1 quiet vmlab.name={name} {append}".strip(),
            "-chardev", f"socket,id=console,path={self.console_socket},server=on,wait=off,logfile={self.console_log}",
            "-serial", "chardev:console",
            *[str(argument) for argument in arguments],
        ]
        self.outlive = False  # when set before start(): go on after the program that started it
        self.process = None
        self.agent = None
        self.qmp = None
        self._sockets = []
        self._monitor_ready = False

    def start(self):
        """Starts QEMU and returns at once; wait_ready() follows."""
        agent, agent_qemu = socket.socketpair()
        qmp, qmp_qemu = socket.socketpair()
        fds = [agent_qemu.fileno(), qmp_qemu.fileno()]
        command = [
            *self._command,
            "-chardev", f"socket,id=agent,fd={fds[0]}", "-serial", "chardev:agent",
            "-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control",
        ]
        with open(self.qemu_log, "ab") as log:
            log.write((shlex.join(command) + "\n").encode())
            log.flush()
            self.process = host.start_process(command, log, pass_fds=fds, outlive=self.outlive)
        agent_qemu.close()
        qmp_qemu.close()
        self._sockets = [agent, qmp]
        self.agent = Agent(self.name, agent, open(self.agent_log, "ab"), self.alive)
        self.qmp = Qmp(qmp)
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, seconds=120):
        """Waits for the agent (of a first boot, or of one more after a reboot); returns the boot ID."""
        try:
            if not self._monitor_ready:
                self.qmp.connect()
                self._monitor_ready = True
            return self.agent.wait_ready(seconds)
        except Exception as error:
            raise GuestError(f"{self.name}: did not boot: {error}\n{self.log_tail()}") from error

    def run(self, command, seconds=30, check=True):
        return self.agent.run(command, seconds, check)

    def log_tail(self, lines=15):
        """The end of QEMU's messages and of the console, for a failure report."""
        parts = []
        for path in (self.qemu_log, self.console_log):
            if path.exists():
                text = path.read_text(errors="replace").splitlines()[-lines:]
                parts.append(f"--- {path}\n" + "\n".join(text))
        return "\n".join(parts)

    def wait_exit(self, seconds=30):
        try:
            return self.process.wait(host.deadline(seconds))
        except subprocess.TimeoutExpired as error:
            raise GuestError(f"{self.name}: still running after {seconds} s\n{self.log_tail()}") from error

    def power_off(self, seconds=60):
        """Orderly: the guest's kernel shuts its devices down and turns the machine off."""
        self.agent.run("sync", seconds)
        self.agent.post("poweroff -f")
        status = self.wait_exit(seconds)
        self.close()
        if status != 0:
            raise GuestError(f"{self.name}: QEMU exited with {status}\n{self.log_tail()}")

    def kill(self, signal_number=signal.SIGKILL):
        """Ends the process as a crash would."""
        if self.alive():
            os.kill(self.process.pid, signal_number)
            self.process.wait()
        self.close()

    def close(self):
        for sock in self._sockets:
            sock.close()
        self._sockets = []


def wait_until(condition, seconds, what):
    """Waits for a condition that nothing announces."""
    until = time.monotonic() + host.deadline(seconds)
    while not condition():
        if time.monotonic() > until:
            raise GuestError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
