#include "boot/bzimage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "boot/kernel_images_test.h"

namespace crossbar {
namespace {

using test::Bytes;
using test::Machine;
using test::MakeBzImage;

constexpr uint64_t kParams = 0x2000;

TEST(BzImage, EntersInLongModeAt0x200PastTheLoadAddress) {
  Machine machine;
  const LoadedGuest guest = machine.Load(MakeBzImage()).value();
  EXPECT_EQ(guest.format, KernelFormat::kBzImage);
  EXPECT_STREQ(FormatName(guest.format), "bzImage");
  EXPECT_EQ(guest.entry.mode, EntryState::Mode::kLong64);
  EXPECT_EQ(guest.entry.rip, Gpa(0x400200));
  EXPECT_EQ(guest.entry.rsi, kParams);
  EXPECT_EQ(guest.entry.code_selector, 0x10);
  EXPECT_EQ(guest.entry.data_selector, 0x18);
  EXPECT_EQ(guest.kernel, (GuestRange{Gpa(0x400000), 0x1000}));
  EXPECT_TRUE(machine.HoldsPattern(0x400000, 0x1000));
}

// Documentation/arch/x86/zero-page.rst
TEST(BzImage, BootParamsHaveTheHeaderOurFieldsAndZeroElsewhere) {
  Bytes file = MakeBzImage();
  file.PutPattern(0, 0x1f0);          // the boot sector is not copied
  file.Put<uint16_t>(0x1fa, 0xffff);  // vid_mode: inside the header, so it is
  const MemoryImage kernel("bzImage", file.span());
  Bytes data;
  data.PutPattern(0, 0x1234);
  const MemoryImage initrd("initrd", data.span());
  LoadRequest request;
  request.kernel = &kernel;
  request.initrd = &initrd;
  request.command_line = "console=ttyS0";
  request.rsdp = Gpa(0xe0010);
  Machine machine;
  machine.Fill(0xee);
  const LoadedGuest guest = machine.Load(request).value();
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(kParams), 0x70}));
  EXPECT_EQ(machine.Read<uint64_t>(kParams + 0x70), 0xe0010u);  // acpi_rsdp_addr
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(kParams + 0x78), 0x1e8 - 0x78}));
  EXPECT_EQ(machine.Read<uint8_t>(kParams + 0x1e8), 5);  // e820_entries
  EXPECT_EQ(machine.Read<uint8_t>(kParams + 0x1ef), 0);  // sentinel
  EXPECT_EQ(machine.Read<uint16_t>(kParams + 0x1fa), 0xffff);
  EXPECT_EQ(machine.Read<uint16_t>(kParams + 0x206), 0x020f);
  EXPECT_EQ(machine.Read<uint8_t>(kParams + 0x210), 0xff);                        // type_of_loader
  EXPECT_EQ(machine.Read<uint32_t>(kParams + 0x214), 0x400000u);                  // code32_start
  EXPECT_EQ(machine.Read<uint32_t>(kParams + 0x218), Machine::kLowRam - 0x2000);  // ramdisk_image
  EXPECT_EQ(machine.Read<uint32_t>(kParams + 0x21c), 0x1234u);                    // ramdisk_size
  EXPECT_EQ(machine.ReadText(machine.Read<uint32_t>(kParams + 0x228)), "console=ttyS0");
  EXPECT_EQ(machine.Read<uint32_t>(kParams + 0x230), 0x200000u);
  EXPECT_EQ(machine.Read<uint64_t>(kParams + 0x258), 0x400000u);
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(kParams + 0x26c), 0x2d0 - 0x26c}));
  EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(kParams + 0x2d0 + 5 * 20), 0xd00 - 5 * 20}));
  EXPECT_TRUE(machine.HoldsPattern(Machine::kLowRam - 0x2000, 0x1234));
  EXPECT_EQ(guest.modules.at(0).size, 0x1234u);
}

TEST(BzImage, E820HasRamWithoutTheLegacyHoleAndReservesEcam) {
  Machine machine;
  ASSERT_TRUE(machine.Load(MakeBzImage()));
  const struct {
    uint64_t start, size;
    uint32_t type;
  } kExpected[] = {{0, 0xa0000, 1},
                   {0xa0000, 0x60000, 2},
                   {kMiB, Machine::kLowRam - kMiB, 1},
                   {Machine::kEcam.start.value(), Machine::kEcam.size, 2},
                   {k4GiB, 4 * kMiB, 1}};
  uint64_t at = kParams + 0x2d0;
  for (const auto& entry : kExpected) {
    EXPECT_EQ(machine.Read<uint64_t>(at), entry.start);
    EXPECT_EQ(machine.Read<uint64_t>(at + 8), entry.size);
    EXPECT_EQ(machine.Read<uint32_t>(at + 16), entry.type);
    at += 20;
  }
}

