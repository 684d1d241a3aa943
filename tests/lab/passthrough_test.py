"""Passthrough on the kernel's VFIO, with an IOMMU that refuses: peer-to-peer DMA. Zaps: zap_test.py."""
import json

from machine import Case

HOST = "debian-6.12"

RUN = "crossbar run --memory 128M --report report.json"
TWO = "--device $LAB_DEVICE1,id=edu --device $LAB_DEVICE2,id=target"
PREPARE = """
run() { guest=$1; shift; %s --kernel $LAB_GUESTS/$guest.elf "$@"; echo "status $?"; }
faults() { wc -l <$LAB_FAULTS; }
say() { echo "== $1 $(faults)"; }
report() { echo "== report"; cat report.json; }
""" % RUN

NVME = "target=0x1b360010 bar=2"


def behind(*devices):
    """Arguments of lab/run: each device behind a root port of its own, bound to vfio-pci."""
    return [word for device in devices for word in ("--device", f"{device},bind=vfio,port=root")]


class Passthrough(Case):
    def report_in(self, outcome):
        return json.loads(outcome.out.split("== report\n")[1])["passthrough"]

    def copy(self, target, words, kernel):
        outcome = self.in_lab(PREPARE + f'run p2p_copy --cmdline "{words}" {TWO}; say end; report', *behind("edu", target),
                              kernel=kernel)
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\nstatus 1\n== end 0\n", outcome.out, outcome)
        cells = {(cell["target"], cell["bar"]): cell for cell in self.report_in(outcome)["p2p"]}
        self.assertEqual({cell["state"] for cell in cells.values()}, {"mapped"})
        self.assertEqual(cells["target", 2]["detail"], "mmap")
        return cells["target", 2]

    def test_p2p_to_an_nvme_buffer(self):
        self.need_full()
        self.copy("nvme,cmb=64M", NVME, HOST)


class Mixed(Case):
    """A device of the kernel's VFIO and one of a server of ours, each way; both in one machine boot."""

    def test_p2p_between_a_device_of_the_kernel_and_one_in_a_process(self):
        pairs = (("edu", "$LAB_DEVICE1", "memory", "model=memory,size=4M"),
                 ("dma", "model=dma,address-bits=64", "ivshmem", "$LAB_DEVICE2"))
        script = PREPARE + "".join(
            f"run p2p_copy --device {initiator},id={one} --device {target},id={other}; report; say end\n"
            for one, initiator, other, target in pairs)
        outcome = self.in_lab(script, *behind("edu", "ivshmem"), kernel=HOST)
        runs = outcome.out.split("== report\n")
        # The kernel's IOMMU maps the file's pages; the registers and memory of the kernel's devices have no file that a
        # process could be given, so the VMM carries what is written to them.
        kernel = "type1 container 0"  # in which edu is
        expected = ({(kernel, "memory", 2): "mmap", ("memory", "edu", 0): "forwarded"}, {("dma", "ivshmem", 2): "forwarded"})
        for number, details in enumerate(expected):
            report = json.loads(runs[number + 1].partition("\n== end ")[0])["passthrough"]
            cells = {(cell["initiator"], cell["target"], cell["bar"]): cell for cell in report["p2p"]}
            with self.subTest(initiator=pairs[number][0]):
                self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\nstatus 1\n", runs[number], outcome)
                for cell, detail in details.items():
                    self.assertEqual((cells[cell]["state"], cells[cell]["detail"]), ("mapped", detail), report["p2p"])
        self.assertIn("== end 0", outcome.out, "a DMA was refused")
