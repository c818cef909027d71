# SPDX-License-Identifier: BSD-3-Clause
"""The host's end of the guest agent (guest/agent)."""

import base64
import re
import select
import time

from . import host


class GuestError(Exception):
    """A command in the guest failed, or the guest did not answer in time."""


class Agent:
    """Runs commands in a guest. `alive()` tells whether its VM still runs, so that a dead one is not waited for."""

    def __init__(self, name, sock, log, alive):
        self._name = name
        self._socket = sock
        self._log = log
        self._alive = alive
        self._buffer = b""
        self._number = 0

    def _receive(self, until, what):
        """Adds what the guest sends to the buffer."""
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise GuestError(f"{self._name}: no answer in time: {what}")
            readable, _, _ = select.select([self._socket], [], [], min(left, 1.0))
            if readable:
                data = self._socket.recv(65536)
                if not data:
                    raise GuestError(f"{self._name}: the VM ended: {what}")
                self._log.write(data)
                self._log.flush()
                self._buffer += data
                return
            if not self._alive():
                raise GuestError(f"{self._name}: the VM ended: {what}")

    def _match(self, pattern, seconds, what):
        """Waits for the pattern; returns what came before it, and the match."""
        until = time.monotonic() + host.deadline(seconds)
        while not (match := re.search(pattern, self._buffer, re.MULTILINE)):
            self._receive(until, what)
        before = self._buffer[:match.start()]
        self._buffer = self._buffer[match.end():]
        return before, match

    def wait_ready(self, seconds):
        """Waits until the guest has booted (again); returns its boot ID."""
        _, match = self._match(rb"^@@ready ([0-9a-f-]+)\r?\n", seconds, "boot")
        return match[1].decode()

    def run(self, command, seconds=30, check=True):
        """Runs a shell command; returns its output, or (status, output) with check=False."""
        self._number += 1
        encoded = base64.b64encode(command.encode()).decode()
        self._socket.sendall(f"{self._number} {encoded}\n".encode())
        self._match(rb"^@@begin %d\r?\n" % self._number, seconds, command)
        output, match = self._match(rb"\n?^@@end %d (\d+)\r?\n" % self._number, seconds, command)
        status, text = int(match[1]), output.decode(errors="replace").replace("\r\n", "\n")
        if not check:
            return status, text
        if status != 0:
            raise GuestError(f"{self._name}: '{command}' exited with {status}:\n{text}")
        return text

    def post(self, command):
        """Runs a command that ends the guest: no answer is waited for."""
        self._number += 1
        encoded = base64.b64encode(command.encode()).decode()
        self._socket.sendall(f"{self._number} {encoded}\n".encode())
