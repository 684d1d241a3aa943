#include "boot/loader.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/sys.h"
#include "boot/kernel_images_test.h"

namespace crossbar {
namespace {

using test::Bytes;
using test::ElfBuilder;
using test::Machine;
using test::MakeBzImage;
using test::PutMultibootHeader;
using test::PvhNote;

Bytes FileOf(std::string_view start, size_t offset = 0) {
  Bytes file(0x1000);
  file.PutText(offset, start);
  return file;
}

using namespace std::string_view_literals;

TEST(Loader, NamesWhatIsNoKernelAndTheNextStep) {
  const struct {
    Bytes file;
    const char* expected;
  } kCases[] = {
      {Bytes(), "kernel 'kernel.bin' is empty; check"},
      {FileOf("\x1f\x8b\x08"sv), "is gzip-compressed; uncompress it with gunzip"},
      {FileOf("\xfd\x37zXZ\0"sv), "is xz-compressed; uncompress it with unxz"},
      {FileOf("\x28\xb5\x2f\xfd"sv), "is zstd-compressed; uncompress it with unzstd"},
      {FileOf("BZh9"sv), "is bzip2-compressed; uncompress"},
      {FileOf("\x02\x21\x4c\x18"sv), "is lz4-compressed; uncompress"},
      {FileOf("ARM\x64"sv, 0x38), "is an AArch64 Linux Image; give an x86 kernel"},
      {FileOf("RSC\x05"sv, 0x38), "is a RISC-V Linux Image; give an x86 kernel"},
      {FileOf("MZ"sv), "is an EFI application without a Linux setup header"},
      {FileOf("HdrS"sv, 0x202), "is no kernel known here; give a Linux bzImage"},
      {FileOf("#!/bin/sh"sv), "is no kernel known here; give a Linux bzImage"},
      {FileOf("\x7f"sv), "is no kernel known here"},
      {FileOf("\x7f"
              "ELF"sv),
       "big-endian"},
  };
  for (const auto& c : kCases) {
    Machine machine;
    const std::string error = machine.LoadError(c.file);
    EXPECT_THAT(error, testing::HasSubstr(c.expected));
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

TEST(Loader, EveryTruncationOfEveryFormatIsRefusedOrLoads) {
  ElfBuilder elf;
  elf.notes = {PvhNote(kMiB)};
  Bytes multiboot = ElfBuilder{}.Build32();
  PutMultibootHeader(&multiboot, 0x1000, 0);
  const Bytes files[] = {MakeBzImage(0x400), elf.Build64(), elf.Build32(), multiboot};
  Machine machine;
  for (const Bytes& file : files) {
    ASSERT_EQ(machine.LoadError(file), "loaded");
    for (size_t size = 0; size < file.size(); size += size < 0x400 ? 1 : 7) {
      Bytes cut = file;
      cut.Truncate(size);
      const std::string error = machine.LoadError(cut);
      // A bzImage may lack up to 15 bytes of its last paragraph.
      EXPECT_TRUE(error != "loaded" || size + 15 >= file.size()) << size;
    }
  }
}

TEST(Loader, PrefersThePvhNoteOfAnElfThatHasBoth) {
  ElfBuilder elf;
  elf.notes = {PvhNote(kMiB)};
  Bytes file = elf.Build32();
  PutMultibootHeader(&file, 0x1000, 0);
  Machine machine;
  EXPECT_EQ(machine.Load(file).value().format, KernelFormat::kPvh);
}

TEST(Loader, ElfWithoutAnyHeaderSaysWhatLinuxNeeds) {
  Machine machine;
  EXPECT_EQ(machine.LoadError(ElfBuilder{}.Build64()),
            "'kernel.bin' is an ELF file without a PVH note and without a Multiboot header; a "
            "Linux vmlinux needs CONFIG_PVH=y; or give its bzImage");
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const Bytes& content) {
    fd_ = Fd(::mkstemp(path_));
    EXPECT_TRUE(sys::WriteAll(fd_.get(), content.span()));
  }
  ~TemporaryFile() { ::unlink(path_); }
  const char* path() const { return path_; }
  int fd() const { return fd_.get(); }

 private:
  char path_[32] = "/tmp/crossbar-image-XXXXXX";
  Fd fd_;
};

TEST(Loader, LoadsFromAFileOnTheHost) {
  const TemporaryFile file(MakeBzImage());
  const auto image = FdImage::Open(file.path()).value();
  LoadRequest request;
  request.kernel = image.get();
  Machine machine;
  ASSERT_TRUE(machine.Load(request));
  EXPECT_TRUE(machine.HoldsPattern(0x400000, 0x1000));
}

TEST(Loader, AFileThatShrinksOrFailsMeanwhileIsAnError) {
  const TemporaryFile file(MakeBzImage());
  const auto image = FdImage::Open(file.path()).value();
  LoadRequest request;
  request.kernel = image.get();
  Machine machine;
  ASSERT_TRUE(failpoints::Arm("pread#2=EIO*1"));
  const auto failed = machine.Load(request);
  failpoints::Reset();
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().ToString(), testing::HasSubstr("cannot read"));
  ASSERT_EQ(::ftruncate(file.fd(), 0x900), 0);
  EXPECT_THAT(machine.Load(request).error().ToString(),
              testing::HasSubstr("was cut to 0x900 bytes while it was read"));
}

TEST(Loader, AMissingFileIsNamed) {
  EXPECT_THAT(FdImage::Open("/nonexistent/vmlinuz").error().ToString(),
              testing::HasSubstr("cannot open '/nonexistent/vmlinuz'"));
}

TEST(Loader, TooLittleRamForTheBootInformationIsAnError) {
  PlatformInfo platform;
  platform.ram = {{Gpa(0), 64 * kKiB}};
  const GuestRam ram = GuestRam::Create(platform.ram).value();
  const Bytes file = MakeBzImage();
  const MemoryImage kernel("k", file.span());
  LoadRequest request;
  request.kernel = &kernel;
  EXPECT_THAT(LoadGuest(ram, platform, request).error().ToString(),
              testing::HasSubstr("not all RAM; give the guest more memory"));
}

}  // namespace
}  // namespace crossbar
