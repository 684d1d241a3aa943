// skeleton ELF: the least that gets a PVH guest with 256 MiB running, the floor under Crossbar's
// start-up time.
//
// The KVM calls are those that Crossbar makes for such a guest, without its checks, tables, devices
// and messages, in the order that is fastest (docs/decisions/002): memslot first, then the
// interrupt controllers. It includes none of Crossbar but the kernel's header, and handles no
// error: it says which call failed and ends. It is no fake: the guest runs to its end, on a UART
// that only takes.

#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/kvm_uapi.h"

namespace {

constexpr uint64_t kRamSize = 256ull << 20;
constexpr uint64_t kStartInfo = 0x9000;  // below the image, which starts at 1 MiB
constexpr unsigned kCpuidEntries = 256;

struct Vcpu {
  int fd;
  kvm_run* run;
};

// PVH: struct hvm_start_info version 1 and one entry of its memory map (Xen, start_info.h).
struct StartInfo {
  uint32_t magic = 0x336ec578;
  uint32_t version = 1;
  uint32_t flags = 0;
  uint32_t modules = 0;
  uint64_t module_list = 0;
  uint64_t command_line = 0;
  uint64_t rsdp = 0;
  uint64_t memory_map = kStartInfo + 56;
  uint32_t memory_map_entries = 1;
  uint32_t reserved = 0;
  struct {
    uint64_t start = 0;
    uint64_t size = kRamSize;
    uint32_t type = 1;
    uint32_t reserved = 0;
  } ram;
};
static_assert(offsetof(StartInfo, ram) == 56);

int Check(int result, const char* what) {
  if (result >= 0) return result;
  perror(what);
  exit(2);
}

void* Map(size_t size, int fd) {
  void* const address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) Check(-1, "mmap");
  return address;
}

char* MakeRam(int vm) {
  const int file = Check(memfd_create("ram", MFD_CLOEXEC), "memfd_create");
  Check(ftruncate(file, kRamSize), "ftruncate");
  char* const ram = static_cast<char*>(Map(kRamSize, file));
  kvm_userspace_memory_region region{};
  region.memory_size = kRamSize;
  region.userspace_addr = reinterpret_cast<uintptr_t>(ram);
  Check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
  return ram;
}

void MakeInterruptControllers(int vm) {
  uint64_t identity_map = 0xfeffc000;
  Check(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map), "KVM_SET_IDENTITY_MAP_ADDR");
  Check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000), "KVM_SET_TSS_ADDR");
  Check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
}

Vcpu MakeVcpu(int kvm, int vm) {
  alignas(8) static char buffer[sizeof(kvm_cpuid2) + kCpuidEntries * sizeof(kvm_cpuid_entry2)];
  auto* const cpuid = reinterpret_cast<kvm_cpuid2*>(buffer);
  cpuid->nent = kCpuidEntries;
  Check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
  const int size = Check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
  const int fd = Check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  Check(ioctl(fd, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
  return {fd, static_cast<kvm_run*>(Map(static_cast<size_t>(size), fd))};
}

// Loads an ELF64 image; the entry that its PVH note (type 18) names.
uint32_t Load(const char* path, char* ram) {
  const int file = Check(open(path, O_RDONLY | O_CLOEXEC), path);
  Elf64_Ehdr header;
  Check(pread(file, &header, sizeof header, 0) == sizeof header ? 0 : -1, path);
  Elf64_Phdr segments[16];
  const size_t size = header.e_phnum * sizeof segments[0];
  if (size > sizeof segments) exit(2);
  Check(
      pread(file, segments, size, static_cast<off_t>(header.e_phoff)) == static_cast<ssize_t>(size)
          ? 0
          : -1,
      path);
  uint32_t entry = 0;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const Elf64_Phdr& segment = segments[i];
    if (segment.p_type == PT_LOAD && segment.p_paddr + segment.p_filesz <= kRamSize) {
      Check(static_cast<int>(pread(file, ram + segment.p_paddr, segment.p_filesz,
                                   static_cast<off_t>(segment.p_offset))),
            path);
    } else if (segment.p_type == PT_NOTE) {
      char note[64];  // ours has one note: 12 bytes, "Xen", the entry
      Check(static_cast<int>(pread(file, note, sizeof note, static_cast<off_t>(segment.p_offset))),
            path);
      memcpy(&entry, note + 16, sizeof entry);
    }
  }
  return entry;
}

kvm_segment Flat(uint16_t selector, uint8_t type) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = segment.s = segment.g = segment.db = 1;
  return segment;
}

void SetRegisters(int vcpu, uint32_t entry) {
  kvm_sregs sregs{};
  Check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  sregs.cs = Flat(0x8, 0xb);
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = Flat(0x10, 0x3);
  sregs.tr = {};
  sregs.tr.limit = 0x67;
  sregs.tr.type = 0xb;
  sregs.tr.present = 1;
  sregs.cr0 = 0x11;
  Check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  kvm_regs regs{};
  regs.rip = entry;
  regs.rbx = kStartInfo;
  regs.rflags = 2;
  Check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

void* Run(void* argument) {
  const Vcpu& vcpu = *static_cast<Vcpu*>(argument);
  while (true) {
    Check(ioctl(vcpu.fd, KVM_RUN, 0), "KVM_RUN");
    if (vcpu.run->exit_reason == KVM_EXIT_MMIO) continue;
    if (vcpu.run->exit_reason != KVM_EXIT_IO) exit(4);
    char* const data = reinterpret_cast<char*>(vcpu.run) + vcpu.run->io.data_offset;
    if (vcpu.run->io.direction == KVM_EXIT_IO_IN) {
      memset(data, 0xff, vcpu.run->io.size);
    } else if (vcpu.run->io.port == 0xf4) {
      exit(static_cast<unsigned char>(*data) << 1 | 1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int kvm = Check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
  const int vm = Check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  char* const ram = MakeRam(vm);
  MakeInterruptControllers(vm);
  Vcpu vcpu = MakeVcpu(kvm, vm);
  const StartInfo start_info;
  memcpy(ram + kStartInfo, &start_info, sizeof start_info);
  SetRegisters(vcpu.fd, Load(argv[1], ram));
  pthread_t thread;
  Check(-pthread_create(&thread, nullptr, Run, &vcpu), "pthread_create");
  pthread_join(thread, nullptr);
}
