#!/usr/bin/env python3
"""docs.py must find what is wrong in a document, and nothing in a right one."""
import os
import subprocess
import tempfile
import unittest
import unittest.mock

import docs

README = """
```sh
./scripts/demo
a --kernel x   # exit status 1: it says so
b "# no comment" \\
  --more
# a comment
```
```text
not run
```
```sh
c
```
"""
TESTS = {f"G{number}Holds" for number in range(1, 13)}
ZAP = "".join(f"| **G{number}** name | why | `G{number}Holds` |\n" for number in range(1, 13))


class Docs(unittest.TestCase):
    def test_commands_and_their_statuses(self):
        self.assertEqual(docs.sh_commands(README),
                         [("./scripts/demo", 0), ("a --kernel x", 1), ('b "# no comment"    --more', 0),
                          ("c", 0)])

    def test_wrong_status_is_found(self):
        self.assertEqual(docs.check_command("exit 3", 3), [])
        self.assertRegex(docs.check_command("exit 3", 0)[0], "ended with status 3, not 0")
        self.assertIn("\nsaid why", docs.check_command("echo said why >&2; exit 3", 0)[0])
        self.assertRegex(docs.check_command("true", 1)[0], "ended with status 0, not 1")

    def test_only_what_runs_in_a_lab_machine_has_another_try(self):
        with tempfile.TemporaryDirectory() as folder:
            for option, tries in (("", 1), ("--lab", docs.LAB_TRIES)):
                tried = os.path.join(folder, f"tried{option}")
                with unittest.mock.patch.dict(os.environ, CROSSBAR_REQUIRE_QEMU="1"):
                    self.assertEqual(len(docs.check_command(f"sh -c 'echo >>{tried}; false' {option}", 0)), 1)
                with open(tried, encoding="ascii") as file:
                    self.assertEqual(len(file.readlines()), tries)

    def test_zap_document(self):
        self.assertEqual(docs.check_zap(ZAP, TESTS), [])
        self.assertEqual(docs.check_zap(ZAP.replace("`G7Holds`", "later"), TESTS),
                         ["docs/zap.md names no test for G7"])
        self.assertEqual(docs.check_zap(ZAP.replace("`G1Holds`", "`G11Holds`"), TESTS),
                         ["docs/zap.md names no test for G1"])
        self.assertEqual(docs.check_zap(ZAP.replace("`G7Holds`", "`Zap.G7Holds`, `G7More`"), TESTS),
                         ["docs/zap.md, G7: there is no test G7More"])
        self.assertEqual(docs.check_zap(ZAP.replace("`G7Holds`", "`G7.Holds`, `Other`"), TESTS | {"Holds"}),
                         ["docs/zap.md, G7: there is no test Other"])
        self.assertEqual(docs.check_zap(ZAP.replace("why", "`Table::Function`"), TESTS), [])
        self.assertEqual(docs.check_zap(ZAP, TESTS - {"G1Holds"}),
                         ["docs/zap.md, G1: there is no test G1Holds"])

    def test_a_run_of_the_test_script_is_seen_in_the_process_tree_only(self):
        code = "import docs; print(docs.running_test_script())"
        here = os.path.dirname(os.path.abspath(docs.__file__))

        def seen(name):
            with tempfile.TemporaryDirectory() as folder:
                script = os.path.join(folder, name)
                os.makedirs(os.path.dirname(script))
                with open(script, "w", encoding="utf-8") as file:
                    file.write(f"export CROSSBAR_TEST_PID=$$\npython3 -c '{code}'\ntrue\n")
                return subprocess.run(["bash", script], cwd=here, capture_output=True, text=True,
                                      check=True).stdout.strip()
        self.assertEqual(seen("scripts/test"), "True")
        self.assertEqual(seen("scripts/other"), "False")
        os.environ["CROSSBAR_TEST_PID"] = "1"
        self.assertFalse(docs.running_test_script())


if __name__ == "__main__":
    unittest.main()
