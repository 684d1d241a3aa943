"""lab/run as a command: streams, statuses, what ends it."""
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from unittest import mock

from machine import DIED, KERNEL, LAB, MISSING, SIGINT, SIGTERM, TIMEOUT, TOP, USAGE, Case, cache, send, timeout

import initrd


class Command(Case):
    def test_status_streams_and_words(self):
        script = 'printf "%s|" "$@"; echo out; echo err >&2; echo again >/dev/stderr; cat; exit 7'
        process = self.start("--kernel", KERNEL, "--", "sh", "-c", script, "sh", "two words", "$quoted'\"", "",
                             stdin=subprocess.PIPE)
        outcome = self.finish(process, stdin="what came in\n" * 5000)
        self.assertEqual(outcome.status, 7, outcome)
        self.assertEqual(outcome.out, "two words|$quoted'\"||out\n" + "what came in\n" * 5000)
        self.assertEqual(outcome.err, "err\nagain\n")

    def test_a_signal_that_ends_the_command_is_its_status(self):
        self.in_lab("kill -9 $$", status=137)

    def test_what_the_command_leaves_running_ends_with_it(self):
        """Whatever its session is, and though it starts more meanwhile; what it has written arrives."""
        outcome = self.in_lab("""
            sleep 1000 &
            setsid sh -c 'seq 1 50000; echo >written; while true; do sleep 1000 & sleep 0.1; done' &
            until [ -e written ]; do sleep 0.1; done; exit 3""", status=3)
        self.assertEqual(outcome.out, "".join(f"{number}\n" for number in range(1, 50001)))
        self.assertLess(outcome.seconds, 100)

    def test_much_output_arrives_whole(self):
        outcome = self.in_lab("seq 1 200000")
        self.assertEqual(outcome.out, "".join(f"{number}\n" for number in range(1, 200001)))

    def test_one_stream_keeps_its_order(self):
        process = self.start("--kernel", KERNEL, "--", "sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; done",
                             stderr=subprocess.STDOUT)
        self.assertEqual(self.finish(process).out.split(), ["o1", "e1", "o2", "e2", "o3", "e3"])

    def test_files_come_along_with_their_libraries(self):
        note = os.path.join(self.scratch, "note")
        with open(note, "w", encoding="ascii") as file:
            file.write("a note\n")
        tree = os.path.join(self.scratch, "tree")
        os.makedirs(f"{tree}/below")
        with open(f"{tree}/below/leaf", "w", encoding="ascii") as file:
            file.write("a leaf\n")
        os.mkdir(f"{tree}/empty")
        os.symlink("below", f"{tree}/folder")
        outcome = self.in_lab("cat note /opt/other tree/folder/leaf; readlink tree/folder; ls -A tree/empty; ./env -i A=1\n"
                              "printf \udcff | wc -c", "--file", note, "--file", f"{note}:/opt/other", "--file", tree,
                              "--file", "/usr/bin/env", "--memory", "256M")  # the least
        self.assertEqual(outcome.out, "a note\na note\na leaf\nbelow\nA=1\n1\n")

    def test_here_is_this_file_system_and_folder(self):
        note = os.path.join(TOP, "build", f"note-{os.getpid()}")
        self.addCleanup(lambda: os.path.exists(note) and os.unlink(note))
        outside = tempfile.mkdtemp(prefix="lab-test-", dir="/tmp")
        self.addCleanup(os.rmdir, outside)
        script = f"""
            pwd; echo $CROSSBAR_WORD; uname -r >{note}; "{sys.executable}" -c 'import os, stat
print(stat.S_ISCHR(os.stat("/dev/kvm").st_mode), os.path.samefile("/proc/self/cwd", "."))'
            touch /tmp/inside && test -e /tmp/inside && ! test -e {outside} && echo "its own /tmp"
            touch /etc/crossbar-test 2>&1 | grep -o Read-only"""
        outcome = self.finish(self.start("--kernel", KERNEL, "--here", "--", "bash", "-c", script, cwd=LAB,
                                         environment={"CROSSBAR_WORD": "a word"}))
        self.assertEqual(outcome.out.splitlines(), [LAB, "a word", "True True", "its own /tmp", "Read-only"], outcome)
        with open(note, encoding="ascii") as file:
            self.assertNotEqual(file.read().strip(), os.uname().release)

    @timeout(400, processors=2)
    def test_processors(self):
        self.assertEqual(self.in_lab("nproc").out, "2\n")
        self.assertEqual(self.lab("--kernel", KERNEL, "--", "nproc").out, "1\n")

    @timeout(400, processors=2)
    def test_two_at_once(self):
        first = self.start("--kernel", KERNEL, "--", "echo", "first")
        second = self.lab_without_check("--kernel", KERNEL, "--", "echo", "second")
        self.assertEqual(second, "second\n")
        outcome = self.finish(first)
        self.assertEqual((outcome.status, outcome.out), (0, "first\n"))

    def lab_without_check(self, *arguments):
        process = self.start(*arguments)
        return process.communicate(timeout=300)[0]


