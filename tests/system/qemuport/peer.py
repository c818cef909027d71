# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user client, as far as the tests of the port need one."""

import array
import fcntl
import mmap
import os
import socket
import struct

from vmlab import host

from .machine import SECONDS

VERSION, DMA_MAP, DMA_UNMAP, REGION_INFO, SET_IRQS, REGION_READ, REGION_WRITE, DMA_WRITE = 1, 2, 3, 5, 8, 9, 10, 12
READ, WRITE = 1, 2
_ADD_SEALS, _SEAL_SHRINK = 1033, 2


def shared_memory(size, seal=True):
    """A memfd as a VMM's memory backend, and this process's view of it."""
    fd = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seal:
        fcntl.fcntl(fd, _ADD_SEALS, _SEAL_SHRINK)
    return fd, mmap.mmap(fd, size)


class Peer:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(host.deadline(SECONDS))
        self.socket.connect(str(path))
        self._id = 0
        self.last_id = None  # of the message that was received last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, command, payload=b"", fds=()):
        self._id += 1
        data = struct.pack("=HHIII", self._id, command, 16 + len(payload), 0, 0) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], ancillary)

    def reply(self, command, message_id, payload):
        """To a command of the device."""
        self.socket.sendall(struct.pack("=HHIII", message_id, command, 16 + len(payload), 1, 0) + payload)

    def _exactly(self, size):
        data, fds = b"", array.array("i")
        while len(data) < size:
            part, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            if not part:
                raise EOFError("the device closed the connection")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[:len(content) - len(content) % fds.itemsize])
            data += part
        return data, list(fds)

    def receive(self):
        """(command, errno or 0, payload, fds) of the next message."""
        header, fds = self._exactly(16)
        self.last_id, command, size, flags, error = struct.unpack("=HHIII", header)
        payload, more = self._exactly(size - 16) if size > 16 else (b"", [])
        return command, error if flags & 0x20 else 0, payload, fds + more

    def call(self, command, payload=b"", fds=()):
        self.send(command, payload, fds)
        return self.receive()

    def send_version(self):
        self.send(VERSION, struct.pack("=HH", 0, 0) + b'{"capabilities":{"max_msg_fds":16}}\0')

    def closed_by_device(self):
        return self.socket.recv(1) == b""


def dma_map(address, size, flags=READ | WRITE, offset=0):
    return struct.pack("=IIQQQ", 32, flags, offset, address, size)


def dma_unmap(address, size):
    return struct.pack("=IIQQ", 24, 0, address, size)


def set_irqs(flags, index, start, count):
    return struct.pack("=IIIII", 20, flags, index, start, count)
