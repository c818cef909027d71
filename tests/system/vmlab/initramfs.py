# SPDX-License-Identifier: BSD-3-Clause
"""A guest's initramfs: busybox, an agent, some kernel modules and some programs, made on the spot."""

import lzma
import pathlib
import stat

from . import host

_GUEST_FILES = pathlib.Path(__file__).parent / "guest"


class CpioWriter:
    """The "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self, stream):
        self._stream = stream
        self._inode = 0
        self._seen = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._stream.write(self._padded(header + encoded) + self._padded(data))

    @staticmethod
    def _padded(data):
        return data + bytes(-len(data) % 4)

    def directory(self, name):
        if name in self._seen or name in ("", "."):
            return
        self._parents(name)
        self._seen.add(name)
        self._entry(name, stat.S_IFDIR | 0o755)

    def _parents(self, name):
        self.directory(name.rpartition("/")[0])

    def file(self, name, data, mode=0o755):
        if name in self._seen:
            return
        self._parents(name)
        self._seen.add(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor):
        self._parents(name)
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self):
        self._entry("TRAILER!!!", 0)


def _module_data(path):
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def build(target, kernel, modules=(), programs=(), static_programs=()):
    """Writes an initramfs to `target`.

    modules: kernel modules to insert at boot, in this order. programs: host.GuestProgram, put into /bin with their
    libraries. static_programs: files for /bin.
    Not compressed: the guest would spend more time on that than the host's page cache on reading.
    """
    busybox = host.GuestProgram("busybox").path
    with open(target, "wb") as stream:
        cpio = CpioWriter(stream)
        for name in ("dev", "proc", "sys", "tmp", "mnt", "root", "run", "sbin", "usr/bin", "usr/sbin"):
            cpio.directory(name)
        cpio.character_device("dev/console", 5, 1)
        cpio.character_device("dev/null", 1, 3)
        cpio.file("bin/busybox", busybox.read_bytes())
        cpio.link("init", "bin/busybox")
        cpio.link("bin/sh", "busybox")
        for path in sorted(_GUEST_FILES.iterdir()):
            folder = "etc" if path.name in ("inittab", "rc") else "bin"
            cpio.file(f"{folder}/{path.name}", path.read_bytes())
        order = []
        for path in kernel.module_closure(modules):
            name = path.name.removesuffix(".xz")
            order.append(name)
            cpio.file(f"lib/modules/{name}", _module_data(path), 0o644)
        cpio.file("etc/modules", "".join(name + "\n" for name in order).encode(), 0o644)
        for program in programs:
            cpio.file(f"bin/{program.path.name}", program.path.read_bytes())
            for name, library in program.libraries().items():
                cpio.file(name, library.read_bytes())
        for path in static_programs:
            cpio.file(f"bin/{path.name}", path.read_bytes())
        cpio.finish()
    return target
