"""Passthrough on the kernel's VFIO, with an IOMMU that refuses: peer-to-peer DMA. Zaps: zap_test.py."""
import json
import re
import struct

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

# Two targets: a guest finds its own by IDs. LEFT: in a shell `hold DEVICE WORDS`, p2p_copy with wait: what the engine left in
# RAM and in the BAR, read by the lab host: in the VM's memory, and at the device's own address by QEMU's monitor.
TARGETS = {"ivshmem": "", "nvme": "target=0x1b360010 bar=2"}
LEFT = r"""
hold() {
  device=$1; shift
  rm -f in out; mkfifo in
  run p2p_copy --cmdline "wait $*" --device $LAB_DEVICE1,id=edu --device $device,id=target <in >out 2>&1 & vm=$!
  exec 3>in
  until grep -q ^stands: out; do kill -0 $vm || { cat out; return; }; sleep 0.1; done
  set -- $(sed -nE 's/^stands: ([0-9]+) .* at (0x[0-9a-f]+) in RAM.* at (0x[0-9a-f]+) in the BAR.*/\1 \2 \3/p' out)
  ram=$(ls -l /proc/$(pidof crossbar)/fd | sed -nE 's/.* ([0-9]+) -> .memfd:guest-ram.*/\1/p')
  echo "== ram"
  dd if=/proc/$(pidof crossbar)/fd/$ram bs=4096 skip=$(($2 / 4096)) count=$(($1 / 4096)) 2>/dev/null | od -An -v -t x1
  echo "== bar"
  read -r start rest <<END
$(sed -n 3p /sys/bus/pci/devices/$device/resource)
END
  monitor xp /$(($1 / 8))gx $((start + $3))
  echo "== guest"; echo >&3; wait $vm; exec 3>&-; cat out; say end; report
}
"""


def behind(*devices):
    """Arguments of lab/run: each device behind a root port of its own, bound to vfio-pci."""
    return [word for device in devices for word in ("--device", f"{device},bind=vfio,port=root")]


def pattern(seed, size):
    """What guests/lib/random.h makes of a seed: xorshift64*."""
    state, words = seed * 2 + 1, []
    for _ in range(size // 8):
        state ^= state >> 12
        state = (state ^ state << 25) % (1 << 64)
        state ^= state >> 27
        words.append((state * 0x2545f4914f6cdd1d) % (1 << 64))
    return struct.pack(f"<{len(words)}Q", *words)


class Passthrough(Case):
    def check(self, text):
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\n", text)
        self.assertRegex(text, r"\nstatus 1\n== end 0\n")
        size, in_ram, in_bar = map(int, re.search(r"stands: (\d+) bytes, seed (\d+) .* seed (\d+) ", text).groups())
        ram, bar = re.search(r"(?s)== ram\n(.*?)== bar\n(.*?)== guest\n", text).groups()
        self.assertEqual(bytes.fromhex(ram), pattern(in_ram, size))
        words = [int(word, 16) for line in bar.splitlines() for word in line.partition(":")[2].split()]
        self.assertEqual(struct.pack(f"<{len(words)}Q", *words), pattern(in_bar, size))
        passthrough = json.loads(text.split("== report\n")[1])["passthrough"]
        cells = {(cell["target"], cell["bar"]): cell for cell in passthrough["p2p"]}
        self.assertEqual({cell["state"] for cell in cells.values()}, {"mapped"})
        self.assertEqual(cells["target", 2]["detail"], "mmap")

    def test_what_the_engine_copied_is_there_seen_from_outside(self):
        holds = "".join(f"echo '== hold'; hold $LAB_DEVICE{number} {words}\n" for number, words in enumerate(TARGETS.values(), 2))
        outcome = self.in_lab(PREPARE + LEFT + holds, *behind("edu", "ivshmem", "nvme,cmb=64M"), kernel=HOST)
        texts = outcome.out.split("== hold\n")[1:]
        for target, text in zip(TARGETS, texts, strict=True):
            with self.subTest(target):
                self.check(text)


class Refused(Case):
    """A host that grants a container one mapping, which guest RAM takes."""

    def test_g6_a_bar_that_the_iommu_refuses_is_a_warning_and_a_cell_with_the_reason(self):
        outcome = self.in_lab(PREPARE + f"""
            echo 1 >/sys/module/vfio_iommu_type1/parameters/dma_entry_limit
            run p2p_copy {TWO} 2>err; say end; cat err; report""", *behind("edu", "ivshmem"), kernel=HOST)
        # The guest runs, and its DMA out of the BAR faults: check 5.
        self.assertRegex(outcome.out, r"check 5 failed: .*\nstatus 11\n== end [1-9]", outcome)
        cells = json.loads(outcome.out.split("== report\n")[1])["passthrough"]["p2p"]
        self.assertTrue(any((cell["target"], cell["bar"]) == ("target", 2) for cell in cells), outcome)
        for cell in cells:
            self.assertEqual(cell["state"], "refused", outcome)
            self.assertIn("No space left on device", cell["detail"])
            self.assertRegex(outcome.out, rf"warning: .* cannot reach {cell['target']} BAR {cell['bar']} at {cell['gpa']}-.*: .*"
                                          r"No space left on device.*; peer-to-peer DMA from it to there will fault\n")


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
