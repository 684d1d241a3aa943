"""Signals that whoever started the run has ignored, and a shell's job control."""
import os
import signal

from program import GUESTS, PROGRAM, SPIN, STOPPED, SUCCESS, Case, Session, child_of, pvh_image, say, state_of


class Ignored(Case):
    """nohup, and the jobs that a shell without job control starts in the background."""

    def start_ignoring(self, *numbers):
        session = self.start(self.write("code.elf", pvh_image(say(b"running") + SPIN)),
                             before=lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])
        session.expect("running")
        return session

    def test_signals_stay_ignored(self):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGUSR1):
            with self.subTest(signal=number):
                session = self.start_ignoring(number)
                for _ in range(5):
                    session.signal(number)
                with self.assertRaises(self.failureException):
                    session.until(lambda: session.process.poll() is not None or state_of(session.process.pid) == "T", 0.3)
                other = signal.SIGTERM if number != signal.SIGTERM else signal.SIGINT
                session.signal(other)
                self.assertEqual(session.finish().status, STOPPED)

    def test_on_a_terminal_stay_ignored(self):
        session = self.start("echo", terminal=True,
                             before=lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP,
                                                                                                 signal.SIGUSR1)])
        session.expect("> ")
        for number in (signal.SIGHUP, signal.SIGUSR1):
            session.signal(number)
        session.send(b"still here\r")
        session.expect("you said: still here")
        session.send(b"quit\r")
        self.assertEqual(session.finish().status, SUCCESS)


class JobControl(Case):
    """The program as a job of an interactive shell."""

    def shell(self):
        session = Session(self, ["--norc", "--noprofile", "-i"], program="bash", terminal=True, stderr="terminal")
        session.send(b"set +o history; PS1='sh\\$ '; PROMPT_COMMAND=\n")
        session.expect("sh# " if os.getuid() == 0 else "sh$ ")
        return session

    def start_job(self, session, end=""):
        session.send(f"{PROGRAM} run --kernel {GUESTS}/echo.elf {end}\n".encode())
        session.expect("Echo. Lines end with Enter")
        session.expect("> ")
        session.until(lambda: child_of(session.process.pid))
        return child_of(session.process.pid)

    def assert_answers(self, session):
        session.until(session.raw, 10)
        session.send(b"hello\r")
        session.expect("you said: hello\r\n> ")

    def assert_ends(self, session):
        session.send(b"quit\r")
        session.until(lambda: child_of(session.process.pid) is None)
        session.send(b"stty -a; exit 42\n")
        outcome = session.finish()
        self.assertEqual(outcome.status, 42, outcome)
        self.assertRegex(outcome.out, rb"[ \n]isig icanon [^-]*[ \n]echo ", "the shell's mode is not as it was")

    def test_started_in_the_background_and_then_called(self):
        session = self.shell()
        self.start_job(session, "&")
        self.assertFalse(session.raw())
        session.send(b"fg\n")
        self.assert_answers(session)
        self.assert_ends(session)

    def test_stopped_from_outside_and_called_again(self):
        session = self.shell()
        job = self.start_job(session)
        self.assert_answers(session)
        for _ in range(2):
            os.kill(job, signal.SIGSTOP)
            session.until(lambda: state_of(job) == "T" and not session.raw())
            session.send(b"fg\n")
            self.assert_answers(session)
        self.assert_ends(session)

    def test_stopped_and_sent_to_the_background(self):
        for number in (signal.SIGSTOP, signal.SIGTSTP):
            session = self.shell()
            job = self.start_job(session)
            self.assert_answers(session)
            os.kill(job, number)
            session.until(lambda: state_of(job) == "T" and not session.raw())
            session.send(b"bg\n")
            session.until(lambda: state_of(job) != "T")
            with self.assertRaises(self.failureException, msg="it takes the terminal from the shell"):
                session.until(lambda: session.raw() or state_of(job) == "T", 1.5)
            session.send(b"echo the shell $((1+1))\n")
            session.expect("the shell 2")
            session.send(b"fg\n")
            self.assert_answers(session)
            self.assert_ends(session)

    def test_in_the_background_ends_without_touching_the_terminal(self):
        session = self.shell()
        job = self.start_job(session, "&")
        os.kill(job, signal.SIGTERM)
        session.until(lambda: child_of(session.process.pid) is None)
        session.send(b"echo the shell $((1+1))\n")
        session.expect("the shell 2")
        session.send(b"exit 42\n")
        self.assertEqual(session.finish().status, 42)
