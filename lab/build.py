"""Builds the lab's own kernel from Debian's source: tinyconfig and iommufd.config, nothing as a module."""
import glob
import os
import re
import shutil
import subprocess
import time

import apt
from cache import LabError, News, output_of, say

SERIES = "7"
FRAGMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "iommufd.config")
# Debian's names of what the build needs besides a compiler and make. scripts/lib.sh installs them.
PACKAGES = ("flex", "bison", "bc", "libelf-dev", "libssl-dev", "lz4", "xz-utils")
OBJECTS = 2350  # about how many files the build makes, for the progress it shows


def recipe():
    """What the kernel that is kept depends on: its number, and not which source is the newest. The name is that of the first."""
    with open(FRAGMENT, encoding="utf-8") as file:
        return f"linux-source-7.3 1\n{file.read()}"


def build(work):
    """Fetches, configures and builds in the folder `work`; the path of the built tree."""
    os.mkdir(work)
    _need_tools()
    source = _source()
    package, = apt.download([source], work)
    say("unpacking the source of Linux")
    apt.unpack(package, work, f"*/{source}.tar*")
    os.unlink(package)
    archive, = glob.glob(f"{work}/usr/src/{source}.tar*")
    output_of(["tar", "-x", "-f", archive, "-C", work], "tar")
    os.unlink(archive)
    tree = os.path.join(work, source)
    _configure(tree)
    _make(tree)
    return tree


def _source():
    """The package of the newest source: backports moves on."""
    found = apt.names(rf"linux-source-{SERIES}\.\d+")
    if not found:
        raise LabError(f"the mirror has no linux-source-{SERIES}.* in {', '.join(apt.MIXED.suites)}, which the iommufd kernel is"
                       " built from. Copy the cache of a machine that has run lab/run --fetch")
    return max(found, key=lambda name: int(name.rpartition(".")[2]))


def _need_tools():
    missing = [name for name in PACKAGES if subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status}", name], capture_output=True, text=True,
        check=False).stdout != "installed"]
    if missing or not shutil.which("gcc") or not shutil.which("make"):
        raise LabError(f"building the iommufd kernel needs packages: apt-get install gcc make {' '.join(missing)}")


def _configure(tree):
    output_of(["make", "-s", "tinyconfig"], "make", cwd=tree)
    output_of(["sh", "scripts/kconfig/merge_config.sh", "-m", ".config", FRAGMENT], "dash", cwd=tree)
    output_of(["make", "-s", "olddefconfig"], "make", cwd=tree)
    # Kconfig drops what it does not know or what depends on something missing without a word.
    with open(FRAGMENT, encoding="utf-8") as file:
        wanted = re.findall(r"^(CONFIG_\w+=\S+)$", file.read(), re.MULTILINE)
    with open(f"{tree}/.config", encoding="utf-8") as file:
        got = set(file.read().splitlines())
    lost = [line for line in wanted if line not in got and not line.endswith("=n")]
    if lost:
        raise LabError(f"{os.path.basename(tree)} does not take these lines of {FRAGMENT}: {' '.join(lost)}")


def _make(tree):
    """Builds at low priority, and says from time to time how far it is."""
    jobs = len(os.sched_getaffinity(0))
    say(f"building the iommufd kernel with {jobs} jobs: some 10 minutes on two cores, once")
    news = News()
    log = os.path.join(tree, "build.log")
    with open(log, "w", encoding="utf-8") as file:
        make = subprocess.Popen(["nice", "-n", "10", "make", f"-j{jobs}", "bzImage"], cwd=tree, stdout=file,
                                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while make.poll() is None:
                time.sleep(0.2)
                news.tell(lambda: f"{_built(log)} of about {OBJECTS} files")
        finally:
            if make.poll() is None:
                make.terminate()  # make ends its compilers
                make.wait()
    if make.returncode != 0:
        with open(log, encoding="utf-8", errors="replace") as file:
            raise LabError("the iommufd kernel does not build:\n" + "".join(file.readlines()[-30:]))
    say(f"built in {news.seconds():.0f} s")


def _built(log):
    with open(log, encoding="utf-8", errors="replace") as file:
        return sum(line.startswith(("  CC ", "  AS ")) for line in file)


def release(tree):
    return output_of(["make", "-s", "kernelrelease"], "make", cwd=tree).strip()
