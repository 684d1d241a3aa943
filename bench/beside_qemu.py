"""What the benchmarks share that run in lab machines: above all those where Crossbar and QEMU run in turn."""
import argparse
import os
import subprocess
import sys
import unittest

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(TOP, "tests", "lab")]

# pylint: disable=wrong-import-position
from guests_test import qemu_inside
from machine import DIED, RUN, TIMEOUT, qemu_trouble


def parser(text, times, number, kernel):
    """The options they all have. `times`: what the option is called that says how often, `number` of times by default."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(f"--{times}", type=int, default=number)
    made.add_argument("--kernel", help=f"the lab host's (default: {kernel})")
    made.add_argument("--build", default=os.path.join(TOP, "build", "release"))
    return made


def need_qemu():
    """Ends this program where there is none."""
    if trouble := qemu_trouble():
        print(f"Skipped: {trouble}")
        sys.exit(1 if os.environ.get("CROSSBAR_REQUIRE_QEMU") else 77)


def run(script, options, *arguments):
    """What the script says in a lab machine that has QEMU, and has it say the load of this machine around that. Ends
    this program where there is no QEMU, or where the script fails. Where it is the machine that hangs or dies, as one with
    two CPUs does now and then (docs/decisions/010), another has one more try."""
    need_qemu()
    try:
        inside = qemu_inside()
    except unittest.SkipTest as reason:
        print(f"Skipped: {reason}")
        sys.exit(77)
    print(f"load of this machine: {os.getloadavg()[0]:.1f} before", flush=True)
    # Two CPUs, or the threads of one program, QEMU's above all, would wait for each other.
    command = [RUN, "--build", options.build, "--cpus", "2", "--memory", "3G", *inside, *arguments, "--", "sh", "-c", script]
    for last in (False, True):
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if last or result.returncode not in (DIED, TIMEOUT):
            break
        print(f"the lab machine ended with status {result.returncode}, what it measured is not used", flush=True)
    if result.returncode != 0:
        sys.exit(f"the lab machine ended with status {result.returncode}:\n{result.stdout}")
    print(f"load of this machine: {os.getloadavg()[0]:.1f} after")
    return result.stdout
