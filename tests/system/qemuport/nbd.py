# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server for one client, whose reads stop half-way: what the host's kernel has delivered is what was sent."""

import fcntl
import socket
import struct
import termios
import threading

_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_OPTION_EXPORT_NAME, _OPTION_REPLY_MAGIC, _UNSUPPORTED = 1, 0x3E889045565A9, (1 << 31) | 1
_READ, _DISCONNECT = 0, 2


def _receive(connection, size):
    data = connection.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data


class StallingServer:
    """Serves bytes of one value. Each read of at least `stall_from` bytes gets its first half, and the rest after
    resume()."""

    def __init__(self, path, size, fill, stall_from):
        self._size, self._fill, self._stall_from = size, fill, stall_from
        self.half_way = threading.Event()
        self._go_on = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.stalls = False
        self._connection = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def delivered(self):
        """The client's kernel has handed over all that was sent."""
        return struct.unpack("i", fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4)))[0] == 0

    def resume(self):
        self.half_way.clear()
        self._go_on.set()

    def _serve(self):
        self._connection, _ = self._listener.accept()
        try:
            self._negotiate()
            while self._answer():
                pass
        except (EOFError, OSError):
            pass  # QEMU has ended

    def _negotiate(self):
        send = self._connection.sendall
        send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))  # fixed newstyle, no zeroes
        _receive(self._connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", _receive(self._connection, 16))
            _receive(self._connection, length)
            if option == _OPTION_EXPORT_NAME:
                break
            send(struct.pack(">QIII", _OPTION_REPLY_MAGIC, option, _UNSUPPORTED, 0))
        send(struct.pack(">QH", self._size, 1))

    def _answer(self):
        magic, _, kind, handle, _, length = struct.unpack(">IHHQQI", _receive(self._connection, 28))
        assert magic == _REQUEST_MAGIC
        if kind != _READ:
            return kind != _DISCONNECT
        reply = struct.pack(">IIQ", _REPLY_MAGIC, 0, handle)
        data = self._fill * length
        half = length // 2 if self.stalls and length >= self._stall_from else length
        self._connection.sendall(reply + data[:half])
        if half < length:
            self.half_way.set()
            self._go_on.wait()
            self._go_on.clear()
            self._connection.sendall(data[half:])
        return True
