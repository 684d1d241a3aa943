"""Debian packages of any release, through the mirror, the keys and the network settings that apt uses here.

The private configuration lives in the cache: the apt sources of this machine stay as they are, and nothing is
installed.
"""
import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import time

from cache import HOME, LabError, News, locked, say


@dataclasses.dataclass(frozen=True)
class Source:
    """Suites that packages are chosen from together, and the name of the folder that keeps their lists."""
    name: str
    suites: tuple

    @property
    def folder(self):
        return os.path.join(HOME, self.name)


# Where kernels come from: 6.1 from the first, 6.12 from the second, 7.x and linux-source from the third.
MIXED = Source("apt", ("bookworm", "bookworm-backports", "trixie-backports"))
# For programs with their libraries, which have to be of one release.
TRIXIE = Source("apt-trixie", ("trixie", "trixie-backports"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FRESH_SECONDS = 24 * 3600


def _mirror():
    """The mirror that apt fetches this machine's own release from."""
    with open("/etc/os-release", encoding="utf-8") as file:
        release = re.search(r"^VERSION_CODENAME=(\S+)", file.read(), re.MULTILINE)
    own = {release.group(1) if release else "", "stable"}
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                             "Created-By: Packages"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        uri, suite, component = line.split()
        if suite in own and component == "main":
            return uri
    raise LabError("apt knows no Debian mirror here: what the lab needs comes from Debian's packages."
                   " Add one to /etc/apt/sources.list.d")


def _run(source, *command, while_running=None, **options):
    """Runs an apt command on a source's private configuration; `while_running` is called some times a second."""
    folders = {"Dir::State": "state", "Dir::State::lists": "lists", "Dir::Cache": "cache", "Dir::Etc": "etc"}
    settings = [f"{name}={source.folder}/{folder}" for name, folder in folders.items()]
    settings += ["Dir::State::status=/dev/null", f"Dir::Etc::sourceparts={source.folder}/etc/sources.list.d",
                 "Dir::Etc::trustedparts=/etc/apt/trusted.gpg.d", "Acquire::Languages=none", "APT::Sandbox::User=",
                 "quiet::NoProgress=true"]
    process = subprocess.Popen([command[0], *(word for one in settings for word in ("-o", one)), *command[1:]],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "LC_ALL": "C"}, **options)
    with process:
        try:
            out, err = _communicate(process, while_running)
        finally:
            if process.poll() is None:  # a signal ends this run
                process.terminate()
    if process.returncode != 0:
        words = " ".join(word for word in command[:4] if word != "-o" and "=" not in word)
        raise LabError(f"{words} failed:\n{(err or out).strip()}")
    return out


def _communicate(process, while_running):
    while True:
        try:
            return process.communicate(timeout=0.2 if while_running else None)
        except subprocess.TimeoutExpired:
            while_running()


def _update(source):
    """Fetches the lists of packages, unless that was done lately."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise LabError(f"there is no {program} here, and the lab fetches what it needs as Debian packages. Run it on Debian,"
                           " or copy the cache of a machine that has run lab/run --fetch")
    stamp = os.path.join(source.folder, "stamp")
    if os.path.exists(stamp) and time.time() - os.path.getmtime(stamp) < FRESH_SECONDS:
        return
    mirror = _mirror()
    for folder in ("state", "lists/partial", "cache/archives/partial", "etc/sources.list.d"):
        os.makedirs(os.path.join(source.folder, folder), exist_ok=True)
    signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
    with open(os.path.join(source.folder, "etc/sources.list.d/lab.list"), "w", encoding="ascii") as file:
        file.writelines(f"deb {signed}{mirror} {suite} main\n" for suite in source.suites)
    say("fetching the lists of Debian's packages")
    # Without this, apt-get takes lists that it could not fetch for a success.
    _run(source, "apt-get", "-o", "APT::Update::Error-Mode=any", "update")
    with open(stamp, "w", encoding="ascii"):
        pass


def names(pattern):
    """The packages whose whole name matches a regular expression, each with its newest version."""
    with locked(MIXED.name):
        _update(MIXED)
        found = [name for name in _run(MIXED, "apt-cache", "pkgnames").split() if re.fullmatch(pattern, name)]
        versions = {}
        for block in _run(MIXED, "apt-cache", "show", "--no-all-versions", *found).split("\n\n") if found else []:
            name = re.search(r"^Package: (\S+)", block, re.MULTILINE)
            version = re.search(r"^Version: (\S+)", block, re.MULTILINE)
            if name and version:
                versions[name.group(1)] = version.group(1)
    return versions


def download(packages, folder):
    """Fetches these into a folder and returns the paths."""
    with locked(MIXED.name):
        _update(MIXED)
        shown = _run(MIXED, "apt-cache", "show", "--no-all-versions", *packages)
        total = sum(int(size) for size in re.findall(r"^Size: (\d+)", shown, re.MULTILINE)) / 1e6
        say(f"fetching {', '.join(packages)} ({total:.0f} MB)")
        news = News()
        _run(MIXED, "apt-get", "download", *packages, cwd=folder,
             while_running=lambda: news.tell(lambda: f"{_megabytes(folder):.0f} of {total:.0f} MB"))
    return _packages_in(folder)


def download_with_all(package, suite, source, folder):
    """Fetches a package of a suite, and all that it depends on down to the C library, into a folder; the paths."""
    say(f"fetching {package} of {suite}, with its libraries")
    os.makedirs(os.path.join(folder, "partial"))
    with locked(source.name):
        _update(source)
        _run(source, "apt-get", "install", "-o", f"Dir::Cache::archives={folder}", "--download-only", "--yes",
             "--no-install-recommends", "--target-release", suite, package)
    return _packages_in(folder)


def _packages_in(folder):
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".deb"))


def _megabytes(folder):
    """What there is so far; apt renames files under our eyes."""
    size = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            size += entry.stat().st_size
    return size / 1e6


def unpack(package, folder, *members):
    """Extracts a package, or those of its members that match, into a folder."""
    archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    wildcards = ["--wildcards", *members] if members else []
    tar = subprocess.run(["tar", "-x", "-C", folder, "--no-same-owner", *wildcards], stdin=archive.stdout,
                         capture_output=True, text=True, check=False)
    archive.stdout.close()
    if archive.wait() != 0 or tar.returncode != 0:
        raise LabError(f"cannot unpack {os.path.basename(package)}: {tar.stderr.strip() or 'dpkg-deb failed'}")
