# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration itself, and that it fails when it must."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from vmlab import host
from vmlab.vm import wait_until

DEMO = pathlib.Path(__file__).with_name("demo.py")


def expect_signals():
    """Under nohup, or behind a shell's "&", they are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    def run(*arguments):
        environment = {**os.environ, "VVFU_DEMO_STATE": str(tmp_path / "kept.json")}
        environment.pop("VVFU_DEMO_START", None)
        return subprocess.Popen([sys.executable, "-B", DEMO, *arguments], env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                preexec_fn=expect_signals)
    return run


@pytest.fixture
def demo(start):
    def run(*arguments):
        with start(*arguments) as process:
            output, _ = process.communicate(timeout=host.deadline(300))
        return subprocess.CompletedProcess(process.args, process.returncode, output)
    return run


def test_two_vms_end_with_equal_checksums(demo):
    result = demo()
    assert result.returncode == 0, result.stdout
    summary = result.stdout.partition("\nSummary\n")[2]
    assert "checksum equal" in summary
    assert re.search(r"device seen .*class 010802.* 3 queues", summary)
    assert re.search(r"bytes +96 MiB", summary)
    assert re.search(r"direct write +64 MiB in [\d.]+ s", summary)
    for queue in ("nvme0q1", "nvme0q2"):
        assert re.search(rf"interrupts +{queue}: [1-9]", summary)


def test_what_the_machine_lacks_is_one_line_and_leaves_nothing(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("VVFU_CACHE", str(tmp_path / "empty cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    result = demo("--no-vm")
    assert result.returncode == 1, result.stdout
    assert "FAILED: scripts/private-root has not been run" in result.stdout
    assert "Traceback" not in result.stdout
    assert not list(tmp_path.glob("vvfu-*"))


@pytest.mark.parametrize("script, argument", [("demo", "--bogus"), ("test", "--bogus"), ("test", "--jobs=2x")])
def test_a_wrong_argument_ends_before_anything_is_installed(script, argument):
    result = subprocess.run([host.TREE / "scripts" / script, argument], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, timeout=host.deadline(20), check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert argument in result.stderr


def test_one_flipped_bit_in_the_image_is_found(demo):
    result = demo("--no-vm", "--corrupt-image")
    assert result.returncode == 1, result.stdout
    assert re.search(r"FAILED: SHA-256 of the raw data in the backing image is [0-9a-f]{64}", result.stdout)
    assert "Summary" not in result.stdout


def programs_of(folder):
    """Processes whose command names the folder."""
    found = []
    for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in command.read_bytes():
                found.append(command.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            pass  # ended meanwhile
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupted_it_ends_everything_and_removes_its_files(start, tmp_path, monkeypatch, number):
    folder = tmp_path / "a folder"  # with a space: paths are quoted wherever they go
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with start("--no-vm") as process:
        for line in process.stdout:
            if "starting the driver VM" in line:
                break
        wait_until(lambda: len(programs_of(folder)) == 2, 20, "vvfu-loopback and the driver VM run")
        process.send_signal(number)
        output, _ = process.communicate(timeout=host.deadline(60))
    assert process.returncode == 130
    assert output.rstrip().endswith("interrupted"), output
    assert not list(folder.iterdir())
    assert not programs_of(folder)


def test_keep_leaves_a_console_and_stop_ends_everything(demo, tmp_path):
    result = demo("--no-vm", "--keep")
    assert result.returncode == 0, result.stdout
    assert "checksum equal" in result.stdout
    state = json.loads((tmp_path / "kept.json").read_text())
    assert demo("--no-vm", "--keep").returncode != 0, "a second one would lose the first"

    console = socket.socket(socket.AF_UNIX)
    console.settimeout(host.deadline(20))
    console.connect(os.path.join(state["directory"], "driver.console"))
    console.sendall(b"\n")
    received = b""
    while b"Enter" not in received and b"#" not in received:
        part = console.recv(4096)
        assert part, f"the console was closed: {received}"
        received += part

    assert demo("--stop").returncode == 0
    wait_until(lambda: not programs_of(state["directory"]), 20, "loopback and driver VM end")
    assert not os.path.exists(state["directory"])
