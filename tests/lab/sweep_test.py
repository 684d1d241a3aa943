"""Every call of a run with devices of the kernel's VFIO fails once, and the run unwinds."""
import os
import sys

from machine import FULL, TOP, Case, timeout
from passthrough_test import HOST, behind


class Sweep(Case):
    @timeout(3000 if FULL else 300)
    def test_of_calls_with_devices_of_the_kernel(self):
        tested = {"CROSSBAR_PROGRAM": os.path.join(TOP, "build", "release", "crossbar"),
                  "CROSSBAR_GUESTS": os.path.join(TOP, "build", "guests")}
        outcome = self.lab("--here", "--kernel", HOST, "--timeout", 2900 if FULL else 280, "--device", "edu,bind=vfio",
                           *behind("ivshmem"), "--", sys.executable, "-B", os.path.join(TOP, "tests", "lab", "kernel_sweep.py"),
                           environment=tested)
        self.assertEqual(outcome.status, 0, outcome)
        print(outcome.out)
