"""A QEMU that is newer than the releases of Debian have: Debian 13's backport with all its libraries and its own loader,
unpacked into the cache. It runs on any release; nothing is installed."""
import os
import re
import shutil
import subprocess

import apt
from cache import LabError, need_space, produce

OLDEST = 11  # 10.0 fails where the machine is busy: docs/decisions/010. vfio-user-pci came with 10.1

PACKAGE, SUITE = "qemu-system-x86", "trixie-backports"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
PROGRAM = "usr/bin/qemu-system-x86_64"
DATA = ("usr/share/qemu", "usr/share/seabios")


def command():
    """The first words of its command line. The one in the cache is taken as it is; removing its folder fetches anew."""
    try:
        return _words(produce(f"qemu-{OLDEST}", _unpack))
    except (LabError, OSError) as error:
        raise LabError(f"the lab needs QEMU {OLDEST} or later. Install one, or have lab/run --fetch fetch it where there is a"
                       f" network. {PACKAGE} of {SUITE} cannot be had here: {error}") from error


def version(words):
    """The major version of the QEMU that these words start; 0 where they start none."""
    if not shutil.which(words[0]):
        return 0
    said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.", said)
    return int(found.group(1)) if found else 0


def _words(folder):
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
    if (found := version(_words(new))) < OLDEST:
        raise LabError(f"what {SUITE} has is QEMU {found}")
