"""What --report writes, and that it is there whole or not at all."""
import json
import os
import signal
import threading
import time

from program import (BUILD, CRASH, HOST_ERROR, POWER_OFF, STOPPED, SUCCESS, Case, debug_exit, out, pvh_image, say,
                     SPIN)

MIB = 1 << 20
GIB = 1 << 30
PHASES = ["parse", "kvm", "ram", "slots", "irqchip", "devices", "vcpus", "load", "first entry"]


class Report(Case):
    def report_of(self, name, *arguments, status=SUCCESS):
        """The report of a run to its end, and its text's own checks."""
        outcome = self.run_guest(name, *arguments, "--report", os.path.join(self.folder, "report.json"))
        self.assertEqual(outcome.status, status, outcome)
        self.assertEqual([name for name in self.files() if "report" in name], ["report.json"])
        report = self.last_report()
        self.assertEqual(report["end"]["status"], outcome.status)
        return report

    def test_has_every_field(self):
        report = self.report_of("hello", "--cpus", 2)
        self.assertEqual(list(report), ["crossbar", "end", "kernel_format", "phases", "boot_markers", "boot_marker_writes",
                                        "memory", "memslots", "trapped_bar_pieces", "exits"])
        self.assertEqual(report["end"], {"reason": "debug-exit", "status": 1, "reboots": 0,
                                         "detail": "the guest wrote 0 to the debug-exit port"})
        self.assertEqual(report["kernel_format"], "PVH ELF")
        version = self.crossbar("--version").out.decode().split()[1]
        self.assertEqual(report["crossbar"], version)
        self.assertEqual([cpu["vcpu"] for cpu in report["exits"]], [0, 1])
        self.assertGreater(report["exits"][0]["pio"], 100)
        for cpu in report["exits"]:
            self.assertEqual(list(cpu), ["vcpu", "pio", "mmio", "interrupted", "other"])

    def test_has_every_phase_and_they_sum(self):
        phases = self.report_of("hello")["phases"]
        self.assertEqual([phase["name"] for phase in phases], PHASES)
        total = 0
        for phase in phases:
            total += phase["us"]
            # Each is rounded down to whole microseconds.
            self.assertLessEqual(abs(phase["at_us"] - total), len(phases), phases)
        self.assertEqual([phase["at_us"] for phase in phases], sorted(phase["at_us"] for phase in phases))
        self.assertGreater(total, 0)

    def test_has_the_boot_markers_after_the_first_entry(self):
        image = self.write("code.elf", pvh_image(out(0x80, 0x40) + say(b"a" * 100) + out(0x80, 0x41) + debug_exit(0)))
        report = self.report_of(image)
        markers = report["boot_markers"]
        self.assertEqual([marker["value"] for marker in markers], [0x40, 0x41])
        entry = report["phases"][-1]["at_us"]
        self.assertGreaterEqual(markers[0]["at_us"], entry)
        self.assertGreater(markers[1]["at_us"], markers[0]["at_us"])

    def test_has_no_more_than_64_boot_markers(self):
        image = self.write("code.elf", pvh_image(b"".join(out(0x80, n) for n in range(100)) + debug_exit(0)))
        report = self.report_of(image)
        self.assertEqual([marker["value"] for marker in report["boot_markers"]], list(range(64)))
        self.assertEqual(report["boot_marker_writes"], 100)

    def slots_of(self, memory):
        slots = self.report_of("hello", "--memory", memory)["memslots"]
        self.assertTrue(all(not slot["read_only"] for slot in slots))
        self.assertEqual(len({slot["slot"] for slot in slots}), len(slots))
        for slot in slots:
            self.assertEqual(int(slot["hva"], 16) % (2 * MIB), 0, "fit for huge pages")
        return [(int(slot["gpa"], 16), slot["bytes"]) for slot in slots]

    def test_has_the_memslots(self):
        self.assertEqual(self.slots_of("64M"), [(0, 64 * MIB)])
        self.assertEqual(self.slots_of("3.5G"), [(0, 3 * GIB), (4 * GIB, 512 * MIB)])

    def test_has_the_memory(self):
        memory = self.report_of("hello", "--memory", "256M")["memory"]
        self.assertEqual((memory["ram_bytes"], memory["page_bytes"]), (256 * MIB, 4096))
        self.assertGreater(memory["overhead_bytes"], 100 * 1024)
        if "static" in BUILD:  # the build that is used
            self.assertLessEqual(memory["overhead_bytes"], 5 * MIB)

    def test_does_not_count_guest_RAM_as_overhead(self):
        memory = self.report_of("hello", "--memory", "512M", "--prefault")["memory"]
        self.assertLess(memory["overhead_bytes"], 256 * MIB)

    def test_says_how_the_run_ended(self):
        for name, status, reason, detail in (
                ("poweroff", POWER_OFF, "power-off", "the guest powered off"),
                ("crash", CRASH, "guest-crash", "triple fault")):
            end = self.report_of(name, status=status)["end"]
            self.assertEqual(end["reason"], reason)
            self.assertIn(detail, end["detail"])
        end = self.report_of("reboot", "--cmdline", "reboots=3")["end"]
        self.assertEqual((end["reason"], end["reboots"]), ("debug-exit", 3))
        end = self.report_of("hello", "--failpoint", "KVM_RUN#30=EIO", status=HOST_ERROR)["end"]
        self.assertEqual(end["reason"], "host-error")
        self.assertIn("vCPU 0: KVM_RUN: Input/output error", end["detail"])

    def test_says_which_format_the_kernel_has(self):
        self.assertEqual(self.report_of("multiboot")["kernel_format"], "Multiboot")
        self.assertEqual(self.report_of("hello32")["kernel_format"], "PVH ELF")

    def test_replaces_an_older_one(self):
        self.write("report.json", b"old " * 10000)
        self.report_of("hello")


