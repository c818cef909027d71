# SPDX-License-Identifier: BSD-3-Clause
"""Unit tests of tools/check-docs."""
import contextlib
import importlib.machinery
import importlib.util
import io
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "check-docs"
loader = importlib.machinery.SourceFileLoader("check_docs", str(SCRIPT))
check_docs = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_docs", loader))
loader.exec_module(check_docs)

FILES = {
    "README.md": "See [it](docs/architecture.md).\n```cpp\nint f();\n```\n```sh\nprog --one=1 sub --two  # --three\n```\n",
    "examples/adder/adder.hpp": "int f();\n",
    "docs/architecture.md": "First `Core::tick()`, then `window_map()`, then `ops->send()`.\n",
    "device-vmm/core.hpp": "class Core { void tick(int now); };\nstruct Ops { int (*window_map)(void *); };\n",
    "prog": "#!/bin/sh\ncase \"$*\" in *sub*) echo '--two N';; *) echo '--one N';; esac\n",
}


class CheckDocsTest(unittest.TestCase):
    def check(self, program=False, **changes):
        """Runs the checker over a small tree in which `changes` (name: text) replace files; returns status and errors."""
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            for path, text in (FILES | changes.get("files", {})).items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
            (root / "prog").chmod(0o755)
            arguments = ["--root", str(root)] + (["--program", f"prog={root}/prog"] if program else [])
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                status = check_docs.main(arguments)
            return status, err.getvalue()

    def test_agreeing_documents_pass(self):
        self.assertEqual(self.check(program=True), (0, ""))

    def test_example_that_differs_fails(self):
        self.assertIn("C++ block", self.check(files={"examples/adder/adder.hpp": "int g();\n"})[1])

    def test_function_that_does_not_exist_fails(self):
        self.assertIn("no function Core::tock()", self.check(files={"docs/architecture.md": "`Core::tock()`\n"})[1])

    def test_class_that_does_not_exist_fails(self):
        self.assertIn("no function Cork::tick()", self.check(files={"docs/architecture.md": "`Cork::tick()`\n"})[1])

    def test_architecture_without_functions_fails(self):
        self.assertIn("names no function", self.check(files={"docs/architecture.md": "Nothing.\n"})[1])

    def test_dead_link_fails(self):
        self.assertIn("link to gone.md", self.check(files={"docs/a.md": "[x](gone.md#part)\n"})[1])

    def test_unknown_option_fails(self):
        text = FILES["README.md"].replace("--two", "--tow")
        self.assertIn("prog sub has no option --tow", self.check(program=True, files={"README.md": text})[1])


if __name__ == "__main__":
    unittest.main()
