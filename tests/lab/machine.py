"""What the tests in this folder stand on: runs of lab/run, and that they leave nothing behind.

CROSSBAR_LAB_FULL=1 (scripts/test --full sets it) adds what takes too long for every change.
"""
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
LAB = os.path.join(TOP, "lab")
RUN = os.path.join(LAB, "run")
sys.path.insert(0, LAB)
import cache
import qemu

FULL = bool(os.environ.get("CROSSBAR_LAB_FULL"))
KERNEL = "iommufd"  # the one that boots fastest; what is about another names it

PATIENCE = 300  # seconds for a run of lab/run, where the test has no other view; a busy machine needs most of it

# Exit statuses of lab/run, as its --help lists them.
USAGE, MISSING, LETS_THROUGH, DIED, TIMEOUT = 120, 121, 122, 123, 124


def qemu_trouble():
    """Empty where lab/run finds a usable QEMU."""
    try:
        qemu.program()
    except cache.LabError as error:
        return str(error)
    return ""


def timeout(seconds, processors=1, in_turn=False):
    """What ctest is to grant a test. `processors`: as many its machine has, too; in_turn: but for one here (lab/run --in-turn)."""
    def mark(method):
        method.timeout = seconds
        method.machine = ["--cpus", processors, *(["--in-turn"] if in_turn else [])]
        method.processors = 1 if in_turn else processors
        return method
    return mark


@dataclasses.dataclass
class Outcome:
    """How a run of lab/run ended."""
    status: int
    out: str
    err: str
    seconds: float

    def __str__(self):
        return f"status {self.status} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Case(unittest.TestCase):
    """`folder` is where a run keeps its temporary files: empty before and, but for SIGKILL, after it."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="lab-test-")
        self.addCleanup(shutil.rmtree, self.scratch)
        self.folder = os.path.join(self.scratch, "tmp")
        os.mkdir(self.folder)

    def need_full(self):
        if not FULL:
            self.skipTest("takes minutes: scripts/test --full runs it")

    def start(self, *arguments, environment=None, **options):
        """A run that is under way, in a process group of its own."""
        self.began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-B", RUN, *map(str, arguments)], text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": self.folder, **(environment or {})},
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def finish(self, process, seconds=None, stdin=None):
        out, err = process.communicate(stdin, timeout=seconds)
        outcome = Outcome(process.returncode, out, err, time.monotonic() - self.began)
        self.assert_nothing_left(outcome)
        return outcome

    def lab(self, *arguments, **options):
        """A whole run."""
        return self.finish(self.start(*arguments, **options))

    def in_lab(self, script, *arguments, status=0, kernel=KERNEL):
        """The output of a shell script in a lab machine, which has to end with `status`."""
        machine = getattr(getattr(self, self._testMethodName), "machine", [])
        outcome = self.lab("--kernel", kernel, *machine, "--timeout", PATIENCE, *arguments, "--", "sh", "-c", script)
        self.assertEqual(outcome.status, status, outcome)
        return outcome

    def offline(self):
        """The environment of a machine whose cache is empty, and on which apt fetches nothing."""
        settings = os.path.join(self.scratch, "apt.conf")
        with open(settings, "w", encoding="ascii") as file:
            file.write('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n'
                       'Acquire::Retries "0";\n')
        return {"XDG_CACHE_HOME": os.path.join(self.scratch, "cache"), "APT_CONFIG": settings}

    def machines(self):
        """The processes that this test's runs started: QEMU's command line names the temporary folder."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read()
            except OSError:
                continue
            if b"qemu-system-x86_64\0" in words and self.folder.encode() in words:
                found.append(int(pid))
        return found

    def until(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"waited {seconds} s in vain")
            time.sleep(0.02)

    def assert_nothing_left(self, outcome):
        self.assertEqual(self.machines(), [], outcome)
        self.assertEqual(os.listdir(self.folder), [], outcome)

    def assert_refused(self, outcome, status, *words):
        """lab/run itself says no: its status, and a message on stderr that has all of `words`."""
        self.assertEqual(outcome.status, status, outcome)
        self.assertRegex(outcome.err, r"(?m)^lab: ", outcome)
        self.assertNotIn("Traceback", outcome.err)
        for word in words:
            self.assertIn(word, outcome.err)


def send(process, number):
    os.kill(process.pid, number)


SIGINT, SIGTERM, SIGKILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
