"""What the tests in this folder stand on: running the built program as a user does, on pipes or on a terminal.

The environment says what is tested (tests/CMakeLists.txt sets it): CROSSBAR_PROGRAM, CROSSBAR_GUESTS (a folder), and
CROSSBAR_BUILD, a list of words: "sanitizer", "static".
"""
import ctypes
import dataclasses
import fcntl
import glob
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

PROGRAM = os.environ.get("CROSSBAR_PROGRAM", "")
GUESTS = os.environ.get("CROSSBAR_GUESTS", "")
BUILD = os.environ.get("CROSSBAR_BUILD", "").split()
SANITIZER = "sanitizer" in BUILD
IN_LAB = "LAB_DEVICES" in os.environ  # a lab machine, whose CPUs are emulated

# Exit statuses, as README.md lists them.
POWER_OFF, SUCCESS, USAGE, HOST_ERROR, CRASH, STOPPED, UNSAFE = 0, 1, 2, 4, 6, 8, 10

# Seconds. A run that takes longer hangs: nothing here should need a tenth of it.
PATIENCE = 60

CTRL_A = b"\x01"
SANITIZER_STATUS = 99  # one that the program has no meaning for; by default ASan takes 1, a guest's success


def guest(name):
    return os.path.join(GUESTS, f"{name}.elf")


def limits(timeout=120, alone=False):
    """What ctest is to grant a test: `timeout` in seconds, and whether it has the machine to itself."""
    def mark(method):
        method.limits = (timeout, alone)
        return method
    return mark


@dataclasses.dataclass
class Outcome:
    """How a run ended: the exit status (negative: the signal that killed it) and what it wrote."""
    status: int
    out: bytes
    err: str
    seconds: float

    def __str__(self):
        return f"status {self.status} after {self.seconds:.1f} s\n--- stdout\n{self.out.decode(errors='replace')}" \
               f"\n--- stderr\n{self.err}"

    def lines(self):
        return self.out.decode(errors="replace").replace("\r\n", "\n").splitlines()


