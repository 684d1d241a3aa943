#!/usr/bin/env python3
"""Each rule of layering.py must fail on a sample that breaks it, and pass on one that keeps it."""
import os
import tempfile
import unittest

import layering

GOOD = {
    "base/fd.h": '#include <unistd.h>\n#include "base/check.h"\nvoid F() { close(1); }\n',
    "base/check.h": "// close(fd) is called elsewhere\n",
    "memory/ram.cc": '#include "base/fd.h"\n#include "memory/ram.h"\nint x = Open("mmap(");\n',
    "memory/ram.h": "struct S { void open_all(); };\nvoid G(S& s) { s.read(); sys::Mmap(); map->close(); }\n",
    "memory/ram_test.cc": '#include "tests/fakes.h"\nvoid T() { ::close(3); }\n',
    "devices/pci.cc": '#include "memory/ram.h"\n',
    "boot/load.cc": '#include "memory/ram.h"\n',
    "vmm/main.cc": '#include "boot/load.h"\n#include "devices/pci.h"\n',
    "tests/fakes.h": '#include "vmm/vm.h"\n#include <sys/mman.h>\n',
    "guests/lib/io.h": "#include <stdint.h>\n",
    "guests/hello.cc": '#include "lib/io.h"\n#include <cstddef>\n',
    "docs/guide.md": "See https://docs.kernel.org/virt/kvm/api.html, 127.0.0.1, ACPI 6.5 5.2.5.3 and pcie/root-port.\n",
}


class Layering(unittest.TestCase):
    def check(self, changes):
        with tempfile.TemporaryDirectory() as root:
            for path, text in {**GOOD, **changes}.items():
                os.makedirs(os.path.dirname(os.path.join(root, path)) or root, exist_ok=True)
                with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                    file.write(text)
            return layering.check(root)

    def assert_broken(self, path, text, what):
        broken = self.check({path: text})
        self.assertEqual(len(broken), 1, broken)
        self.assertRegex(broken[0], rf"^{path}:\d+: .*{what}")

    def test_good_tree_passes(self):
        self.assertEqual(self.check({}), [])

    def test_upward_include(self):
        self.assert_broken("base/log.cc", '#include "memory/ram.h"\n', "base/ includes memory/ram.h")
        self.assert_broken("memory/a.cc", '#include "devices/pci.h"\n', "memory/ includes")
        self.assert_broken("devices/a.h", '#  include "vmm/vm.h"\n', "devices/ includes")

    def test_devices_and_boot_are_apart(self):
        self.assert_broken("devices/a.cc", '#include "boot/load.h"\n', "devices/ includes boot")
        self.assert_broken("boot/a.cc", '#include "devices/pci.h"\n', "boot/ includes devices")

    def test_only_tests_include_tests(self):
        self.assert_broken("vmm/a.cc", '#include "tests/fakes.h"\n', "vmm/ includes tests")

    def test_tests_do_not_lift_the_layers(self):
        self.assert_broken("memory/a_test.cc", '#include "vmm/vm.h"\n', "memory/ includes vmm")

    def test_paths_start_at_the_top(self):
        self.assert_broken("boot/a.cc", '#include "load.h"\n', "start at the top")
        self.assert_broken("boot/a.cc", '#include "../base/fd.h"\n', "start at the top")

    def test_guests_stand_alone(self):
        self.assert_broken("guests/a.cc", '#include "base/fd.h"\n', "not in guests/")
        self.assert_broken("guests/a.cc", '#include "../base/fd.h"\n', "not in guests/")
        self.assert_broken("guests/a.cc", "#include <stdio.h>\n", "not freestanding")
        self.assert_broken("vmm/a.cc", '#include "guests/lib/io.h"\n', "vmm/ includes guests")

    def test_bare_system_calls(self):
        self.assert_broken("memory/a.cc", "int F() { return ioctl(1, 2); }\n", r"ioctl\(\)")
        self.assert_broken("devices/a.cc", "x = ::mmap (nullptr);\n", r"mmap\(\)")
        self.assert_broken("vmm/a.h", "if (!close(fd)) {}\n", r"close\(\)")
        for call in ("lstat", "sigaction", "signal", "tcgetattr", "tcsetattr", "eventfd_write", "eventfd_read"):
            self.assert_broken("vmm/a.cc", f"::{call}(1);\n", rf"{call}\(\)")
        self.assert_broken("boot/a.cc", '/* a */ auto s = "\\""; open("x"); // b\n', r"open\(\)")

    def test_formats_that_guests_cannot_print(self):
        self.assert_broken("guests/a.cc", 'Print("%#lx", 1);\n', "does not know")
        self.assertEqual(self.check({"guests/a.cc": 'Print("0x%lx #%u", 1, 2);\n'}), [])

    def test_long_file(self):
        self.assert_broken("vmm/a.cc", "\n" * 501, "501 lines")
        self.assert_broken("scripts/a", "#!/bin/sh\n" + "\n" * 501, "502 lines")

    def test_leftovers(self):
        self.assert_broken("vmm/a.cc", "// TODO: later\n", "left over")
        self.assert_broken("scripts/a", "#!/bin/sh\n# FIXME\n", "left over")

    def test_machine_names(self):
        self.assert_broken("docs/a.md", "Look in /work/main.\n", "one machine")
        self.assert_broken("vmm/a.cc", 'auto f = "/root/.cache";\n', "one machine")
        self.assert_broken("scripts/a.sh", "curl http://10.1.2.3/x\n", "one machine")
        self.assert_broken("docs/a.md", "deb http://deb.debian.org/debian x main\n", "one machine")

    def test_empty_tree_is_no_pass(self):
        with tempfile.TemporaryDirectory() as root:
            self.assertEqual(layering.tracked_files(root), [])


if __name__ == "__main__":
    unittest.main()
