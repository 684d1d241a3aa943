#include "boot/elf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "boot/kernel_images_test.h"

namespace crossbar {
namespace {

using test::Bytes;
using test::ElfBuilder;
using test::Machine;
using test::PvhNote;

ElfBuilder PvhElf() {
  ElfBuilder elf;
  elf.notes = {PvhNote(kMiB)};
  return elf;
}

// Offsets in Elf64_Ehdr and, from 0x40, Elf64_Phdr.
constexpr size_t kData = 5, kClass = 4, kType = 16, kMachine = 18, kPhoff = 32, kPhentsize = 54,
                 kPhnum = 56;
constexpr size_t kOffset = 0x48, kPaddr = 0x58, kFilesz = 0x60, kMemsz = 0x68;
constexpr size_t kNoteFilesz = 0x40 + 0x38 + 0x20;

TEST(Elf, EntryIsTranslatedToItsPhysicalAddress) {
  ElfBuilder elf;
  elf.segments = {{.address = kMiB, .virtual_address = 0xc0100000}};
  const auto parse = [&](uint64_t entry) {
    elf.entry = entry;
    const Bytes file = elf.Build32();
    return ParseElf(MemoryImage("k", file.span())).value().entry;
  };
  EXPECT_EQ(parse(0xc0100010), Gpa(kMiB + 0x10));
  EXPECT_EQ(parse(kMiB + 0x10), Gpa(kMiB + 0x10));  // physical already
  EXPECT_EQ(parse(0xc0100100), std::nullopt);
}

TEST(Elf, EmptySegmentsAreLeftOut) {
  ElfBuilder elf = PvhElf();
  elf.segments.push_back({.address = 1, .file_size = 0, .memory_size = 0});
  const Bytes file = elf.Build64();
  EXPECT_EQ(ParseElf(MemoryImage("k", file.span())).value().segments.size(), 1u);
}

TEST(Elf, OfASegmentWithoutBytesInTheFileTheOffsetDoesNotMatter) {
  ElfBuilder elf = PvhElf();
  elf.segments.push_back({.address = 2 * kMiB, .file_size = 0});
  Bytes file = elf.Build64();
  file.Put<uint64_t>(kOffset + sizeof(Elf64_Phdr), 1ull << 40);
  Machine machine;
  machine.Fill(0xa5);
  const MemoryImage image("k", file.span());
  LoadRequest request;
  request.kernel = &image;
  const auto loaded = machine.Load(request);
  ASSERT_TRUE(loaded) << loaded.error().message();
  EXPECT_TRUE(machine.HoldsPattern(kMiB, 0x100));
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(2 * kMiB), 0x100}));
}

TEST(Elf, NotesThatAreCutShortEndTheSearch) {
  ElfBuilder elf = PvhElf();
  elf.notes.insert(elf.notes.begin(), {"Other", 1, {}});
  Bytes file = elf.Build64();
  file.Put<uint32_t>(0x804, 0xffffff00);  // n_descsz of the first note
  EXPECT_EQ(ParseElf(MemoryImage("k", file.span())).value().pvh_entry, std::nullopt);
}

struct Malformed {
  const char* name;
  std::function<void(Bytes*)> damage;
  const char* expected;
};

