"""Passthrough on a second kind of IOMMU, the hypervisor's own: few addresses, no interrupt remapping, its own fault record."""
from machine import Case, timeout
from passthrough_test import HOST, PREPARE, TWO, behind

UNSAFE = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"


class VirtioIommu(Case):
    def check(self, kernel):
        outcome = self.in_lab(PREPARE + f"""
            echo 0 >{UNSAFE}; run p2p_copy {TWO} 2>&1
            echo 1 >{UNSAFE}; run p2p_copy --device $LAB_DEVICE3 2>&1
            run p2p_copy {TWO} 2>&1; say copied
            run zap_dma {TWO} 2>&1; say zapped; report""",
                              "--iommu", "virtio", "--qemu=-set", "--qemu=device.iommu.aw-bits=36",
                              *behind("edu", "ivshmem", "testdev,bar=64G"), kernel=kernel)
        unsafe, large, copied, zapped, report = outcome.out.split("status ")
        self.assertRegex(unsafe, rf"\Acrossbar: .*the IOMMU does not remap interrupts: .*, or .*: echo 1 >{UNSAFE}\n\Z")
        self.assertRegex(large, r"\A4\ncrossbar: --device .*: BAR 2 has 64 GiB, and the IOMMU .*; leave the device out, .*\n\Z")
        self.assertIn("12 copies between RAM and the BAR are right, 12 interrupts\n", copied, outcome)
        self.assertIn("== copied 0\n", zapped, outcome)
        self.assertTrue(zapped.endswith("restored\n"), outcome)
        self.assertRegex(report, r"\A1\n== zapped [1-9]")

    def test_p2p_zap_and_what_is_refused(self):
        self.check(HOST)

    @timeout(200)
    def test_the_same_on_a_newer_kernel(self):
        self.need_full()
        self.check("debian-7")
