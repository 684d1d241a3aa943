#include "boot/pvh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "boot/kernel_images_test.h"

namespace crossbar {
namespace {

using test::Bytes;
using test::ElfBuilder;
using test::Machine;
using test::PvhNote;

constexpr uint64_t kStartInfo = 0x2000;

ElfBuilder PvhElf() {
  ElfBuilder elf;
  elf.segments = {{.address = kMiB, .file_size = 0x345, .memory_size = 0x345},
                  {.address = 2 * kMiB, .file_size = 0x10, .memory_size = 0x2000}};
  elf.notes = {{"GNU", 3, {1, 2, 3, 4, 5}}, PvhNote(kMiB + 0x20)};
  return elf;
}

TEST(Pvh, LoadsSegmentsAtTheirPhysicalAddressesAndEntersWithStartInfoInEbx) {
  ElfBuilder elf = PvhElf();
  elf.segments[0].virtual_address = 0xffffffff80000000;  // as Linux: only p_paddr counts
  Machine machine;
  const LoadedGuest guest = machine.Load(elf.Build64()).value();
  EXPECT_EQ(guest.format, KernelFormat::kPvh);
  EXPECT_STREQ(FormatName(guest.format), "PVH ELF");
  EXPECT_EQ(guest.entry.mode, EntryState::Mode::kProtected32);
  EXPECT_EQ(guest.entry.rip, Gpa(kMiB + 0x20));
  EXPECT_EQ(guest.entry.rbx, kStartInfo);
  EXPECT_TRUE(guest.entry.gdt.empty());
  EXPECT_EQ(guest.kernel, (GuestRange{Gpa(kMiB), kMiB + 0x2000}));
  EXPECT_TRUE(machine.HoldsPattern(kMiB, 0x345));
  EXPECT_TRUE(machine.HoldsPattern(2 * kMiB, 0x10));
}

// xen/include/public/arch-x86/hvm/start_info.h
TEST(Pvh, StartInfoHasEveryFieldAtItsOffset) {
  Machine machine;
  const Bytes file = PvhElf().Build64();
  const MemoryImage kernel("k", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  request.command_line = "console=ttyS0 quiet";
  request.rsdp = Gpa(0xe0000);
  machine.Fill(0xa5);
  ASSERT_TRUE(machine.Load(request));
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 0), 0x336ec578u);
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 4), 1u);   // version
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 8), 0u);   // flags
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 12), 0u);  // nr_modules
  EXPECT_EQ(machine.Read<uint64_t>(kStartInfo + 16), 0u);  // modlist_paddr
  EXPECT_EQ(machine.ReadText(machine.Read<uint64_t>(kStartInfo + 24)), "console=ttyS0 quiet");
  EXPECT_EQ(machine.Read<uint64_t>(kStartInfo + 32), 0xe0000u);  // rsdp_paddr
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 48), 5u);        // memmap_entries
  EXPECT_EQ(machine.Read<uint32_t>(kStartInfo + 52), 0u);        // reserved
}

TEST(Pvh, MemoryMapHasRamWithoutTheLegacyHoleAndReservesEcam) {
  Machine machine;
  ASSERT_TRUE(machine.Load(PvhElf().Build64()));
  const struct {
    uint64_t start, size;
    uint32_t type;
  } kExpected[] = {{0, 0xa0000, 1},
                   {0xa0000, 0x60000, 2},
                   {kMiB, Machine::kLowRam - kMiB, 1},
                   {Machine::kEcam.start.value(), Machine::kEcam.size, 2},
                   {k4GiB, 4 * kMiB, 1}};
  uint64_t at = machine.Read<uint64_t>(kStartInfo + 40);
  for (const auto& entry : kExpected) {
    EXPECT_EQ(machine.Read<uint64_t>(at), entry.start);
    EXPECT_EQ(machine.Read<uint64_t>(at + 8), entry.size);
    EXPECT_EQ(machine.Read<uint32_t>(at + 16), entry.type);
    EXPECT_EQ(machine.Read<uint32_t>(at + 20), 0u);
    at += 24;
  }
}

