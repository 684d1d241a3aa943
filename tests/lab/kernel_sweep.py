#!/usr/bin/env python3
"""The sweep over the calls of a run with devices of the kernel's VFIO. sweep_test.py runs it in a lab machine (--here)."""
import glob
import os
import subprocess
import sys
import unittest

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(FOLDER), "kvm"))
# pylint: disable=wrong-import-position
from sweep import DEVICE_STEP, SweepCase


class KernelSweep(SweepCase):
    def after_failure(self, context):
        """Nothing holds a group any more: it can be opened once at a time."""
        for group in glob.glob("/dev/vfio/[0-9]*"):
            try:
                os.close(os.open(group, os.O_RDWR))
            except OSError as error:
                self.fail(f"{group} is held: {error}\n{context}")

    def test_of_calls(self):
        devices = [word for address in os.environ["LAB_DEVICES"].split() for word in ("--device", address)]
        calls, failed, unbegun = self.sweep("*", *self.with_outputs("--memory", "4M", *devices), step=DEVICE_STEP)
        print(f"{calls} calls, of which every {DEVICE_STEP}. failed; {len(failed)} ended the run with an error, "
              f"{unbegun} before the console's file was begun")
        said = "\n".join(failed.values())
        for word in ("VFIO_", "KVM_"):
            self.assertIn(word, said)
        self.assertGreater(len(failed), 150 // DEVICE_STEP)
        self.assertEqual(self.run_guest("hello", *devices).status, 1)
        kernel = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
        self.assertNotRegex(kernel, r"WARNING|\bBUG\b|Oops|Call Trace")


if __name__ == "__main__":
    unittest.main()
