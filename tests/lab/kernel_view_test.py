"""What the lab host's kernel saw of us: the calls that a guest's step costs, what its IOMMU has mapped."""
import json
import re

from machine import Case

HOST = "debian-6.12"  # has histograms of system calls
DEBUG_HOST = "iommufd"  # has the IOMMU's debugfs

# bar_poke with a fifo for its keyboard; `step LETTER` does a step and waits until it is done. `out` is emptied before the fifo is
# opened, which is what start waits for.
SHELL = r"""
start() {
  mkfifo in
  crossbar run --memory 64M --report report.json --kernel $LAB_GUESTS/bar_poke.elf "$@" >out 2>err <in & vm=$!
  exec 3>in
  steps=0; await
}
await() {
  until [ $(wc -l <out) -gt $steps ]; do
    kill -0 $vm 2>/dev/null || { cat out err; exit 9; }
    sleep 0.05
  done
}
step() { echo $1 >&3; steps=$((steps + 1)); await; }
finish() { echo q >&3; wait $vm; echo "status $?"; exec 3>&-; rm in; }
"""


def on_root_ports(*devices):
    return [word for device in devices for word in ("--device", f"{device},port=root,bind=vfio")]


def after_report(text):
    return json.loads(re.search(r"(?s)== report\n(.*?)(== |\Z)", text).group(1))["passthrough"]


