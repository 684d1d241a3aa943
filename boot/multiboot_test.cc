#include "boot/multiboot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "boot/kernel_images_test.h"

namespace crossbar {
namespace {

using test::Bytes;
using test::ElfBuilder;
using test::Machine;
using test::PutMultibootHeader;

constexpr uint64_t kInformation = 0x2000;

Bytes MultibootElf(uint32_t flags = 0) {
  ElfBuilder elf;
  elf.machine = EM_386;
  elf.entry = kMiB + 0x40;
  elf.segments = {{.address = kMiB, .file_size = 0x200, .memory_size = 0x3000}};
  Bytes file = elf.Build32();
  PutMultibootHeader(&file, 0x1000, flags);
  return file;
}

// A flat binary of 0x3000 bytes of pattern whose header, at 0x100, places it at 2 MiB from file
// offset 0x80 on.
Bytes FlatBinary() {
  Bytes file;
  file.PutPattern(0, 0x3000);
  PutMultibootHeader(&file, 0x100, 1u << 16);
  file.Put<uint32_t>(0x10c, 2 * kMiB + 0x80);    // header_addr
  file.Put<uint32_t>(0x110, 2 * kMiB);           // load_addr
  file.Put<uint32_t>(0x114, 2 * kMiB + 0x2000);  // load_end_addr
  file.Put<uint32_t>(0x118, 2 * kMiB + 0x4000);  // bss_end_addr
  file.Put<uint32_t>(0x11c, 2 * kMiB + 0x1234);  // entry_addr
  return file;
}

TEST(Multiboot, EntersAnElfWithMagicInEaxAndInformationInEbx) {
  Machine machine;
  machine.Fill(0xee);
  const LoadedGuest guest = machine.Load(MultibootElf()).value();
  EXPECT_EQ(guest.format, KernelFormat::kMultiboot);
  EXPECT_STREQ(FormatName(guest.format), "Multiboot");
  EXPECT_EQ(guest.entry.mode, EntryState::Mode::kProtected32);
  EXPECT_EQ(guest.entry.rip, Gpa(kMiB + 0x40));
  EXPECT_EQ(guest.entry.rax, 0x2badb002u);
  EXPECT_EQ(guest.entry.rbx, kInformation);
  EXPECT_EQ(machine.Read<uint32_t>(kMiB), 0x1badb002u);
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(kMiB + 0x200), 0x2e00}));
}

// Specification 3.3
TEST(Multiboot, InformationHasEveryFieldAtItsOffset) {
  const Bytes file = MultibootElf(0x3);
  Bytes data;
  data.PutPattern(0, 0x1801);
  const MemoryImage kernel("dir/kernel.elf", file.span()), initrd("initrd", data.span()),
      module("mod", data.span().first(0x20));
  LoadRequest request;
  request.kernel = &kernel;
  request.initrd = &initrd;
  request.modules = {{&module, "a=1 b"}};
  request.command_line = "x y";
  Machine machine;
  machine.Fill(0xee);
  const LoadedGuest guest = machine.Load(request).value();
  const auto word = [&](uint64_t offset) { return machine.Read<uint32_t>(kInformation + offset); };
  EXPECT_EQ(word(0), 1u << 0 | 1u << 2 | 1u << 3 | 1u << 6 | 1u << 9);
  EXPECT_EQ(word(4), 640u);                                     // mem_lower
  EXPECT_EQ(word(8), (Machine::kLowRam - kMiB) / kKiB);         // mem_upper
  EXPECT_EQ(machine.ReadText(word(16)), "dir/kernel.elf x y");  // cmdline
  EXPECT_EQ(word(20), 2u);                                      // mods_count
  EXPECT_EQ(word(44), 5u * 24);                                 // mmap_length
  EXPECT_EQ(machine.ReadText(word(64)), "crossbar");            // boot_loader_name
  for (const uint64_t unused : {12u, 28u, 32u, 36u, 40u, 52u, 56u, 60u, 68u, 72u, 84u})
    EXPECT_EQ(word(unused), 0u) << unused;

  const std::string strings[] = {"initrd", "mod a=1 b"};
  const uint32_t sizes[] = {0x1801, 0x20};
  for (uint32_t i = 0; i < 2; ++i) {
    const uint64_t entry = word(24) + i * 16;
    const auto start = machine.Read<uint32_t>(entry);
    EXPECT_EQ(start, guest.modules[i].start.value());
    EXPECT_TRUE(IsAligned(start, kPageSize));
    EXPECT_EQ(machine.Read<uint32_t>(entry + 4), start + sizes[i]);  // one past the end
    EXPECT_EQ(machine.ReadText(machine.Read<uint32_t>(entry + 8)), strings[i]);
    EXPECT_EQ(machine.Read<uint32_t>(entry + 12), 0u);
    EXPECT_TRUE(machine.HoldsPattern(start, sizes[i]));
  }
}

