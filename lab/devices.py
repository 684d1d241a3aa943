"""The PCI devices of a lab machine: what --device says, as arguments for QEMU and as what the lab host does with them."""
import dataclasses
import re

from cache import LabError

USAGE = 120
MOST = 1 << 40  # of memory, of anything: more is a slip. What is touched of it has to be there
FIRST_SLOT = 4  # below are QEMU's own, the virtio devices of the lab and the device that proves the IOMMU

# name -> (what it is, the options it takes besides port and bind)
OFFERED = {
    "edu": ("QEMU's teaching device: a DMA engine with registers", set()),
    "ivshmem": ("shared memory: BAR 2 is RAM of size=SIZE (16M)", {"size"}),
    "nvme": ("NVMe disk of disk=SIZE (64M), with a controller memory buffer of cmb=SIZE", {"cmb", "disk"}),
    "igb": ("Intel 82576 NIC, with vfs=N virtual functions; net=NAME joins it to others", {"vfs", "net"}),
    "e1000e": ("Intel 82574L NIC; net=NAME joins it to others", {"net"}),
    "bochs": ("frame buffer display", set()),
    "testdev": ("QEMU's pci-testdev: BAR 2 has bar=SIZE (16M) and nothing behind it", {"bar"}),
}
COMMON = {"port", "bind"}
DRIVERS = {"nvme": "nvme", "igb": "igb", "e1000e": "e1000e", "bochs": "bochs"}
FILE_SYSTEM = ("ext4", "crc32c_generic")  # for what a guest does with a disk; ext4 asks for the second before 6.16


def size(text):
    """Bytes of a size with suffix K, M, G or T; 0 where it is none."""
    match = re.fullmatch(r"([1-9]\d{0,14})([KMGT]?)", text, re.ASCII)
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match.group(2)] if match else 0


@dataclasses.dataclass
class Device:
    """One --device. `path` leads to it through sysfs, from the root bus down: slots, with a pattern for bus numbers."""
    name: str
    options: dict
    number: int  # 1 for the first --device
    path: str = ""

    @property
    def id(self):
        return f"{self.name}{self.number}"

    def guest_modules(self):
        """The modules that a Linux guest wants for it."""
        if self.options.get("vfs", "0") != "0":
            return ["igbvf"]
        return [DRIVERS[self.name], *(FILE_SYSTEM if self.name == "nvme" else ())] if self.name in DRIVERS else []


def parse(text, number):
    name, *rest = text.split(",")
    if name not in OFFERED:
        raise LabError(f"there is no device {name!r}; there are {', '.join(OFFERED)}", USAGE)
    options = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals or not value or key not in COMMON | OFFERED[name][1]:
            allowed = ", ".join(sorted(COMMON | OFFERED[name][1]))
            raise LabError(f"--device {text}: {name} takes {allowed}, each as NAME=VALUE, and not {item!r}", USAGE)
        options[key] = value
    device = Device(name, options, number)
    if options.get("port", "root") not in ("root", "switch", "bridge", "same"):
        raise LabError(f"--device {text}: port is root, switch, bridge or same", USAGE)
    if number == 1 and options.get("port") == "same":
        raise LabError(f"--device {text}: port=same needs a --device before it", USAGE)
    if options.get("bind", "vfio") != "vfio":
        raise LabError(f"--device {text}: bind is vfio, or left out", USAGE)
    if not re.fullmatch("[0-7]", options.get("vfs", "0")):
        raise LabError(f"--device {text}: vfs is a number up to 7", USAGE)
    if not re.fullmatch(r"\w+", options.get("net", "x")):
        raise LabError(f"--device {text}: the name of a net is letters and digits", USAGE)
    for key in options.keys() & {"size", "cmb", "bar", "disk"}:
        value, is_bar = size(options[key]), key != "disk"
        if not 1 << 20 <= value <= MOST or is_bar and value & (value - 1):
            raise LabError(f"--device {text}: {key} is a {'power of two' if is_bar else 'size'}, as in 64M, from 1M to 1T", USAGE)
        options[key] = value
    return device


