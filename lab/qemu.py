"""QEMU: which one the lab uses, and its command line for a lab machine."""
import functools

import newer_qemu

PROGRAM = "qemu-system-x86_64"

PROOF_SLOT = 3  # of the edu device that lab-refuse uses
PROOF_DEVICE = f"0000:00:{PROOF_SLOT:02x}.0"

# QEMU's trace points that fire for each DMA that the IOMMU refuses.
FAULT_EVENTS = {"intel": ("vtd_dmar_fault",), "virtio": ("virtio_iommu_report_fault",),
                "amd": ("amdvi_page_fault",), "none": ()}
# KVM that is built in starts before the kernel has measured the TSC well, and on a busy machine the first measure is off
# by more than KVM tolerates: its guests' timers then never fire. The timer check fails, and panics, where this machine is so busy
# that an emulated second has few ticks. The rest is what Debian's kernels do at boot at the cost of a second under
# emulation, and the lab has no use for.
FAST = ("kvm.tsc_tolerance_ppm=100000 no_timer_check mitigations=off random.trust_cpu=on cryptomgr.notests apparmor=0 nowatchdog"
        " initcall_blacklist=jent_mod_init,crypto_kdf108_init")
IOMMUS = tuple(FAULT_EVENTS)

KERNEL_ARGUMENTS = {
    "intel": "intel_iommu=on iommu=pt",
    # These have no interrupt remapping (amd: none that Linux takes), which type1 otherwise insists on.
    "amd": "amd_iommu=on iommu=pt vfio_iommu_type1.allow_unsafe_interrupts=1",
    "virtio": "vfio_iommu_type1.allow_unsafe_interrupts=1",
    "none": "",
}


@functools.cache
def program():
    """The first words of its command line: the one that is installed if it is new enough, else the one in the cache."""
    if newer_qemu.version([PROGRAM]) >= newer_qemu.OLDEST:
        return [PROGRAM]
    return newer_qemu.command()


def _iommu(kind):
    if kind == "intel":
        # 48 bits of addresses, as servers have; 39 are a small PC's: --qemu=-set --qemu=device.iommu.aw-bits=39.
        return ["-device", "intel-iommu,id=iommu,intremap=on,aw-bits=48"]
    if kind == "virtio":
        return ["-device", "virtio-iommu-pci,id=iommu,addr=0x1"]
    if kind == "amd":
        return ["-device", "amd-iommu,id=iommu,intremap=on,dma-remap=on"]
    return []


def _ports(files, shell):
    """The lab's own devices: the serial console, ports for COMMAND's streams, and the shared folders."""
    arguments = ["-device", "virtio-serial-pci,id=ports,addr=0x2.0,multifunction=on,max_ports=8"]
    for name, descriptor in files.items():
        arguments += ["-chardev", f"socket,id={name},fd={descriptor}"]
    arguments += ["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control"]
    for number, name in enumerate(("out", "err", "in", "control", "monitor"), 1):
        if name in files:
            arguments += ["-device", f"virtserialport,bus=ports.0,nr={number},chardev={name},name=lab.{name}"]
    if shell:
        arguments += ["-device", "virtconsole,bus=ports.0,nr=0,chardev=terminal"]
    return arguments


def command(options, kernel, initrd, folders, files):
    """The words of QEMU's command line. `files`: the chardevs by name, each with the descriptor it is to use."""
    threads = "single" if options.in_turn else "multi"
    # PVH: nothing to uncompress, which an emulated CPU is slow at.
    arguments = [*program(), "-machine", "q35", "-accel", f"tcg,thread={threads}", "-cpu", "EPYC", "-smp", str(options.cpus),
                 "-m", str(options.memory >> 20), "-nodefaults", "-display", "none", "-no-reboot",
                 "-kernel", kernel.vmlinux, "-initrd", initrd, "-append",
                 f"console=ttyS0 quiet panic=-1 rdinit=/lab/init {FAST} {KERNEL_ARGUMENTS[options.iommu]}"]
    arguments += _iommu(options.iommu)
    arguments += _ports(files, options.shell)
    for number, (tag, (folder, readonly)) in enumerate(folders.items(), 1):
        arguments += ["-fsdev", f"local,id={tag},path={folder},security_model=none,multidevs=remap,"
                      f"readonly={readonly}",
                      "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr=0x2.{number}"]
    if options.iommu != "none":
        arguments += ["-device", f"edu,dma_mask=0xffffffffffffffff,addr={PROOF_SLOT:#x}"]
    for event in FAULT_EVENTS[options.iommu]:
        arguments += ["-trace", event]
    return arguments
