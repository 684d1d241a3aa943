"""What goes between a guest and a vfio-user server without us: doorbells by ioeventfd, interrupts by irqfd. Counted at the
server by the messages it gets, and here by the exits of the vCPU."""
import os
import re

from program import SUCCESS, Case
from recorder import TRIGGER, UNMASK, Recorder

BAR0, INTX, MSI = 0, 0, 1  # of VFIO's regions and interrupts
DOORBELL, RAISE, ACKNOWLEDGE = 0x1020, 0x60, 0x64  # registers of dma
RINGS = 50


class Events(Case):
    def recorded(self, *arguments):
        """A `crossbar serve dma` of its own for one client: what was asked of it, and the --device for it."""
        number = len(self.files())
        _, server = self.serve("dma", "--address-bits", "64", *arguments, path=f"server{number}")
        path = os.path.join(self.folder, f"recorded{number}")
        recorder = Recorder(path, server)
        self.addCleanup(recorder.close)
        return recorder, ("--memory", "64M", "--device", f"socket={path}", "--report", "report.json")

    def mmio_exits(self):
        return sum(cpu["mmio"] for cpu in self.last_report()["exits"])

    def ring(self, rings, *arguments):
        """The guest's doorbell rung `rings` times in each place; what the server was told, and the exits."""
        recorder, device = self.recorded(*arguments)
        outcome = self.run_guest("doorbell", "--cmdline", f"target=0x123411e8 bar=0 rings={rings}", *device)
        self.assert_succeeds(outcome)
        self.assertEqual(outcome.lines()[-1], f"{5 * rings} rings, {3 * rings} interrupts")
        self.assertEqual((recorder.interrupts_set(MSI, TRIGGER) > 0, recorder.interrupts_set(INTX, UNMASK)), (True, 0))
        return recorder.writes(BAR0, DOORBELL), self.mmio_exits()

    def test_g7_a_doorbell_costs_an_exit_only_where_the_device_is_not(self):
        # Three of five places have the device: where it was, where it moved to, and after decode was off.
        for arguments, there in ((("--channels", "2"), 0), ((), 1)):  # a single channel has no ioeventfd
            with self.subTest(arguments):
                _, without = self.ring(0, *arguments)
                messages, exits = self.ring(RINGS, *arguments)
                self.assertEqual(messages, 3 * RINGS * there)
                self.assertEqual(exits - without, 2 * RINGS + 3 * RINGS * there)

    def test_each_end_of_an_intx_interrupt_unmasks_it_at_the_server(self):
        recorder, device = self.recorded()
        session = self.start("intx", "--cmdline", "count=20 wait", *device)
        causes, interrupts = 20 + 20 + 1, 20 + 20 * 4 + 1  # once each, four times each, and once after it was disabled
        session.expect("in all: ")
        session.expect("\n")
        came, how = re.search(r"in all: (\d+) interrupts(.*)", session.out.decode()).groups()
        came = int(came)
        spare = came - interrupts  # guests/intx.cc
        self.assertIn(spare, range(causes + 1) if "KVM ends early" in how else (0,))
        session.until(lambda: recorder.interrupts_set(INTX, UNMASK) >= came)
        session.send(b"\n")
        self.assert_succeeds(session.finish())
        self.assertEqual({what: recorder.writes(BAR0, what) for what in (RAISE, ACKNOWLEDGE)},
                         {RAISE: causes, ACKNOWLEDGE: 1 + causes + spare - ("one late" in how)})
        self.assertEqual(recorder.interrupts_set(INTX, UNMASK), came)

    def test_an_intx_interrupt_comes_by_irqfd_and_no_other_way(self):
        recorder, device = self.recorded()
        outcome = self.run_guest("intx", *device, "--failpoint", "KVM_IRQFD=EINVAL")
        self.assertEqual(outcome.status, 3 << 1 | SUCCESS, outcome)  # check 3: the first did not come
        self.assertIn("no INTx", outcome.err)
        self.assertEqual((recorder.writes(BAR0, RAISE), recorder.interrupts_set(INTX, UNMASK)), (1, 0))


if __name__ == "__main__":
    raise SystemExit("run.py runs these")
