// Kernel images assembled in memory, and a machine to load them into: for the loaders' tests.
//
// Written from the specifications' offsets, not from the loaders' structures, so that a field at a
// wrong place shows.
#pragma once

#include <elf.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "boot/loader.h"

namespace crossbar::test {

class Bytes {
 public:
  explicit Bytes(size_t size = 0) : bytes_(size) {}

  // Little-endian, like the machine; grows as needed.
  template <typename T>
  void Put(size_t offset, const T& value) {
    if (bytes_.size() < offset + sizeof value) bytes_.resize(offset + sizeof value);
    std::memcpy(&bytes_[offset], &value, sizeof value);
  }
  void PutText(size_t offset, std::string_view text) {
    for (const char c : text) Put(offset++, c);
  }
  // `size` bytes that are neither zero nor all the same.
  void PutPattern(size_t offset, size_t size) {
    for (size_t i = 0; i < size; ++i) Put(offset + i, PatternAt(i));
  }
  static uint8_t PatternAt(size_t i) { return static_cast<uint8_t>(i % 251 + 1); }

  void Truncate(size_t size) { bytes_.resize(size); }
  size_t size() const { return bytes_.size(); }
  std::span<const std::byte> span() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

struct ElfSegment {
  uint64_t address = kMiB;
  uint64_t file_size = 0x100;  // of pattern
  uint64_t memory_size = 0x100;
  uint64_t virtual_address = 0;  // 0: as `address`
};

struct ElfNote {
  std::string name;
  uint32_t type = 0;
  std::vector<uint8_t> descriptor;
};

inline ElfNote PvhNote(uint64_t entry, size_t width = 4) {
  ElfNote note{"Xen", 18, std::vector<uint8_t>(width)};
  std::memcpy(note.descriptor.data(), &entry, std::min(width, sizeof entry));
  return note;
}

// One ELF file: program headers at 0x40, notes at 0x800, segment i at 0x1000 * (i + 1).
struct ElfBuilder {
  uint16_t machine = EM_X86_64;
  uint16_t type = ET_EXEC;
  uint64_t entry = kMiB;
  uint64_t note_alignment = 4;
  std::vector<ElfSegment> segments = {ElfSegment{}};
  std::vector<ElfNote> notes;

  template <typename Ehdr, typename Phdr>
  Bytes Build() const {
    Bytes file;
    Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = sizeof(Ehdr) == sizeof(Elf64_Ehdr) ? ELFCLASS64 : ELFCLASS32;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = type;
    header.e_machine = machine;
    header.e_entry = static_cast<decltype(header.e_entry)>(entry);
    header.e_phoff = 0x40;
    header.e_phentsize = sizeof(Phdr);
    header.e_phnum = static_cast<uint16_t>(segments.size() + (notes.empty() ? 0 : 1));
    file.Put(0, header);
    size_t at = header.e_phoff;
    for (size_t i = 0; i < segments.size(); ++i, at += sizeof(Phdr)) {
      const ElfSegment& segment = segments[i];
      const size_t offset = 0x1000 * (i + 1);
      file.Put(at, MakeProgram<Phdr>(PT_LOAD, offset, segment, 0x1000));
      file.PutPattern(offset, segment.file_size);
    }
    if (notes.empty()) return file;
    const size_t end = PutNotes(&file, 0x800);
    const ElfSegment place{.address = 0, .file_size = end - 0x800, .memory_size = end - 0x800};
    file.Put(at, MakeProgram<Phdr>(PT_NOTE, 0x800, place, note_alignment));
    return file;
  }
  Bytes Build64() const { return Build<Elf64_Ehdr, Elf64_Phdr>(); }
  Bytes Build32() const { return Build<Elf32_Ehdr, Elf32_Phdr>(); }

 private:
  template <typename Phdr>
  static Phdr MakeProgram(uint32_t kind, size_t offset, const ElfSegment& segment, uint64_t align) {
    using Word = decltype(Phdr::p_offset);
    Phdr program{};
    program.p_type = kind;
    program.p_offset = static_cast<Word>(offset);
    program.p_paddr = static_cast<Word>(segment.address);
    program.p_vaddr =
        segment.virtual_address != 0 ? static_cast<Word>(segment.virtual_address) : program.p_paddr;
    program.p_filesz = static_cast<Word>(segment.file_size);
    program.p_memsz = static_cast<Word>(segment.memory_size);
    program.p_align = static_cast<Word>(align);
    return program;
  }

