# SPDX-License-Identifier: BSD-3-Clause
"""Unit tests of tools/spec-structs."""
import contextlib
import importlib.machinery
import importlib.util
import io
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "spec-structs"
loader = importlib.machinery.SourceFileLoader("spec_structs", str(SCRIPT))
spec_structs = importlib.util.module_from_spec(importlib.util.spec_from_loader("spec_structs", loader))
loader.exec_module(spec_structs)

STRUCT = "struct a {\n        le32 size; /* in bytes */\n        u8 data[8];\n};\n"


class SpecStructsTest(unittest.TestCase):
    def run_on(self, document):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "spec.md"
            path.write_text(document, encoding="utf-8")
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = spec_structs.main([str(path)])
            return status, out.getvalue(), err.getvalue()

    def test_blocks_become_the_header_in_their_order(self):
        other = STRUCT.replace("struct a", "struct b")
        document = f"## 1 A\n```c\n{STRUCT}```\n`size` `data`\n## 2 B\n```hex a\n00\n```\n```c\n{other}```\n`size`, `data`\n"
        self.assertEqual(self.run_on(document), (0, STRUCT + "\n" + other, ""))

    def test_member_that_its_section_does_not_explain_fails(self):
        status, _, err = self.run_on(f"## 1 A\n```c\n{STRUCT}```\n`size`\n## 2 B\n`data`\n")
        self.assertEqual((status, err), (1, "spec-structs: a.data is not explained\n"))

    def test_document_without_structures_fails(self):
        self.assertEqual(self.run_on("## 1 A\n")[0], 1)


if __name__ == "__main__":
    unittest.main()