TEST(Multiboot, MemoryMapEntriesCountTheirSizeWithoutTheSizeField) {
  Machine machine;
  ASSERT_TRUE(machine.Load(MultibootElf()));
  const struct {
    uint64_t start, size;
    uint32_t type;
  } kExpected[] = {{0, 0xa0000, 1},
                   {0xa0000, 0x60000, 2},
                   {kMiB, Machine::kLowRam - kMiB, 1},
                   {Machine::kEcam.start.value(), Machine::kEcam.size, 2},
                   {k4GiB, 4 * kMiB, 1}};
  uint64_t at = machine.Read<uint32_t>(kInformation + 48);
  for (const auto& entry : kExpected) {
    EXPECT_EQ(machine.Read<uint32_t>(at), 20u);
    EXPECT_EQ(machine.Read<uint64_t>(at + 4), entry.start);
    EXPECT_EQ(machine.Read<uint64_t>(at + 12), entry.size);
    EXPECT_EQ(machine.Read<uint32_t>(at + 20), entry.type);
    at += machine.Read<uint32_t>(at) + 4;
  }
}

TEST(Multiboot, ACommandLineWithoutArgumentsIsTheKernelsName) {
  Machine machine;
  ASSERT_TRUE(machine.Load(MultibootElf()));
  EXPECT_EQ(machine.ReadText(machine.Read<uint32_t>(kInformation + 16)), "kernel.bin");
  EXPECT_EQ(machine.Read<uint32_t>(kInformation + 20), 0u);  // no modules
}

TEST(Multiboot, LoadsAFlatBinaryWhereItsHeaderSays) {
  Machine machine;
  machine.Fill(0xee);
  const Bytes file = FlatBinary();
  const LoadedGuest guest = machine.Load(file).value();
  EXPECT_EQ(guest.entry.rip, Gpa(2 * kMiB + 0x1234));
  EXPECT_EQ(guest.kernel, (GuestRange{Gpa(2 * kMiB), 0x4000}));
  const auto loaded = machine.ram.At({Gpa(2 * kMiB), 0x2000}).value();
  EXPECT_EQ(std::memcmp(loaded.data(), file.span().data() + 0x80, 0x2000), 0);
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(2 * kMiB + 0x2000), 0x2000}));
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(2 * kMiB + 0x4000), 0x1000}));
}

TEST(Multiboot, AFlatBinaryWithoutEndsLoadsWhole) {
  Bytes file = FlatBinary();
  file.Put<uint32_t>(0x114, 0);
  file.Put<uint32_t>(0x118, 0);
  Machine machine;
  EXPECT_EQ(machine.Load(file).value().kernel, (GuestRange{Gpa(2 * kMiB), 0x3000 - 0x80}));
}

TEST(Multiboot, AddressFieldsWinOverElfHeaders) {
  Bytes file = MultibootElf(1u << 16);
  file.Put<uint32_t>(0x100c, 3 * kMiB);
  file.Put<uint32_t>(0x1010, 3 * kMiB);
  file.Put<uint32_t>(0x1014, 0);
  file.Put<uint32_t>(0x1018, 0);
  file.Put<uint32_t>(0x101c, 3 * kMiB);
  Machine machine;
  EXPECT_EQ(machine.Load(file).value().entry.rip, Gpa(3 * kMiB));
}