TEST(Pvh, PassesInitrdThenModulesThenTheDeviceTreeToAKernelThatAsksForIt) {
  ElfBuilder elf = PvhElf();
  elf.notes.push_back({"Crossbar", 1, {}});
  const Bytes file = elf.Build64();
  Bytes data;
  data.PutPattern(0, 0x5001);
  const MemoryImage kernel("k", file.span()), initrd("initrd.img", data.span());
  const MemoryImage one("one", data.span().first(0x10)), two("two", data.span().first(0x1000));
  LoadRequest request;
  request.kernel = &kernel;
  request.initrd = &initrd;
  request.modules = {{&one, "first=1"}, {&two, ""}};
  request.device_tree = data.span().first(0x777);
  Machine machine;
  const LoadedGuest guest = machine.Load(request).value();
  ASSERT_EQ(guest.modules.size(), 4u);
  ASSERT_EQ(machine.Read<uint32_t>(kStartInfo + 12), 4u);
  const struct {
    uint64_t size;
    std::string string;
  } kExpected[] = {{0x5001, ""}, {0x10, "first=1"}, {0x1000, ""}, {0x777, "fdt"}};
  uint64_t entry = machine.Read<uint64_t>(kStartInfo + 16);
  for (size_t i = 0; i < guest.modules.size(); ++i, entry += 32) {
    const auto address = machine.Read<uint64_t>(entry);
    EXPECT_EQ(address, guest.modules[i].start.value());
    EXPECT_TRUE(IsAligned(address, kPageSize));
    EXPECT_GE(address, kMiB);
    EXPECT_EQ(machine.Read<uint64_t>(entry + 8), kExpected[i].size);
    EXPECT_TRUE(machine.HoldsPattern(address, kExpected[i].size)) << i;
    const auto string = machine.Read<uint64_t>(entry + 16);
    EXPECT_EQ(string == 0 ? "" : machine.ReadText(string), kExpected[i].string);
    EXPECT_EQ(machine.Read<uint64_t>(entry + 24), 0u);
  }
  // The first is as high as RAM below 4 GiB goes, and none overlaps another.
  EXPECT_EQ(guest.modules[0].start, Gpa(Machine::kLowRam - 0x6000));
  for (size_t i = 1; i < guest.modules.size(); ++i)
    EXPECT_LE(guest.modules[i].end(), guest.modules[i - 1].start);
}

TEST(Pvh, KernelsThatDoNotAskGetNoDeviceTree) {
  const Bytes file = PvhElf().Build64();
  const MemoryImage kernel("k", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  request.device_tree = file.span();
  Machine machine;
  EXPECT_TRUE(machine.Load(request).value().modules.empty());
}

TEST(Pvh, TakesElf32AndWideNotesAndNotesPaddedToEight) {
  for (const size_t width : {4u, 8u}) {
    for (const uint64_t alignment : {0u, 4u, 8u}) {
      ElfBuilder elf = PvhElf();
      // A name and a descriptor whose ends differ between the two paddings.
      elf.notes = {{"Four", 5, {1, 2, 3, 4, 5, 6, 7, 8, 9}}, PvhNote(kMiB + 4, width)};
      elf.note_alignment = alignment == 0 ? 4 : alignment;
      Machine machine;
      EXPECT_EQ(machine.Load(elf.Build64()).value().entry.rip, Gpa(kMiB + 4));
      elf.machine = EM_386;
      EXPECT_EQ(machine.Load(elf.Build32()).value().entry.rip, Gpa(kMiB + 4));
    }
  }
}

TEST(Pvh, LoadsAboveFourGiB) {
  ElfBuilder elf = PvhElf();
  elf.segments[1].address = k4GiB + 0x1000;
  Machine machine;
  ASSERT_TRUE(machine.Load(elf.Build64()));
  EXPECT_TRUE(machine.HoldsPattern(k4GiB + 0x1000, 0x10));
}

TEST(Pvh, ZeroesBssOverUsedRamAndTouchesNothingElse) {
  const Bytes file = PvhElf().Build64();
  Machine machine;
  machine.Fill(0xee);
  ASSERT_TRUE(machine.Load(file));
  EXPECT_TRUE(machine.HoldsPattern(2 * kMiB, 0x10));
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(2 * kMiB + 0x10), 0x1ff0}));
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(0), 0x1000}));
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(0xa0000), 0x60000}));  // ACPI tables are not ours
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(kMiB + 0x345), kMiB - 0x345}));
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(2 * kMiB + 0x2000), Machine::kLowRam - 3 * kMiB}));
}

