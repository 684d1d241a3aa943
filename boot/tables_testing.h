// What the tests of the platform's descriptions share: a platform without a default in it, the ACPI
// tables read back out of guest RAM as a guest finds them, and the tools that know the formats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "boot/acpi_tables.h"
#include "boot/platform_info.h"
#include "memory/guest_ram.h"

namespace crossbar::testing_tables {

PlatformInfo DefaultPlatform(unsigned cpus = 1);
// Differs from MakeX86Platform's in every number that a description carries.
PlatformInfo OddPlatform();

// RAM of the first 2 MiB.
GuestRam SmallRam();

struct AcpiImage {
  AcpiRsdp rsdp;
  std::vector<std::string> signatures;                   // in the order of the XSDT
  std::map<std::string, std::vector<std::byte>> tables;  // by signature, with XSDT and DSDT
  std::map<std::string, Gpa> addresses;
};
// Follows the addresses from the RSDP on. Tables are whole, checksums hold and nothing overlaps, or
// the test fails.
AcpiImage ReadAcpi(const GuestRam& ram, Gpa rsdp);
// Of a fresh SmallRam.
AcpiImage WriteAndReadAcpi(const PlatformInfo& platform);

template <typename T>
T ReadAs(std::span<const std::byte> bytes, size_t offset = 0);

uint8_t Sum(std::span<const std::byte> bytes);

// A directory of its own, gone with the object.
class ScratchDirectory {
 public:
  ScratchDirectory();
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  std::string Write(const std::string& name, std::span<const std::byte> content) const;
  std::string Read(const std::string& name) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

bool HasTool(const std::string& name);

struct ToolRun {
  int status = -1;
  std::string output;  // stdout and stderr
};
ToolRun RunTool(const std::string& command);

// What ACPICA, the interpreter in Linux, makes of a DSDT. All values as acpiexec prints them.
struct Resource {
  std::string kind;                           // "64-Bit QWORD Address Space Resource"
  std::map<std::string, std::string> fields;  // "Address Minimum" to "0000000000000010"
  uint64_t Number(const std::string& field) const;
};
std::vector<Resource> EvaluateResources(const std::vector<std::byte>& dsdt,
                                        const std::string& device);
// The text of each result, of one run: each run of acpiexec takes a second.
std::vector<std::string> Evaluate(const std::vector<std::byte>& dsdt,
                                  const std::vector<std::string>& objects);

// ---- implementation ----

template <typename T>
T ReadAs(std::span<const std::byte> bytes, size_t offset) {
  T value{};
  std::copy_n(bytes.subspan(offset, sizeof(T)).begin(), sizeof(T),
              reinterpret_cast<std::byte*>(&value));
  return value;
}

}  // namespace crossbar::testing_tables
