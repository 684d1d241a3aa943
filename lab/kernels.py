"""The kernels of the lab: Debian's, unpacked from their packages, and one built from Debian's source with iommufd.

A kernel is a folder in the cache: vmlinuz, vmlinux (the same uncompressed: a PVH ELF file), config, version, and for
Debian's the modules that the lab may want, as modules/NAME.ko with what each depends on in modules/modules.dep.
"""
import glob
import hashlib
import lzma
import os
import re
import shutil
import subprocess

import apt
import build
from cache import HOME, LabError, need_space, output_of, produce, say

# name -> (series, flavour). `amd64` is the generic flavour; `cloud-amd64` has fewer drivers, and is only a guest.
DEBIAN = {f"debian-{series}{suffix}": (series, flavour)
          for series in ("6.1", "6.12", "7") for suffix, flavour in (("", "amd64"), ("-cloud", "cloud-amd64"))}
HOSTS = ("debian-6.1", "debian-6.12", "debian-7", "iommufd")
NAMES = (*DEBIAN, "iommufd")

# What the lab host and its guests may load. Whatever these depend on comes along.
MODULES = """virtio_pci virtio_console virtio_net virtio_blk 9p 9pnet_virtio kvm_amd vfio_pci vfio_iommu_type1
    virtio_iommu nvme e1000e igb igbvf bochs ext4 crc32c_generic msr""".split()