class Trees(Case):
    def test_have_all_that_was_there(self):
        tree = os.path.join(self.scratch, "tree")
        os.makedirs(f"{tree}/below/empty")
        for name, text in ((f"{tree}/below/leaf", b"a leaf"), (f"{self.scratch}/other", b"another")):
            with open(name, "wb") as file:
                file.write(text)
        links = {"leaf": "below/leaf", "below/up": "..", "none": "gone", "\udcff": "below", "folder": "../tmp",
                 "out": "../other", "far": f"{tree}/below/leaf", "back": "../tree/below/leaf"}
        for name, target in links.items():
            os.symlink(target, f"{tree}/{name}")
        os.symlink(tree, f"{self.scratch}/link")
        files = {"below/leaf": b"a leaf", "out": b"another", "far": b"a leaf", "back": b"a leaf"}
        expected = {"": (stat.S_IFDIR, b""), "below": (stat.S_IFDIR, b""), "below/empty": (stat.S_IFDIR, b"")}
        expected |= {name: (stat.S_IFLNK, os.fsencode(target)) for name, target in links.items()}
        expected |= {name: (stat.S_IFREG, text) for name, text in files.items()}
        for source in ("tree", "tree/", "link"):
            archive = initrd.Archive()
            archive.add_tree("/place", f"{self.scratch}/{source}")
            archive.write(os.path.join(self.scratch, "archive"))
            self.assertEqual({path.removeprefix("place").lstrip("/"): (stat.S_IFMT(mode), data)
                              for path, (mode, data, _) in archive.entries.items()}, expected)


