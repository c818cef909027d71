# SPDX-License-Identifier: BSD-3-Clause
"""A virtio-blk disk of the device VM, driven by hand over qtest."""

import struct

from .driver import QUEUE_SIZE, RAM, Queue

_BAR4 = 0x100_0000_0000 >> 3  # where the tests put no other BAR
_QUEUE, _HEADER, _STATUS = RAM + 0x100000, RAM + 0x110000, RAM + 0x110100
_READ = 0
DONE_OK = 0


class Disk:
    """One request at a time."""

    def __init__(self, machine, slot=5):
        self._machine = machine
        self._slot = slot
        self._set_config(0x20, _BAR4 & 0xFFFFFFFF)
        self._set_config(0x24, _BAR4 >> 32)
        self._set_config(4, 6)
        self._common(1, 0x14, 0)
        self._common(1, 0x14, 3)
        self._common(4, 8, 1)
        self._common(4, 0xC, 3)  # VERSION_1, ACCESS_PLATFORM
        self._common(1, 0x14, 0xB)
        self._queue = Queue(machine, _QUEUE)
        self._common(2, 0x16, 0)
        self._common(2, 0x18, QUEUE_SIZE)
        for offset, address in ((0x20, self._queue.descriptors), (0x28, self._queue.available),
                                (0x30, self._queue.used)):
            self._common(4, offset, address)
            self._common(4, offset + 4, 0)
        self._common(2, 0x1C, 1)
        self._common(1, 0x14, 0xF)

    def _set_config(self, offset, value):
        self._machine.command(f"outl 0xcf8 {0x80000000 | self._slot << 11 | offset:#x}")
        self._machine.command(f"outl 0xcfc {value:#x}")

    def _common(self, width, offset, value):
        self._machine.store(width, _BAR4 + offset, value)

    def needs_reset(self):
        return bool(self._machine.load(1, _BAR4 + 0x14) & 0x40)

    def start_read(self, address, size, sector=0):
        """Reads the disk to an address of the machine."""
        self._machine.write(_HEADER, struct.pack("<IIQ", _READ, 0, sector))
        self._machine.write(_STATUS, b"\xff")
        head = (self._queue.produced * 3) % (QUEUE_SIZE - 3)
        for index, (where, length, flags) in enumerate(((_HEADER, 16, 1), (address, size, 3), (_STATUS, 1, 2))):
            self._machine.write(self._queue.descriptors + 16 * (head + index),
                                struct.pack("<QIHH", where, length, flags, head + index + 1))
        self._machine.write(self._queue.available + 4 + 2 * (self._queue.produced % QUEUE_SIZE),
                            struct.pack("<H", head))
        self._queue.produced += 1
        self._machine.write(self._queue.available + 2, struct.pack("<H", self._queue.produced & 0xFFFF))
        self._machine.store(2, _BAR4 + 0x3000, 0)

    def status(self):
        """Of the request when it is complete, else None."""
        return self._machine.read(_STATUS, 1)[0] if self._queue.take() else None
