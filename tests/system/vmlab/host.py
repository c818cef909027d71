# SPDX-License-Identifier: BSD-3-Clause
"""What the host machine offers: programs, kernel, accelerator."""

import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess

TREE = pathlib.Path(__file__).resolve().parents[3]


class SetupError(Exception):
    """Something that the machine lacks; the message says what to do."""


def bin_dir():
    """Folder of the project's programs: $VVFU_BIN_DIR, else the release build."""
    return pathlib.Path(os.environ.get("VVFU_BIN_DIR", TREE / "build" / "release" / "bin"))


def program(name):
    path = bin_dir() / name
    if not os.access(path, os.X_OK):
        raise SetupError(f"{path} is not built: cmake --preset release && cmake --build --preset release")
    return path


def _script_path(script):
    """The path that a cached build script prints, without making what is not there."""
    result = subprocess.run([TREE / "scripts" / script, "--print-path"], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    lines = result.stdout.splitlines()
    if result.returncode != 0 or not lines:
        raise SetupError(f"scripts/{script} has not been run: {result.stderr.strip()}")
    return pathlib.Path(lines[-1])


def private_root():
    return _script_path("private-root")


class GuestProgram:
    """A program of the private root for use in a guest, or here by its own loader."""

    def __init__(self, name):
        self.root = private_root()
        self.path = next((self.root / folder / name for folder in ("usr/bin", "usr/sbin")
                          if (self.root / folder / name).exists()), None)
        if self.path is None:
            raise SetupError(f"the private root {self.root} has no {name}")
        libraries = self.root / "usr/lib/x86_64-linux-gnu"
        # Beside the usual place, the one that fio's libraries name by an absolute path of their own root.
        self.loader = [self.root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries}/ceph"]

    def libraries(self):
        """{path in the guest: file} of the loader and every library; empty for a static program."""
        result = subprocess.run([*self.loader, "--list", self.path], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True, check=False)
        if result.returncode != 0:
            return {}
        files = [pathlib.Path(path) for path in re.findall(r" => (/.*) \(0x", result.stdout)]
        guest = {f"usr/lib/x86_64-linux-gnu/{file.name}": file for file in files}
        return {**guest, "lib64/ld-linux-x86-64.so.2": self.loader[0]}

    def run(self, *arguments, directory=None):
        """Runs it on this machine, in `directory`; returns its output."""
        return subprocess.run([*self.loader, self.path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=True, cwd=directory).stdout


def device_qemu():
    """QEMU with our device model: $VVFU_DEVICE_QEMU, else what scripts/build-qemu made."""
    override = os.environ.get("VVFU_DEVICE_QEMU")
    return pathlib.Path(override) if override else _script_path("build-qemu")


def _has_vfio_user(qemu):
    result = subprocess.run([qemu, "-device", "help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, check=False)
    return '"vfio-user-pci"' in result.stdout


def driver_qemu():
    """A stock QEMU with vfio-user-pci: $VVFU_DRIVER_QEMU, else the machine's own, else the private root's."""
    override = os.environ.get("VVFU_DRIVER_QEMU")
    if override:
        return pathlib.Path(override)
    own = shutil.which("qemu-system-x86_64")
    if own and _has_vfio_user(own):
        return pathlib.Path(own)
    return private_root() / "qemu-system-x86_64"


class Kernel:
    """Debian's stock cloud kernel, as its package has it."""

    def __init__(self):
        package = private_root() / "kernel"
        self.image = next((package / "boot").glob("vmlinuz-*"))
        self.release = self.image.name.removeprefix("vmlinuz-")
        self.modules = package / "lib" / "modules" / self.release

    def module_closure(self, names):
        """Files of the modules and of all they depend on, in the order to insert them. Built-in ones are left out."""
        def key(name):
            return name.replace("-", "_")

        dependencies = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            file, _, needs = line.partition(":")
            dependencies[file] = needs.split()
        by_name = {key(pathlib.Path(file).name.partition(".")[0]): file for file in dependencies}
        builtin = {key(pathlib.Path(line).name.removesuffix(".ko"))
                   for line in (self.modules / "modules.builtin").read_text().split()}

        order = []
        for name in names:
            if key(name) in builtin:
                continue
            if key(name) not in by_name:
                raise SetupError(f"kernel {self.release} has no module {name}")
            file = by_name[key(name)]
            # modules.dep lists the farthest dependency last.
            for needed in reversed([file, *dependencies[file]]):
                if needed not in order:
                    order.append(needed)
        return [self.modules / file for file in order]


_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start_process(command, log, pass_fds=(), outlive=False, directory=None):
    """Starts a program of the lab, in `directory`.

    In its own session: Ctrl-C at the terminal is for the test, which then ends its processes in order. If the test itself
    is killed, so are they, unless they are to outlive it.
    """
    def before_exec():
        if not outlive:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds,
                            start_new_session=True, preexec_fn=before_exec, cwd=directory)


def accelerator():
    """"kvm" where a stock kernel boots with it, else "tcg"; $VVFU_ACCEL overrides.

    A para-virtualised host may have a /dev/kvm that opens and creates vCPUs and yet boots no stock kernel: the CPU
    flags decide, not the node.
    """
    override = os.environ.get("VVFU_ACCEL", "")
    if override:
        if override not in ("kvm", "tcg"):
            raise SetupError(f"VVFU_ACCEL={override}: kvm or tcg")
        return override
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    flags = set(next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "").split())
    if flags & {"vmx", "svm"} and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "kvm"
    return "tcg"


def deadline(seconds):
    """A deadline for one step that takes `seconds` at most on an idle machine, in seconds from now.

    It says when to give up, so it may be late: it grows with the number of processes that want each processor, and
    with $VVFU_DEADLINE_SCALE on a slow machine.
    """
    waiting = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return seconds * (2 + waiting) * float(os.environ.get("VVFU_DEADLINE_SCALE", "1"))