const Malformed kMalformed[] = {
    {"aarch64", [](Bytes* f) { f->Put<uint16_t>(kMachine, 183); }, "ELF file for AArch64"},
    {"riscv", [](Bytes* f) { f->Put<uint16_t>(kMachine, 243); }, "ELF file for RISC-V"},
    {"unknown machine", [](Bytes* f) { f->Put<uint16_t>(kMachine, 999); }, "machine 999"},
    {"big-endian", [](Bytes* f) { f->Put<uint8_t>(kData, 2); }, "big-endian"},
    {"class", [](Bytes* f) { f->Put<uint8_t>(kClass, 3); }, "unknown class 3"},
    {"object file", [](Bytes* f) { f->Put<uint16_t>(kType, 1); }, "not an executable; link it"},
    {"no headers", [](Bytes* f) { f->Put<uint16_t>(kPhnum, 0); }, "without program headers"},
    {"many headers", [](Bytes* f) { f->Put<uint16_t>(kPhnum, 257); }, "257 program headers"},
    {"PN_XNUM", [](Bytes* f) { f->Put<uint16_t>(kPhnum, 0xffff); }, "65535 program headers"},
    {"header size", [](Bytes* f) { f->Put<uint16_t>(kPhentsize, 32); }, "32 bytes instead of 56"},
    {"headers far away", [](Bytes* f) { f->Put<uint64_t>(kPhoff, ~0ull - 8); }, "is truncated"},
    {"file over memory", [](Bytes* f) { f->Put<uint64_t>(kMemsz, 0xff); },
     "more bytes in the file than in memory"},
    {"segment wraps", [](Bytes* f) { f->Put<uint64_t>(kPaddr, ~0ull - 0x10); }, "wraps around"},
    {"segment past the file", [](Bytes* f) { f->Put<uint64_t>(kOffset, 0x1001); },
     "truncated at 0x1100 bytes"},
    {"offset wraps", [](Bytes* f) { f->Put<uint64_t>(kOffset, ~0ull - 0x10); }, "truncated at"},
    {"file size wraps",
     [](Bytes* f) {
       f->Put<uint64_t>(kFilesz, ~0ull);
       f->Put<uint64_t>(kMemsz, ~0ull);
       f->Put<uint64_t>(kPaddr, 0);
     },
     "truncated at"},
    {"out of RAM", [](Bytes* f) { f->Put<uint64_t>(kPaddr, Machine::kLowRam - 0x80); },
     "segment 0 needs 0xffff80-0x100007f, which is not all RAM; give the guest more memory"},
    {"huge bss", [](Bytes* f) { f->Put<uint64_t>(kMemsz, 1ull << 62); }, "not all RAM"},
    {"over ACPI", [](Bytes* f) { f->Put<uint64_t>(kPaddr, 0xeff80); },
     "segment 0 needs 0xeff80-0xf007f, but the area of a PC's ROMs is at 0xa0000-0xfffff"},
    {"over start info", [](Bytes* f) { f->Put<uint64_t>(kPaddr, 0x2f80); },
     "but the VMM's boot information is at 0x2000-0x2fff; link the kernel"},
    {"huge notes", [](Bytes* f) { f->Put<uint64_t>(kNoteFilesz, 0x10001); },
     "note segment of 0x10001 bytes"},
    {"notes past the file", [](Bytes* f) { f->Put<uint64_t>(kNoteFilesz, 0x9000); },
     "is truncated"},
    {"odd PVH note", [](Bytes* f) { f->Put<uint32_t>(0x804, 2); }, "PVH entry note of 2 bytes"},
    {"ELF header cut", [](Bytes* f) { f->Truncate(40); }, "is truncated"},
    {"64-bit header cut", [](Bytes* f) { f->Truncate(52); }, "is truncated"},
    {"program headers cut", [](Bytes* f) { f->Truncate(0x60); }, "is truncated"},
    {"no note", [](Bytes* f) { f->Put<uint32_t>(0x808, 17); }, "without a PVH note"},
};

TEST(Elf, MalformedFilesAreRefusedInOneLineThatSaysWhy) {
  for (const Malformed& c : kMalformed) {
    Bytes file = PvhElf().Build64();
    c.damage(&file);
    Machine machine;
    // The entry moves along where a case moves the segment: that check is not what is tested here.
    const uint64_t address = [&] {
      uint64_t paddr = 0;
      if (file.size() >= kPaddr + 8) std::memcpy(&paddr, file.span().data() + kPaddr, 8);
      return paddr;
    }();
    if (file.size() > 0x814) file.Put<uint32_t>(0x810, static_cast<uint32_t>(address));
    const std::string error = machine.LoadError(file);
    EXPECT_THAT(error, testing::HasSubstr(c.expected)) << c.name;
    EXPECT_THAT(error, testing::HasSubstr("kernel")) << c.name;
    EXPECT_EQ(error.find('\n'), std::string::npos) << c.name;
    EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(0), Machine::kLowRam})) << c.name;
  }
}

TEST(Elf, SegmentsMustNotOverlap) {
  ElfBuilder elf = PvhElf();
  elf.segments = {{.address = kMiB}, {.address = kMiB + 0xff}};
  Machine machine;
  EXPECT_THAT(machine.LoadError(elf.Build64()),
              testing::HasSubstr("segment 1 needs 0x1000ff-0x1001fe, but segment 0 is at "
                                 "0x100000-0x1000ff"));
}

}  // namespace
}  // namespace crossbar
