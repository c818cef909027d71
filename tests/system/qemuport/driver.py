# SPDX-License-Identifier: BSD-3-Clause
"""The guest driver's part, by hand: PCI configuration, virtio-pci, three split queues, control messages."""

import contextlib
import struct

from .machine import eventually
from .peer import VERSION, Peer

# The MSI-X table is in BAR 1, below what a CPU stores to while the function goes. QEMU takes BARs away one by one, and
# under TCG (10.0) a store of that moment can go to what follows in memory: msix_table_mmio_write() would abort.
BAR0, BAR1, BAR2, BAR4 = 0xFE100000, 0xFE000000, 0x100_0000_0000 >> 2, 0x100_0000_0000 >> 4
RAM = 0x100000
QUEUE_SIZE = 16
BUFFER_SIZE = 8192
CONTROL, REQUEST, REPLY = 0, 1, 2

DEVICE_INFO, PEER, FEATURE_BITS, MEMORY_INFO, REGION_READ, REGION_WRITE = 1, 2, 3, 4, 5, 6
IRQ_INFO, DEVICE_RESET, DMA_WRITE, IRQ_TRIGGER, PEER_CLOSE = 8, 9, 13, 14, 15
NOT_FOUND = 5
FLAG_REPLY = 1
HEADER = struct.Struct("<HHIQIIQ")

VERSION_1, ACCESS_PLATFORM, RING_PACKED, RING_RESET = 32, 33, 34, 40


class Message:
    def __init__(self, data):
        self.type, self.flags, self.length, self.id, self.epoch, self.status, _ = HEADER.unpack_from(data)
        self.payload = bytes(data[HEADER.size:self.length])


def message(kind, request_id, payload=b"", flags=0, epoch=0, status=0):
    return HEADER.pack(kind, flags, HEADER.size + len(payload), request_id, epoch, status, 0) + payload


def device_info(msix=4, areas=True):
    """DEVICE_INFO(ADD): configuration space, a trapped BAR 0, a BAR 2 in region memory, INTx and MSI-X."""
    regions = [(7, 3, 256, 0, 0, 0), (0, 3, 4096, 0, 0, 0)]
    tail = b""
    if areas:
        regions.append((2, 7, 8192, 0, 1, 0))
        tail = struct.pack("<QQ", 0, 8192)
    irqs = [(0, 1), (2, msix)]
    body = struct.pack("<IIQHHHHIHH", 1, 1, 0, 0x1234, 0x5678, 0, 0, 0xFF000000, len(regions), len(irqs))
    return (body + b"".join(struct.pack("<IIQQII", *region) for region in regions) +
            b"".join(struct.pack("<II", *irq) for irq in irqs) + tail)


class Queue:
    """A split virtqueue in the machine's memory, one descriptor chain per head, no reuse of heads until used."""

    def __init__(self, machine, base):
        self.machine = machine
        self.descriptors, self.available, self.used = base, base + 0x400, base + 0x800
        machine.write(base, bytes(0x1000))
        self.produced = 0
        self.consumed = 0

    def add(self, *buffers):
        """buffers: (address, size, device_writes). Returns the head."""
        head = (self.produced * 2) % QUEUE_SIZE
        for i, (address, size, writes) in enumerate(buffers):
            flags = (1 if i + 1 < len(buffers) else 0) | (2 if writes else 0)
            self.machine.write(self.descriptors + 16 * (head + i),
                               struct.pack("<QIHH", address, size, flags, head + i + 1))
        self.machine.write(self.available + 4 + 2 * (self.produced % QUEUE_SIZE), struct.pack("<H", head))
        self.produced += 1
        self.machine.write(self.available + 2, struct.pack("<H", self.produced & 0xFFFF))
        return head

    def take(self):
        """(head, length) of the next used chain, or None."""
        if struct.unpack("<H", self.machine.read(self.used + 2, 2))[0] == self.consumed & 0xFFFF:
            return None
        entry = self.machine.read(self.used + 4 + 8 * (self.consumed % QUEUE_SIZE), 8)
        self.consumed += 1
        return struct.unpack("<II", entry)


class Function:
    """A PCI function's configuration space."""

    def __init__(self, machine, slot, bus):
        self.machine = machine
        self.slot = slot
        self.bus = bus

    def config(self, offset, width=4):
        self.machine.command(f"outl 0xcf8 {0x80000000 | self.bus << 16 | self.slot << 11 | (offset & ~3):#x}")
        return int(self.machine.command(f"in{'_bwl'[width.bit_length()]} {0xCFC + (offset & 3):#x}"), 16)

    def set_config(self, offset, value, width=4):
        self.machine.command(f"outl 0xcf8 {0x80000000 | self.bus << 16 | self.slot << 11 | (offset & ~3):#x}")
        self.machine.command(f"out{'_bwl'[width.bit_length()]} {0xCFC + (offset & 3):#x} {value:#x}")


