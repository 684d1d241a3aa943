#!/usr/bin/env python3
"""Runs the tests of this folder, which boot lab machines.

  run.py --list            one line a test: Suite.name, its timeout in seconds, and how many processors it needs
  run.py Suite.name...     runs these (tests/lab/CMakeLists.txt makes each a ctest); all, without a name

Without a usable QEMU it skips, status 77, saying why; where CROSSBAR_REQUIRE_QEMU is set that is a failure.
"""
import os
import sys
import unittest

FOLDER = os.path.dirname(os.path.abspath(__file__))
SKIP = 77


def flat(suite):
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from flat(one)
        else:
            yield one


def main(arguments):
    sys.path.insert(0, FOLDER)
    from machine import qemu_trouble
    found = {}
    for case in flat(unittest.defaultTestLoader.discover(FOLDER, "*_test.py")):
        found[case.id().split(".", 1)[1].replace(".test_", ".")] = case
    if arguments == ["--list"]:
        for name, case in found.items():
            method = getattr(case, case._testMethodName)
            print(name, getattr(method, "timeout", 400), getattr(method, "processors", 1))
        return 0
    if trouble := qemu_trouble():
        print(f"Skipped: {trouble}")
        return 1 if os.environ.get("CROSSBAR_REQUIRE_QEMU") else SKIP
    unknown = [name for name in arguments if name not in found]
    if unknown:
        print(f"no such test: {' '.join(unknown)}")
        return 2
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(
        unittest.TestSuite(found[name] for name in arguments or found))
    for _, why in result.skipped:
        print(f"Skipped: {why}")
    if not result.wasSuccessful():
        return 1
    return SKIP if result.skipped and len(result.skipped) == result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
