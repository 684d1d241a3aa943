"""Devices behind virtual root ports, on the kernel's VFIO: what a port does to peer-to-peer DMA, and Linux with a port."""
import json

from machine import Case
from passthrough_test import HOST, PREPARE, behind

PORTS = "--device $LAB_DEVICE1,id=edu,port=a --device $LAB_DEVICE2,id=target,port=b,slot=9"


class Ports(Case):
    def test_g7_dma_is_refused_after_whatever_a_port_does(self):
        script = PREPARE + f"run pci_scan {PORTS}; run p2p_copy {PORTS}; say zaps; run port_dma {PORTS}; say end; report"
        outcome = self.in_lab(script, *behind("edu", "ivshmem"), kernel=HOST)
        port = "1b36:000c rev 00 class 060400"
        for line in (f"00:01.0 {port}  bus 01 to 01  ", f"00:09.0 {port}  bus 02 to 02  ", "01:00.0 1234:11e8 ",
                     "02:00.0 1af4:1110 "):
            self.assertIn(f"\n{line}", outcome.out)
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\nstatus 1\n== zaps 0\n", outcome.out, outcome)
        self.assertIn("\ndecode\nwindows\nreset\nmaster\nstatus 1\n", outcome.out, outcome)
        refused = int(outcome.out.partition("== end ")[2].split()[0])
        self.assertGreaterEqual(refused, 3, "DMA while decode was off, while the windows were closed, after the reset")
        zaps = json.loads(outcome.out.split("== report\n")[1])["passthrough"]["zaps"]
        self.assertEqual(zaps["counts"]["bus-reset"], 1)
        took = [(zap["device"], zap["cause"]) for zap in zaps["recent"] if zap["pieces"]][:3]
        self.assertEqual(took, [("target", "port-change")] * 2 + [("target", "bus-reset")])

    LINUX = """console=ttyS0 quiet lab_run="until [ -b /dev/nvme0n1 ]; do sleep 0.1; done; cd /sys/bus/pci/devices/0000:01:00.0;
        sum() { dd if=/dev/nvme0n1 bs=1M count=1 iflag=direct 2>/dev/null | md5sum; };
        head -c 1048576 /dev/urandom | tee /dev/nvme0n1 | md5sum; sync; sum;
        echo bus >reset_method; cat reset_method; echo 1 >reset && echo reset; sum; echo == dmesg; dmesg; poweroff -f" """

    def test_linux_has_an_nvme_behind_a_port_and_resets_its_bus(self):
        self.need_full()
        words = " ".join(self.LINUX.split())
        script = f"""timeout 75 crossbar run --kernel $LAB_LINUX --initrd $LAB_INITRD --memory 256M --cmdline '{words}' \
            --report report.json --device $LAB_DEVICE1,id=nvme,port=a </dev/null | tr -d '\\r'
            echo == report; cat report.json"""
        outcome = self.in_lab(script, *behind("nvme,disk=16M"))
        said, _, dmesg = outcome.out.partition("== dmesg\n")
        lines = said.splitlines()
        self.assertEqual(len({line for line in lines if line.endswith("  -")}), 1, outcome)
        self.assertEqual(sum(line.endswith("  -") for line in lines), 3, outcome)
        self.assertEqual(lines[-3:-1], ["bus", "reset"], outcome)
        self.assertIn("PCI bridge to [bus 01]", dmesg)
        words = ("can't", "cannot", "fail", "error", "timeout", "conflict", "no space", "disabled", "not ")
        self.assertEqual([line for line in dmesg.splitlines() if ("pci" in line or "nvme" in line) and
                          any(word in line.lower() for word in words)], [], dmesg)
        zaps = json.loads(outcome.out.split("== report\n")[1])["passthrough"]["zaps"]
        self.assertEqual(zaps["counts"]["bus-reset"], 1)