class Session:
    """A running program. `terminal`: stdin and stdout are a terminal of its own, else pipes."""

    def __init__(self, case, arguments, terminal=False, stdin=None, stdout=None, stderr=None, before=None, **popen):
        self.case = case
        self.out = b""
        self.seen = 0  # how much of `out` expect() is past
        self.began = time.monotonic()
        self.closed = False
        self.findings = tempfile.mkdtemp(prefix="findings-", dir=case.scratch)
        os.chmod(self.findings, 0o777)
        self.err = tempfile.TemporaryFile(dir=case.scratch)
        self.closing = []
        if terminal:
            self.reader, self.slave = os.openpty()
            self.writer = self.reader
            self.closing += [self.reader, self.slave]
            self.found = termios.tcgetattr(self.slave)
            stdin = self.slave if stdin is None else stdin
            stdout = self.slave if stdout is None else stdout
        self.process = subprocess.Popen(
            [popen.pop("program", PROGRAM), *map(str, arguments)], cwd=case.folder, start_new_session=True,
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=self.slave if stderr == "terminal" else stderr or self.err,
            preexec_fn=(lambda: self._in_child(terminal, before)) if terminal or before else None,
            env=self._environment("user" in popen), **popen)
        if not terminal:
            self.writer = self.process.stdin.fileno() if self.process.stdin else None
            self.reader = self.process.stdout.fileno() if self.process.stdout else None
        if self.reader is not None:
            os.set_blocking(self.reader, False)
        self.pidfd = os.pidfd_open(self.process.pid)
        self.closing.append(self.pidfd)
        case.addCleanup(self.close)

    def _in_child(self, terminal, before):
        if terminal:
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
        if before:
            before()

    def _environment(self, another_user):
        # A finding goes to a file of its own, so that stderr is the program's alone.
        options = f"exitcode={SANITIZER_STATUS}:log_path={self.findings}/found:print_stacktrace=1"
        names = ("ASAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
        own = {name: ":".join(filter(None, [os.environ.get(name), options])) for name in names}
        if another_user:  # who may not write what is counted for coverage beside the build
            own["GCOV_PREFIX"] = self.findings
        return {**os.environ, **own}

    def raw(self):
        """Whether the terminal is in raw mode."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def send(self, data):
        os.write(self.writer, data)

    def end_input(self):
        self.process.stdin.close()

    def signal(self, number):
        self.process.send_signal(number)

    def errors(self):
        self.err.seek(0)
        return self.err.read().decode(errors="replace")

    def _receive(self, seconds):
        """Takes what there is to read, waiting up to `seconds`; False when there will be no more."""
        watch = [self.pidfd] + ([self.reader] if self.reader is not None else [])
        ready = select.select(watch, [], [], max(seconds, 0))[0]
        if self.reader in ready:
            try:
                data = os.read(self.reader, 65536)
            except BlockingIOError:
                return True
            except OSError:  # EIO: nobody has the terminal open any more
                return False
            self.out += data
            if data:
                return True
            self.reader = None  # the end of a pipe
        return self.pidfd not in ready

    def expect(self, text, seconds=PATIENCE):
        """Waits for `text` in the output, after what the last expect() found."""
        text = text.encode() if isinstance(text, str) else text
        deadline = time.monotonic() + seconds
        while True:
            at = self.out.find(text, self.seen)
            if at >= 0:
                self.seen = at + len(text)
                return
            left = deadline - time.monotonic()
            if left <= 0 or not self._receive(left):
                if self.out.find(text, self.seen) >= 0:
                    continue
                self.case.fail(f"no {text!r} in {self.out[self.seen:]!r}; stderr: {self.errors()}")

    def until(self, condition, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.case.fail(f"waited {seconds} s in vain; output {self.out!r}; stderr: {self.errors()}")
            self._receive(0.01)

    def finish(self, seconds=PATIENCE):
        """Waits for the end and checks that the run left nothing behind: no process, no finding."""
        deadline = time.monotonic() + seconds
        while self._receive(deadline - time.monotonic()):
            if time.monotonic() > deadline:
                self.process.kill()
                self.case.fail(f"hangs; output {self.out!r}; stderr: {self.errors()}")
        status = self.process.wait()
        while self.reader is not None and select.select([self.reader], [], [], 0)[0] and self._receive(0):
            pass
        outcome = Outcome(status, self.out, self.errors(), time.monotonic() - self.began)
        for name in glob.glob("found*", root_dir=self.findings):
            with open(os.path.join(self.findings, name), encoding="utf-8", errors="replace") as file:
                said = file.read()
            # Of a server that is killed while its leaks are looked for.
            if not re.fullmatch(r"(==\d+==Unable to get registers from thread \d+\.\n)+", said):
                self.case.fail(f"a sanitizer says:\n{said}\n{outcome}")
        self.case.assertNotEqual(status, SANITIZER_STATUS, outcome)
        with self.case.assertRaises(ProcessLookupError, msg=f"a child process is left\n{outcome}"):
            os.killpg(self.process.pid, 0)
        return outcome

    def close(self):
        if self.closed:
            return
        self.closed = True
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.err):
            if stream:
                stream.close()
        for fd in self.closing:
            os.close(fd)


class Case(unittest.TestCase):
    """`folder` is the program's working directory, empty at first; `scratch` is the test's own."""

    def setUp(self):
        self.scratch = tempfile.mkdtemp(prefix="crossbar-test-")
        os.chmod(self.scratch, 0o755)
        self.addCleanup(shutil.rmtree, self.scratch)
        self.folder = os.path.join(self.scratch, "folder")
        os.mkdir(self.folder)

    def start(self, name, *arguments, **options):
        """`crossbar run` of a guest by its name, or of an image by its path."""
        image = name if "/" in name else guest(name)
        return Session(self, ["run", "--kernel", image, *arguments], **options)

    def crossbar(self, *arguments, stdin=b"", seconds=PATIENCE, **options):
        """A whole run with these arguments; its stdin is a pipe that holds `stdin` and then ends."""
        session = Session(self, arguments, **options)
        if session.process.stdin:
            os.set_blocking(session.writer, False)
            session.until(lambda: self._feed(session, stdin), seconds)
        try:
            return session.finish(seconds)
        finally:
            session.close()  # a sweep has thousands

    def run_guest(self, name, *arguments, **options):
        image = name if "/" in name else guest(name)
        return self.crossbar("run", "--kernel", image, *arguments, **options)

    def serve(self, *arguments, path="server.sock"):
        """A server of the user's own; its socket."""
        path = os.path.join(self.folder, path)
        server = subprocess.Popen([PROGRAM, "serve", *arguments, "--socket", path], cwd=self.folder)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        deadline = time.monotonic() + 30
        while not os.path.exists(path):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        return server, path

    @staticmethod
    def _feed(session, data):
        """Sends on; whether all of `data` went, or nobody takes it."""
        sent = getattr(session, "sent", 0)
        try:
            while sent < len(data):
                sent += os.write(session.writer, data[sent:sent + 4096])
        except BlockingIOError:
            session.sent = sent
            return session.process.poll() is not None
        except BrokenPipeError:
            pass
        session.process.stdin.close()
        return True

    def write(self, name, data):
        """A file in the working directory; its path."""
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def files(self):
        return sorted(os.listdir(self.folder))

    def last_report(self):
        """What --report report.json has left."""
        with open(os.path.join(self.folder, "report.json"), encoding="utf-8") as file:
            return json.load(file)

    def assert_succeeds(self, outcome):
        self.assertEqual((outcome.status, outcome.err), (SUCCESS, ""), outcome)

    def assert_refused(self, outcome, status, *words):
        """One line from crossbar that says all of `words`; nothing else, and soon."""
        self.assertEqual(outcome.status, status, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: [^\n]+\n\Z", outcome)
        for word in words:
            self.assertIn(word, outcome.err)
        self.assertEqual(outcome.out, b"", outcome)
        self.assertLess(outcome.seconds, 10, outcome)


# Guests of a few instructions, for what the test guests do not do: 32-bit code, entered by PVH.

def out(port, value):
    """Writes a byte to a port."""
    return struct.pack("<BBHBBB", 0x66, 0xBA, port, 0xB0, value, 0xEE)  # mov dx, port; mov al, value; out dx, al


def say(text):
    return b"".join(out(0x3F8, byte) for byte in text)


def debug_exit(value):
    return out(0xF4, value)


SPIN = b"\xeb\xfe"  # jmp to itself
HALT = b"\xfa\xf4"  # cli; hlt


def pvh_image(code, machine=3):
    """An ELF32 file that starts `code` at 1 MiB. `machine` is e_machine, 3 is i386."""
    address, header = 0x100000, 0x34 + 2 * 0x20
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", address)  # XEN_ELFNOTE_PHYS32_ENTRY
    offset = header + len(note)
    return b"".join((
        struct.pack("<4sBBB9xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 2, machine, 1, address, 0x34, 0, 0, 0x34, 0x20, 2,
                    0, 0, 0),
        struct.pack("<IIIIIIII", 1, offset, address, address, len(code), len(code), 7, 1),  # PT_LOAD
        struct.pack("<IIIIIIII", 4, header, 0, 0, len(note), len(note), 4, 4),  # PT_NOTE
        note, code))


def bz_image():
    """A bzImage as far as its headers go: 4 setup sectors, 4 KiB, at most 255 characters of command line."""
    image = bytearray(0x1a00)
    for offset, field in ((0x1f1, b"\4"), (0x1f5, b"\1"), (0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\2"),  # protocol 2.15
                          (0x211, b"\1"), (0x236, b"\1"), (0x238, b"\xff")):  # loaded high, 64-bit
        image[offset:offset + len(field)] = field
    return image


def drop_devices():
    """For `before`: the program sees an empty /dev. Needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns, ms_private, ms_rec = 0x20000, 1 << 18, 1 << 14
    for result in (libc.unshare(clone_newns), libc.mount(b"none", b"/", None, ms_rec | ms_private, None),
                   libc.mount(b"none", b"/dev", b"tmpfs", 0, None)):
        if result != 0:
            raise OSError(ctypes.get_errno(), "cannot hide /dev")


def kvm_trouble():
    """Empty where /dev/kvm can be used."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"cannot open /dev/kvm: {error.strerror}"
    return ""


def state_of(pid):
    """The state letter of a process, as in ps."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0]


def child_of(pid):
    """The one child of a process, or None."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        children = file.read().split()
    return int(children[0]) if len(children) == 1 else None


# Those that a run takes as a wish to end it, and those that it ignores or uses itself.
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
OWN_SIGNALS = {signal.SIGUSR1, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGRTMIN}
# signal(7): the default action is not death, or no process can change it.
HARMLESS_SIGNALS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
                    signal.SIGURG, signal.SIGWINCH, signal.SIGKILL}
FATAL_SIGNALS = sorted(signal.valid_signals() - STOP_SIGNALS - OWN_SIGNALS - HARMLESS_SIGNALS)
if SANITIZER:  # ThreadSanitizer holds other signals back for a while, and now and then for ever
    FATAL_SIGNALS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT]