MAGIC = {b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x1f\x8b\x08": "gzip"}


class Kernel:
    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.vmlinuz = os.path.join(folder, "vmlinuz")
        self.vmlinux = os.path.join(folder, "vmlinux")
        with open(os.path.join(folder, "version"), encoding="ascii") as file:
            self.version = file.read().strip()

    def modules(self):
        """Paths of the modules, and the path of their modules.dep; nothing for a kernel without."""
        return sorted(glob.glob(os.path.join(self.folder, "modules", "*")))

    def modules_for(self, names):
        """Of modules(), what has these names or is needed by them, and modules.dep; nothing where there is none of them."""
        there = {os.path.basename(path): path for path in self.modules()}
        if not any(f"{name}.ko" in there for name in names):
            return []
        with open(there["modules.dep"], encoding="ascii") as file:
            needs = dict(line.rstrip("\n").split(":") for line in file)
        wanted = {"modules.dep"}
        for name in names:
            if f"{name}.ko" in there:
                wanted |= {f"{name}.ko", *needs[f"{name}.ko"].split()}
        return [there[name] for name in sorted(wanted)]

    def has(self, option):
        with open(os.path.join(self.folder, "config"), encoding="utf-8") as file:
            return re.search(rf"^CONFIG_{option}=[ym]$", file.read(), re.MULTILINE) is not None


def get(name):
    """The kernel of that name, fetched or built where the cache has none. The newest one there is taken as it is;
    removing its folder fetches anew."""
    if name not in NAMES:
        raise LabError(f"there is no kernel {name}; there are {', '.join(NAMES)}", 120)
    recipe = _recipe(name)
    there = glob.glob(os.path.join(HOME, "kernels", f"{name}@*-{recipe}"))
    if there:
        return Kernel(name, max(there, key=os.path.getmtime))
    if name == "iommufd":
        need_space(5, "building the iommufd kernel")
        return Kernel(name, produce(f"kernels/{name}@built-{recipe}", _build))
    need_space(2, f"unpacking the kernel {name}")
    packages = _packages(*DEBIAN[name])
    version = list(packages.values())[0]
    return Kernel(name, produce(f"kernels/{name}@{version}-{recipe}", lambda new: _unpack(packages, new)))


def _recipe(name):
    """What the content of the folder depends on besides the packages."""
    text = build.recipe() if name == "iommufd" else "3 " + " ".join(MODULES)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _packages(series, flavour):
    """The packages of the newest kernel of a series: name -> version. Since 6.19 image and modules come apart, and
    the image may be there signed, unsigned, or both."""
    abi = rf"{re.escape(series)}\.[^-]+(?:-\d+)?"
    found = apt.names(rf"linux-(image|binary|binary-unsigned|modules|base)-{abi}-{flavour}(-unsigned)?")
    releases = {re.search(rf"-({abi})-{flavour}", name).group(1) for name in found}
    for release in sorted(releases, key=lambda text: [int(part) for part in re.findall(r"\d+", text)], reverse=True):
        kernel = f"{release}-{flavour}"
        for choice in ((f"linux-modules-{kernel}", f"linux-binary-{kernel}"),
                       (f"linux-modules-{kernel}", f"linux-binary-unsigned-{kernel}"),
                       (f"linux-image-{kernel}",), (f"linux-image-{kernel}-unsigned",)):
            split = f"linux-modules-{kernel}" in found
            if all(name in found for name in choice) and (len(choice) == 2) == split:
                # linux-base has the configuration of kernels that come apart.
                return {name: found[name] for name in (*choice, f"linux-base-{kernel}") if name in found}
    raise LabError(f"the mirror has no Linux {series} for {flavour} in {', '.join(apt.MIXED.suites)}")


def _unpack(packages, new):
    work = os.path.join(new, "work")
    os.mkdir(work)
    for package in apt.download(packages, new):
        apt.unpack(package, work)
        os.unlink(package)
    say("unpacking its modules")
    vmlinuz, = glob.glob(f"{work}/boot/vmlinuz-*") + glob.glob(f"{work}/usr/lib/modules/*/vmlinuz*")
    modules, = glob.glob(f"{work}/lib/modules/*") + glob.glob(f"{work}/usr/lib/modules/*")
    config = glob.glob(f"{work}/boot/config-*") + glob.glob(f"{modules}/config")
    _finish(new, vmlinuz, os.path.basename(modules), config[0] if config else None)
    _keep_modules(modules, os.path.join(new, "modules"))
    shutil.rmtree(work)


def _build(new):
    tree = build.build(os.path.join(new, "work"))
    _finish(new, f"{tree}/arch/x86/boot/bzImage", build.release(tree), f"{tree}/.config")
    shutil.rmtree(os.path.join(new, "work"))


def _finish(new, vmlinuz, version, config):
    shutil.copyfile(vmlinuz, os.path.join(new, "vmlinuz"))
    with open(os.path.join(new, "vmlinux"), "wb") as file:
        file.write(uncompressed(vmlinuz))
    with open(os.path.join(new, "version"), "w", encoding="ascii") as file:
        file.write(version + "\n")
    if config:
        shutil.copyfile(config, os.path.join(new, "config"))


def uncompressed(vmlinuz):
    """The vmlinux inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset and payload_length)."""
    with open(vmlinuz, "rb") as file:
        image = file.read()
    setup = (image[0x1F1] or 4) * 512 + 512
    offset = setup + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[offset:offset + int.from_bytes(image[0x24C:0x250], "little")]
    kind = next((name for magic, name in MAGIC.items() if payload.startswith(magic)), None)
    if kind is None:
        raise LabError(f"{vmlinuz} is compressed in a way the lab does not know: {payload[:4].hex()}")
    # The last four bytes are the size, which the other tools take for rubbish.
    if kind == "xz":
        return lzma.LZMADecompressor().decompress(payload)
    try:
        result = subprocess.run([kind, "-dc"], input=payload[:-4], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"uncompressing Debian's kernels needs {kind}: apt-get install {kind}") from error
    if not result.stdout.startswith(b"\x7fELF"):
        raise LabError(f"cannot uncompress {vmlinuz}: {result.stderr.decode(errors='replace')}")
    return result.stdout


def _keep_modules(tree, folder):
    """Copies MODULES and what they depend on, uncompressed, with a modules.dep for modprobe."""
    files = {}
    for path in glob.glob(f"{tree}/**/*.ko*", recursive=True):
        files[os.path.basename(path).split(".ko")[0].replace("-", "_")] = path
    os.mkdir(folder)
    depends, todo = {}, [name for name in MODULES if name in files]
    while todo:
        name = todo.pop()
        if name in depends:
            continue
        data = _module(files[name])
        listed = re.search(rb"\0depends=([^\0]*)\0", data)
        depends[name] = [one.replace("-", "_") for one in listed.group(1).decode().split(",") if one] if listed else []
        todo += depends[name]
        _write_module(os.path.join(folder, f"{name}.ko"), data)

    def closure(name):
        """All that `name` needs, in the order of modules.dep: what is needed first comes last."""
        rest = [one for below in depends[name] for one in [below, *closure(below)]]
        return [one for at, one in enumerate(rest) if one not in rest[at + 1:]]
    with open(os.path.join(folder, "modules.dep"), "w", encoding="ascii") as file:
        for name in sorted(depends):
            file.write(f"{name}.ko: {' '.join(f'{one}.ko' for one in closure(name))}\n")


def _write_module(path, data):
    """A module without its signature and its BTF, which the kernel checks at length: a fifth of the lab's boot."""
    with open(path, "wb") as file:
        file.write(data)
    output_of(["objcopy", "--remove-section=.BTF", path], "binutils")  # what follows the ELF file goes, too


def _module(path):
    with open(path, "rb") as file:
        data = file.read()
    return lzma.decompress(data) if path.endswith(".xz") else data
