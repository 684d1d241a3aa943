"""Our device servers under QEMU's client of them: found and enabled by its firmware, DMA both ways, interrupts."""
import os
import re
import subprocess
import sys

from machine import LAB, MISSING, Case

ENGINE, MEMORY = "1234:11e8", "1af4:1110"
SUCCESS = 1


class Interop(Case):
    def run_interop(self, *words, **environment):
        return subprocess.run([sys.executable, "-B", os.path.join(LAB, "interop"), *words], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False,
                              env={**os.environ, "TMPDIR": self.folder, **environment})

    def interop(self, *words):
        """A run in which neither the client nor a server has a complaint."""
        result = self.run_interop(*words)
        # Error recovery is for devices that report errors (AER), and ours have none to report.
        self.assertRegex(result.stderr, r"\A((lab: fetching|.*: Could not enable error recovery) .*\n)*\Z", result)
        self.assertEqual(os.listdir(self.folder), [], "left behind")
        return result

    def test_the_firmware_sizes_and_enables_the_bars_at_each_boot(self):
        result = self.interop()
        self.assertEqual(result.returncode, 0, result)
        boots = re.split("first boot\n|after a reset\n", result.stdout)[1:]
        self.assertEqual(len(boots), 2, result)
        for boot in boots:
            bars = [line.split() for line in boot.splitlines()]
            self.assertEqual([(ids, bar, int(size, 16)) for _, ids, bar, _, size in bars],
                             [(ENGINE, "BAR0", 1 << 20), (MEMORY, "BAR0", 256), (MEMORY, "BAR2", 16 << 20)], result)
            for _, _, _, address, size in bars:
                self.assertEqual(int(address, 16) % int(size, 16), 0, "not aligned")

    def test_dma_and_interrupts(self):
        # Into RAM by descriptor, into the other device's BAR by messages through QEMU.
        result = self.interop("p2p_copy")
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\n", result.stdout)
        self.assertEqual(result.returncode, SUCCESS, result)

    def test_a_qemu_that_cannot_be_had(self):
        result = self.run_interop("hello", **self.offline())
        self.assertEqual(result.returncode, MISSING, result)
        self.assertIn("apt-get update failed", result.stderr)
        left = [name for _, folders, _ in os.walk(self.scratch) for name in folders if name.startswith("qemu")]
        self.assertEqual(left, [])

    def test_configuration_space(self):
        result = self.interop("pci_scan")
        self.assertRegex(result.stdout, rf"00:01\.0 {ENGINE} rev 10 class 00ff00  BAR0 mem32 0x\w+ 1M  caps 05@")
        self.assertRegex(result.stdout, rf"00:02\.0 {MEMORY} rev 01 class 050000  BAR0 mem32 0x\w+ 256  "
                                        r"BAR2 mem64p 0x\w+ 16M")
        self.assertEqual(result.returncode, SUCCESS, result)