TEST(Pvh, LeavesBssOfRamThatIsZeroUntouched) {
  const Bytes file = PvhElf().Build64();
  const MemoryImage kernel("k", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  request.ram_is_zero = true;
  Machine machine;
  machine.Fill(0xee);  // not what the flag promises, to see that nothing is written
  ASSERT_TRUE(machine.Load(request));
  EXPECT_TRUE(machine.HoldsOnly(0xee, {Gpa(2 * kMiB + 0x10), 0x1ff0}));
}

TEST(Pvh, ReloadingAfterTheGuestRanGivesTheSameRam) {
  const Bytes file = PvhElf().Build64();
  Machine machine;
  const LoadedGuest first = machine.Load(file).value();
  const auto image = [&] {
    const auto low = machine.ram.At({Gpa(0x1000), 0x1f000}).value();
    const auto kernel = machine.ram.At(first.kernel).value();
    std::vector<std::byte> all(low.begin(), low.end());
    // Only what the segments cover: the gap between them keeps what the guest left.
    all.insert(all.end(), kernel.begin(), kernel.begin() + 0x345);
    all.insert(all.end(), kernel.begin() + kMiB, kernel.end());
    return all;
  };
  machine.Fill(0);
  ASSERT_TRUE(machine.Load(file));
  const auto before = image();
  std::memset(machine.ram.At(first.kernel).value().data(), 0x77, first.kernel.size);
  const LoadedGuest second = machine.Load(file).value();
  EXPECT_EQ(image(), before);
  EXPECT_EQ(second.entry.rip, first.entry.rip);
}

TEST(Pvh, RefusesEntriesOutsideTheKernel) {
  ElfBuilder elf = PvhElf();
  Machine machine;
  for (const uint64_t entry : {uint64_t{0}, kMiB - 1, kMiB + 0x345, k4GiB + kMiB, ~uint64_t{0}}) {
    elf.notes = {PvhNote(entry, 8)};
    EXPECT_THAT(machine.LoadError(elf.Build64()), testing::HasSubstr("which no segment below"))
        << entry;
  }
  elf.segments.push_back({.address = k4GiB, .file_size = 16, .memory_size = 16});
  elf.notes = {PvhNote(k4GiB, 8)};
  EXPECT_THAT(machine.LoadError(elf.Build64()), testing::HasSubstr("which no segment below"));
}

TEST(Pvh, SaysHowManyCharactersACommandLineMayHave) {
  const Bytes file = PvhElf().Build64();
  const MemoryImage kernel("k", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  Machine machine;
  request.command_line.assign(0xffff, 'x');
  EXPECT_TRUE(machine.Load(request));
  request.command_line += 'x';
  EXPECT_EQ(machine.Load(request).error().ToString(),
            "the command line has 65536 characters, and there is room for 65535; shorten it");
  request.command_line = std::string("a\0b", 3);
  EXPECT_THAT(machine.Load(request).error().ToString(), testing::HasSubstr("zero byte at 1"));
}

TEST(Pvh, SaysWhichModuleDoesNotFit) {
  const Bytes file = PvhElf().Build64();
  const MemoryImage kernel("k", file.span());
  const Bytes big(15 * kMiB);
  const MemoryImage initrd("initrd.img", big.span()), empty("none", {});
  LoadRequest request;
  request.kernel = &kernel;
  request.initrd = &initrd;
  Machine machine;
  EXPECT_EQ(machine.Load(request).error().ToString(),
            "initrd 'initrd.img' needs 0xf00000 bytes, and 0x100000-0xbfffffff has no free RAM of "
            "that size (RAM is 20 MiB); give the guest more memory (--memory)");
  request.initrd = &empty;
  EXPECT_EQ(machine.Load(request).error().ToString(), "initrd 'none' is empty; check how it was made");
  request.initrd = nullptr;
  const MemoryImage small("m", big.span().first(1));
  request.modules.assign(129, {&small, ""});
  EXPECT_EQ(machine.Load(request).error().ToString(), "129 modules are too many; give at most 128");
}

}  // namespace
}  // namespace crossbar
