# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the system tests. One lab per module: booting is what takes time."""

import os
import pathlib
import shutil

import pytest

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