class Shell(Case):
    def test_a_person_has_a_shell_with_a_terminal(self):
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        process = self.start("--kernel", KERNEL, "--shell", stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = b""
        for awaited, typed in ((b"# ", b"tty; echo $((6*7))\r"), (b"/dev/hvc0\r\n42\r\n", b"sh -c 'echo up; sleep 1000'\r"),
                               (b"\r\nup\r\n", b"\x03"), (b"# ", b"exit 5\r")):
            while awaited not in seen:
                seen += os.read(ours, 4096)
            seen = seen.partition(awaited)[2]
            os.write(ours, typed)
        self.assertEqual(process.wait(60), 5)
        self.assertEqual(self.machines(), [])


class Ends(Case):
    def start_and_wait(self, *arguments):
        """A run whose COMMAND has begun, and hangs."""
        process = self.start("--kernel", KERNEL, *arguments, "--", "sh", "-c", "echo ready; sleep 1000")
        self.assertEqual(process.stdout.readline(), "ready\n")
        self.assertEqual(len(self.machines()), 1)
        return process

    def test_ctrl_c(self):
        process = self.start_and_wait()
        send(process, SIGINT)
        outcome = self.finish(process, 10)
        self.assertEqual(outcome.status, 128 + SIGINT, outcome)

    def test_sigterm_while_it_boots(self):
        process = self.start("--kernel", KERNEL, "--", "true")
        self.until(self.machines)
        send(process, SIGTERM)
        outcome = self.finish(process, 10)
        self.assertEqual(outcome.status, 128 + SIGTERM, outcome)

    def test_timeout(self):
        outcome = self.lab("--kernel", KERNEL, "--timeout", 6, "--", "sleep", 1000)
        self.assert_refused(outcome, TIMEOUT, "--timeout")
        self.assertRegex(outcome.err, r"COMMAND (ran|had not begun), CPU 0 at [0-9a-f]+")
        self.assertLess(outcome.seconds, 30)

    def test_sigkill_ends_the_machine_and_the_next_run_cleans_up(self):
        process = self.start_and_wait()
        process.kill()
        process.communicate()
        self.until(lambda: not self.machines(), 10)
        self.assertEqual(len(os.listdir(self.folder)), 1)
        self.in_lab("true")  # finds nothing left at its end

    def test_a_kernel_that_panics(self):
        outcome = self.lab("--kernel", KERNEL, "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")
        self.assert_refused(outcome, DIED, "the lab kernel panicked", "sysrq triggered crash")

    def test_a_panic_whose_trace_is_long(self):
        code = r"""import subprocess, machine
one = machine.Machine(".", False, False)
one.log, one.process = "/dev/null", subprocess.Popen("true")
for data in (b"Kernel pa", b"nic - not syncing\n" + b"a line of its trace\n" * 5000, b"rebooting\n"):
    one._on_console(data)
print(one._death())"""
        result = subprocess.run([sys.executable, "-B", "-c", code], cwd=LAB, capture_output=True, text=True, check=False)
        self.assertRegex(result.stdout, r"\Athe lab kernel panicked\n(.*\n)*rebooting\n\Z", result.stderr)

    def test_a_machine_that_powers_off(self):
        outcome = self.lab("--kernel", KERNEL, "--", "sh", "-c", "poweroff -f; sleep 100")
        self.assert_refused(outcome, DIED, "powered off")

    def test_a_reader_that_goes_away(self):
        process = self.start("--kernel", KERNEL, "--", "yes")
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        self.assertEqual(self.finish(process, 60).status, 128 + 13)


class BadInput(Case):
    def test_usage(self):
        for arguments, words in (
                ([], ["no COMMAND"]),
                (["--kernel", "debian-5", "--", "true"], ["debian-5", "debian-6.12"]),
                (["--guest", "hurd", "--", "true"], ["hurd"]),
                (["--device", "gpu", "--", "true"], ["gpu", "bochs"]),
                (["--device", "edu,size=1M", "--", "true"], ["size=1M", "bind"]),
                *((["--device", f"{device}={bad}", "--", "true"], [f"--device {device}={bad}: {device.split(',')[1]} is ", what])
                  for device, bad, what in (
                      ("nvme,cmb", "3M", "power of two"), ("nvme,cmb", "512K", "from 1M"), ("nvme,disk", "foo", "a size, as in"),
                      ("nvme,disk", "999999999G", "to 1T"), ("nvme,disk", "9" * 5000, "to 1T"), ("testdev,bar", "2T", "to 1T"),
                      ("ivshmem,size", "65M", "power of two"), ("ivshmem,size", "2T", "to 1T"))),
                (["--device", "edu,port=usb", "--", "true"], ["root, switch, bridge or same"]),
                (["--device", "edu,port=same", "--", "true"], ["before it"]),
                (["--iommu", "none", "--device", "edu,bind=vfio", "--", "true"], ["needs an IOMMU"]),
                *((["--memory", bad, "--", "true"], ["--memory is a size", "to 1T"])
                  for bad in ("much", "1000", "255M", "999T", "9" * 5000)),
                *((["--cpus", bad, "--", "true"], ["--cpus"]) for bad in ("0", "256", "many")),
                *((["--timeout", bad, "--", "true"], ["--timeout", "above 0"]) for bad in ("0", "nan", "inf", "1e20")),
                (["--device", "igb,vfs=²", "--", "true"], ["igb,vfs=²", "up to 7"]),
                (["--shell"], ["terminal"]),
                (["--bogus"], ["--bogus"])):
            outcome = self.lab(*arguments, environment=self.offline())  # said before anything is fetched
            self.assert_refused(outcome, USAGE, *words)
            self.assertNotIn("fetching", outcome.err)

    def test_streams_that_are_closed_or_full(self):
        """The status is the same; what was to be shown and could not be is a failure."""
        def closed(*numbers):
            return {"preexec_fn": lambda: [os.close(number) for number in numbers]}
        for numbers in ((0,), (1,), (2,), (0, 1, 2)):
            outcome = self.lab("--device", "foo", "--", "true", **closed(*numbers))
            self.assertEqual((outcome.status, outcome.out), (USAGE, ""), outcome)
            self.assertEqual(outcome.err == "", 2 in numbers, outcome)
        with open("/dev/full", "wb") as full:
            self.assertEqual(self.finish(self.start("--device", "foo", "--", "true", stderr=full)).status, USAGE)
            for word in ("--list", "--help"):
                self.assert_refused(self.finish(self.start(word, stdout=full)), MISSING, "No space left")
                self.assertEqual(self.lab(word, **closed(1)).status, 0)
        reader, writer = os.pipe()
        os.close(reader)
        self.assertEqual(self.finish(self.start("--list", stdout=writer)).status, 128 + 13)
        os.close(writer)

    def test_what_nobody_thought_of_is_no_status_of_the_command(self):
        """A kernel in the cache whose version is no text."""
        kept = os.path.join(self.scratch, "cache", "crossbar", "lab")
        name = next(name for name in os.listdir(f"{cache.HOME}/kernels") if name.startswith(f"{KERNEL}@"))
        os.makedirs(f"{kept}/kernels/{name}")
        with open(f"{kept}/kernels/{name}/version", "wb") as file:
            file.write(b"\xff")
        path = self.path_with("qemu-system-x86_64", "echo QEMU emulator version 11.0.0")
        for words in ([], ["--verbose"]):
            outcome = self.finish(self.start("--kernel", KERNEL, *words, "--", "true", environment={
                "XDG_CACHE_HOME": os.path.join(self.scratch, "cache"), "PATH": path}))
            self.assertEqual((outcome.status, "Traceback" in outcome.err), (DIED, bool(words)), outcome)
            self.assertRegex(outcome.err, r"(?m)^lab: UnicodeDecodeError: .*\n\Z")

    def test_qemu_that_is_missing_or_too_old(self):
        needed = ("needs QEMU 11 or later", "qemu-system-x86 of trixie-backports", "apt-get update failed", "--fetch")
        outcome = self.lab("--", "true", environment={**self.offline(), "PATH": self.path_with()})
        self.assert_refused(outcome, MISSING, *needed)
        for script in ("echo QEMU emulator version 10.0.2", "echo QEMU was miscompiled; exit 1"):
            path = self.path_with("qemu-system-x86_64", script)
            self.assert_refused(self.lab("--", "true", environment={**self.offline(), "PATH": path}), MISSING, *needed)

    def test_qemu_that_is_installed_and_new_enough_is_taken(self):
        kept = os.path.join(self.scratch, "cache", "crossbar", "lab")
        os.makedirs(kept)
        for name in ("kernels", "busybox"):
            os.symlink(os.path.join(cache.HOME, name), os.path.join(kept, name))
        script = '[ "$1" = --version ] || { echo this one was taken >&2; exit 1; }; echo QEMU emulator version 11.0.0'
        outcome = self.lab("--kernel", KERNEL, "--", "true", environment={
            "XDG_CACHE_HOME": os.path.join(self.scratch, "cache"), "PATH": self.path_with("qemu-system-x86_64", script)})
        self.assert_refused(outcome, DIED, "this one was taken")
        self.assertNotIn("fetching", outcome.err)

    def test_no_apt(self):
        elsewhere = {"XDG_CACHE_HOME": os.path.join(self.scratch, "cache"), "PATH": self.scratch}
        self.assert_refused(self.lab("--", "true", environment=elsewhere), MISSING, "no apt-get", "copy the cache")

    def path_with(self, name=None, script=""):
        """A PATH whose programs are all those of /usr/bin but QEMU, and `name`."""
        folder = os.path.join(self.scratch, "bin")
        if not os.path.isdir(folder):
            os.makedirs(folder)
            for other in os.listdir("/usr/bin"):
                if not other.startswith("qemu-"):
                    os.symlink(f"/usr/bin/{other}", os.path.join(folder, other))
        if name:
            with open(os.path.join(folder, name), "w", encoding="ascii") as file:
                file.write(f"#!/bin/sh\n{script}\n")
            os.chmod(os.path.join(folder, name), 0o755)
        return folder

    def test_files_that_are_not_there(self):
        self.assert_refused(self.lab("--kernel", KERNEL, "--file", "/no/such/file", "--", "true"), MISSING, "/no/such/file")
        self.assert_refused(self.lab("--build", "/no/build", "--", "true"), MISSING, "/no/build", "cmake")

    def test_guests_that_are_not_there(self):
        shutil.copytree(LAB, f"{self.scratch}/lab")
        with mock.patch("machine.RUN", f"{self.scratch}/lab/run"):
            outcome = self.lab("--build", os.path.join(TOP, "build", "release"), "--", "true")
        self.assert_refused(outcome, MISSING, f"there is no {self.scratch}/build/guests. Build it: cmake ")

    def test_files_that_are_pipes(self):
        os.mkdir(f"{self.scratch}/tree")
        os.mkfifo(f"{self.scratch}/tree/pipe")
        for source in ("tree", "tree/pipe"):
            process = self.start("--kernel", KERNEL, "--file", f"{self.scratch}/{source}", "--", "true")
            self.assert_refused(self.finish(process, 60), MISSING, "tree/pipe is neither a file nor a folder", "--file")

    def test_faults_that_cannot_be_kept(self):
        os.mkfifo(f"{self.scratch}/pipe")
        for path, why in (("no/folder", "No such file"), ("tmp", "Is a directory"), ("pipe", "No such device")):
            outcome = self.finish(self.start("--kernel", KERNEL, "--faults", f"{self.scratch}/{path}", "--", "true"), 60)
            self.assert_refused(outcome, USAGE, f"--faults cannot be written to {self.scratch}/{path}: {why}")

    def test_faults_of_no_machine(self):
        """What was at their place is as it was: a file, a link to no file, nothing."""
        old, link, new = (f"{self.scratch}/{name}" for name in ("old", "link", "new"))
        with open(old, "w", encoding="ascii") as file:
            file.write("of the last run\n")
        os.symlink("nothing", link)
        for why, status in (("--file=/no/such/file", MISSING), ("--qemu=-no-such-option", DIED)):
            for path in (old, link, new):
                process = self.start("--kernel", KERNEL, "--faults", path, why, "--", "true")
                self.assert_refused(self.finish(process, 60), status)
            with open(old, encoding="ascii") as file:
                self.assertEqual(file.read(), "of the last run\n")
            self.assertEqual(sorted(os.listdir(self.scratch)), ["link", "old", "tmp"])

    def test_faults_that_cannot_be_kept_at_the_end(self):
        """The status is COMMAND's all the same."""
        outcome = self.lab("--kernel", KERNEL, "--faults", "/dev/full", "--", "sh", "-c", "echo refused >$LAB_FAULTS; exit 3")
        self.assert_refused(outcome, 3, "--faults could not be written to /dev/full: No space left")

    def test_qemu_that_does_not_start(self):
        outcome = self.lab("--kernel", KERNEL, "--qemu=-device", "--qemu=no-such-device", "--", "true")
        self.assert_refused(outcome, DIED, "no-such-device")

    def test_nothing_in_the_cache_and_no_way_to_fill_it(self):
        outcome = self.lab("--", "true", environment=self.offline())
        self.assert_refused(outcome, MISSING, "apt-get update failed")
        left = [os.path.join(folder, name) for folder, _, names in os.walk(self.scratch) for name in names if "kernels" in folder]
        self.assertEqual(left, [])

    def test_no_space_for_the_machine(self):
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", self.folder], capture_output=True, text=True,
                               check=False)
        if mount.returncode != 0:
            self.skipTest(f"only root can mount a small file system: {mount.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", self.folder], check=True)
        outcome = self.lab("--kernel", KERNEL, "--", "true")  # sees that nothing is left
        self.assert_refused(outcome, MISSING, f"{self.folder} has no space", "Make room there, or set TMPDIR")

    def test_no_space(self):
        code = "import cache; cache.need_space(1e9, 'a kernel')"
        result = subprocess.run([sys.executable, "-B", "-c", code], cwd=LAB, capture_output=True, text=True, check=False,
                                env={**os.environ, "XDG_CACHE_HOME": self.scratch})
        self.assertRegex(result.stderr, r"a kernel needs 1000000000.0 GB on disk, and .* free. Make room, or set XDG_CACHE_HOME")


class Help(Case):
    def test_help_and_list_name_all_there_is(self):
        help_, list_ = self.lab("--help"), self.lab("--list")
        self.assertEqual((help_.status, list_.status), (0, 0))
        for word in ("debian-6.1", "debian-6.12", "debian-7", "iommufd", "edu", "ivshmem", "nvme", "igb", "e1000e", "bochs",
                     "intel", "virtio", "amd"):
            self.assertIn(word, list_.out)
        for word in ("LAB_FAULTS", "LAB_DEVICES", "Examples:", "120", "121", "122", "123", "124"):
            self.assertIn(word, help_.out)
