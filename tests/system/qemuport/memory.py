# SPDX-License-Identifier: BSD-3-Clause
"""Ranges of the peer's memory, mapped and unmapped with the guest driver's consent."""

import struct

from .driver import MEMORY_INFO
from .peer import DMA_MAP, DMA_UNMAP, dma_map, dma_unmap


def add_range(driver, session, address, size, fd, flags=3, offset=0):
    """Maps, without a file if fd is None; returns the window offset, or None for a message-only range."""
    session.send(DMA_MAP, dma_map(address, size, flags, offset), [] if fd is None else [fd])
    request = driver.expect(MEMORY_INFO)
    operation, information, where, length, window = struct.unpack("<IIQQQ", request.payload)
    assert (operation, where, length) == (1, address, size)
    driver.reply(request)
    assert session.receive()[:2] == (DMA_MAP, 0)
    return None if information & 4 else window


def remove_range(driver, session, address, size):
    session.send(DMA_UNMAP, dma_unmap(address, size))
    request = driver.expect(MEMORY_INFO)
    assert struct.unpack_from("<I", request.payload)[0] == 2
    driver.reply(request)
    assert session.receive()[:2] == (DMA_UNMAP, 0)
