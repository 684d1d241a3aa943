"""Initial RAM disks: cpio archives (newc), written here so that no cpio, and no root for device nodes, is needed."""
import os
import re
import stat
import subprocess

import apt
import cache

BUSYBOX_PACKAGE = "busybox-static"


class Archive:
    """Collects files by their path in the initrd; the folders they need come by themselves."""

    def __init__(self):
        self.entries = {}

    def add(self, path, data, mode=0o644):
        self._entry(path, stat.S_IFREG | mode, data)

    def add_file(self, path, source):
        """A file with its mode. A dynamically linked program brings its libraries, under their own paths."""
        kind = os.stat(source).st_mode
        if not stat.S_ISREG(kind):  # reading a pipe could take for ever
            raise cache.LabError(f"{source} is neither a file nor a folder, so the machine cannot have it; keep it out of --file")
        with open(source, "rb") as file:
            data = file.read()
        mode = stat.S_IMODE(kind)
        self.add(path, data, mode)
        if data.startswith(b"\x7fELF") and mode & 0o111:
            for library in _libraries(source):
                if library.lstrip("/") not in self.entries:
                    with open(library, "rb") as file:
                        self.add(library, file.read(), 0o755)

    def add_tree(self, path, source):
        """A file, or a folder with all that is below it. A link stays one, but for a link to a file that the machine would
        not have there: the file comes in its place."""
        if not os.path.isdir(source):
            self.add_file(path, source)
            return
        def refuse(error):
            raise error
        self.folder(path)
        for folder, folders, names in os.walk(source, onerror=refuse):
            for name in folders + names:
                full = os.path.join(folder, name)
                inside = os.path.join(path, os.path.relpath(full, source))
                if os.path.islink(full) and (_stays_in(source, full) or not os.path.isfile(full)):
                    self.link(inside, os.readlink(full))
                elif os.path.isdir(full):
                    self.folder(inside)
                else:
                    self.add_file(inside, full)

    def link(self, path, target):
        self._entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def node(self, path, mode, major, minor):
        self._entry(path, stat.S_IFCHR | mode, b"", (major, minor))

    def folder(self, path):
        path = path.strip("/")
        if path and path not in self.entries:
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def _entry(self, path, mode, data, device=(0, 0)):
        path = os.path.normpath(path).lstrip("/")
        self.folder(os.path.dirname(path))
        self.entries[path] = (mode, data, device)

    def write(self, path):
        with open(path, "wb") as file:
            for number, (name, (mode, data, device)) in enumerate(self.entries.items(), 1):
                _record(file, number, name, mode, data, device)
            _record(file, 0, "TRAILER!!!", 0, b"", (0, 0))


def _record(file, number, name, mode, data, device):
    encoded = os.fsencode(name) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    file.write(header + bytes(-len(header) % 4))
    file.write(data)
    file.write(bytes(-len(data) % 4))


def _stays_in(tree, link):
    """Whether it leads to the same from wherever the tree is."""
    target = os.readlink(link)
    # By its words, as one that leaves the tree may come back by its name, and in fact, as it may lead through others.
    by_words = os.path.normpath(os.path.join(os.path.relpath(os.path.dirname(link), tree), target))
    tree = os.path.realpath(tree)
    return not (os.path.isabs(target) or by_words.split("/")[0] == "..") \
        and os.path.commonpath([tree, os.path.realpath(link)]) == tree


def _libraries(program):
    """The paths of the loader and of the shared libraries of a program; none of a static one."""
    result = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if "not found" in result.stdout:
        raise cache.LabError(f"{program} misses a shared library:\n{result.stdout}")
    return re.findall(r"(?:=> |^\s*)(/\S+) \(0x", result.stdout, re.MULTILINE) if result.returncode == 0 else []


def busybox():
    """The path of a busybox from Debian's package."""
    def unpack(new):
        package, = apt.download([BUSYBOX_PACKAGE], new)
        apt.unpack(package, new, "*bin/busybox")
        os.unlink(package)
    folder = cache.produce("busybox", unpack)
    return next(path for path in (f"{folder}/bin/busybox", f"{folder}/usr/bin/busybox") if os.path.exists(path))


def shell():
    """An archive with busybox under all its names."""
    archive = Archive()
    program = busybox()
    archive.add_file("/bin/busybox", program)
    listed = cache.output_of([program, "--list"], BUSYBOX_PACKAGE)
    for name in set(listed.split()) - {"busybox"}:
        archive.link(f"/bin/{name}", "busybox")
    for folder in ("proc", "sys", "dev", "tmp", "run", "sbin"):
        archive.folder(folder)
    archive.node("/dev/console", 0o600, 5, 1)
    archive.node("/dev/null", 0o666, 1, 3)
    return archive
