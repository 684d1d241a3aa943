"""Peer-to-peer DMA and the zap, one suite for every pair of devices and both backends: the kernel's VFIO, with an IOMMU
that refuses, and vfio-user servers. Each test is one lab machine in which the same guests run."""
import json

from machine import FULL, PATIENCE, Case, timeout

HOST = "debian-6.12"  # as distributions have it

VFIO_USER = "--device model=dma,address-bits=64,buffer=64K,msix=on,id=engine --device model=memory,size=16M,id=target"
KERNEL_VFIO = "--device $LAB_DEVICE1,id=engine --device $LAB_DEVICE2,id=target"
TARGET_FIRST = "--device $LAB_DEVICE1,id=target --device $LAB_DEVICE2,id=engine"
CMB = "target=0x1b360010 bar=2"

# guest NAME ARGUMENT...: its output, its status, its report, as JSON. storm WORD...: the guest zap_storm, and what its
# processes have before and after: descriptors, and mappings of files and devices.
SCRIPT = """
trap "" PIPE  # a guest that ends early says why
guest() {
  name=$1; shift
  crossbar run --memory 128M --kernel $LAB_GUESTS/$name.elf %s --report report.json "$@"
  echo "status $?"
}
report() { echo "== report"; cat report.json; echo "== end"; }
await() { until grep -q "^$1" out; do sleep 0.1; kill -0 $vm || return; done; }
census() {
  for pid in $(pidof crossbar); do
    echo "$(ls /proc/$pid/fd | wc -l) descriptors, $(awk '$5 != 0' /proc/$pid/maps | wc -l) mappings"
  done
}
storm() {
  rm -f in out; mkfifo in
  guest zap_storm --cpus 3 --cmdline "wait $*" >out 2>&1 <in & vm=$!
  exec 3>in
  await ready; census >before; echo >&3
  await done; census >after; echo >&3
  wait $vm; exec 3>&-; cat out
  echo "== before"; cat before; echo "== after"; cat after
  report
}
"""


def behind(*devices):
    """Arguments of lab/run: each device behind a root port of its own, bound to vfio-pci."""
    return [word for device in devices for word in ("--device", f"{device},bind=vfio,port=root")]


