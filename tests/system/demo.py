# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration; scripts/demo installs and builds what it needs and then runs this."""

import argparse
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import tty

from vmlab import guestio, host
from vmlab.agent import GuestError
from vmlab.diskimage import MIB, DiskImage, random_file
from vmlab.qmp import QmpError
from vmlab.topology import Lab

RAW_SIZE = 64 * MIB
FILE_SIZE = 32 * MIB
START = float(os.environ.get("VVFU_DEMO_START", time.time()))


class Mismatch(Exception):
    """The demonstration ran, and something is not as it must be."""


def step(text):
    print(f"[{time.time() - START:6.1f} s] {text}", flush=True)


def state_file():
    """What --keep left running; $VVFU_DEMO_STATE overrides the place."""
    return pathlib.Path(os.environ.get("VVFU_DEMO_STATE", host.TREE / "build" / "demo-logs" / "kept.json"))


class Demo:
    def __init__(self, lab, options):
        self.lab = lab
        self.options = options
        self.summary = []

    def prepare(self):
        step(f"making a disk image and {(RAW_SIZE + FILE_SIZE) // MIB} MiB of random data")
        directory = self.lab.directory
        self.image = DiskImage(directory / "disk.img", RAW_SIZE + 32 * MIB, 96 * MIB)
        self.raw_digest = random_file(directory / "raw.data", RAW_SIZE)
        self.file_digest = random_file(directory / "file.data", FILE_SIZE)
        with open(directory / "source.img", "wb") as source:
            for name in ("raw.data", "file.data"):
                with open(directory / name, "rb") as part:
                    shutil.copyfileobj(part, source)

    def start_device(self):
        model = ["nvme", "--serial=VVFU-DEMO"]
        if self.options.no_vm:
            step("starting vvfu-loopback")
            self.device = self.lab.loopback(*model, f"--backing={self.image.path}").start()
            return
        step(f"starting the device VM ({host.device_qemu()}, {self.lab.accelerator})")
        self.device = self.lab.device_vm(self.image.path).start()
        self.device.wait_ready()
        step("device guest is up: binding the function to vfio-pci, starting vvfu-guest")
        self.device.bind()
        self.device.start_guest_driver(" ".join([*model, "--backing=/dev/vda"]))
        step(f"vvfu-guest serves on {self.lab.socket}")

    def start_driver(self):
        step(f"starting the driver VM ({host.driver_qemu()}, {self.lab.accelerator})")
        self.driver = self.lab.driver_vm(source=self.lab.directory / "source.img").start()
        self.driver.wait_ready()
        step("driver guest is up: waiting for its nvme driver")
        size = guestio.wait_for_disk(self.driver)
        seen = guestio.controller(self.driver)
        if size != self.image.size:
            raise Mismatch(f"the driver guest sees a disk of {size} bytes, the image has {self.image.size}")
        step(f"nvme0 at {seen['address']}: {seen['model']}, {size // MIB} MiB")
        self.summary.append(f"device seen       {seen['address']} [{seen['vendor'][2:]}:{seen['device'][2:]}] class "
                            f"{seen['class'][2:]}, \"{seen['model']}\", serial {seen['serial']}, "
                            f"{seen['queues']} queues, {size // MIB} MiB")

    def raw_io(self):
        written = guestio.write_direct(self.driver, "/dev/vda", "/dev/nvme0n1p1", RAW_SIZE)
        step(f"wrote with direct I/O: {written}")
        read, digest = guestio.read_direct(self.driver, "/dev/nvme0n1p1", RAW_SIZE)
        step(f"read with direct I/O: {read}")
        if digest != self.raw_digest:
            raise Mismatch(f"the driver guest read back other data than it wrote: {digest}, not {self.raw_digest}")
        self.summary += [f"direct write      {written}", f"direct read       {read}"]

    def file_io(self):
        run = self.driver.run
        run("/bin/mke2fs -q -F -t ext4 /dev/nvme0n1p2", 120)
        run("mount -t ext4 /dev/nvme0n1p2 /mnt")
        run(f"dd if=/dev/vda of=/mnt/data bs=1M skip={RAW_SIZE // MIB} count={FILE_SIZE // MIB} 2>/dev/null", 120)
        run("umount /mnt", 120)  # the second mount reads from the disk again
        run("mount -t ext4 /dev/nvme0n1p2 /mnt")
        digest = guestio.digest(self.driver, "/mnt/data")
        run("umount /mnt", 120)
        if digest != self.file_digest:
            raise Mismatch(f"the file read back differs from what was written: {digest}, not {self.file_digest}")
        step(f"ext4: made, mounted, wrote {FILE_SIZE // MIB} MiB, mounted again, read the same")
        self.summary.append(f"ext4 file         {FILE_SIZE // MIB} MiB written and read after a second mount")

    def count_interrupts(self):
        counts = guestio.interrupts(self.driver)
        io_queues = {queue: count for queue, (count, _) in counts.items() if not queue.endswith("q0")}
        if not any(io_queues.values()):
            raise Mismatch(f"no interrupt of an I/O queue arrived: {counts}")
        for queue, (count, kind) in counts.items():
            self.summary.append(f"interrupts        {queue}: {count} ({kind})")

    def finish(self):
        """Everything onto the image: by an orderly end, or with --keep by flushing the device guest's cache."""
        if self.options.keep:
            if not self.options.no_vm:
                self.device.run("sync", 120)
            return
        step("shutting both VMs down" if not self.options.no_vm else "shutting the VM and vvfu-loopback down")
        self.driver.power_off()
        if self.options.no_vm:
            status = self.device.stop()
            if status != 0:
                raise Mismatch(f"vvfu-loopback exited with {status}")
        else:
            self.device.stop_guest_driver()
            self.device.power_off()

    def compare(self):
        if self.options.corrupt_image:
            self.image.flip_bit(RAW_SIZE // 2)
        step("comparing on the host")
        raw = self.image.raw_digest(RAW_SIZE)
        file = self.image.file_digest("data", self.lab.directory / "dumped.data")
        for what, found, expected in (("raw data", raw, self.raw_digest), ("ext4 file", file, self.file_digest)):
            if found != expected:
                raise Mismatch(f"SHA-256 of the {what} in the backing image is {found}, what was written has {expected}")
        self.summary.append(f"checksum equal    raw {raw[:16]}..., file {file[:16]}... (SHA-256, image against source)")
        self.summary.append(f"bytes             {(RAW_SIZE + FILE_SIZE) // MIB} MiB written and read back")

    def run(self):
        self.prepare()
        self.start_device()
        self.start_driver()
        self.raw_io()
        self.file_io()
        self.count_interrupts()
        self.finish()
        self.compare()


def keep(lab):
    lab.directory.chmod(0o700)
    processes = [{"name": item.name, "pid": item.process.pid} for item in lab.processes()]
    state_file().parent.mkdir(parents=True, exist_ok=True)
    state_file().write_text(json.dumps({"directory": str(lab.directory), "processes": processes}))
    lab.release()
    print(f"\nLeft running in {lab.directory}:")
    for process in processes:
        print(f"  {process['name']:9} pid {process['pid']}")
    print("  ./scripts/demo --attach driver   (or device): a shell in the guest, leave with Ctrl-]")
    print("  ./scripts/demo --stop            ends them")


def kept_state():
    try:
        return json.loads(state_file().read_text())
    except FileNotFoundError:
        sys.exit("demo: nothing was left running (scripts/demo --keep does)")


def is_kept(state, process):
    """Whether a process of the state file still runs: its number may be another's by now."""
    command = pathlib.Path(f"/proc/{process['pid']}/cmdline")
    return command.exists() and state["directory"].encode() in command.read_bytes()


def stop():
    state = kept_state()
    for process in reversed(state["processes"]):
        if is_kept(state, process):
            os.kill(process["pid"], signal.SIGTERM)
            print(f"ended {process['name']}")
    shutil.rmtree(state["directory"], ignore_errors=True)
    state_file().unlink()


def attach(name):
    path = pathlib.Path(kept_state()["directory"]) / f"{name}.console"
    if not path.is_socket():
        sys.exit(f"demo: no console {path}")
    if not sys.stdin.isatty():
        sys.exit("demo: --attach needs a terminal")
    console = socket.socket(socket.AF_UNIX)
    console.connect(str(path))
    terminal = sys.stdin.fileno()
    saved = termios.tcgetattr(terminal)
    print(f"attached to {name}, Ctrl-] leaves, Enter shows the prompt")
    tty.setraw(terminal)
    try:
        copy_terminal(terminal, console)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
        print()


def copy_terminal(terminal, console):
    while True:
        readable, _, _ = select.select([terminal, console], [], [])
        if console in readable:
            data = console.recv(4096)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if terminal in readable:
            data = os.read(terminal, 4096)
            if not data or b"\x1d" in data:
                return
            console.sendall(data)


def keep_logs(directory):
    """Copies what explains a failure into the tree; returns where."""
    target = host.TREE / "build" / "demo-logs" / "last-failure"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(directory.glob("*.log")):
        shutil.copy(path, target)
    return target


def guest_driver_log(demo):
    device = getattr(demo, "device", None)
    if getattr(device, "guest_log", None) and device.alive():
        try:
            (device.directory / "vvfu-guest.log").write_text(device.run(f"cat {device.guest_log}"))
        except (GuestError, OSError):
            pass  # the device guest is what failed; its console is in the other logs


def demonstrate(options):
    try:
        lab = Lab(outlive=options.keep)
    except host.SetupError as error:
        step(f"FAILED: {error}")
        return 1
    demo = Demo(lab, options)
    kept = False
    try:
        demo.run()
    except (Mismatch, GuestError, QmpError, host.SetupError, OSError, subprocess.SubprocessError) as error:
        guest_driver_log(demo)
        step(f"FAILED: {error}")
        print(f"demo: logs of every process: {keep_logs(lab.directory)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        step("interrupted")
        return 130
    else:
        print("\nSummary")
        for line in demo.summary:
            print(f"  {line}")
        print(f"  total             {time.time() - START:.1f} s, accelerator {lab.accelerator}")
        if options.keep:
            keep(lab)
            kept = True
        return 0
    finally:
        lab.close()
        if not kept:
            shutil.rmtree(lab.directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--no-vm", action="store_true", help="vvfu-loopback instead of a device VM")
    parser.add_argument("--keep", action="store_true", help="leave the VMs running")
    parser.add_argument("--attach", choices=["driver", "device"], help="connect to a console that --keep left")
    parser.add_argument("--stop", action="store_true", help="end what --keep left")
    # For the test that the comparison is real.
    parser.add_argument("--corrupt-image", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # As Ctrl-C: end the machines, remove the files. Under nohup a hang-up stays ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if options.stop:
        return stop()
    if options.attach:
        return attach(options.attach)
    if options.keep and state_file().exists():
        state = kept_state()
        if any(is_kept(state, process) for process in state["processes"]):
            sys.exit("demo: the last --keep still runs; ./scripts/demo --stop ends it")
    return demonstrate(options)


if __name__ == "__main__":
    sys.exit(main())
