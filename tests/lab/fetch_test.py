"""What the lab fetches and builds, without a machine: what it chooses, and what it says where something fails."""
import os
from unittest import mock

from machine import SIGTERM, Case, send

import apt
import build
import cache
import kernels


class Builds(Case):
    """The kernel from Debian's source; apt is played."""

    def build(self, offered, archive=b""):
        """Builds with the packages `offered` and the archive that the chosen one has in it; the error, and what was fetched."""
        fetched = []

        def download(packages, folder):
            fetched.extend(packages)
            package = os.path.join(folder, "package.deb")
            with open(package, "wb"):
                pass
            return [package]

        def unpack(_, folder, *__):
            os.makedirs(f"{folder}/usr/src")
            with open(f"{folder}/usr/src/{fetched[0]}.tar.xz", "wb") as file:
                file.write(archive)
        with mock.patch.multiple(apt, names=lambda _: dict.fromkeys(offered, "1"), download=download, unpack=unpack), \
                mock.patch.object(build, "_need_tools"), self.assertRaises(cache.LabError) as caught:
            build.build(os.path.join(self.scratch, "work"))
        return str(caught.exception), fetched

    def test_from_the_newest_source(self):
        _, fetched = self.build(["linux-source-7.9", "linux-source-7.10", "linux-source-7.2"], b"no archive")
        self.assertEqual(fetched, ["linux-source-7.10"])

    def test_an_archive_that_does_not_unpack(self):
        error, _ = self.build(["linux-source-7.3"], b"no archive")
        self.assertRegex(error, r"^tar -x -f failed: (.*\n)*tar: ")

    def test_a_tree_that_make_fails_in(self):
        with self.assertRaisesRegex(cache.LabError, r"^make -s tinyconfig failed: .*No rule to make target"):
            build._configure(self.scratch)
        with self.assertRaisesRegex(cache.LabError, r"^make -s kernelrelease failed: .*No rule to make target"):
            build.release(self.scratch)

    def test_no_source(self):
        error, fetched = self.build([])
        self.assertRegex(error, r"the mirror has no linux-source-7\.\* in .*trixie-backports.*lab/run --fetch")
        self.assertEqual(fetched, [])


class Modules(Case):
    def test_objcopy_that_fails_or_is_not_there(self):
        path = os.path.join(self.scratch, "module.ko")
        with self.assertRaisesRegex(cache.LabError, r"^objcopy .* failed: .*module.ko.*not recogni[sz]ed"):
            kernels._write_module(path, b"no module")
        with mock.patch.dict(os.environ, PATH=self.scratch), \
                self.assertRaisesRegex(cache.LabError, r"^there is no objcopy here: apt-get install binutils$"):
            kernels._write_module(path, b"no module")


class Fetches(Case):
    def test_a_signal_ends_apt_too(self):
        path = os.path.join(self.scratch, "apt-get")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"""#!/bin/sh
                case "$*" in *indextargets*) echo http://127.0.0.1:9 stable main; exit ;; esac
                echo $$ >{self.scratch}/pid.new; mv {self.scratch}/pid.new {self.scratch}/pid; exec sleep 100\n""")
        os.chmod(path, 0o755)
        process = self.start("--fetch", environment={**self.offline(), "PATH": f"{self.scratch}:{os.environ['PATH']}"})
        self.until(lambda: os.path.exists(f"{self.scratch}/pid"))
        send(process, SIGTERM)
        outcome = self.finish(process, 20)
        self.assertEqual(outcome.status, 128 + SIGTERM, outcome)
        with open(f"{self.scratch}/pid", encoding="ascii") as file:
            self.assertFalse(os.path.exists(f"/proc/{file.read().strip()}"), outcome)