TEST(Multiboot, TheHeaderIsFoundOnlyWholeAlignedAndWithinEightKiB) {
  const auto found = [](size_t offset, uint32_t flags) {
    Bytes file(16 * kKiB);
    PutMultibootHeader(&file, offset, flags);
    const auto header = FindMultibootHeader(file.span());
    EXPECT_TRUE(!header || header->offset == offset);
    return header.has_value();
  };
  EXPECT_TRUE(found(0, 0));
  EXPECT_TRUE(found(8192 - 12, 0));
  EXPECT_FALSE(found(8192 - 8, 0));
  EXPECT_FALSE(found(8192, 0));
  EXPECT_FALSE(found(2, 0));
  EXPECT_TRUE(found(8192 - 32, 1u << 16));
  EXPECT_FALSE(found(8192 - 28, 1u << 16));
  Bytes bad(64);
  PutMultibootHeader(&bad, 0, 0);
  bad.Put<uint32_t>(8, 1);  // checksum
  EXPECT_FALSE(FindMultibootHeader(bad.span()));
}

TEST(Multiboot, MandatoryFlagsThatWeCannotServeAreNamed) {
  Machine machine;
  EXPECT_THAT(machine.LoadError(MultibootElf(1u << 2)),
              testing::HasSubstr("'kernel.bin' requires a video mode (header flag bit 2)"));
  EXPECT_THAT(machine.LoadError(MultibootElf(1u << 7)), testing::HasSubstr("header flag bit 7"));
  EXPECT_THAT(machine.LoadError(MultibootElf(1u << 15)), testing::HasSubstr("header flag bit 15"));
  EXPECT_EQ(machine.LoadError(MultibootElf(1u << 17)), "loaded");  // optional
}

TEST(Multiboot, MalformedAddressFieldsAreRefused) {
  const struct {
    size_t field;
    uint32_t value;
    const char* expected;
  } kCases[] = {
      {0x10c, 2 * kMiB - 1, "load_addr 0x200000 is above header_addr 0x1fffff"},
      {0x10c, 2 * kMiB + 0x101, "lies 0x1 bytes before the start of the file"},
      {0x114, 2 * kMiB, "load_end_addr 0x200000 is not within the 0x3000 bytes"},
      {0x114, 1, "load_end_addr 0x1 is not within"},
      {0x114, 2 * kMiB + 0x2f81, "load_end_addr 0x202f81 is not within"},
      {0x118, 2 * kMiB + 0x1fff, "bss_end_addr 0x201fff is below"},
      {0x118, Machine::kLowRam + 1, "not all RAM"},
      {0x11c, 2 * kMiB + 0x4000, "entry_addr 0x204000 is not within the image"},
      {0x11c, 0, "entry_addr 0x0 is not within the image"},
  };
  for (const auto& c : kCases) {
    Bytes file = FlatBinary();
    file.Put(c.field, c.value);
    Machine machine;
    EXPECT_THAT(machine.LoadError(file), testing::HasSubstr(c.expected)) << c.expected;
    EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(0), Machine::kLowRam})) << c.expected;
  }
}

TEST(Multiboot, FilesThatTheHeaderDoesNotFitAreRefused) {
  Machine machine;
  Bytes flat(0x100);
  PutMultibootHeader(&flat, 0, 0);
  EXPECT_THAT(machine.LoadError(flat), testing::HasSubstr("is no ELF file and has no addresses"));
  ElfBuilder elf;
  Bytes wide = elf.Build64();
  PutMultibootHeader(&wide, 0x1000, 0);
  EXPECT_THAT(machine.LoadError(wide), testing::HasSubstr("objcopy -O elf32-i386"));
  elf.entry = 0;
  Bytes lost = elf.Build32();
  PutMultibootHeader(&lost, 0x1000, 0);
  EXPECT_THAT(machine.LoadError(lost), testing::HasSubstr("entry point that no segment holds"));
}

}  // namespace
}  // namespace crossbar
