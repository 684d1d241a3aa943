"""A running lab machine: starts QEMU, carries COMMAND's streams, and sees to it that nothing of it is left."""
import contextlib
import ctypes
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import threading

from cache import LabError

DIED, IOMMU_LETS_THROUGH = 123, 122
CONSOLE_LINES = 40
WHERE_PATIENCE = 5  # seconds
PR_SET_PDEATHSIG = 1
ESCAPE = b"\x1d"  # Ctrl-]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)  # each ends lab/run
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with_parent():
    """For a new process, before it becomes a program."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Stopped(Exception):
    """A signal ends this run."""

    def __init__(self, number):
        super().__init__()
        self.number = number


class Signals:
    """Turns a signal that ends lab/run into an exception; the first one, since what is cleaned up then must not be
    interrupted. While `held` it waits: not every function of a library survives an exception half-way."""
    is_held = False
    waiting = None

    @classmethod
    def take(cls):
        for one in STOPPING:
            signal.signal(one, cls._stop)

    @classmethod
    def _stop(cls, number, _=None):
        for one in STOPPING:
            signal.signal(one, signal.SIG_IGN)
        if cls.is_held:
            cls.waiting = number
        else:
            raise Stopped(number)

    @classmethod
    @contextlib.contextmanager
    def held(cls):
        cls.is_held = True
        yield
        cls.is_held = False
        if cls.waiting is not None:
            raise Stopped(cls.waiting)


class Machine:
    """`share` is the folder that both sides see. run() returns COMMAND's status."""

    def __init__(self, share, verbose, shell):
        self.share = share
        self.verbose = verbose
        self.shell = shell
        self.console = b""
        self.panicked = False
        self.control = b""
        self.monitor = b""
        self.status = None
        self.begun = False  # COMMAND
        self.process = None
        names = ["console", "qmp", "control", "monitor", *(["terminal"] if shell else ["out", "err", "in"])]
        self.ours, self.theirs = {}, {}
        for name in names:
            self.ours[name], self.theirs[name] = socket.socketpair()

    def files(self):
        """The other ends, by the name of their chardev."""
        return {name: end.fileno() for name, end in self.theirs.items()}

    def start(self, command, log):
        self.log = log
        with open(log, "wb") as file, Signals.held():
            # A session of its own: Ctrl-C is for this program, which then ends QEMU.
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                            pass_fds=self.files().values(), start_new_session=True,
                                            preexec_fn=die_with_parent)
        for end in self.theirs.values():
            end.close()

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        for end in self.ours.values():
            end.close()

    def run(self):
        """Carries streams until COMMAND's status is known and all that it wrote is written here."""
        self.selector = selectors.DefaultSelector()
        handlers = {"console": self._on_console, "control": self._on_control, "monitor": self._on_monitor,
                    "out": lambda data: _write(1, data), "err": lambda data: _write(2, data),
                    "terminal": lambda data: _write(1, data)}
        for name, handle in handlers.items():
            if name in self.ours:
                self.selector.register(self.ours[name], selectors.EVENT_READ, handle)
        with Signals.held():
            threading.Thread(target=self._send_stdin, daemon=True).start()
        self._qmp("qmp_capabilities")
        while self.status is None:
            for key, _ in self.selector.select():
                key.data(self._receive(key))
        for name in ("out", "err", "terminal"):
            self._drain(name, handlers)
        return self.status

    def _receive(self, key):
        """What came."""
        try:
            data = key.fileobj.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self._death()
        return data

    def _drain(self, name, handlers):
        if name in self.ours:
            self.ours[name].setblocking(False)
            try:
                while data := self.ours[name].recv(65536):
                    handlers[name](data)
            except (BlockingIOError, ConnectionResetError):
                pass

    def _death(self):
        """Why there is no lab machine any more."""
        self.process.wait()
        self._drain("console", {"console": self._on_console})
        with open(self.log, encoding="utf-8", errors="replace") as file:
            said = file.read().strip()
        lines = self.console.decode(errors="replace").splitlines()
        tail = "\n".join(line for line in lines[-CONSOLE_LINES:] if line.strip())
        if self.panicked:
            what = "the lab kernel panicked"
        elif self.process.returncode:
            what = f"QEMU ended with status {self.process.returncode}"
        else:
            what = "the lab machine powered off or reset before COMMAND ended"
        parts = [what] + ([f"QEMU said:\n{said}"] if said and self.process.returncode else [])
        return LabError("\n".join(parts + ([f"the end of its console:\n{tail}"] if tail else [])), DIED)

    def where(self):
        """Where its processors are, for one that does not get on; a kernel has these addresses in its /proc/kallsyms."""
        self.ours["qmp"].settimeout(WHERE_PATIENCE)
        try:
            registers = self._hmp("info registers -a")
        except (LabError, OSError, ValueError) as error:  # it is gone, or cut off in an earlier answer
            return f"nobody knows: {error}"
        found = re.findall(r"CPU#(\d+).*?RIP=([0-9a-f]+).*?HLT=(\d)", registers, re.DOTALL)
        places = [f"CPU {number} at {rip}{' (halted)' if halted == '1' else ''}" for number, rip, halted in found]
        return ", ".join(["COMMAND ran" if self.begun else "COMMAND had not begun", *places])

    def _on_console(self, data):
        self.console += data
        self.panicked |= b"Kernel panic" in self.console  # remembered, as a long trace may follow
        self.console = self.console[-65536:]
        if self.verbose:
            _write(2, data)

    def _on_control(self, data):
        self.control += data
        while b"\n" in self.control:
            line, self.control = self.control.split(b"\n", 1)
            kind, _, rest = line.decode(errors="replace").partition(" ")
            if kind == "status":
                self.status = int(rest)
            elif kind == "begun":
                self.begun = True
            elif kind == "proof":
                self._on_proof(*rest.partition(" ")[::2])
            elif kind == "error":
                raise LabError(f"the lab machine cannot be made ready: {rest}", DIED)

    def _on_proof(self, status, said):
        """lab-refuse has spoken. From here on faults go to where COMMAND sees them."""
        if status == "1":
            raise LabError(f"{said}. Nothing that is tested on this IOMMU would prove anything. Use another --iommu,"
                           " or a QEMU whose IOMMU translates", IOMMU_LETS_THROUGH)
        if status != "0":
            raise LabError(f"whether the IOMMU refuses could not be proven: {said or f'status {status}'}", DIED)
        if os.path.getsize(os.path.join(os.path.dirname(self.share), "proof")) == 0:
            raise LabError("the IOMMU refused a DMA, and QEMU's trace did not record it: LAB_FAULTS would be"
                           " incomplete", IOMMU_LETS_THROUGH)
        self._hmp(f"logfile {self.share}/faults")
        self.ours["control"].sendall(b"go\n")

    def _on_monitor(self, data):
        self.monitor += data
        while b"\n" in self.monitor:
            line, self.monitor = self.monitor.split(b"\n", 1)
            answer = self._hmp(line.decode(errors="replace").replace("@share@", self.share)).encode()
            self.ours["monitor"].sendall(b"%d\n%s" % (len(answer), answer))

    def _hmp(self, line):
        return self._qmp("human-monitor-command", **{"command-line": line}).replace("\r\n", "\n")

    def _qmp(self, command, **arguments):
        """Sends a command and waits for its answer; events are skipped."""
        if not hasattr(self, "qmp"):
            self.qmp = self.ours["qmp"].makefile("rb")
        try:
            self.ours["qmp"].sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
            for line in self.qmp:
                answer = json.loads(line)
                if "error" in answer:
                    return answer["error"]["desc"]
                if "return" in answer:
                    return answer["return"]
        except (BrokenPipeError, ConnectionResetError):
            pass
        raise self._death()

    def _send_stdin(self):
        """Our stdin goes to COMMAND, and ends there when it ends here. A thread, because COMMAND may never read it."""
        to = self.ours["terminal" if self.shell else "in"]
        try:
            while data := os.read(0, 4096):
                if self.shell and ESCAPE in data:
                    os.kill(os.getpid(), signal.SIGTERM)
                to.sendall(data)
        except OSError:  # stdin is closed, or the machine is gone
            pass
        if not self.shell:
            with contextlib.suppress(OSError):
                to.shutdown(socket.SHUT_WR)


def _write(descriptor, data):
    while data:
        data = data[os.write(descriptor, data):]