  // Returns where they end.
  size_t PutNotes(Bytes* file, size_t at) const {
    for (const ElfNote& note : notes) {
      file->Put(at, static_cast<uint32_t>(note.name.size() + 1));
      file->Put(at + 4, static_cast<uint32_t>(note.descriptor.size()));
      file->Put(at + 8, note.type);
      file->PutText(at + 12, note.name + '\0');
      at += AlignUp(12 + note.name.size() + 1, note_alignment);
      for (size_t i = 0; i < note.descriptor.size(); ++i) file->Put(at + i, note.descriptor[i]);
      at += AlignUp(note.descriptor.size(), note_alignment);
      if (file->size() < at) file->Put(at - 1, uint8_t{0});
    }
    return at;
  }
};

// Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
inline Bytes MakeBzImage(size_t payload_bytes = 0x1000) {
  Bytes file;
  file.Put<uint8_t>(0x1f1, 3);                                           // setup_sects
  file.Put<uint32_t>(0x1f4, static_cast<uint32_t>(payload_bytes / 16));  // syssize
  file.Put<uint16_t>(0x1fe, 0xaa55);                                     // boot_flag
  file.Put<uint8_t>(0x200, 0xeb);                                        // jump over the header
  file.Put<uint8_t>(0x201, 0x6c - 2);                                    // ends at 0x26c
  file.PutText(0x202, "HdrS");
  file.Put<uint16_t>(0x206, 0x020f);      // version
  file.Put<uint8_t>(0x211, 0x01);         // loadflags: LOADED_HIGH
  file.Put<uint32_t>(0x214, 0x100000);    // code32_start
  file.Put<uint32_t>(0x22c, 0x7fffffff);  // initrd_addr_max
  file.Put<uint32_t>(0x230, 0x200000);    // kernel_alignment
  file.Put<uint8_t>(0x234, 1);            // relocatable_kernel
  file.Put<uint16_t>(0x236, 0x0001);      // xloadflags: XLF_KERNEL_64
  file.Put<uint32_t>(0x238, 2047);        // cmdline_size
  file.Put<uint64_t>(0x258, 0x400000);    // pref_address
  file.Put<uint32_t>(0x260, 0x200000);    // init_size
  file.PutPattern(4 * 512, payload_bytes);
  return file;
}

// A Multiboot header (specification 3.1.1) at `offset`, with its checksum.
inline void PutMultibootHeader(Bytes* file, size_t offset, uint32_t flags) {
  file->Put<uint32_t>(offset, 0x1badb002);
  file->Put<uint32_t>(offset + 4, flags);
  file->Put<uint32_t>(offset + 8, 0u - 0x1badb002u - flags);
}

// 16 MiB from 0 and 4 MiB from 4 GiB, with ECAM at 3 GiB.
class Machine {
 public:
  static constexpr uint64_t kLowRam = 16 * kMiB;
  static constexpr GuestRange kEcam{Gpa(0xe0000000), 256 * kMiB};

  Machine() {
    platform.ram = {{Gpa(0), kLowRam}, {Gpa(k4GiB), 4 * kMiB}};
    platform.pci.ecam = kEcam;
    ram = GuestRam::Create(platform.ram).value();
  }

  Result<LoadedGuest> Load(LoadRequest request) { return LoadGuest(ram, platform, request); }
  Result<LoadedGuest> Load(const Bytes& kernel) {
    const MemoryImage image("kernel.bin", kernel.span());
    LoadRequest request;
    request.kernel = &image;
    return Load(request);
  }
  // The error of a load that must fail.
  std::string LoadError(const Bytes& kernel) {
    const auto loaded = Load(kernel);
    return loaded ? "loaded" : loaded.error().ToString();
  }

  template <typename T>
  T Read(uint64_t address) const {
    T value{};
    CHECK(ram.Read(Gpa(address), std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  std::string ReadText(uint64_t address) const {
    std::string text;
    while (const char c = Read<char>(address++)) text += c;
    return text;
  }
  // Whether [address, address + size) holds Bytes::PutPattern's bytes from the first on.
  bool HoldsPattern(uint64_t address, size_t size) const {
    for (size_t i = 0; i < size; ++i)
      if (Read<uint8_t>(address + i) != Bytes::PatternAt(i)) return false;
    return true;
  }
  bool HoldsOnly(uint8_t value, GuestRange range) const {
    const std::span<std::byte> bytes = ram.At(range).value();
    for (const std::byte byte : bytes)
      if (byte != std::byte{value}) return false;
    return true;
  }
  // As RAM that a guest has used.
  void Fill(uint8_t value) {
    for (const GuestRam::Bank& bank : ram.banks())
      std::memset(bank.mapping.address().pointer(), value, bank.range.size);
  }

  GuestRam ram;
  PlatformInfo platform;
};

}  // namespace crossbar::test
