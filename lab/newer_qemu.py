"""A QEMU that is newer than the releases of Debian have: Debian 13's backport with all its libraries and its own loader,
unpacked into the cache. It runs on any release; nothing is installed. Since 10.1 it has vfio-user-pci."""
import os
import shutil

import apt
from cache import need_space, produce

PACKAGE, SUITE = "qemu-system-x86", "trixie-backports"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
PROGRAM = "usr/bin/qemu-system-x86_64"
DATA = ("usr/share/qemu", "usr/share/seabios")


def command():
    """The first words of its command line. The one in the cache is taken as it is; removing its folder fetches anew."""
    folder = produce("newer-qemu", _unpack)
    words = [f"{folder}/{LOADER}", "--library-path", f"{folder}/{LIBRARIES}", f"{folder}/{PROGRAM}"]
    for data in DATA:
        words += ["-L", f"{folder}/{data}"]
    return words


def _unpack(new):
    need_space(1, "unpacking a newer QEMU")
    archives = os.path.join(new, "archives")
    os.mkdir(archives)
    for package in apt.download_with_all(PACKAGE, SUITE, apt.TRIXIE, archives):
        apt.unpack(package, new)
    shutil.rmtree(archives)
