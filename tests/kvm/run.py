#!/usr/bin/env python3
"""Runs the tests of this folder, which drive the built program on /dev/kvm.

  run.py --list            one line a test: Suite.name, its timeout in seconds, 1 where it must run alone
  run.py Suite.name...     runs these (tests/CMakeLists.txt makes each a ctest); all, without a name

Without /dev/kvm it skips, status 77, saying why; where CROSSBAR_REQUIRE_KVM is set that is a failure.
"""
import importlib
import os
import sys
import unittest

FOLDER = os.path.dirname(os.path.abspath(__file__))
SKIP = 77


def tests():
    """All tests by name: of each file *_test.py, each class's methods test_*."""
    found = {}
    for file in sorted(os.listdir(FOLDER)):
        if not file.endswith("_test.py"):
            continue
        module = importlib.import_module(file[:-3])
        for test in unittest.defaultTestLoader.loadTestsFromModule(module):
            for case in test:
                name = case.id().split(".", 1)[1].replace(".test_", ".")
                assert name not in found, name
                found[name] = case
    return found


def main(arguments):
    sys.path.insert(0, FOLDER)
    if not os.access(os.environ.get("CROSSBAR_PROGRAM", ""), os.X_OK) and arguments != ["--list"]:
        print("CROSSBAR_PROGRAM names no program; ctest sets it")
        return 2
    found = tests()
    if arguments == ["--list"]:
        for name, case in found.items():
            timeout, alone = getattr(getattr(case, case._testMethodName), "limits", (120, False))
            print(name, timeout, int(alone))
        return 0
    from program import kvm_trouble
    if trouble := kvm_trouble():
        print(f"Skipped: {trouble}")
        return 1 if os.environ.get("CROSSBAR_REQUIRE_KVM") else SKIP
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