class P2p(Case):
    """One pair of devices, in one lab machine, of two processors: a zap is to meet CPUs that are inside the guest. In turn: in
    parallel a storm ended in a triple fault every few minutes (docs/decisions/010)."""

    def run_all(self, machine, devices, steps, kernel=HOST):
        """The output of each of `steps`, lines of a shell script."""
        script = SCRIPT % devices + "".join(f"echo '== step'; {step}\n" for step in steps)
        outcome = self.in_lab(script, *machine, "--timeout", 580 if FULL else PATIENCE, kernel=kernel)
        return outcome, outcome.out.split("== step\n")[1:]

    @staticmethod
    def report_in(text):
        return json.loads(text.split("== report\n")[1].split("== end\n")[0])

    def placed(self, text):
        """The memslots and the matrix at the end, without what differs from run to run."""
        report = self.report_in(text)
        cells = [{name: cell[name] for name in ("initiator", "target", "bar", "offset", "gpa", "bytes", "state", "detail")}
                 for cell in report["passthrough"]["p2p"]]
        return sorted((slot["gpa"], slot["bytes"]) for slot in report["memslots"]), cells

    def check_copies(self, outcome, text):
        self.assertRegex(text, r"(?m)^\d+ copies between RAM and the BAR are right, [1-9]\d* interrupts.*\n"
                               r"status 1\n0 faults$", outcome)
        cells = self.report_in(text)["passthrough"]["p2p"]
        self.assertEqual({cell["state"] for cell in cells}, {"mapped"}, outcome)
        details = {cell["detail"] for cell in cells if (cell["target"], cell["bar"]) == ("target", 2)}
        self.assertIn(details, ({"mmap"}, {"fd"}), outcome)

    def check_zap(self, outcome, text, cause):
        self.assertIn("restored\nstatus 1\n", text, outcome)
        zap = [zap for zap in self.report_in(text)["passthrough"]["zaps"]["recent"]
               if zap["cause"] == cause and zap["pieces"]][0]
        times = [0, zap["dma_out_us"], zap["slots_out_us"], zap["hardware_done_us"]]
        self.assertEqual(times, sorted(times), outcome)

    def check_storm(self, outcome, calm, text):
        """After it everything is as without it: `calm` is a run without toggles."""
        self.assertRegex(text, r"(?m)^done: [1-9]\d* toggles, .*\nstatus 1$", outcome)
        before, after = text.split("== before\n")[1].split("== report\n")[0].split("== after\n")
        self.assertIn("descriptors", before)
        self.assertEqual(before, after, outcome)
        self.assertEqual(self.placed(calm), self.placed(text), outcome)

    def storms(self, words, seconds=30):
        bounds = f"toggles=100000 seconds={seconds}" if FULL else "toggles=200 seconds=10"
        return [f"storm {words} toggles=0", f"storm {words} {bounds}"]

    def engine(self, machine, devices, words, causes, kernel=HOST):
        """All guests, with an edu-compatible engine as the initiator."""
        steps = [f"guest p2p_copy --cmdline '{words}'; echo $(wc -l <$LAB_FAULTS) faults; report"]
        steps += [f"guest zap_dma --cmdline '{words} cause={cause}'; report" for cause, _ in causes]
        outcome, texts = self.run_all(machine, devices, steps + self.storms(words), kernel)
        self.check_copies(outcome, texts[0])
        for (cause, counted), text in zip(causes, texts[1:-2], strict=True):
            with self.subTest(cause):
                self.check_zap(outcome, text, counted)
        self.check_storm(outcome, *texts[-2:])

    DECODE = (("decode", "decode-off"), ("move", "bar-moved"))
    ALL = (*DECODE, ("power", "power-down"), ("reset", "function-reset"))

    @timeout(600, processors=2, in_turn=True)
    def test_vfio_user_engine_to_memory(self):
        self.need_full()  # otherwise kvm.Vfiouser has the same guests
        self.engine((), VFIO_USER, "", self.DECODE)

    @timeout(600, processors=2, in_turn=True)
    def test_edu_to_ivshmem(self):
        self.engine(behind("edu", "ivshmem"), KERNEL_VFIO, "", self.DECODE)

    @timeout(600, processors=2, in_turn=True)
    def test_edu_to_an_nvme_buffer(self):
        self.need_full()
        self.engine(behind("edu", "nvme,cmb=64M"), KERNEL_VFIO, CMB, self.ALL)

    @timeout(600, processors=2, in_turn=True)
    def test_edu_to_ivshmem_on_debian_6_1(self):
        self.need_full()
        self.engine(behind("edu", "ivshmem"), KERNEL_VFIO, "", self.DECODE, "debian-6.1")

    @timeout(600, processors=2, in_turn=True)
    def test_edu_to_ivshmem_on_debian_7(self):
        self.need_full()
        self.engine(behind("edu", "ivshmem"), KERNEL_VFIO, "", self.DECODE, "debian-7")

    @timeout(600, processors=2, in_turn=True)
    def test_nvme_to_an_nvme_buffer(self):
        """The peer that hammers hardest, and the target that can be reset and put to sleep."""
        outcome, texts = self.run_all(behind("nvme,cmb=64M", "nvme"), TARGET_FIRST,
                                      self.storms(f"peer=nvme {CMB}", seconds=300))
        self.check_storm(outcome, *texts)


class Kernels(Case):
    """Test guests run under the KVM of every kernel of the lab, those that go to ring 3 and back above all."""

    GUESTS = ("hello", "memory", "pci_scan", "smp", "irq")

    def guests(self, kernel):
        script = SCRIPT % VFIO_USER + "".join(f"guest {name} --cpus 2\n" for name in (*self.GUESTS, "p2p_copy"))
        script += "guest zap_storm --cpus 3 --cmdline toggles=5\n"
        outcome = self.in_lab(script, "--timeout", 280, kernel=kernel)
        statuses = [line for line in outcome.out.splitlines() if line.startswith("status ")]
        self.assertEqual(statuses, ["status 1"] * (len(self.GUESTS) + 2), outcome)

    @timeout(300, processors=2)
    def test_debian_6_1(self):
        self.need_full()
        self.guests("debian-6.1")

    @timeout(300, processors=2)
    def test_debian_6_12(self):
        self.need_full()
        self.guests("debian-6.12")

    @timeout(300, processors=2)
    def test_debian_7(self):
        self.need_full()
        self.guests("debian-7")

    @timeout(300, processors=2)
    def test_iommufd(self):
        self.need_full()
        self.guests("iommufd")
