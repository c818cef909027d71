# SPDX-License-Identifier: BSD-3-Clause
"""What a driver guest does with its NVMe disk: the same commands for the tests and the demo."""

import dataclasses
import re
import shlex

MIB = 1 << 20


def wait_for_disk(vm, name="nvme0n1", seconds=60):
    """Waits until the driver has made the block device; returns its size in bytes."""
    path = f"/sys/class/block/{name}/size"
    vm.run(f"until [ -e {path} ]; do usleep 50000; done", seconds)
    vm.run(f"until [ -b /dev/{name} ]; do usleep 50000; done", seconds)
    return int(vm.run(f"cat {path}")) * 512


def wait_for_requests(vm, count, name="nvme0n1", seconds=60):
    """Waits until the disk has completed `count` more requests: I/O that goes on in the background is under way then."""
    completed = f"$(awk '{{print $1 + $5}}' /sys/block/{name}/stat)"
    vm.run(f"start={completed}; until [ {completed} -ge $((start + {count})) ]; do :; done", seconds)


def controller(vm, name="nvme0"):
    """What the driver read from the controller, and from PCI configuration space."""
    def attribute(path):
        return vm.run(f"cat /sys/class/nvme/{name}/{path}").strip()

    return {"address": attribute("address"), "vendor": attribute("device/vendor"),
            "device": attribute("device/device"), "class": attribute("device/class"), "model": attribute("model"),
            "serial": attribute("serial"), "firmware": attribute("firmware_rev"), "queues": attribute("queue_count")}


@dataclasses.dataclass
class Timing:
    bytes: int
    seconds: float

    def __str__(self):
        return f"{self.bytes / MIB:.0f} MiB in {self.seconds:.2f} s, {self.bytes / MIB / self.seconds:.0f} MiB/s"


def _timed(vm, command, size, seconds):
    """Guest time of a command (its clock's resolution is 10 ms)."""
    output = vm.run(f"read start rest </proc/uptime; {command} || exit 1; read end rest </proc/uptime; echo @$start $end",
                    seconds)
    start, end = re.search(r"@([\d.]+) ([\d.]+)", output).groups()
    return Timing(size, max(float(end) - float(start), 0.01))


def write_direct(vm, source, target, size, seconds=300):
    """Copies `size` bytes past the page cache of the target."""
    command = f"dd if={source} of={target} bs=1M count={size // MIB} oflag=direct conv=fsync 2>/dev/null"
    return _timed(vm, command, size, seconds)


def read_direct(vm, source, size, seconds=300):
    """Reads twice past the page cache; returns (timing of the first, SHA-256 of the second)."""
    command = f"dd if={source} bs=1M count={size // MIB} iflag=direct 2>/dev/null"
    timing = _timed(vm, f"{command} >/dev/null", size, seconds)
    return timing, vm.run(f"{command} | sha256sum", seconds).split()[0]


def digest(vm, path, seconds=300):
    return vm.run(f"sha256sum {shlex.quote(path)}", seconds).split()[0]


def interrupts(vm, name="nvme"):
    """{queue: (interrupts of all CPUs, chip and kind)} of /proc/interrupts."""
    result = {}
    for line in vm.run("cat /proc/interrupts").splitlines():
        words = line.split()
        if words and words[-1].startswith(name):
            counts = [int(word) for word in words[1:] if word.isdigit()]
            result[words[-1]] = (sum(counts), " ".join(word for word in words[1:-1] if not word.isdigit()))
    return result
