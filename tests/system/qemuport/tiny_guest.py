# SPDX-License-Identifier: BSD-3-Clause
"""A guest of fifty bytes: it writes to memory what a mailbox tells it to, with interrupts off."""

import struct

from .machine import eventually

_LOAD = 0x2000000
# u32: number of orders, address, value, orders done, 1 when it runs; then where it stores two bytes again and again
# together with the last order's four, or 0
_MAILBOX = 0x2100000

# 32-bit protected mode without paging, as a Multiboot loader leaves it.
_CODE = bytes.fromhex(
    "bb 00 00 10 02"        # mov ebx, _MAILBOX
    "c7 43 10 01 00 00 00"  # mov dword [ebx + 16], 1
    "f3 90"                 # again: pause
    "8b 4b 04"              # mov ecx, [ebx + 4]
    "8b 53 08"              # mov edx, [ebx + 8]
    "8b 73 14"              # mov esi, [ebx + 20]
    "85 f6"                 # test esi, esi
    "74 07"                 # jz once
    "89 11"                 # mov [ecx], edx
    "66 89 16"              # mov [esi], dx
    "eb ea"                 # jmp again
    "8b 03"                 # once: mov eax, [ebx]
    "3b 43 0c"              # cmp eax, [ebx + 12]
    "74 e3"                 # je again
    "8b 4b 04"              # mov ecx, [ebx + 4]
    "8b 53 08"              # mov edx, [ebx + 8]
    "89 11"                 # mov [ecx], edx
    "89 43 0c"              # mov [ebx + 12], eax
    "eb d6")                # jmp again


def write_image(path):
    """A Multiboot image for -kernel (Multiboot 0.6.96, 3.1: the header says where it goes)."""
    magic, flags, header_size = 0x1BADB002, 1 << 16, 32
    end = _LOAD + header_size + len(_CODE)
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, _LOAD, _LOAD, end, end, _LOAD + header_size)
    path.write_bytes(header + _CODE)
    return path


class TinyGuest:
    """The test's hold on the guest of a machine."""

    def __init__(self, machine):
        self._machine = machine
        self._orders = 0
        eventually(lambda: self._mailbox(16) == 1, "the guest runs")

    def _mailbox(self, offset):
        return struct.unpack("<I", self._machine.read(_MAILBOX + offset, 4))[0]

    def store(self, address, value):
        """A 32-bit store by the guest's CPU."""
        self._orders += 1
        self._machine.write(_MAILBOX + 4, struct.pack("<II", address, value))
        self._machine.write(_MAILBOX, struct.pack("<I", self._orders))
        eventually(lambda: self._mailbox(12) == self._orders, "the guest's store")

    def store_again_and_again(self, address, other):
        """32-bit stores to one address and 16-bit stores to another, from now on."""
        self._machine.write(_MAILBOX + 4, struct.pack("<II", address, 1))
        self._machine.write(_MAILBOX + 20, struct.pack("<I", other))

    def pending_interrupts(self):
        """Vectors that its local APIC has accepted and the CPU has not."""
        lines = self._machine.monitor("info lapic").splitlines()
        line = next(line for line in lines if line.startswith("IRR"))
        return {int(word) for word in line.split()[1:] if word.isdigit()}