class RootPort(Function):
    """In slot 5; what is behind it becomes reachable."""

    DEVICE = "pcie-root-port,id=rp,addr=05.0"
    NATIVE_HOT_PLUG = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")

    def __init__(self, machine):
        super().__init__(machine, 5, 0)
        self.set_config(0x18, 0x00010100)  # bus 1 is behind the port
        self.set_config(0x20, 0xFE40FE00)  # memory window
        self.set_config(0x24, 0xFFF10001)  # prefetchable window
        self.set_config(0x28, 0)
        self.set_config(0x2C, 0xFF)
        self.set_config(4, 6, 2)
        offset = self.config(0x34, 1)
        while self.config(offset, 1) != 0x10:
            offset = self.config(offset + 1, 1)
        self.slot_control = offset + 0x18

    def set_power(self, on):
        """Of the slot. Off completes an unplug, as the guest's hot-plug driver does."""
        self.set_config(self.slot_control, 0x0100 if on else 0x0700, 2)


class PackedQueue:
    """The same with a packed virtqueue. IDs of chains are as the heads above, so that the n-th is of the n-th buffer."""
    AVAIL, USED = 1 << 7, 1 << 15

    def __init__(self, machine, base):
        self.machine = machine
        self.descriptors, self.available, self.used = base, base + 0x400, base + 0x800
        machine.write(base, bytes(0x1000))
        self.produced = 0
        self.lengths = {}
        self.next, self.next_used = 0, 0  # they count on; the wrap counters follow from them

    @staticmethod
    def wrap_counter(position):
        return position // QUEUE_SIZE % 2 == 0

    def add(self, *buffers):
        identifier = (self.produced * 2) % QUEUE_SIZE
        first = self.next
        # The first descriptor makes the chain available.
        for i, (address, size, writes) in reversed(list(enumerate(buffers))):
            position = first + i
            flags = (1 if i + 1 < len(buffers) else 0) | (2 if writes else 0)
            flags |= self.AVAIL if self.wrap_counter(position) else self.USED
            self.machine.write(self.descriptors + 16 * (position % QUEUE_SIZE),
                               struct.pack("<QIHH", address, size, identifier, flags))
        self.next += len(buffers)
        self.lengths[identifier] = len(buffers)
        self.produced += 1
        return identifier

    def take(self):
        entry = self.machine.read(self.descriptors + 16 * (self.next_used % QUEUE_SIZE), 16)
        _, size, identifier, flags = struct.unpack("<QIHH", entry)
        wanted = self.AVAIL | self.USED if self.wrap_counter(self.next_used) else 0
        if flags & (self.AVAIL | self.USED) != wanted or self.next_used == self.next:
            return None
        self.next_used += self.lengths.pop(identifier)
        return identifier, size