class ReportFile(Case):
    def running(self, report="report.json"):
        session = self.start(self.write("code.elf", pvh_image(say(b"running") + SPIN)), "--report", report)
        session.expect("running")
        return session

    def test_is_there_only_at_the_end(self):
        session = self.running()
        self.assertEqual(self.files(), ["code.elf"])
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish().status, STOPPED)
        self.assertEqual(self.files(), ["code.elf", "report.json"])
        end = self.last_report()["end"]
        self.assertEqual(end["reason"], "stopped")
        self.assertIn("Terminated", end["detail"])

    def test_is_not_there_after_a_kill(self):
        session = self.running()
        session.signal(signal.SIGKILL)
        self.assertEqual(session.finish().status, -signal.SIGKILL)
        self.assertEqual(self.files(), ["code.elf"])

    def test_is_not_there_after_a_signal_during_start_up(self):
        session = self.start("hello", "--report", "report.json", "--prefault", "--failpoint", "madvise#2=delay(3000000)")
        time.sleep(0.5)
        session.signal(signal.SIGTERM)
        self.assertIn(session.finish().status, (-signal.SIGTERM, STOPPED))
        self.assertEqual(self.files(), [])

    def test_is_not_there_where_start_up_fails(self):
        for arguments in (("--initrd", "missing"), ("--failpoint", "KVM_CREATE_VM=EIO")):
            outcome = self.run_guest("hello", "--report", "report.json", *arguments)
            self.assert_refused(outcome, HOST_ERROR)
            self.assertEqual(self.files(), [])

    def test_of_an_earlier_run_stays_where_start_up_fails(self):
        self.write("report.json", b"earlier")
        self.assert_refused(self.run_guest("hello", "--report", "report.json", "--initrd", "missing"), HOST_ERROR)
        self.assertEqual(self.files(), ["report.json"])

    def test_that_cannot_be_written_at_the_end_is_an_error(self):
        os.mkdir(os.path.join(self.folder, "sub"))
        session = self.running("sub/report.json")
        os.rmdir(os.path.join(self.folder, "sub"))
        session.signal(signal.SIGTERM)
        outcome = session.finish()
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: cannot write the report sub/report.json: [^\n]*\n\Z")

    def test_on_a_full_disk_is_an_error_and_leaves_nothing(self):
        outcome = self.run_guest("hello", "--report", "/dev/full")
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: cannot write the report /dev/full: [^\n]*No space left[^\n]*\n\Z")
        outcome = self.run_guest("hello", "--console", "none", "--report", "report.json", "--failpoint", "write=ENOSPC")
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: cannot write the report report.json: [^\n]*No space left[^\n]*\n\Z")
        self.assertEqual(self.files(), [])

    def test_that_cannot_be_written_does_not_hide_a_crash(self):
        outcome = self.run_guest("crash", "--console", "none", "--report", "/dev/full")
        self.assertEqual(outcome.status, CRASH, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: guest-crash: [^\n]*\ncrossbar: cannot write the report /dev/full: [^\n]*\n\Z")

    def test_to_a_fifo_whose_reader_left_is_an_error(self):
        path = os.path.join(self.folder, "fifo")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        session = self.running("fifo")
        os.close(reader)
        session.signal(signal.SIGTERM)
        outcome = session.finish()
        self.assertEqual(outcome.status, HOST_ERROR, outcome)
        self.assertRegex(outcome.err, r"\Acrossbar: cannot write the report fifo: [^\n]*Broken pipe[^\n]*\n\Z")

    def test_to_stdout(self):
        outcome = self.run_guest("hello", "--console", "none", "--report", "/dev/stdout")
        self.assert_succeeds(outcome)
        self.assertEqual(json.loads(outcome.out)["end"]["status"], SUCCESS)

    def test_to_stdout_that_is_a_file_follows_the_console(self):
        # The link /dev/stdout must survive this, also where we are root.
        path = os.path.join(self.folder, "output")
        with open(path, "wb") as file:
            self.assert_succeeds(self.start("hello", "--report", "/dev/stdout", stdout=file).finish())
        self.assertTrue(os.path.islink("/dev/stdout"))
        self.assertEqual([name for name in os.listdir("/dev") if name.startswith("stdout")], ["stdout"])
        with open(path, encoding="utf-8") as file:
            text = file.read()
        console, brace, rest = text.partition("{")
        self.assertTrue(console.startswith("Hello from a Crossbar guest."), text)
        self.assertEqual(json.loads(brace + rest)["end"]["status"], SUCCESS)

    def test_to_a_fifo(self):
        path = os.path.join(self.folder, "fifo")
        os.mkfifo(path)
        got = []

        def read():
            with open(path, "rb") as file:
                got.append(file.read())
        thread = threading.Thread(target=read)
        thread.start()
        outcome = self.run_guest("hello", "--report", path)
        thread.join(10)
        self.assert_succeeds(outcome)
        self.assertEqual(json.loads(got[0])["end"]["status"], SUCCESS)
        self.assertEqual(self.files(), ["fifo"])