class Tree:
    """Places devices on the root bus, behind root ports, one switch or one bridge, or as one more function of the
    device before, and collects QEMU's arguments."""

    def __init__(self, run_folder):
        self.folder = run_folder
        self.arguments = []
        self.slot = FIRST_SLOT
        self.downstream = 0
        self.switch = None
        self.bridge = None
        self.behind_bridge = 0
        self.nets = {}
        self.first = None  # of the latest device, its function 0: where in `arguments`, its bus and slot, its path
        self.functions = 0

    def place(self, device):
        self.arguments += self._backend(device)
        if device.options.get("port") == "same":
            bus, address = self._next_function(device)
        else:
            bus, address = self._bus(device)
            self.first = len(self.arguments) + 1, bus, address, device.path
            self.functions = 1
        self.arguments += ["-device", f"{_qemu(device)},id={device.id},bus={bus},addr={address}{self._net(device)}"]

    def _next_function(self, device):
        at, bus, slot, path = self.first
        if self.functions == 1:
            self.arguments[at] += ",multifunction=on"
        device.path = f"{path[:-1]}{self.functions}"
        self.functions += 1
        if self.functions > 8:
            raise LabError("a device has eight functions at most", USAGE)
        return bus, f"{slot}.{self.functions - 1}"

    def host_nic(self):
        """A NIC of the lab host itself, where a device asks for net=host."""
        if "host" in self.nets:
            slot = self._next_slot()
            self.arguments += ["-netdev", f"hubport,id=hosthub,hubid={self.nets['host']}", "-device",
                               f"virtio-net-pci,netdev=hosthub,mac=52:54:00:00:00:01,romfile=,addr={slot:#x}"]

    def _next_slot(self):
        self.slot += 1
        if self.slot > 0x1D:  # the chipset has 1f
            raise LabError("too many devices for the root bus; put some behind the switch (port=switch)", USAGE)
        return self.slot

    def _bus(self, device):
        port = device.options.get("port")
        if port is None:
            slot = self._next_slot()
            device.path = f"0000:00:{slot:02x}.0"
            return "pcie.0", f"{slot:#x}"
        if port == "root":
            slot = self._next_slot()
            self.arguments += ["-device", f"pcie-root-port,id=port{device.number},chassis={slot},slot={slot},"
                                          f"bus=pcie.0,addr={slot:#x}"]
            device.path = f"0000:00:{slot:02x}.0/0000:*:00.0"
            return f"port{device.number}", "0x0"
        if port == "bridge":
            return self._bridge_bus(device)
        return self._switch_bus(device)

    def _bridge_bus(self, device):
        """Behind a bridge to conventional PCI no IOMMU can tell devices apart: they are one group."""
        if self.bridge is None:
            slot = self.bridge = self._next_slot()
            self.arguments += ["-device", f"pcie-root-port,id=bridgeport,chassis={slot},slot={slot},bus=pcie.0,"
                                          f"addr={slot:#x}", "-device", "pcie-pci-bridge,id=bridge,bus=bridgeport"]
        self.behind_bridge += 1
        device.path = f"0000:00:{self.bridge:02x}.0/0000:*:00.0/0000:*:{self.behind_bridge:02x}.0"
        return "bridge", f"{self.behind_bridge:#x}"

    def _switch_bus(self, device):
        if self.switch is None:
            slot = self.switch = self._next_slot()
            self.arguments += ["-device", f"pcie-root-port,id=switchport,chassis={slot},slot={slot},bus=pcie.0,"
                                          f"addr={slot:#x}", "-device", "x3130-upstream,id=upstream,bus=switchport"]
        number = self.downstream
        self.downstream += 1
        self.arguments += ["-device", f"xio3130-downstream,id=down{number},bus=upstream,chassis={100 + number},"
                                      f"slot={100 + number},addr={number:#x}"]
        device.path = f"0000:00:{self.switch:02x}.0/0000:*:00.0/0000:*:{number:02x}.0/0000:*:00.0"
        return f"down{number}", "0x0"

    def _backend(self, device):
        if device.name == "ivshmem":
            bytes_ = device.options.get("size", 16 << 20)
            return ["-object", f"memory-backend-ram,id=memory{device.number},size={bytes_},share=on"]
        if device.name == "nvme":
            disk = f"{self.folder}/disk{device.number}"
            with open(disk, "wb") as file:
                file.truncate(device.options.get("disk", 64 << 20))
            return ["-blockdev", f"driver=file,node-name=disk{device.number},filename={disk}"]
        if "net" in device.options:
            hub = self.nets.setdefault(device.options["net"], len(self.nets))
            return ["-netdev", f"hubport,id=hub{device.number},hubid={hub}"]
        return []

    @staticmethod
    def _net(device):
        if "net" not in device.options:
            return ""
        return f",netdev=hub{device.number},mac=52:54:00:00:01:{device.number:02x}"


def _qemu(device):
    """The device with its own options, as QEMU names them. No ROMs: running them costs time at boot."""
    number, options = device.number, device.options
    if device.name == "edu":
        return "edu,dma_mask=0xffffffffffffffff"
    if device.name == "ivshmem":
        return f"ivshmem-plain,memdev=memory{number}"
    if device.name == "nvme":
        cmb = f",cmb_size_mb={options['cmb'] >> 20}" if "cmb" in options else ""
        return f"nvme,drive=disk{number},serial=lab{number}{cmb}"
    if device.name == "testdev":
        return f"pci-testdev,membar={options.get('bar', 16 << 20)}"
    return {"igb": "igb,romfile=", "e1000e": "e1000e,romfile=", "bochs": "bochs-display,romfile="}[device.name]
