#include "boot/elf.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace crossbar {
namespace {

// Generous bounds on what a file can make us read: kernels have about 5 headers and 1 KiB of notes.
constexpr size_t kMaxProgramHeaders = 256;
constexpr uint64_t kMaxNoteBytes = 64 * kKiB;

constexpr uint32_t kXenPhys32Entry = 18;  // xen/include/public/elfnote.h
constexpr uint32_t kCrossbarDeviceTree = 1;

struct Elf32 {
  using Header = Elf32_Ehdr;
  using Program = Elf32_Phdr;
};
struct Elf64 {
  using Header = Elf64_Ehdr;
  using Program = Elf64_Phdr;
};

std::string MachineName(uint16_t machine) {
  switch (machine) {
    case EM_AARCH64:
      return "AArch64";
    case EM_ARM:
      return "32-bit ARM";
    case EM_RISCV:
      return "RISC-V";
    case EM_PPC64:
      return "PowerPC";
    case EM_S390:
      return "s390";
    case 258:
      return "LoongArch";  // EM_LOONGARCH, not in every elf.h
    default:
      return fmt::format("machine {}", machine);
  }
}

// What both classes have at the same place: identification, e_type and e_machine.
Result<> CheckTarget(const ImageFile& file, const Elf32_Ehdr& header) {
  const std::string& name = file.name();
  if (header.e_ident[EI_DATA] != ELFDATA2LSB)
    return Fail("'{}' is a big-endian ELF file; give an x86 kernel", name);
  if (header.e_ident[EI_CLASS] != ELFCLASS32 && header.e_ident[EI_CLASS] != ELFCLASS64)
    return Fail("'{}' is an ELF file of unknown class {}; give an x86 kernel", name,
                header.e_ident[EI_CLASS]);
  if (header.e_machine != EM_X86_64 && header.e_machine != EM_386) {
    return Fail("'{}' is an ELF file for {}; give an x86 kernel", name,
                MachineName(header.e_machine));
  }
  if (header.e_type != ET_EXEC && header.e_type != ET_DYN)
    return Fail("'{}' is an ELF file of type {}, not an executable; link it", name, header.e_type);
  return {};
}

// One entry of a note segment: the name without its zero, the descriptor as it is.
struct Note {
  std::string_view name;
  uint32_t type;
  std::span<const std::byte> descriptor;
};

// Takes one note off the front of `bytes`; nothing where they end or are malformed. The three
// header words are the same in both classes; name and descriptor are padded to `alignment`.
std::optional<Note> TakeNote(std::span<const std::byte>* bytes, uint64_t alignment) {
  Elf64_Nhdr header;
  if (bytes->size() < sizeof header) return std::nullopt;
  std::memcpy(&header, bytes->data(), sizeof header);
  const uint64_t descriptor = AlignUp(sizeof header + uint64_t{header.n_namesz}, alignment);
  const uint64_t end = descriptor + header.n_descsz;
  if (end > bytes->size()) return std::nullopt;
  const auto* name = reinterpret_cast<const char*>(bytes->data() + sizeof header);
  Note note{.name = std::string_view(name, header.n_namesz),
            .type = header.n_type,
            .descriptor = bytes->subspan(descriptor, header.n_descsz)};
  if (note.name.ends_with('\0')) note.name.remove_suffix(1);
  *bytes = bytes->subspan(std::min<uint64_t>(AlignUp(end, alignment), bytes->size()));
  return note;
}

Result<> ReadNotes(const ImageFile& file, uint64_t offset, uint64_t size, uint64_t alignment,
                   ElfImage* image) {
  if (size > kMaxNoteBytes) {
    return Fail("'{}' has a note segment of {:#x} bytes, at most {:#x} are read; strip it",
                file.name(), size, kMaxNoteBytes);
  }
  std::vector<std::byte> bytes(size);
  TRY(file.ReadAt(offset, bytes));
  std::span<const std::byte> rest = bytes;
  while (const std::optional<Note> note = TakeNote(&rest, alignment)) {
    if (note->name == "Crossbar" && note->type == kCrossbarDeviceTree)
      image->wants_device_tree = true;
    if (note->name != "Xen" || note->type != kXenPhys32Entry) continue;
    const size_t width = note->descriptor.size();
    if (width != 4 && width != 8) {
      return Fail("'{}' has a PVH entry note of {} bytes; it must have 4 or 8; correct it", file.name(),
                  width);
    }
    uint64_t entry = 0;  // little-endian, so the low half comes first
    std::memcpy(&entry, note->descriptor.data(), width);
    image->pvh_entry = Gpa(entry);
  }
  return {};
}

template <typename Program>
Result<> AddSegment(const ImageFile& file, size_t index, const Program& program, uint64_t e_entry,
                    ElfImage* image) {
  const auto fail = [&](std::string_view why) {
    return Fail("cannot load kernel '{}': program header {} {}; is the file damaged?", file.name(),
                index, why);
  };
  if (program.p_filesz > program.p_memsz) return fail("has more bytes in the file than in memory");
  if (program.p_memsz == 0) return {};
  const auto target = GuestRange::Checked(program.p_paddr, program.p_memsz);
  if (!target) return fail("wraps around the end of the address space");
  if (program.p_filesz != 0 &&
      (program.p_offset > file.size() || program.p_filesz > file.size() - program.p_offset)) {
    return fail(fmt::format("ends at {:#x} + {:#x} in the file, which is truncated at {:#x} bytes",
                            uint64_t{program.p_offset}, uint64_t{program.p_filesz}, file.size()));
  }
  // e_entry is virtual; the loader enters with paging off, so it needs the physical address.
  if (e_entry >= program.p_vaddr && e_entry - program.p_vaddr < program.p_memsz)
    image->entry = target->start + (e_entry - program.p_vaddr);
  image->segments.push_back({program.p_offset, program.p_filesz, *target});
  return {};
}

template <typename Elf>
Result<ElfImage> ParseClass(const ImageFile& file) {
  typename Elf::Header header;
  TRY(file.ReadAt(0, std::as_writable_bytes(std::span(&header, 1))));
  const size_t count = header.e_phnum;
  if (count == 0) return Fail("'{}' is an ELF file without program headers; link it", file.name());
  if (count > kMaxProgramHeaders) {
    return Fail("'{}' has {} program headers, at most {} are read; is the file damaged?",
                file.name(), count, kMaxProgramHeaders);
  }
  if (header.e_phentsize != sizeof(typename Elf::Program)) {
    return Fail("'{}' has program headers of {} bytes instead of {}; is the file damaged?",
                file.name(), header.e_phentsize, sizeof(typename Elf::Program));
  }
  std::vector<typename Elf::Program> programs(count);
  TRY(file.ReadAt(header.e_phoff, std::as_writable_bytes(std::span(programs))));

  ElfImage image;
  image.is_64 = sizeof(header) == sizeof(Elf64_Ehdr);
  for (size_t i = 0; i < count; ++i) {
    const auto& program = programs[i];
    if (program.p_type == PT_LOAD) TRY(AddSegment(file, i, program, header.e_entry, &image));
    // GNU tools pad the notes of 8-aligned segments to 8 bytes, those of all others to 4.
    if (program.p_type == PT_NOTE) {
      TRY(ReadNotes(file, program.p_offset, program.p_filesz, program.p_align == 8 ? 8 : 4,
                    &image));
    }
  }
  if (!image.entry && image.Contains(Gpa(header.e_entry))) image.entry = Gpa(header.e_entry);
  return image;
}

}  // namespace

bool ElfImage::Contains(Gpa address) const {
  return std::ranges::any_of(
      segments, [&](const KernelSegment& segment) { return segment.target.Contains(address); });
}

bool LooksLikeElf(std::span<const std::byte> head) {
  return head.size() >= SELFMAG && std::memcmp(head.data(), ELFMAG, SELFMAG) == 0;
}

Result<ElfImage> ParseElf(const ImageFile& file) {
  Elf32_Ehdr header;
  TRY(file.ReadAt(0, std::as_writable_bytes(std::span(&header, 1))));
  TRY(CheckTarget(file, header));
  return header.e_ident[EI_CLASS] == ELFCLASS64 ? ParseClass<Elf64>(file) : ParseClass<Elf32>(file);
}

}  // namespace crossbar
