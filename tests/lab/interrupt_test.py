"""Legacy interrupts: from a real device through vfio-pci and KVM's I/O APIC to the guest, and its EOI all the way back."""
import re

from machine import Case
from passthrough_test import HOST, PREPARE, behind

TIMES = 250
RIGHT = f"""2 devices on line 16
in turn: {2 * TIMES} interrupts
left alone: {4 * TIMES} interrupts
together: {2 * TIMES} causes, \\d+ interrupts
disabled: none, and one after
in all: \\d+ interrupts
status 1
== end 0
"""


class Interrupts(Case):
    def test_intx_arrives_is_level_triggered_and_shared(self):
        """On one line: two devices of the kernel's VFIO, whose EOIs go by eventfd; then one and a server's, told by us."""
        outcome = self.in_lab(PREPARE + f"""
            pair() {{ run intx --cmdline count={TIMES} --device $LAB_DEVICE1,slot=04 --device $1,slot=08; say end; }}
            pair $LAB_DEVICE2; pair model=dma""", *behind("edu", "edu"), kernel=HOST)
        self.assertIsNotNone(re.fullmatch(2 * RIGHT, outcome.out), outcome)
