"""The serial console, as a person at a terminal, a script on a pipe and a file see it."""
import ctypes
import fcntl
import os
import select
import signal
import stat
import termios
import time

from program import (CRASH, CTRL_A, FATAL_SIGNALS, HALT, HOST_ERROR, IN_LAB, SANITIZER, SPIN, STOPPED, SUCCESS, Case,
                     limits, out, pvh_image, say, state_of)

GREETING = "Echo. Lines end with Enter"
PROMPT = "> "
F_SETPIPE_SZ = 1031


class Pipe(Case):
    def test_answers_lines(self):
        session = self.start("echo")
        session.expect(GREETING)
        session.expect(PROMPT)
        for line in ("hello", "", "two words", "~!@#$%^&*()[]{}\\|;:'\",.<>/?`"):
            session.send(line.encode() + b"\n")
            session.expect(f"{line}\nyou said: {line}\n{PROMPT}")
        session.send(b"quit\n")
        self.assert_succeeds(session.finish())

    def test_takes_what_was_written_before_the_guest_reads(self):
        outcome = self.run_guest("echo", stdin=b"first\nsecond\nquit\n")
        self.assert_succeeds(outcome)
        self.assertIn("you said: first", outcome.lines())
        self.assertIn("you said: second", outcome.lines())

    @limits(timeout=240)
    def test_takes_a_long_paste_whole_and_in_order(self):
        # 64 KiB; of an emulated CPU, where an exit for each byte takes long, a quarter (docs/decisions/010).
        lines = [f"line {number:04} {'x' * 53}" for number in range(256 if IN_LAB else 1024)]
        paste = "".join(line + "\n" for line in lines).encode()
        self.assertEqual(len(paste), 64 * len(lines))
        outcome = self.run_guest("echo", stdin=paste + b"quit\n", seconds=200)
        self.assert_succeeds(outcome)
        said = [line.removeprefix("you said: ") for line in outcome.lines() if line.startswith("you said: ")]
        wrong = next((i for i, (a, b) in enumerate(zip(said, lines)) if a != b), None)
        self.assertEqual((len(said), wrong), (len(lines), None), said[wrong] if wrong is not None else "")

    def test_has_no_escape_character(self):
        session = self.start("echo")
        session.expect(PROMPT)
        session.send(b"a" + CTRL_A + b"x" + CTRL_A + CTRL_A + b"b\n")
        session.expect(b"you said: a" + CTRL_A + b"x" + CTRL_A + CTRL_A + b"b\n")
        session.send(b"quit\n")
        self.assert_succeeds(session.finish())

    def test_passes_every_byte(self):
        every = bytes(byte for byte in range(256) if byte not in b"\r\n")
        session = self.start("echo")
        session.expect(PROMPT)
        for part in (every[:128], every[128:]):
            session.send(part + b"\n")
            session.expect(b"you said: " + part.split(b"\0")[0])  # the guest prints a C string
        session.send(b"quit\n")
        self.assert_succeeds(session.finish())

    def test_that_ends_leaves_the_guest_running(self):
        session = self.start("echo")
        session.expect(PROMPT)
        session.send(b"last\n")
        session.end_input()
        session.expect("you said: last")
        time.sleep(0.3)
        self.assertIsNone(session.process.poll())
        cpu = os.sysconf("SC_CLK_TCK")
        before = self.cpu_ticks(session)
        time.sleep(1)
        self.assertLess(self.cpu_ticks(session) - before, cpu // 4, "busy, though all wait")
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish().status, STOPPED)

    @staticmethod
    def cpu_ticks(session):
        with open(f"/proc/{session.process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def test_works_after_a_reboot(self):
        session = self.start("echo")
        for _ in range(3):
            session.expect(GREETING)
            session.expect(PROMPT)
            session.send(b"again\n")
            session.expect("you said: again")
            session.send(b"reboot\n")
        session.expect(GREETING)
        session.expect(PROMPT)
        session.send(b"quit\n")
        self.assert_succeeds(session.finish())

    def test_works_after_a_reboot_that_came_with_input_waiting(self):
        # What the old guest had taken is gone with it (its queue holds 1 KiB); the rest is the new one's.
        outcome = self.run_guest("echo", stdin=b"one\nreboot\n" + b"two\n" * 1000 + b"quit\n")
        self.assert_succeeds(outcome)
        said = outcome.lines()
        self.assertEqual(said.count("> reboot"), 1, outcome)
        self.assertGreater(said.count("you said: two"), 500, outcome)
        self.assertEqual(said[-1], "> quit")

    def test_powers_off(self):
        outcome = self.run_guest("echo", stdin=b"ignored\npoweroff\n")
        self.assertEqual(outcome.status, 0, outcome)


class Input(Case):
    """Where stdin is no pipe and no terminal."""

    def test_of_a_file_is_typed(self):
        path = self.write("input", b"".join(b"line %d\n" % n for n in range(200)) + b"quit\n")
        with open(path, "rb") as file:
            outcome = self.start("echo", stdin=file).finish()
        self.assert_succeeds(outcome)
        said = [line for line in outcome.lines() if line.startswith("you said: ")]
        self.assertEqual(said, [f"you said: line {n}" for n in range(200)])

    def test_of_nothing_is_none(self):
        path = self.write("empty", b"")
        for name in (path, "/dev/null"):
            with open(name, "rb") as file:
                self.assert_succeeds(self.start("hello", stdin=file).finish())
                session = self.start("echo", stdin=file)
                session.expect(PROMPT)
                time.sleep(0.2)
                self.assertIsNone(session.process.poll())
                session.signal(signal.SIGTERM)
                self.assertEqual(session.finish().status, STOPPED)

    def test_of_a_folder_is_none_with_a_warning(self):
        fd = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        outcome = self.start("hello", stdin=fd).finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A[^\n]*console input is lost[^\n]*\n\Z")


class Output(Case):
    def test_that_nobody_reads_any_more_is_dropped(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        outcome = self.start("hello", stdout=writer).finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A[^\n]*console output is dropped[^\n]*\n\Z")

    def start_into_a_full_pipe(self, *arguments, blocking=True):
        """A guest that writes 10000 bytes into a pipe that holds 4096, once it is stuck; the pipe's other end."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.assertEqual(fcntl.fcntl(writer, F_SETPIPE_SZ, 4096), 4096)
        os.set_blocking(writer, blocking)
        session = self.start(self.write("code.elf", pvh_image(loop_of_text(10000))), *arguments, stdout=writer)
        os.close(writer)
        held = [0]
        while held[-1] == 0 or held[-5:] != [held[-1]] * 5:  # until nothing has moved for half a second
            time.sleep(0.1)
            self.assertIsNone(session.process.poll(), session.errors())
            held.append(pipe_holds(reader))
            self.assertLess(len(held), 600)
        return session, reader

    def test_that_nobody_reads_for_a_while_waits(self):
        for blocking in (True, False):
            session, reader = self.start_into_a_full_pipe(blocking=blocking)
            amount = 0
            while data := os.read(reader, 65536):
                amount += len(data)
            self.assert_succeeds(session.finish())
            self.assertEqual(amount, 10000)

    def test_that_nobody_reads_does_not_keep_a_signal_off(self):
        for cpus in (1, 2):
            session, _ = self.start_into_a_full_pipe("--cpus", cpus)
            session.signal(signal.SIGTERM)
            outcome = session.finish(20)
            self.assertEqual((outcome.status, outcome.err), (STOPPED, ""), outcome)

    def test_that_nobody_reads_does_not_hold_up_the_end_where_signals_cannot_be_taken(self):
        session, _ = self.start_into_a_full_pipe("--failpoint", "read#1=EIO*1", "--report", "report.json")
        session.signal(signal.SIGTERM)
        outcome = session.finish(20)
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: host-error: cannot take signals: [^\n]*\n\Z")
        self.assertEqual(self.last_report()["end"]["reason"], "host-error")

    def test_that_nobody_reads_any_more_does_not_hold_up_the_guest(self):
        reader, writer = os.pipe()
        session = self.start(self.write("code.elf", pvh_image(loop_of_text(10000))), stdout=writer)
        os.close(writer)
        while len(os.read(reader, 100)) == 0:
            pass
        os.close(reader)
        outcome = session.finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertEqual(len(outcome.err.splitlines()), 1, outcome)

    def test_to_a_full_disk_is_dropped(self):
        with open("/dev/full", "wb") as full:
            outcome = self.start("hello", stdout=full).finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A[^\n]*console output is dropped[^\n]*No space left[^\n]*\n\Z")

    def test_to_a_file(self):
        path = self.write("console.txt", b"what was there before")
        outcome = self.run_guest("hello", "--console", f"file:{path}", stdin=b"ignored")
        self.assert_succeeds(outcome)
        self.assertEqual(outcome.out, b"")
        with open(path, "rb") as file:
            self.assertRegex(file.read(), rb"\AHello from a Crossbar guest\.\n[^\0]* ring 3 +works[^\n]*\n\Z")
        self.assertEqual(self.files(), ["console.txt"])

    def test_to_none(self):
        outcome = self.run_guest("hello", "--console", "none")
        self.assert_succeeds(outcome)
        self.assertEqual(outcome.out, b"")

    def test_to_a_file_leaves_the_terminal_alone(self):
        for console in ("file:console.txt", "none"):
            session = self.start(self.write("code.elf", pvh_image(out(0x80, 1) + SPIN)), "--console", console,
                                 terminal=True)
            time.sleep(0.3)
            self.assertEqual(termios.tcgetattr(session.slave), session.found)
            session.send(b"\x03")  # so Ctrl-C is the terminal's
            self.assertEqual(session.finish().status, STOPPED)


def pipe_holds(fd):
    """How many bytes can be read."""
    count = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return int.from_bytes(count, "little")


def loop_of_text(count):
    """Code that writes `count` times x to the serial port, then exits."""
    load = b"\xb9" + count.to_bytes(4, "little") + b"\x66\xba\xf8\x03\xb0x"  # mov ecx, count; mov dx, 0x3f8; mov al, 'x'
    return load + b"\xee\x49\x75\xfc" + out(0xF4, 0)  # 1: out dx, al; dec ecx; jnz 1b


class Terminal(Case):
    """stdin and stdout are a terminal in the foreground."""

    def echo(self, *arguments, **options):
        session = self.start("echo", *arguments, terminal=True, **options)
        session.expect(PROMPT)
        self.assertTrue(session.raw(), "the guest does the echo")
        return session

    def assert_restored(self, session, status):
        outcome = session.finish()
        self.assertEqual(outcome.status, status, outcome)
        self.assertEqual(termios.tcgetattr(session.slave), session.found, "the terminal is not as it was")
        return outcome

    def hanging(self, code=SPIN, **options):
        session = self.start(self.write("code.elf", pvh_image(say(b"running") + code)), terminal=True, **options)
        session.expect("running")
        self.assertTrue(session.raw())
        return session

    def test_answers_lines_and_is_restored(self):
        session = self.echo()
        session.send(b"hello\r")  # what the Enter key sends
        session.expect("hello\r\nyou said: hello\r\n> ")
        session.send(b"quit\r")
        outcome = self.assert_restored(session, SUCCESS)
        self.assertEqual(outcome.err, "")

    def test_takes_what_is_typed_ahead(self):
        session = self.echo()
        session.send(b"one\rtwo\rthree\r")
        for line in ("one", "two", "three"):
            session.expect(f"you said: {line}\r\n")
        session.send(b"quit\r")
        self.assert_restored(session, SUCCESS)

    def test_passes_control_keys_to_the_guest(self):
        session = self.echo()
        session.send(b"a\x03\x1a\x1c\x04\x11\x13b\r")  # Ctrl-C Ctrl-Z Ctrl-\ Ctrl-D Ctrl-Q Ctrl-S
        session.expect(b"you said: a\x03\x1a\x1c\x04\x11\x13b\r\n")
        session.send(b"quit\r")
        self.assert_restored(session, SUCCESS)

    def test_ends_by_Ctrl_A_x(self):
        for keys in (CTRL_A + b"x", CTRL_A + b"X", b"text" + CTRL_A + b"x"):
            session = self.echo()
            session.send(keys)
            outcome = self.assert_restored(session, STOPPED)
            self.assertEqual(outcome.err, "")

    def test_ends_by_Ctrl_A_and_later_x(self):
        session = self.echo()
        session.send(CTRL_A)
        time.sleep(0.2)
        self.assertIsNone(session.process.poll())
        session.send(b"x")
        self.assert_restored(session, STOPPED)

    def test_sends_one_Ctrl_A_for_two(self):
        session = self.echo()
        session.send(b"a" + CTRL_A + CTRL_A + b"x\r")
        session.expect(b"you said: a" + CTRL_A + b"x\r\n")
        session.send(CTRL_A + b"z" + b"b\r")  # an escape that means nothing
        session.expect("you said: ")
        session.expect("b\r\n> ")
        session.send(b"quit\r")
        self.assert_restored(session, SUCCESS)

    def test_ends_a_guest_that_hangs(self):
        for code in (SPIN, HALT):
            session = self.hanging(code)
            session.send(b"nobody reads this " * 100)
            time.sleep(0.1)
            session.send(CTRL_A + b"x")
            self.assert_restored(session, STOPPED)

    def test_ends_a_guest_whose_input_overflows(self):
        session = self.hanging()
        os.set_blocking(session.writer, False)
        sent = 0
        deadline = time.monotonic() + 30
        while sent < 100000 and time.monotonic() < deadline:
            try:
                sent += os.write(session.writer, b"x" * 1000)
            except BlockingIOError:
                select.select([], [session.writer], [], 0.1)
        self.assertGreaterEqual(sent, 100000, "what nobody reads is to be dropped")
        os.set_blocking(session.writer, True)
        session.send(CTRL_A + b"x")
        self.assert_restored(session, STOPPED)

    def test_is_restored_after_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            session = self.hanging()
            session.signal(number)
            self.assert_restored(session, STOPPED)

    def test_is_restored_after_a_guest_crash(self):
        # Waits for a key. 1: in al, dx; test al, 1; jz 1b
        wait = b"\x66\xba\xfd\x03" + b"\xec\xa8\x01\x74\xfb"
        # mov esp, 0x9000; push 0; push 0; lidt [esp]; ud2
        session = self.hanging(wait + b"\xbc\x00\x90\x00\x00\x6a\x00\x6a\x00\x0f\x01\x1c\x24\x0f\x0b")
        session.send(b"x")
        outcome = self.assert_restored(session, CRASH)
        self.assertRegex(outcome.err, r"\Acrossbar: guest-crash: vCPU 0: triple fault")

    def test_is_restored_after_fatal_signals(self):
        for number in FATAL_SIGNALS:
            with self.subTest(signal=number):
                session = self.hanging()
                session.signal(number)
                self.assert_restored(session, -number)

    def test_is_restored_after_fatal_signals_on_a_vCPU_thread(self):
        for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS):
            session = self.hanging()
            pid = session.process.pid
            vcpu, = (int(task) for task in os.listdir(f"/proc/{pid}/task") if self.name_of(pid, task) == "vcpu0")
            tgkill = 234
            self.assertEqual(ctypes.CDLL(None).syscall(tgkill, pid, vcpu, int(number)), 0)
            self.assert_restored(session, -number)

    @staticmethod
    def name_of(pid, task):
        with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as file:
            return file.read().strip()

    def test_is_restored_after_host_errors(self):
        for call in ("KVM_RUN#20", "epoll_ctl#3"):
            # A second of raw mode first, so that it is seen.
            session = self.start("echo", "--failpoint", f"{call}=delay(1000000)", "--failpoint", f"{call}=EIO", terminal=True)
            session.until(session.raw)
            outcome = self.assert_restored(session, HOST_ERROR)
            self.assertRegex(outcome.err, r"\Acrossbar: [^\n]*Input/output error[^\n]*\n\Z")

    def test_is_restored_where_signals_cannot_be_taken(self):
        session = self.echo("--failpoint", "read#1=EIO")
        session.signal(signal.SIGTERM)
        outcome = self.assert_restored(session, HOST_ERROR)
        self.assertRegex(outcome.err, r"\Acrossbar: host-error: cannot take signals: [^\n]*\n\Z")

    def test_is_restored_while_job_control_stops_us(self):
        session = self.echo()
        session.signal(signal.SIGTSTP)
        session.until(lambda: state_of(session.process.pid) == "T")
        self.assertEqual(termios.tcgetattr(session.slave), session.found)
        session.signal(signal.SIGCONT)
        session.until(session.raw)
        session.send(b"again\r")
        session.expect("you said: again")
        session.signal(signal.SIGTSTP)
        session.until(lambda: state_of(session.process.pid) == "T")
        session.signal(signal.SIGCONT)
        session.until(session.raw)
        session.send(b"quit\r")
        self.assert_restored(session, SUCCESS)

    def test_is_raw_again_after_a_reboot(self):
        session = self.echo()
        session.send(b"reboot\r")
        session.expect(GREETING)
        session.expect(PROMPT)
        self.assertTrue(session.raw())
        session.send(b"hello\r")
        session.expect("you said: hello\r\n")
        session.send(b"quit\r")
        self.assert_restored(session, SUCCESS)

    def test_is_left_alone_in_the_background(self):
        # The program is no leader of a foreground process group: it must not be stopped by SIGTTOU, nor read.
        session = self.start("hello", terminal=True, before=lambda: os.setpgid(0, 0) if os.fork() == 0 else os._exit(
            os.waitstatus_to_exitcode(os.wait()[1])))
        outcome = session.finish()
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertEqual(termios.tcgetattr(session.slave), session.found)

    def test_that_hangs_up_ends_the_run(self):
        session = self.hanging()
        session.closing.remove(session.writer)
        session.closing.remove(session.slave)
        os.close(session.slave)
        os.close(session.writer)
        session.reader = None
        self.assertEqual(session.finish().status, STOPPED)

    def test_keeps_newlines_of_messages(self):
        session = self.start("crash", terminal=True, stderr="terminal")
        outcome = session.finish()
        self.assertEqual(outcome.status, CRASH, outcome)
        self.assertRegex(outcome.out, rb"\r\ncrossbar: guest-crash: [^\r\n]+\r\n\Z")
