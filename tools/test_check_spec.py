# SPDX-License-Identifier: BSD-3-Clause
"""Unit tests of tools/check-spec."""
import contextlib
import importlib.machinery
import importlib.util
import io
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "check-spec"
loader = importlib.machinery.SourceFileLoader("check_spec", str(SCRIPT))
check_spec = importlib.util.module_from_spec(importlib.util.spec_from_loader("check_spec", loader))
loader.exec_module(check_spec)

SPEC = """# A specification
## 1 Conformance
### 1.1 Device conformance
| Section | Clauses |
|---|---|
| 2.1 Things | A-1 |
### 1.2 Driver conformance
| Section | Clauses |
|---|---|
| 2.2 Things | A-2 |

## 2 Things
### 2.1 Device Requirements: Things
- [VVFU-A-1] The device MUST do this and that.
### 2.2 Driver Requirements: Things
- [VVFU-A-2] The driver SHOULD NOT do it.
"""
README = "| `virtio-v1.3` | Virtual I/O Device |\n"
CODE = "//= VVFU-A-1\n//# MUST do this\nvoid f();\n"
TEST = "//= VVFU-A-1\n//= type=test\nTEST(A, B) {}\n"


class CheckSpecTest(unittest.TestCase):
    def check(self, code=CODE, test=TEST, spec=SPEC, exceptions="", name="a.cpp", options=()):
        """Runs the checker over a small tree; returns its status, output and errors. Leaves the document in self.spec."""
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            files = {"docs/spec/virtio-vfio-user.md": spec, "docs/spec/README.md": README,
                     "docs/spec/exceptions.md": exceptions, f"protocol/{name}": code, f"tests/{name}": test}
            for path, text in files.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text, encoding="utf-8")
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = check_spec.main(["--root", str(root), *options])
            self.spec = (root / "docs/spec/virtio-vfio-user.md").read_text(encoding="utf-8")
            return status, out.getvalue(), err.getvalue()

    def test_cited_must_passes_and_uncited_should_is_allowed(self):
        status, out, err = self.check()
        self.assertEqual((status, err), (0, ""))
        self.assertIn("VVFU-A-1           MUST   code: protocol/a.cpp:1  test: tests/a.cpp:1", out)

    def test_must_without_code_citation_fails(self):
        status, _, err = self.check(code="void f();\n")
        self.assertEqual(status, 1)
        self.assertIn("VVFU-A-1 (MUST) has no code citation", err)

    def test_must_without_test_citation_fails(self):
        self.assertIn("VVFU-A-1 (MUST) has no test citation", self.check(test="")[2])

    def test_unknown_clause_fails(self):
        self.assertIn("cites VVFU-A-9, which does not exist", self.check(code=CODE + "//= VVFU-A-9\n")[2])

    def test_different_quotation_fails(self):
        self.assertIn("differs from VVFU-A-1", self.check(code="//= VVFU-A-1\n//# MUST do that\n")[2])

    def test_quotation_over_two_lines_is_joined(self):
        self.assertEqual(self.check(code="//= VVFU-A-1\n//# The device MUST do\n//# this and that.\n")[0], 0)

    def test_test_citation_outside_tests_fails(self):
        self.assertIn("type=test belongs to", self.check(code=CODE + "\n" + TEST)[2])

    def test_code_citation_inside_tests_fails(self):
        self.assertIn("type=test belongs to", self.check(test=TEST + "\n" + CODE)[2])

    def test_exception_with_reason_replaces_the_citation(self):
        self.assertEqual(self.check(test="", exceptions="| VVFU-A-1 | test | cannot be provoked |\n")[0], 0)

    def test_exception_without_reason_fails(self):
        self.assertIn("has no reason", self.check(test="", exceptions="| VVFU-A-1 | test | |\n")[2])

    def test_exception_of_cited_clause_fails(self):
        self.assertIn("the test citation exists", self.check(exceptions="| VVFU-A-1 | test | old |\n")[2])

    def test_exception_for_unknown_clause_fails(self):
        self.assertIn("which does not exist", self.check(exceptions="| VVFU-B-1 | test | why |\n")[2])

    def test_clause_without_level_fails(self):
        self.assertIn("line 17: not a clause", self.check(spec=SPEC + "- [VVFU-A-3] The device does it.\n")[2])

    def test_clause_defined_twice_fails(self):
        self.assertIn("defined twice", self.check(spec=SPEC + "- [VVFU-A-1] It MUST.\n")[2])

    def test_pinned_specification_is_accepted_and_another_is_not(self):
        self.assertEqual(self.check(code=CODE + "\n//= virtio-v1.3 2.7.13\n")[0], 0)
        self.assertIn("nor a pinned", self.check(code=CODE + "\n//= virtio-v9 2.7\n")[2].replace("neither a clause ", ""))

    def test_c_block_comments_and_python_comments_are_citations(self):
        self.assertEqual(self.check(code="/*\n *= VVFU-A-1\n *# MUST do this\n */\n", test="/*= VVFU-A-1 */\n/*= type=test */\n",
                                    name="a.c")[0], 0)
        self.assertEqual(self.check(code="#= VVFU-A-1\n## MUST do this\n", test="#= VVFU-A-1\n#= type=test\n", name="a.py")[0], 0)

    def test_mention_of_unknown_clause_in_a_comment_fails(self):
        self.assertIn("protocol/a.cpp:5: mentions A-7", self.check(code=CODE + "\n// as VVFU-A-1 and VVFU-A-7 say\n")[2])

    def test_mention_of_unknown_clause_in_a_document_fails(self):
        self.assertIn("mentions A-8", self.check(exceptions="See A-1, A-8 and SHA-256.\n")[2])

    def test_clause_outside_of_a_requirements_subsection_fails(self):
        self.assertIn("A-9 is not in a subsection", self.check(spec=SPEC + "## 3 More\n- [VVFU-A-9] The device MUST.\n")[2])

    def test_clause_that_binds_another_fails(self):
        self.assertIn("A-9 is not a requirement for driver", self.check(spec=SPEC + "- [VVFU-A-9] The device MAY.\n")[2])

    def test_conformance_list_that_lacks_a_clause_fails_and_is_mended(self):
        grown = SPEC + "- [VVFU-A-9] The driver MAY.\n### 2.3 Device and Driver Requirements: Rest\n- [VVFU-A-8] The sender MAY.\n"
        self.assertIn("conformance lists do not have", self.check(spec=grown)[2])
        self.assertEqual(self.check(spec=grown, options=["--write-conformance"])[0], 0)
        self.assertIn("| 2.1 Things | A-1 |\n| 2.3 Rest | A-8 |\n### 1.2", self.spec)
        self.assertIn("|---|---|\n| 2.2 Things | A-2, A-9 |\n| 2.3 Rest | A-8 |\n\n## 2", self.spec)
        self.assertEqual(self.check(spec=self.spec)[0], 0)

    def test_conformance_list_that_has_too_much_fails(self):
        self.assertIn("conformance lists do not have", self.check(spec=SPEC.replace("| A-1 |", "| A-1, A-2 |"))[2])

    def test_missing_conformance_list_fails(self):
        self.assertIn("no section 'Driver conformance'", self.check(spec=SPEC.replace("1.2 Driver conf", "1.2 Driver's conf"))[2])

    def test_empty_specification_fails(self):
        self.assertIn("no clauses", self.check(spec="", code="", test="")[2])


if __name__ == "__main__":
    unittest.main()