// Walks the tables as a CPU with 4-level paging does (Intel SDM volume 3, 4.5).
TEST(BzImage, PageTablesMapTheFirst4GiBToThemselves) {
  Machine machine;
  machine.Fill(0xee);
  const LoadedGuest guest = machine.Load(MakeBzImage()).value();
  const auto translate = [&](uint64_t address) -> uint64_t {
    uint64_t table = guest.entry.page_table.value();
    for (const int shift : {39, 30, 21}) {
      const auto entry = machine.Read<uint64_t>(table + (address >> shift & 511) * 8);
      if ((entry & 3) != 3) return ~0ull;
      if ((entry & 0x80) != 0) return (entry & ~0xfffull) + (address & ((1ull << shift) - 1));
      table = entry & ~0xfffull;
    }
    return ~0ull;
  };
  for (uint64_t address = 0; address < k4GiB; address += 0x123456) {
    ASSERT_EQ(translate(address), address);
  }
  EXPECT_EQ(translate(k4GiB - 1), k4GiB - 1);
  EXPECT_EQ(translate(k4GiB), ~0ull);
  EXPECT_EQ(translate(512 * kGiB), ~0ull);
}

TEST(BzImage, GdtHasFlatCodeAndDataAtLinuxSelectors) {
  Machine machine;
  const LoadedGuest guest = machine.Load(MakeBzImage()).value();
  ASSERT_EQ(guest.entry.gdt.size, 32u);
  const uint64_t gdt = guest.entry.gdt.start.value();
  const auto code = machine.Read<uint64_t>(gdt + 0x10), data = machine.Read<uint64_t>(gdt + 0x18);
  EXPECT_EQ(machine.Read<uint64_t>(gdt), 0u);
  for (const uint64_t descriptor : {code, data}) {
    EXPECT_EQ(descriptor & 0x000f00000000ffff, 0x000f00000000ffffu);  // limit 0xfffff ...
    EXPECT_EQ(descriptor >> 55 & 1, 1u);                              // ... pages
    EXPECT_EQ(descriptor & 0xff0000ffffff0000, 0u);                   // base 0
    EXPECT_EQ(descriptor >> 44 & 0xf, 0x9u);  // present, ring 0, code or data
  }
  EXPECT_EQ(code >> 40 & 0xf, 0xbu);  // execute, read, accessed
  EXPECT_EQ(data >> 40 & 0xf, 0x3u);  // read, write, accessed
  EXPECT_EQ(code >> 53 & 3, 1u);      // L=1, D=0
}

TEST(BzImage, SetupSectorsZeroStandsForFour) {
  Bytes file = MakeBzImage(0x2000);
  file.Put<uint8_t>(0x1f1, 0);
  file.Put<uint32_t>(0x1f4, 0x1000 / 16);
  Machine machine;
  ASSERT_TRUE(machine.Load(file));
  EXPECT_EQ(machine.Read<uint8_t>(0x400000), Bytes::PatternAt(512));
}

TEST(BzImage, LoadsAtThePreferredAddressOrTheNextAlignedOneThatHasRoom) {
  Bytes file = MakeBzImage();
  file.Put<uint64_t>(0x258, 0x500000);  // pref_address, not aligned to 2 MiB
  Machine machine;
  EXPECT_EQ(machine.Load(file).value().kernel.start, Gpa(0x600000));
  file.Put<uint64_t>(0x258, 0);
  EXPECT_EQ(machine.Load(file).value().kernel.start, Gpa(0x200000));  // never below 1 MiB
  file.Put<uint8_t>(0x234, 0);                                        // not relocatable: as it says
  file.Put<uint64_t>(0x258, 0x500000);
  EXPECT_EQ(machine.Load(file).value().kernel.start, Gpa(0x500000));
}

TEST(BzImage, InitrdStaysBelowTheKernelsLimitAndOffItsInitSize) {
  const Bytes data(0x3000);
  const MemoryImage initrd("initrd", data.span());
  const auto place = [&](uint32_t limit, uint32_t init_size) {
    Bytes file = MakeBzImage();
    file.Put<uint32_t>(0x22c, limit);
    file.Put<uint32_t>(0x260, init_size);
    const MemoryImage kernel("k", file.span());
    LoadRequest request;
    request.kernel = &kernel;
    request.initrd = &initrd;
    Machine machine;
    const auto guest = machine.Load(request);
    return guest ? guest->modules.at(0).start.value() : 0;
  };
  EXPECT_EQ(place(0x7fffffff, 0x200000), Machine::kLowRam - 0x3000);
  EXPECT_EQ(place(0xffffffff, 0x200000), Machine::kLowRam - 0x3000);
  EXPECT_EQ(place(0x8fffff, 0x200000), 0x8fd000u);  // the limit is the last byte allowed
  EXPECT_EQ(place(0x8ffffe, 0x200000), 0x8fc000u);
  // All RAM above the kernel is its init_size: the initrd goes below it.
  EXPECT_EQ(place(0x7fffffff, Machine::kLowRam - 0x400000), 0x400000u - 0x3000);
  EXPECT_EQ(place(0xfffff, 0x200000), 0u);
}