class Driver(Function):
    def __init__(self, machine, slot=4, bus=0):
        super().__init__(machine, slot, bus)
        self._id = 0
        self.doorbells = self.notifications = self.window = self.region_memory = None
        self.place_bars()
        self.find_capabilities()

    # ---- PCI ----

    def bar_size(self, bar, is_64bit=False):
        offset = 0x10 + 4 * bar
        self.set_config(offset, 0xFFFFFFFF)
        size = self.config(offset) & ~0xF
        if is_64bit:
            self.set_config(offset + 4, 0xFFFFFFFF)
            size |= self.config(offset + 4) << 32
            return (1 << 64) - size
        return (1 << 32) - size

    def place_bars(self):
        self.sizes = {0: self.bar_size(0), 1: self.bar_size(1), 2: self.bar_size(2, True), 4: self.bar_size(4, True)}
        self.bars = {0: BAR0, 1: BAR1, 2: BAR2, 4: BAR4}
        for bar, address in self.bars.items():
            self.set_config(0x10 + 4 * bar, address & 0xFFFFFFFF)
            if bar in (2, 4):
                self.set_config(0x14 + 4 * bar, address >> 32)
        self.set_config(4, 6, 2)  # memory space, bus master

    def find_capabilities(self):
        self.capabilities = []
        self.msix_capability = None
        offset = self.config(0x34, 1)
        while offset:
            if self.config(offset, 1) == 0x11:
                self.msix_capability = offset
            if self.config(offset, 1) == 9:
                length = self.config(offset + 2, 1)
                raw = bytes(self.config(offset + i, 1) for i in range(length))
                kind, bar, identifier = raw[3], raw[4], raw[5]
                start, size = struct.unpack_from("<II", raw, 8)
                if kind == 8:
                    high, size_high = struct.unpack_from("<II", raw, 16)
                    start, size = start | high << 32, size | size_high << 32
                extra = struct.unpack_from("<I", raw, 16)[0] if kind in (2, 6) else 0
                self.capabilities.append((kind, bar, identifier, start, size, extra, length))
            offset = self.config(offset + 1, 1)

    def capability(self, kind, identifier=0):
        return next(c for c in self.capabilities if c[0] == kind and c[2] == identifier)

    def address(self, kind, identifier=0):
        _, bar, _, start, _, _, _ = self.capability(kind, identifier)
        return self.bars[bar] + start

    # ---- virtio ----

    def common(self, offset, width, value=None):
        address = self.address(1) + offset
        return self.machine.load(width, address) if value is None else self.machine.store(width, address, value)

    def features(self):
        low, high = 0, 0
        self.common(0, 4, 0)
        low = self.common(4, 4)
        self.common(0, 4, 1)
        high = self.common(4, 4)
        return low | high << 32

    def status(self):
        return self.common(0x14, 1)

    def reset(self):
        self.common(0x14, 1, 0)

    def write_features(self, features):
        for select in (0, 1):
            self.common(8, 4, select)
            self.common(0xC, 4, features >> 32 * select & 0xFFFFFFFF)

    def initialise(self, packed=False):
        """Specification section 7, up to DRIVER_OK."""
        self.doorbells = self.address(6)
        self.notifications = self.address(7)
        self.window = self.address(8, 0)
        self.reset()
        self.common(0x14, 1, 3)
        self.write_features(1 << VERSION_1 | 1 << ACCESS_PLATFORM | packed << RING_PACKED)
        self.common(0x14, 1, 0xB)
        assert self.status() == 0xB
        self.queues = []
        for index in range(3):
            queue = (PackedQueue if packed else Queue)(self.machine, RAM + 0x1000 * index)
            self.common(0x16, 2, index)
            self.common(0x18, 2, QUEUE_SIZE)
            for offset, address in ((0x20, queue.descriptors), (0x28, queue.available), (0x30, queue.used)):
                self.common(offset, 4, address)
                self.common(offset + 4, 4, 0)
            self.common(0x1C, 2, 1)
            self.queues.append(queue)
        for index in range(QUEUE_SIZE // 2):
            self.post(index)
        self.common(0x14, 1, 0xF)
        self.kick(REQUEST)

    def kick(self, queue):
        _, bar, _, start, _, multiplier, _ = self.capability(2)
        self.machine.store(2, self.bars[bar] + start + queue * multiplier, queue)

    # ---- messages ----

    def _buffer(self, index):
        return RAM + 0x10000 + BUFFER_SIZE * index

    def post(self, index):
        self.queues[REQUEST].add((self._buffer(index), BUFFER_SIZE, True))

    def control(self, kind, payload=b"", epoch=0):
        """A control request and its reply."""
        self._id += 1
        return Message(self.control_raw(message(kind, self._id, payload, epoch=epoch)))

    def control_raw(self, data, capacity=4096):
        where, answer = RAM + 0x40000, RAM + 0x80000
        self.machine.write(where, data)
        self.queues[CONTROL].add((where, len(data), False), (answer, capacity, True))
        self.kick(CONTROL)
        used = []
        eventually(lambda: used.append(self.queues[CONTROL].take()) or used[-1], "a control reply")
        return self.machine.read(answer, used[-1][1])

    def request(self):
        """The next request of the device; its buffer is posted again."""
        used = []
        eventually(lambda: used.append(self.queues[REQUEST].take()) or used[-1], "a request of the device")
        head, length = used[-1]
        result = Message(self.machine.read(self._buffer(head // 2), length))
        self.post(head // 2)
        self.kick(REQUEST)
        return result

    def expect(self, kind):
        request = self.request()
        assert request.type == kind, f"request {request.type} instead of {kind}: {request.payload.hex()}"
        return request

    def reply(self, request, payload=b"", status=0):
        self.reply_raw(message(request.type, request.id, payload, FLAG_REPLY, request.epoch, status))

    def reply_raw(self, data):
        where = RAM + 0xC0000
        self.machine.write(where, data)
        self.queues[REPLY].add((where, len(data), False))
        self.kick(REPLY)
        eventually(lambda: self.queues[REPLY].take(), "the reply is taken")

    def register(self, **options):
        reply = self.control(DEVICE_INFO, device_info(**options))
        assert reply.status == 0, reply.payload
        return reply

    def begin_session(self):
        """PEER(UP) and FEATURE_BITS of a peer that sent VERSION."""
        peer = self.expect(PEER)
        assert struct.unpack_from("<I", peer.payload)[0] == 1
        self.reply(peer)
        bits = self.expect(FEATURE_BITS)
        self.reply(bits, bits.payload)
        return peer

    @contextlib.contextmanager
    def session(self, path, epoch=1):
        """The peer of a session that has begun."""
        with Peer(path) as peer:
            peer.send_version()
            assert self.begin_session().epoch == epoch
            assert peer.receive()[:2] == (VERSION, 0)
            yield peer

    def end_session(self):
        peer = self.expect(PEER)
        assert struct.unpack_from("<I", peer.payload)[0] == 2
        self.reply(peer)
        return peer

    def msix_vector(self, vector, address, data):
        """Points an entry of the MSI-X table at memory, where its message then appears; enables MSI-X."""
        entry = self.bars[1] + 16 * vector
        for offset, value in ((0, address), (4, 0), (8, data), (12, 0)):
            self.machine.store(4, entry + offset, value)
        self.set_config(self.msix_capability + 2, 0x8000, 2)
