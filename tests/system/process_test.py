# SPDX-License-Identifier: BSD-3-Clause
"""The optimised programs as processes, without a VM: what sanitizers would hide or disturb."""

import os
import pathlib
import re
import resource
import shlex
import signal
import struct
import subprocess
import threading

import pytest

from vmlab import host
from vmlab.vm import wait_until

ABSENT = "ffff:ff:1f.7"  # no such function
ET_DYN = 3


@pytest.fixture
def start():
    """Starts programs, and ends them after the test."""
    started = []

    def run(*command, **options):
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def waiting_guest(start):
    """vvfu-guest --wait, once it waits."""
    process = start(host.program("vvfu-guest"), "--wait", f"--device={ABSENT}", "testdev")
    assert "waiting" in process.stdout.readline()
    return process


def ended(process, seconds=20):
    """Exit status and the rest of the output."""
    output, _ = process.communicate(timeout=host.deadline(seconds))
    return process.returncode, output


def expect_one_line(code, output):
    assert code in (1, 127), output  # 127: not even its libraries could be loaded
    assert output.count("\n") == 1 and "vvfu-loopback: " in output, output


def test_guest_is_static_and_its_addresses_differ_each_time(start):
    program = host.program("vvfu-guest")
    with open(program, "rb") as file:
        header = file.read(64)
    assert struct.unpack_from("<H", header, 16)[0] == ET_DYN
    segments, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    with open(program, "rb") as file:
        file.seek(segments)
        types = [struct.unpack("<I", file.read(size)[:4])[0] for _ in range(count)]
    assert 3 not in types, "no PT_INTERP: it needs no loader and no library"
    addresses = set()
    for _ in range(3):
        process = waiting_guest(start)
        maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
        addresses.add(re.search(rf"^([0-9a-f]+)-.*{re.escape(str(program))}$", maps, re.M)[1])
    if pathlib.Path("/proc/sys/kernel/randomize_va_space").read_text().strip() != "0":
        assert len(addresses) > 1


def test_guest_that_waits_is_confined_and_ends_at_a_signal(start):
    process = waiting_guest(start)
    status = "".join(path.read_text() for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/status"))
    threads = len(re.findall(r"^Name:", status, re.M))
    assert len(re.findall(r"^Seccomp:\s2$", status, re.M)) == threads
    assert len(re.findall(r"^NoNewPrivs:\s1$", status, re.M)) == threads
    assert len(re.findall(r"^CapPrm:\s0+$", status, re.M)) == threads
    process.send_signal(signal.SIGUSR1)
    process.terminate()
    code, output = ended(process)
    assert code == 0
    assert output == "vvfu-guest: Terminated: stopping\n"


def test_every_number_of_fds_is_enough_or_gives_one_line(start, tmp_path):
    serves = 0
    for limit in range(3, 41):
        socket = tmp_path / f"{limit}.sock"
        process = start(host.program("vvfu-loopback"), f"--socket-path={socket}", "testdev",
                        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
        wait_until(lambda: socket.is_socket() or process.poll() is not None, 20, "it serves or ends")
        if process.poll() is None:
            serves += 1
            process.terminate()
            assert ended(process)[0] == 0, limit
        else:
            code, output = ended(process)
            expect_one_line(code, output)
    assert 0 < serves < 38


def test_every_amount_of_memory_is_enough_or_gives_one_line(start, tmp_path):
    """Allocations fail at ever later places. 64 MiB of window reserve 1 GiB of addresses, to be aligned."""
    serves = 0
    for mebibytes in range(16, 1600, 32):
        socket = tmp_path / f"{mebibytes}.sock"
        limit = mebibytes << 20
        process = start(host.program("vvfu-loopback"), f"--socket-path={socket}", "--window-size=64M", "nvme",
                        "--backing=mem:16M", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        wait_until(lambda: socket.is_socket() or process.poll() is not None, 20, "it serves or ends")
        if process.poll() is None:
            serves += 1
            process.terminate()
            assert ended(process)[0] == 0, mebibytes
        else:
            code, output = ended(process)
            expect_one_line(code, output)
    assert serves > 0


def test_without_proc_it_says_so(start, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs a mount namespace")
    hidden = "mount -t tmpfs none /proc && exec "
    process = start("unshare", "--mount", "sh", "-c",
                    hidden + shlex.join([str(host.program("vvfu-loopback")), f"--socket-path={tmp_path}/s", "testdev"]))
    code, output = ended(process)
    assert code == 1
    assert output.count("\n") == 1 and "/proc" in output
    # vvfu-guest needs none.
    process = start("unshare", "--mount", "sh", "-c",
                    hidden + shlex.join([str(host.program("vvfu-guest")), "--wait", f"--device={ABSENT}", "testdev"]))
    assert "waiting" in process.stdout.readline()
    process.terminate()
    assert ended(process)[0] == 0


def test_signals_at_any_moment_of_the_start_end_it(start, tmp_path):
    for attempt in range(60):
        socket = tmp_path / f"{attempt}.sock"
        process = start(host.program("vvfu-loopback"), f"--socket-path={socket}", "testdev")
        delay = threading.Event()
        delay.wait(attempt * 0.0005)  # decides where it is hit, not whether the test passes
        process.terminate()
        code, output = ended(process)
        assert code in (0, -signal.SIGTERM), output  # before main() the kernel ends it
        if code == 0:
            assert not socket.exists()
