"""Where things lie: huge pages for BARs, hierarchies that the IOMMU does not guard, containers, all kinds of BARs."""
import json
import os
import re
import struct

from machine import FULL, Case, timeout

HOST = "debian-6.12"  # as in passthrough_test.py

RUN = "crossbar run --memory 128M --report report.json"
TWO = "--device $LAB_DEVICE1,id=edu --device $LAB_DEVICE2,id=target"
PREPARE = """
run() { guest=$1; shift; %s --kernel $LAB_GUESTS/$guest.elf "$@"; echo "status $?"; }
report() { echo "== report"; cat report.json; echo "== end"; }
""" % RUN


def report_in(outcome):
    return json.loads(outcome.out.split("== report\n")[1].split("== end")[0])["passthrough"]


def behind(*devices, port="root"):
    """Arguments of lab/run: each device behind a port of its own, bound to vfio-pci."""
    return [word for device in devices for word in ("--device", f"{device},bind=vfio,port={port}")]


class HugePages(Case):
    """KVM maps a BAR by the largest pages there are, if the kernel's VFIO does (since 6.12)."""

    # touch_bar DEVICE: prints by how many pages of 2M and of 1G KVM maps more once the BAR was read. The other device has
    # BARs of a few pages, which are mapped first: no large address is aligned by luck.
    SCRIPT = PREPARE + """
    mount -t debugfs none /sys/kernel/debug 2>/dev/null
    pages() { cat /sys/kernel/debug/kvm/pages_$1; }  # of all VMs: there may be another, which does nothing
    await() { until grep -q "$1" out; do sleep 0.1; kill -0 $vm || break; done; }
    touch_bar() {
      run touch --device $LAB_DEVICE3 --device $1 >out 2>&1 <in & vm=$!
      exec 3>in
      await ready; large=$(pages 2m) huge=$(pages 1g)
      echo >&3; await touched
      echo "pages $(($(pages 2m) - large)) $(($(pages 1g) - huge))"
      echo >&3; wait $vm; cat out
    }
    mkfifo in
    touch_bar $LAB_DEVICE1; touch_bar $LAB_DEVICE2
    """

    @timeout(200)
    def test_bars_are_mapped_by_huge_pages(self):
        large, pages = ("1G", ("0", "1")) if FULL else ("256M", ("128", "0"))
        outcome = self.in_lab(self.SCRIPT, *behind("ivshmem,size=64M", f"ivshmem,size={large}", "nvme"), kernel=HOST)
        self.assertEqual(outcome.out.count("touched\nstatus 1\n"), 2, outcome)
        self.assertEqual(re.findall(r"pages (\d+) (\d+)", outcome.out), [("32", "0"), pages], outcome)


class Unguarded(Case):
    """QEMU's switch has no ACS, its root ports have."""

    SCRIPT = PREPARE + """
    run p2p_copy %s
    run bars %s --device $LAB_DEVICE3,id=apart; report
    echo "== host"
    for bridge in /sys/devices/pci0000:00/0000:??:??.?/0000:??:??.?; do
      [ "$(cat $bridge/class)" != 0x060400 ] || awk '$3 ~ /2..$/ && $2 != 0 { print $1, $2 }' $bridge/resource
    done
    """ % (TWO, TWO)

    def test_what_a_switch_turns_around_is_unguarded_and_no_guest_memory_is_there(self):
        # 256M: the host has it in the guest's 32-bit window.
        outcome = self.in_lab(self.SCRIPT, *behind("edu", "ivshmem,size=256M", port="switch"), *behind("ivshmem"), kernel=HOST)
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\nstatus 1\n", outcome.out, outcome)
        self.assertRegex(outcome.out, r"BARs, \d+ pairs at one place\nstatus 1\n")
        cells = {cell["target"]: cell for cell in report_in(outcome)["p2p"] if cell["bytes"] >= 1 << 20}
        self.assertEqual({target: cell["state"] for target, cell in cells.items()},
                         {"edu": "unguarded", "target": "unguarded", "apart": "mapped"}, outcome)
        self.assertRegex(cells["target"]["detail"], r"^mapped: mmap; .* has no ACS$")
        windows = re.search(r"windows (0x\w+)\+(0x\w+) (0x\w+)\+(0x\w+)", outcome.out).groups()
        low, low_size, high, high_size = (int(word, 16) for word in windows)
        switch = [[int(word, 16) for word in line.split()] for line in outcome.out.split("== host\n")[1].splitlines()]
        self.assertTrue(switch, outcome)
        for first, last in switch:
            for start, size in ((0, 128 << 20), (low, low_size), (high, high_size)):
                self.assertFalse(start <= last and first < start + size, f"{start:#x} in {first:#x}-{last:#x}\n{outcome}")