class KernelView(Case):
    # The numbers of ioctls. VFIO's are <linux/vfio.h>'s, from VFIO_BASE on.
    MAP, UNMAP, SLOT, SET_IRQS, GET_REGION_INFO = 0x3b71, 0x3b72, 0x4020ae46, 0x3b6e, 0x3b6c
    # Version, extension, set; size and contents of info.
    FOR_EACH_CONTAINER = {0x3b64: 1, 0x3b65: 1, 0x3b66: 1, 0x3b70: 2}
    # Group status and container, descriptor, info, regions, interrupts, reset.
    FOR_EACH_DEVICE = {0x3b67: 1, 0x3b68: 1, 0x3b6a: 1, 0x3b6b: 1, GET_REGION_INFO: 9, 0x3b6d: 5, 0x3b6f: 1}
    KVM_RUN = 0xae80
    COUNT = r"""
    mount -t tracefs trace /sys/kernel/tracing
    cd /sys/kernel/tracing/events/syscalls/sys_enter_ioctl
    echo hist:keys=cmd.hex >trigger; histogram=$PWD/hist; cd - >/dev/null
    calls() { echo "== $1"; cat $histogram; }
    for target in "target=0x1af41110 bar=2,$LAB_DEVICE2" "target=0x1b360010 bar=2,$LAB_DEVICE3"; do
      calls begin
      start --cmdline "${target%,*}" --device $LAB_DEVICE1,id=edu --device ${target#*,},id=target
      calls attach
      for letter in d d o o d m b o; do step $letter; calls $letter; done
      finish; echo '== report'; cat report.json; echo '== end'
    done
    """

    def steps(self, text):
        """The ioctls of each step, by their number, in order."""
        pattern = re.compile(r"{ cmd: +(\w+) } hitcount: +(\d+)")
        sums = [{int(number, 16): int(count) for number, count in pattern.findall(part)}
                for part in re.split(r"(?m)^== \w+$", text.split("== report")[0])[1:]]
        return [{number: count - before.get(number, 0) for number, count in now.items()
                 if count != before.get(number, 0) and number != self.KVM_RUN}
                for before, now in zip(sums, sums[1:])]

    def test_g9_a_step_costs_a_call_for_each_piece_and_a_repeat_none(self):
        devices = on_root_ports("edu", "ivshmem", "nvme,cmb=64M")
        outcome = self.in_lab(SHELL + self.COUNT, *devices, kernel=HOST)
        runs = outcome.out.split("== end\n")[:2]
        self.assertEqual(len(runs), 2, outcome)
        move = {self.SLOT: 2, self.MAP: 1, self.UNMAP: 1}
        # NVMe: a region with capabilities, of the MSI-X table, takes a second call.
        for text, again in zip(runs, (0, 1)):
            attach, *steps = self.steps(text)
            vfio = {number: count for number, count in attach.items()
                    if number >> 8 == 0x3b and number != self.SET_IRQS}
            expected = self.FOR_EACH_CONTAINER | {self.MAP: 1}
            expected |= {number: 2 * count for number, count in self.FOR_EACH_DEVICE.items()}
            expected[self.GET_REGION_INFO] += again
            self.assertEqual(vfio, expected, outcome)
            self.assertEqual(attach[self.SLOT], 1)  # RAM, as is the DMA mapping
            zaps = after_report(text)["zaps"]["recent"]
            pieces = next(zap["pieces"] for zap in zaps if zap["cause"] == "decode-off" and zap["pieces"])
            on, off = {self.SLOT: pieces, self.MAP: pieces}, {self.SLOT: pieces, self.UNMAP: pieces}
            self.assertEqual(steps, [on, {}, off, {}, on, move, move, off], outcome)

    # A Linux guest pokes COMMAND of the device in slot 2. RAM, the first 256 MiB, is left out of the view.
    SHOW = r"""
    decode='decode() { printf \\$1 | dd of=/sys/bus/pci/devices/0000:00:02.0/config bs=1 seek=4 conv=notrunc; }'
    steps="$decode; decode 2; echo on; read x; decode 0; echo off; read x; decode 2; poweroff -f"
    show() {
      until grep -q "^$1" out; do kill -0 $vm 2>/dev/null || { cat out err; exit 9; }; sleep 0.05; done
      echo "== $1"
      grep -v '^0x000000000....' /sys/kernel/debug/iommu/intel/$LAB_DEVICE1/domain_translation_struct
      echo >&3
    }
    for option in p2p=on p2p=off; do
      rm -f in out; mkfifo in
      timeout 75 crossbar run --kernel $LAB_LINUX --initrd $LAB_INITRD --cmdline "console=ttyS0 quiet lab_run=\"$steps\"" \
        --memory 256M --report report.json --device $LAB_DEVICE1,id=edu,slot=1 \
        --device $LAB_DEVICE2,id=target,slot=2,$option >out 2>err <in & vm=$!
      exec 3>in
      show on; show off
      wait $vm; exec 3>&-
      echo '== report'; cat report.json
      echo '== resource'; cat /sys/bus/pci/devices/$LAB_DEVICE2/resource; echo '== end'
    done
    """

    def mapped(self, text, bars):
        """What the IOMMU has of the target's BARs, page by page: physical address by IOVA."""
        pages = {}
        for line in text.splitlines():
            if not re.match(r"0x\w+ \|", line):
                continue
            iova, *path = (int(word, 16) for word in line.replace("|", " ").split())
            leaf = path[-1] & 0x000ffffffffff000
            for page in range(512 ** (5 - len(path))):
                physical = leaf + (page << 12)
                if any(start <= physical <= last for start, last in bars):
                    pages[(iova + page) << 12] = physical
        return pages

    def test_the_matrix_is_what_the_iommu_has(self):
        outcome = self.in_lab(self.SHOW, *on_root_ports("edu", "ivshmem"), kernel=DEBUG_HOST)
        for text, state in zip(outcome.out.split("== end\n"), ("mapped", "refused")):
            resource = text.split("== resource\n")[1]
            bars = [tuple(int(word, 16) for word in line.split()[:2]) for line in resource.splitlines()[:6]]
            views = dict(re.findall(r"(?ms)^== (on|off)\n(.*?)(?=^== )", text))
            cells = [cell for cell in after_report(text)["p2p"] if cell["target"] == "target"]
            self.assertEqual({cell["state"] for cell in cells}, {state}, outcome)
            told = {int(cell["gpa"], 16) + at: bars[cell["bar"]][0] + cell["offset"] + at
                    for cell in cells if cell["state"] == "mapped" for at in range(0, cell["bytes"], 4096)}
            self.assertEqual(self.mapped(views["on"], bars), told)
            self.assertGreaterEqual(len(told), (16 << 20) // 4096 if state == "mapped" else 0)
            self.assertEqual(self.mapped(views["off"], bars), {})
