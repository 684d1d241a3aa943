"""What a lab machine has: devices, the IOMMU and its proof, the fault record, QEMU's monitor."""
import base64
import os

from machine import LETS_THROUGH, Case, timeout
from picture import STILL, read_png

# Each device of lab/run --list, its ids, and the driver it has where nobody asked for vfio-pci.
DEVICES = {"edu": ("1234:11e8", "-"), "ivshmem": ("1af4:1110", "-"), "nvme": ("1b36:0010", "nvme"),
           "igb": ("8086:10c9", "igb"), "e1000e": ("8086:10d3", "e1000e"), "bochs": ("1234:1111", "bochs-drm")}
VIRTUAL_FUNCTION = "8086:10ca"

SHOW = """
show() {
  for device in $1; do
    cd /sys/bus/pci/devices/$device
    driver=-
    [ ! -e driver ] || driver=$(basename $(readlink driver))
    echo $(sed s/0x// vendor):$(sed s/0x// device) $driver $(readlink -f . | tr / '\\n' | grep -c '^0000:')
  done
}
"""


class Devices(Case):
    def test_all_behind_the_root_bus(self):
        arguments = [word for name in DEVICES for word in ("--device", name)]
        outcome = self.in_lab(SHOW + 'show "$LAB_DEVICES"', *arguments)
        self.assertEqual(outcome.out.splitlines(), [f"{ids} {driver} 1" for ids, driver in DEVICES.values()])

    def test_all_behind_ports_and_bound_to_vfio(self):
        ports = ("root", "switch")
        arguments = [word for number, name in enumerate(DEVICES)
                     for word in ("--device", f"{name},port={ports[number % 2]},bind=vfio")]
        outcome = self.in_lab(SHOW + 'show "$LAB_DEVICES"; show $LAB_DEVICE2; ls /dev/vfio/devices | wc -l', *arguments)
        depths = {"root": 2, "switch": 4}
        expected = [f"{ids} vfio-pci {depths[ports[number % 2]]}" for number, (ids, _) in enumerate(DEVICES.values())]
        expected.append(expected[1])
        expected.append("7")  # the six, and the one of the proof
        self.assertEqual(outcome.out.splitlines(), expected)

    def test_debian_kernel_has_drivers_and_vfio(self):
        arguments = [word for name in DEVICES for word in ("--device", name)]
        outcome = self.in_lab(SHOW + 'show "$LAB_DEVICES $LAB_DEVICE7"; ls -d /dev/kvm /dev/vfio/vfio', *arguments,
                              "--device", "edu,bind=vfio", kernel="debian-6.12")
        self.assertEqual(outcome.out.splitlines()[-4:],
                         ["1234:11e8 vfio-pci 1", "1234:11e8 vfio-pci 1", "/dev/kvm", "/dev/vfio/vfio"], outcome)
        self.assertEqual(outcome.out.splitlines()[:6], [f"{ids} {driver} 1" for ids, driver in DEVICES.values()])

    def test_sizes_and_virtual_functions(self):
        outcome = self.in_lab(
            SHOW + """
            size() { sed -n $2p /sys/bus/pci/devices/$1/resource | { read -r from to flags; echo $((to - from + 1)); }; }
            size $LAB_DEVICE1 3; size $LAB_DEVICE2 3; cat /sys/block/nvme0n1/size; show "$LAB_DEVICE3" """,
            "--device", "ivshmem,size=64M", "--device", "nvme,cmb=32M,disk=1G", "--device", "igb,vfs=2,port=root,bind=vfio")
        self.assertEqual(outcome.out.split("\n"), [str(64 << 20), str(32 << 20), str((1 << 30) // 512),
                                                   f"{VIRTUAL_FUNCTION} vfio-pci 2", f"{VIRTUAL_FUNCTION} vfio-pci 2", ""])

    def test_nics_are_joined(self):
        outcome = self.in_lab("""
            nic() { ls /sys/bus/pci/devices/$1/net; }
            ifconfig $(nic $LAB_DEVICE1) 192.0.2.2 netmask 255.255.255.0
            ifconfig $(nic $LAB_DEVICE2) 198.51.100.1 netmask 255.255.255.0
            ifconfig $(nic $LAB_DEVICE3) up
            for i in 1 2 3 4 5 6 7 8 9 10; do
              ping -c 1 -w 1 -I $(nic $LAB_DEVICE2) 198.51.100.9 >/dev/null
              got=$(cat /sys/class/net/$(nic $LAB_DEVICE3)/statistics/rx_packets)
              [ $got = 0 ] || break
            done
            echo "between two: $got"
            ping -c 1 -w 1 -I $(nic $LAB_DEVICE1) 192.0.2.9 >/dev/null
            for own in /sys/class/net/*; do
              [ "$(cat $own/address)" != 52:54:00:00:00:01 ] || echo "lab host: $(cat $own/statistics/rx_packets)"
            done""", "--device", "e1000e,net=host", "--device", "e1000e,net=a", "--device", "igb,net=a")
        self.assertRegex(outcome.out, r"\Abetween two: [1-9]\d*\nlab host: [1-9]\d*\n\Z", outcome)


class Iommu(Case):
    AGAIN = ": >/tmp/x; cp $LAB_FAULTS before; lab-refuse 0000:00:03.0; echo refused $?; cat before | wc -l; cat $LAB_FAULTS"

    def check(self, outcome, event):
        """The record was empty when COMMAND began, and has what COMMAND's own DMA to nowhere caused."""
        lines = outcome.out.splitlines()
        self.assertEqual(lines[:2], ["refused 0", "0"], outcome)
        self.assertTrue(lines[2:], outcome)
        for line in lines[2:]:
            self.assertIn(event, line)

    def test_intel_refuses_and_records(self):
        record = os.path.join(self.scratch, "faults")
        outcome = self.in_lab(self.AGAIN, "--faults", record)
        self.check(outcome, "vtd_dmar_fault sid 0x18")
        with open(record, encoding="ascii") as file:
            self.assertEqual(file.read().splitlines(), outcome.out.splitlines()[2:])

    def test_virtio_refuses_and_records(self):
        self.check(self.in_lab(self.AGAIN, "--iommu", "virtio"), "virtio_iommu_report_fault")

    def test_amd_refuses_and_records(self):
        self.check(self.in_lab(self.AGAIN, "--iommu", "amd"), "amdvi_page_fault")

    def test_the_hosts_view_is_there(self):
        outcome = self.in_lab("cat /sys/kernel/debug/iommu/intel/iommu_regset | head -3; ls /sys/kernel/debug/iommu/intel")
        self.assertIn("IOMMU: dmar0", outcome.out)
        self.assertIn("0000:00:03.0", outcome.out)

    def test_an_iommu_that_lets_dma_through_is_refused(self):
        outcome = self.lab("--iommu", "amd", "--qemu=-set", "--qemu=device.iommu.dma-remap=off", "--", "echo", "trusted it")
        self.assert_refused(outcome, LETS_THROUGH, "let a DMA to an IOVA that nobody mapped through")
        self.assertEqual(outcome.out, "")

    def test_none_has_none(self):
        self.assertEqual(self.in_lab("ls /sys/kernel/iommu_groups | wc -l", "--iommu", "none").out, "0\n")


class Monitor(Case):
    @timeout(180)
    def test_monitor_and_pixels(self):
        """The picture is of what was written to the frame buffer, by the program that reads PNG here: none of QEMU's."""
        picture = "/lab/share/screen.png"
        outcome = self.in_lab(STILL + f"""
            for i in 1 2 3 4 5; do monitor info status & done; wait
            monitor nonsense
            head -c $((1280 * 800 * 4)) /dev/zero | tr '\\0' '\\252' >/dev/fb0
            still bochs1 screen.png && base64 -w 0 screen.png; echo
            pixels edu9 {picture}; echo $?; ls /lab/share""", "--device", "bochs")
        lines = outcome.out.splitlines()
        self.assertEqual(lines[:5], ["VM status: running"] * 5, outcome)
        self.assertEqual(lines[5], "unknown command: 'nonsense'")
        self.assertEqual(lines[7:], ["1", "faults"])
        self.assertIn("edu9", outcome.err)
        width, height, rows = read_png(base64.b64decode(lines[6]))
        self.assertEqual((width, height, set(rows)), (1280, 800, {b"\xaa" * 3 * 1280}))
