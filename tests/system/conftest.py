# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the system tests. One lab per module: booting is what takes time."""

import os
import pathlib
import shutil

import pytest

from qemuport.driver import Driver
from qemuport.machine import EVENT_LOOPS, PATIENT
from vmlab import host
from vmlab.topology import Lab


@pytest.fixture(scope="module")
def lab(request):
    """Machines of one module. After a failure the logs of all of them are kept in the tree."""
    failed_before = request.session.testsfailed
    laboratory = Lab()
    try:
        yield laboratory
    finally:
        laboratory.close()
        if request.session.testsfailed > failed_before:
            keep_logs(laboratory, pathlib.Path(request.module.__file__).stem)
        shutil.rmtree(laboratory.directory, ignore_errors=True)


def keep_logs(laboratory, name):
    base = pathlib.Path(os.environ.get("VVFU_LOG_DIR", host.TREE / "build" / "system-logs"))
    target = base / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(laboratory.directory.glob("*.log")):
        shutil.copy(path, target)
    print(f"\nlogs of every process: {target}")


# ---- the QEMU port alone, in a `machine` of the module's: the test is guest driver and peer ----

@pytest.fixture
def path(tmp_path):
    """Of the function's socket."""
    return tmp_path / "device.sock"


@pytest.fixture(params=EVENT_LOOPS)
def event_loop(request):
    """Where the machine serves the socket."""
    return request.param


@pytest.fixture
def deadlines():
    """Properties of the machine's function."""
    return PATIENT


@pytest.fixture
def driver(machine):
    """Initialised, with a device registered."""
    result = Driver(machine)
    result.initialise()
    result.register()
    return result


@pytest.fixture
def session(driver, path):
    with driver.session(path) as peer:
        yield peer
