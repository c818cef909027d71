# SPDX-License-Identifier: BSD-3-Clause
"""A QMP client, as small as the tests need."""

import json
import socket
import time

from . import host


class QmpError(Exception):
    """QEMU refused a command, or closed the monitor."""


class Qmp:
    def __init__(self, sock):
        self._socket = sock
        self._buffer = b""
        self.events = []

    def connect(self, seconds=20):
        """Greeting and capabilities negotiation."""
        self._until = time.monotonic() + host.deadline(seconds)
        self._message()
        self.execute("qmp_capabilities")

    def _message(self):
        while b"\n" not in self._buffer:
            left = self._until - time.monotonic()
            if left <= 0:
                raise QmpError("no answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise QmpError("QEMU closed the monitor")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def execute(self, command, seconds=20, fds=(), **arguments):
        """What the command returns; fds: passed to QEMU with it."""
        self._until = time.monotonic() + host.deadline(seconds)
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        self._socket.settimeout(None)
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._socket, [data], fds) if fds else 0
        self._socket.sendall(data[sent:])
        while True:
            message = self._message()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            elif "return" in message:
                return message["return"]

    def deleted(self, device):
        """A DEVICE_DELETED event has come for it since the last time this was true."""
        self.execute("query-status")  # events come before its answer
        for event in self.events:
            if event["event"] == "DEVICE_DELETED" and event["data"].get("device") == device:
                self.events.remove(event)
                return True
        return False

    def get(self, path, name):
        """A QOM property."""
        return self.execute("qom-get", path=path, property=name)
