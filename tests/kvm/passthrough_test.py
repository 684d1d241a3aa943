"""Devices in other processes, passed through over vfio-user: peer-to-peer copies, zaps, and servers that go away."""
import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time

from foreign_server import CONFIG, ForeignServer
from program import HOST_ERROR, STOPPED, SUCCESS, UNSAFE, USAGE, Case

DMA = "model=dma,address-bits=64,id=engine"
MEMORY = "model=memory,size=4M,id=memory"


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        return [int(child) for child in file.read().split()]


def program_of(pid):
    """The words of its command line; none for a process that ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Reported(Case):
    def run_with_report(self, name, *arguments):
        return self.run_guest(name, *arguments, "--memory", "64M", "--report", "report.json")


class Vfiouser(Reported):
    def report_of(self, name, *arguments):
        """The passthrough part of the report of a guest that succeeds."""
        outcome = self.run_with_report(name, *arguments)
        self.assert_succeeds(outcome)
        report = self.last_report()
        self.assertIn("open devices", [phase["name"] for phase in report["phases"]])
        return report["passthrough"], outcome

    def test_p2p_copies_both_ways(self):
        passthrough, outcome = self.report_of("p2p_copy", "--device", DMA, "--device", MEMORY)
        self.assertRegex(outcome.lines()[-1], r"12 copies between RAM and the BAR are right, 12 interrupts")
        self.assertEqual(passthrough["devices"], [{"id": "engine", "lost": False}, {"id": "memory", "lost": False}])
        cells = {(cell["initiator"], cell["target"]): cell for cell in passthrough["p2p"]}
        self.assertEqual((cells["engine", "memory"]["state"], cells["engine", "memory"]["detail"]), ("mapped", "fd"))
        self.assertEqual(cells["engine", "memory"]["bytes"], 4 << 20)
        self.assertEqual(cells["memory", "engine"]["detail"], "forwarded", "its registers have no memory behind them")

    def test_p2p_copies_by_one_of_several_channels(self):
        self.report_of("p2p_copy", "--device", DMA + ",channels=4,buffer=1M", "--device", MEMORY)

    def test_g7_no_dma_arrives_after_a_zap(self):
        for cause, counted in (("decode", "decode-off"), ("move", "bar-moved")):
            with self.subTest(cause):
                passthrough, outcome = self.report_of("zap_dma", "--cmdline", f"cause={cause}", "--device", DMA,
                                                      "--device", MEMORY)
                self.assertEqual(outcome.lines()[-1], "restored")
                zap = [zap for zap in passthrough["zaps"]["recent"] if zap["cause"] == counted and zap["pieces"]][0]
                self.assertEqual((zap["device"], zap["pieces"]), ("memory", 1))
                self.assertLessEqual(0, zap["dma_out_us"])
                self.assertLessEqual(zap["dma_out_us"], zap["slots_out_us"])
                self.assertLessEqual(zap["slots_out_us"], zap["hardware_done_us"])
                self.assertGreaterEqual(passthrough["zaps"]["counts"][counted], 1)

    def test_p2p_off_keeps_a_bar_to_the_cpus(self):
        outcome = self.run_with_report("p2p_copy", "--device", DMA, "--device", MEMORY + ",p2p=off")
        self.assertEqual(outcome.status, 5 << 1 | 1, outcome)  # check 5: RAM does not hold what was in the BAR
        cells = self.last_report()["passthrough"]["p2p"]
        self.assertEqual({cell["state"] for cell in cells if cell["target"] == "memory"}, {"refused"})
        self.assertEqual({cell["state"] for cell in cells if cell["target"] == "engine"}, {"mapped"})

    def run_until_it_hammers(self, fault):
        """A guest whose DMA is under way when the fault comes: on a busy machine it may take long to be there."""
        for seconds in (1, 8, 30):
            outcome = self.run_with_report("zap_dma", "--cmdline", "cause=outside lost", "--device", DMA,
                                           "--device", f"{MEMORY},fault={fault}@{seconds}")
            if "hammering" in outcome.lines():
                break
        return outcome

    def test_g5_a_reboot_that_fails_does_not_hide_a_bar_that_is_left(self):
        # The slots in their order: guest RAM's, the BAR's, and its end in the reset.
        outcome = self.run_guest("zap_dma", "--cpus", 2, "--cmdline", "cause=reboot", "--device", DMA, "--device", MEMORY,
                                 "--failpoint", "KVM_SET_USER_MEMORY_REGION#3=EIO*3", "--failpoint", "KVM_CREATE_VM#2=EMFILE")
        self.assertEqual(outcome.status, UNSAFE, outcome)

    def test_g7_an_injected_fault_is_as_the_cause_it_imitates(self):
        for fault in ("device-error", "device-gone", "wanted-back"):
            with self.subTest(fault):
                outcome = self.run_until_it_hammers(fault)
                passthrough = self.last_report()["passthrough"]
                self.assertEqual((outcome.status, outcome.lines()[-1]), (SUCCESS, "lost"), outcome)
                self.assertIn(f"memory: {fault} (injected); the guest has lost it", outcome.err)
                zap = [zap for zap in passthrough["zaps"]["recent"] if zap["injected"]][0]
                self.assertEqual((zap["device"], zap["cause"], zap["pieces"]), ("memory", fault, 1))
                self.assertEqual([device["lost"] for device in passthrough["devices"]], [False, True])

    def test_devices_are_where_they_were_asked_to_be(self):
        outcome = self.run_guest("pci_scan", "--memory", "64M", "--device", DMA, "--device", MEMORY + ",slot=1f")
        self.assert_succeeds(outcome)
        lines = [line for line in outcome.lines() if ":" in line]
        self.assertTrue(any(line.startswith("00:01.0 1234:11e8") for line in lines), outcome)
        self.assertTrue(any(line.startswith("00:1f.0 1af4:1110") for line in lines), outcome)

    def test_devices_are_behind_the_ports_they_name(self):
        outcome = self.run_guest("pci_scan", "--memory", "64M", "--device", DMA + ",port=a", "--device", MEMORY + ",port=a",
                                 "--device", "model=memory,size=4M,id=other,port=b,slot=9")
        self.assert_succeeds(outcome)
        for line in ("00:01.0 1b36:000c rev 00 class 060400  bus 01 to 01  ", "01:00.0 1234:11e8 ", "01:00.1 1af4:1110 ",
                     "00:09.0 1b36:000c rev 00 class 060400  bus 02 to 02  ", "02:00.0 1af4:1110 "):
            self.assertTrue(any(found.startswith(line) for found in outcome.lines()), f"{line}\n{outcome}")

    def test_the_matrix_is_printed_on_SIGUSR1(self):
        session = self.start("echo", "--memory", "64M", "--device", DMA, "--device", MEMORY)
        session.expect("> ")
        session.signal(signal.SIGUSR1)
        session.until(lambda: "no BAR is mapped" in session.errors())
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish().status, STOPPED)
        alone = self.start("echo", "--memory", "64M")
        alone.expect("> ")
        alone.signal(signal.SIGUSR1)
        alone.until(lambda: "no device is passed through" in alone.errors())
        alone.signal(signal.SIGTERM)
        self.assertEqual(alone.finish().status, STOPPED)

    def test_what_SIGUSR1_prints_and_nobody_reads_keeps_no_signal_off(self):
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        session = self.start("echo", "--memory", "64M", stderr=writer)
        session.expect("> ")
        session.signal(signal.SIGUSR1)
        time.sleep(0.5)
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish(20).status, STOPPED)


class Servers(Reported):
    def test_of_the_users_own(self):
        _, memory = self.serve("memory", "--size", "4M")
        for _ in range(2):  # it serves one client after the other
            outcome = self.run_guest("p2p_copy", "--memory", "64M", "--device", DMA, "--device", f"socket={memory}")
            self.assert_succeeds(outcome)

    def test_of_ours_end_with_the_vm(self):
        session = self.start("echo", "--memory", "64M", "--device", DMA, "--device", MEMORY)
        session.expect("> ")
        children = children_of(session.process.pid)
        self.assertEqual(sorted(program_of(child)[2] for child in children), ["dma", "memory"])
        for child in children:  # nothing of ours but its socket and the standard descriptors
            self.assertEqual(sorted(os.listdir(f"/proc/{child}/fd"))[:4], ["0", "1", "2", "3"])
        session.signal(signal.SIGKILL)
        session.process.wait()
        deadline = time.monotonic() + 30
        while any(program_of(child) for child in children):
            self.assertLess(time.monotonic(), deadline, "a server outlives the VM")
            time.sleep(0.01)

    def test_that_die_cost_the_guest_their_device_and_nothing_else(self):
        session = self.start("echo", "--memory", "64M", "--device", DMA, "--device", MEMORY, "--report", "report.json")
        session.expect("> ")
        memory = [child for child in children_of(session.process.pid) if program_of(child)[2] == "memory"]
        os.kill(memory[0], signal.SIGKILL)
        session.until(lambda: "device-gone" in session.errors())
        session.send(b"still here\r")
        session.expect("still here")
        session.signal(signal.SIGTERM)
        outcome = session.finish()
        self.assertEqual(outcome.status, STOPPED, outcome)
        passthrough = self.last_report()["passthrough"]
        self.assertEqual([device["lost"] for device in passthrough["devices"]], [False, True])
        self.assertEqual(passthrough["zaps"]["counts"]["device-gone"], 1)

    def test_that_are_slow_hold_up_no_news_of_others(self):
        resets, begun = [], threading.Event()

        def reset(_):
            resets.append(time.monotonic())
            if len(resets) > 1:  # the first is that of its start
                begun.set()
                time.sleep(4)
            return b""
        server = self.foreign(reset=reset)
        session = self.start("echo", "--memory", "64M", "--device", f"socket={server},fault=function-reset@1", "--device", MEMORY)
        session.expect("> ")
        self.assertTrue(begun.wait(30))
        os.kill(children_of(session.process.pid)[0], signal.SIGKILL)
        session.until(lambda: "device-gone" in session.errors())
        self.assertLess(time.monotonic() - resets[1], 4)
        self.assertNotIn("function-reset", session.errors(), "it was over")
        session.signal(signal.SIGTERM)
        self.assertEqual(session.finish().status, STOPPED)

    def test_that_are_not_there_are_refused_in_a_line(self):
        plain = self.write("plain", b"")
        mute = os.path.join(self.folder, "mute")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(mute)
        for spec, words in ((f"socket={self.folder}/none", ["No such file"]), (f"socket={plain}", ["--device"]),
                            (f"socket={mute}", ["--device"]), (f"socket={self.folder}", ["--device"])):
            with self.subTest(spec):
                self.assert_refused(self.run_guest("hello", "--device", spec), HOST_ERROR, *words)

    def foreign(self, regions=None, **changes):
        """A server of somebody else's; its socket."""
        path = os.path.join(self.folder, f"foreign{len(self.files())}")
        server = ForeignServer(path, regions, **changes)
        self.addCleanup(server.close)
        return path

    def test_that_cannot_be_used_are_refused_in_a_line(self):
        # assert_refused also sees to it that the server of ours, which comes first, has ended.
        for server, words in (
                (self.foreign(version=lambda _: struct.pack("<HH", 1, 0) + b"{}\0"), "version 1.0"),
                (self.foreign(version=lambda _: errno.EINVAL), "VERSION: Invalid argument"),
                (self.foreign(version=lambda _: None), "no answer to VERSION in time"),
                (self.foreign(get_info=lambda _: struct.pack("<IIII", 16, 1, 9, 5)), "not a PCI device"),
                (self.foreign(regions={CONFIG: bytearray(256)}), "no BARs"),
                (self.foreign(regions={0: bytearray(4096)}), "no configuration space"),
                (self.foreign(get_region_info=lambda _: b"short"), "region 0")):
            with self.subTest(words):
                self.assert_refused(self.run_guest("hello", "--device", "model=dma", "--device", f"socket={server}"),
                                    HOST_ERROR, f"--device {server}", words)

    def test_that_may_not_be_reached_are_refused_in_a_line(self):
        server = self.foreign()
        os.chmod(server, 0)
        # Root may reach everything.
        denied = ("--failpoint", "connect=EACCES") if os.getuid() == 0 else ()
        self.assert_refused(self.run_guest("hello", "--device", "model=dma", "--device", f"socket={server}", *denied),
                            HOST_ERROR, f"--device {server}", "Permission denied")

    def test_g7_of_somebody_else_that_keep_a_bar_are_unrevoked(self):
        server = self.foreign(dma_unmap=lambda _: None)
        outcome = self.run_with_report("zap_dma", "--cmdline", "cause=decode", "--device", DMA, "--device", MEMORY,
                                       "--device", f"socket={server},id=foreign")
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertIn("no answer to DMA_UNMAP in time", outcome.err)
        passthrough = self.last_report()["passthrough"]
        cells = {(cell["initiator"], cell["target"]): cell["state"] for cell in passthrough["p2p"]}
        self.assertEqual((cells[f"vfio-user {server}", "memory"], cells["engine", "memory"]), ("unrevoked", "mapped"), cells)
        self.assertEqual([device["lost"] for device in passthrough["devices"]], [False, False, True])

    def test_that_make_no_sense_are_a_usage_error(self):
        for spec, word in (("model=gpu", "gpu"), ("model=memory,size=3M", "size"), ("", "names no device"),
                           ("socket=", "socket="), ("eth0", "eth0"), ("model=dma,slot=99", "slot"),
                           ("model=dma,channels=x", "channels")):
            with self.subTest(spec):
                self.assert_refused(self.run_guest("hello", "--device", spec), USAGE, word)

    def test_with_one_id_are_told_apart(self):
        outcome = self.run_guest("hello", "--device", "model=dma", "--device", "model=dma")
        self.assert_refused(outcome, USAGE, "id dma", "id=")
        self.assert_refused(self.run_guest("hello", "--device", "model=dma,slot=3", "--device", "model=memory,slot=3"),
                            USAGE, "slot 3")
        self.assert_refused(self.run_guest("hello", "--device", "model=dma,port=a,slot=3", "--device",
                                           "model=memory,port=a,slot=4"), USAGE, "port=a", "two slots")


class Kernel(Case):
    def test_devices_that_are_not_there(self):
        self.assert_refused(self.run_guest("hello", "--device", "ffff:ff:1f.7"), HOST_ERROR, "no PCI device", "lspci")


if __name__ == "__main__":
    raise SystemExit("run.py runs these")