class Containers(Case):
    def test_p2p_goes_between_two_containers(self):
        outcome = self.in_lab(PREPARE + f"run p2p_copy {TWO} --failpoint VFIO_GROUP_SET_CONTAINER#2=EINVAL*1; report",
                              *behind("edu", "ivshmem"), kernel=HOST)
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\nstatus 1\n", outcome.out, outcome)
        cells = {(cell["initiator"][-1], cell["target"]): cell["state"] for cell in report_in(outcome)["p2p"]
                 if cell["bytes"] >= 1 << 20}
        self.assertEqual(cells, {(container, target): "mapped" for container in "01" for target in ("edu", "target")}, outcome)


def expansion_rom(size):
    """A PCI expansion ROM with nothing in it to run (PCI Firmware 3.3, 5.2.1)."""
    image = bytearray(os.urandom(size))
    image[:3] = b"\x55\xaa" + bytes([size // 512])
    image[0x18:0x1A] = struct.pack("<H", 0x40)
    image[0x40:0x58] = struct.pack("<4sHHHHBBBBHHBBH", b"PCIR", 0x1AF4, 0x1110, 0, 24, 0, 0xFF, 0, 0, size // 512, 0, 0, 0x80, 0)
    return bytes(image)


class Bars(Case):
    def test_every_kind_of_bar_below_an_iommu_of_39_bits(self):
        own, given = expansion_rom(4096), expansion_rom(3072)
        for name, image in (("own.rom", own), ("given.rom", given)):
            with open(os.path.join(self.scratch, name), "wb") as file:
                file.write(image)
        script = PREPARE + """run bars --log info --device $LAB_DEVICE1,slot=4 --device $LAB_DEVICE2,slot=5,rom=given.rom \
            --device $LAB_DEVICE3,slot=6 --device $LAB_DEVICE4,slot=7 --device $LAB_DEVICE5,slot=8,rom=off 2>&1; report"""
        outcome = self.in_lab(script, *behind("ivshmem,size=64M", "e1000e", "bochs", "nvme,cmb=64M", "ivshmem,size=1M"),
                              "--file", f"{self.scratch}/given.rom",
                              "--qemu=-set", "--qemu=device.iommu.aw-bits=39",
                              "--qemu=-set", f"--qemu=device.ivshmem1.romfile={self.scratch}/own.rom",
                              "--qemu=-set", f"--qemu=device.ivshmem5.romfile={self.scratch}/own.rom", kernel=HOST)
        self.assertIn("status 1\n", outcome.out, outcome)
        for line in (r"00:04.0 BAR 0 mem32 0x\w+ size 0x100 ", r"00:08.0 BAR 0 mem32 0x\w+ size 0x100 ",
                     r"00:04.0 BAR 2 mem64 0x\w+ size 0x4000000 ", r"00:05.0 BAR 2 io 0x\w+ size 0x20 "):
            self.assertRegex(outcome.out, line)
        self.assertIn(f"00:04.0 ROM size 0x1000 sum {sum(own):#x}\n", outcome.out, outcome)
        self.assertIn(f"00:05.0 ROM size 0x1000 sum {sum(given) + 1024 * 0xFF:#x}\n", outcome.out, outcome)
        self.assertNotIn("00:08.0 ROM", outcome.out)
        cells = report_in(outcome)["p2p"]
        self.assertTrue(cells)
        for cell in cells:
            self.assertEqual(cell["state"], "mapped", outcome)
            self.assertLess(int(cell["gpa"], 16) + cell["bytes"], 1 << 39)