TEST(BzImage, ReloadingGivesTheSameRam) {
  Machine machine;
  const Bytes file = MakeBzImage();
  ASSERT_TRUE(machine.Load(file));
  const auto low = machine.ram.At({Gpa(0), 0x20000}).value();
  const std::vector<std::byte> before(low.begin() + 0x1000, low.begin() + 0xb000);
  machine.Fill(0x99);
  ASSERT_TRUE(machine.Load(file));
  // Between the structures nothing is written.
  std::vector<std::byte> after(low.begin() + 0x1000, low.begin() + 0xb000);
  for (const auto& [from, to] : {std::pair(0x1020u, 0x2000u), std::pair(0x3000u, 0x5000u)}) {
    for (size_t i = from; i < to; ++i)
      ASSERT_EQ(std::exchange(after[i - 0x1000], {}), std::byte{0x99});
  }
  EXPECT_EQ(after, before);
}

struct Malformed {
  const char* name;
  std::function<void(Bytes*)> damage;
  const char* expected;
};

const Malformed kMalformed[] = {
    {"protocol", [](Bytes* f) { f->Put<uint16_t>(0x206, 0x020b); }, "boot protocol 2.11"},
    {"32-bit", [](Bytes* f) { f->Put<uint16_t>(0x236, 0); }, "32-bit Linux; give a 64-bit one"},
    {"zImage", [](Bytes* f) { f->Put<uint8_t>(0x211, 0); }, "32-bit Linux"},
    {"short header", [](Bytes* f) { f->Put<uint8_t>(0x201, 0x61); }, "ends at 0x263"},
    {"long header", [](Bytes* f) { f->Put<uint8_t>(0x201, 0xff); }, "ends at 0x301"},
    {"header cut", [](Bytes* f) { f->Truncate(0x240); }, "is truncated"},
    {"no payload", [](Bytes* f) { f->Truncate(0x7ff); }, "is truncated"},
    {"payload cut", [](Bytes* f) { f->Truncate(0x17f0); },
     "truncated: it has 0x17f0 bytes and its header announces 0x1800"},
    {"many sectors", [](Bytes* f) { f->Put<uint8_t>(0x1f1, 0xff); }, "is truncated"},
    {"syssize", [](Bytes* f) { f->Put<uint32_t>(0x1f4, ~0u); }, "announces 0x10000007f0"},
    {"no entry",
     [](Bytes* f) {
       f->Put<uint32_t>(0x1f4, 0);
       f->Truncate(0x800 + 0x200);
     },
     "is truncated"},
    {"alignment 0", [](Bytes* f) { f->Put<uint32_t>(0x230, 0); }, "wants alignment 0x0"},
    {"alignment odd", [](Bytes* f) { f->Put<uint32_t>(0x230, 3); }, "wants alignment 0x3"},
    {"alignment huge", [](Bytes* f) { f->Put<uint32_t>(0x230, 0x80000000); }, "no free RAM"},
    {"address high", [](Bytes* f) { f->Put<uint64_t>(0x258, k4GiB); }, "at 0x100000000"},
    {"fixed address high",
     [](Bytes* f) {
       f->Put<uint64_t>(0x258, ~0ull);
       f->Put<uint8_t>(0x234, 0);
     },
     "above 4 GiB; configure CONFIG_RELOCATABLE=y"},
    {"fixed address low",
     [](Bytes* f) {
       f->Put<uint64_t>(0x258, 0x4000);
       f->Put<uint8_t>(0x234, 0);
     },
     "but the area of a PC's ROMs is at"},
    {"init_size", [](Bytes* f) { f->Put<uint32_t>(0x260, Machine::kLowRam - 0x3fffff); },
     "kernel 'kernel.bin' needs 0xc00001 bytes, and 0x400000-0xffffffff has no free RAM of that "
     "size (RAM is 20 MiB); give the guest more memory (--memory)"},
};

TEST(BzImage, MalformedFilesAreRefusedInOneLineThatSaysWhy) {
  for (const Malformed& c : kMalformed) {
    Bytes file = MakeBzImage();
    c.damage(&file);
    Machine machine;
    const std::string error = machine.LoadError(file);
    EXPECT_THAT(error, testing::HasSubstr(c.expected)) << c.name;
    EXPECT_THAT(error, testing::HasSubstr("'kernel.bin'")) << c.name;
    EXPECT_TRUE(machine.HoldsOnly(0, {Gpa(0), Machine::kLowRam})) << c.name;
  }
}

TEST(BzImage, SyssizeMayRoundUpToAParagraph) {
  Bytes file = MakeBzImage();
  file.Truncate(0x17f1);
  Machine machine;
  EXPECT_EQ(machine.Load(file).value().kernel.size, 0xff1u);
}

TEST(BzImage, RequestsItCannotServeAreRefused) {
  const Bytes file = MakeBzImage();
  const MemoryImage kernel("bzImage", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  Machine machine;
  request.command_line.assign(2047, 'x');
  EXPECT_TRUE(machine.Load(request));
  request.command_line += 'x';
  EXPECT_EQ(machine.Load(request).error().ToString(),
            "the command line has 2048 characters, and kernel 'bzImage' takes at most 2047; "
            "shorten it");
  request.command_line.clear();
  request.modules = {{&kernel, ""}};
  EXPECT_THAT(machine.Load(request).error().ToString(), testing::HasSubstr("takes no modules"));
}

}  // namespace
}  // namespace crossbar
