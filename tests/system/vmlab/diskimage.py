# SPDX-License-Identifier: BSD-3-Clause
"""A disk image with two partitions, and what the host finds in it afterwards."""

import hashlib
import os
import struct

from . import host

MIB = 1 << 20
SECTOR = 512


class DiskImage:
    """Partition 1 is for raw data of `raw` bytes, partition 2 (`filesystem` bytes) for a file system. Multiples of 1 MiB."""

    def __init__(self, path, raw, filesystem):
        self.path = path
        self.raw = (MIB, raw)
        self.filesystem = (MIB + raw, filesystem)
        self.size = MIB + raw + filesystem
        with open(path, "wb") as file:
            file.truncate(self.size)
            file.write(self._boot_record())

    def _boot_record(self):
        entries = b"".join(struct.pack("<B3sB3sII", 0, b"\xff" * 3, 0x83, b"\xff" * 3, start // SECTOR, size // SECTOR)
                           for start, size in (self.raw, self.filesystem))
        return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"

    def raw_digest(self, size):
        """SHA-256 of the first `size` bytes of partition 1."""
        return file_digest(self.path, self.raw[0], size)

    def file_digest(self, name, scratch):
        """SHA-256 of a file in partition 2, taken out of the file system without mounting it; `scratch` is overwritten."""
        if os.path.exists(scratch):
            os.unlink(scratch)
        # Its commands are split at spaces, which a path may have: it runs where the file goes.
        host.GuestProgram("debugfs").run("-R", f"dump {name} {scratch.name}", f"{self.path}?offset={self.filesystem[0]}",
                                         directory=scratch.parent)
        return file_digest(scratch) if os.path.exists(scratch) else "no such file"

    def flip_bit(self, offset):
        """Damages one byte, `offset` bytes into partition 1."""
        with open(self.path, "r+b") as file:
            file.seek(self.raw[0] + offset)
            byte = file.read(1)[0]
            file.seek(self.raw[0] + offset)
            file.write(bytes([byte ^ 1]))


def file_digest(path, start=0, size=None):
    """SHA-256 of `size` bytes of a file from `start`, or of all that follow."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        left = os.path.getsize(path) - start if size is None else size
        while left > 0 and (block := file.read(min(left, MIB))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def random_file(path, size):
    """Fresh data each time: an image of an earlier run cannot pass for this one's. Returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
