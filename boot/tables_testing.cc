#include "boot/tables_testing.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>

#include "boot/acpi.h"
#include "boot/x86_layout.h"

namespace crossbar::testing_tables {
namespace {

// What a guest may take for one table: no two share a byte.
void ExpectApart(const std::vector<GuestRange>& ranges) {
  for (size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_TRUE(x86_layout::kAcpiTables.Contains(ranges[i]));
    for (size_t j = i + 1; j < ranges.size(); ++j) EXPECT_FALSE(ranges[i].Overlaps(ranges[j]));
  }
}

std::vector<std::byte> ReadBytes(const GuestRam& ram, Gpa address, size_t size) {
  std::vector<std::byte> bytes(size);
  EXPECT_TRUE(ram.Read(address, bytes));
  return bytes;
}

std::string AcpiExec(const std::vector<std::byte>& dsdt, const std::string& command) {
  const ScratchDirectory scratch;
  const std::string file = scratch.Write("dsdt.aml", dsdt);
  // -r: ACPICA's hardware-reduced mode, in which Linux runs with our FADT.
  const ToolRun run = RunTool(fmt::format("acpiexec -r -b '{}' {}", command, file));
  EXPECT_EQ(run.status, 0) << run.output;
  for (const char* trouble :
       {"AE_BAD", "AE_AML", "Incorrect checksum", "ACPI Error", "ACPI BIOS"}) {
    EXPECT_EQ(run.output.find(trouble), std::string::npos) << run.output;
  }
  return run.output;
}

}  // namespace

PlatformInfo DefaultPlatform(unsigned cpus) {
  return MakeX86Platform({.memory_bytes = 5 * kGiB, .cpus = cpus, .physical_address_bits = 46})
      .value();
}

PlatformInfo OddPlatform() {
  PlatformInfo platform;
  platform.physical_address_bits = 43;
  platform.cpu_ids = {3, 1, 254};
  platform.ram = {{Gpa(0), 0x12345000}, {Gpa(0x123456000), 0x789a000}};
  platform.pci = {.ecam = {Gpa(0xd1200000), 0x40 * kMiB},
                  .first_bus = 0x12,
                  .last_bus = 0x51,
                  .window32 = {Gpa(0xc1230000), 0x4560000},
                  .window64 = {Gpa(0x12345678000), 0x9abcdef000},
                  .window64_prefetchable = true,
                  .io_base = 0x2340,
                  .io_size = 0x5670,
                  .intx_gsi = {21, 9, 14, 11}};
  platform.serial = {.port = 0x2e8, .gsi = 7, .clock_hz = 24'000'000};
  platform.power = {.sleep_control_port = 0x712,
                    .sleep_status_port = 0x713,
                    .s5_sleep_type = 3,
                    .reset_port = 0x92,
                    .reset_value = 0x41};
  platform.debug_exit_port = 0x501;
  platform.boot_marker_port = 0x84;
  platform.local_apic = Gpa(0xfed12000);
  platform.ioapic = Gpa(0xfec34000);
  platform.ioapic_pins = 24;
  return platform;
}

GuestRam SmallRam() {
  const GuestRange bank{Gpa(0), 2 * kMiB};
  return GuestRam::Create(std::span(&bank, 1)).value();
}

uint8_t Sum(std::span<const std::byte> bytes) {
  return static_cast<uint8_t>(-AcpiChecksum(bytes));
}

AcpiImage ReadAcpi(const GuestRam& ram, Gpa rsdp_address) {
  AcpiImage image;
  std::vector<GuestRange> ranges;
  const auto rsdp_bytes = ReadBytes(ram, rsdp_address, sizeof(AcpiRsdp));
  image.rsdp = ReadAs<AcpiRsdp>(rsdp_bytes);
  EXPECT_EQ(Sum(std::span(rsdp_bytes).first(20)), 0);
  EXPECT_EQ(Sum(rsdp_bytes), 0);
  ranges.push_back({rsdp_address, sizeof(AcpiRsdp)});

  const auto read = [&](uint64_t address) {
    const auto header = ReadAs<AcpiHeader>(ReadBytes(ram, Gpa(address), sizeof(AcpiHeader)));
    const std::string signature(header.signature.data(), header.signature.size());
    const uint64_t length = std::min<uint64_t>(header.length, x86_layout::kAcpiTables.size);
    EXPECT_EQ(length, header.length) << signature;
    auto table = ReadBytes(ram, Gpa(address), length);
    EXPECT_EQ(Sum(table), 0) << signature;
    EXPECT_GE(table.size(), sizeof(AcpiHeader)) << signature;
    ranges.push_back({Gpa(address), table.size()});
    image.addresses[signature] = Gpa(address);
    image.tables[signature] = std::move(table);
    return signature;
  };
  read(image.rsdp.xsdt_address);
  const std::vector<std::byte>& xsdt = image.tables["XSDT"];
  for (size_t at = sizeof(AcpiHeader); at + 8 <= xsdt.size(); at += 8) {
    image.signatures.push_back(read(ReadAs<uint64_t>(xsdt, at)));
  }
  read(ReadAs<AcpiFadt>(image.tables["FACP"]).x_dsdt);
  ExpectApart(ranges);
  return image;
}

AcpiImage WriteAndReadAcpi(const PlatformInfo& platform) {
  const GuestRam ram = SmallRam();
  return ReadAcpi(ram, WriteAcpiTables(ram, platform).value());
}

ScratchDirectory::ScratchDirectory() {
  std::string pattern = testing::TempDir() + "/crossbar-tables-XXXXXX";
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  path_ = pattern;
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string ScratchDirectory::Write(const std::string& name,
                                    std::span<const std::byte> content) const {
  const std::string file = path_ + "/" + name;
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  return file;
}

std::string ScratchDirectory::Read(const std::string& name) const {
  std::ifstream file(path_ + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool HasTool(const std::string& name) {
  return RunTool(fmt::format("command -v {}", name)).status == 0;
}

ToolRun RunTool(const std::string& command) {
  ToolRun run;
  FILE* pipe = popen(fmt::format("({}) 2>&1 </dev/null", command).c_str(), "re");
  if (pipe == nullptr) return run;
  std::array<char, 4096> buffer;
  while (const size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    run.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  run.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return run;
}

uint64_t Resource::Number(const std::string& field) const {
  const auto found = fields.find(field);
  if (found == fields.end()) {
    ADD_FAILURE() << kind << " has no field " << field;
    return 0;
  }
  return std::stoull(found->second, nullptr, 16);
}

std::vector<Resource> EvaluateResources(const std::vector<std::byte>& dsdt,
                                        const std::string& device) {
  std::vector<Resource> resources;
  std::istringstream lines(AcpiExec(dsdt, "resources " + device));
  static const std::regex kHeading(R"(\[[0-9A-F]+\] (.*\S)\s*)");
  static const std::regex kField(R"(\s*([^:]*\S) : (.*\S)\s*)");
  std::smatch match;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_match(line, match, kHeading)) {
      resources.push_back({.kind = match[1], .fields = {}});
    } else if (!resources.empty() && std::regex_match(line, match, kField)) {
      resources.back().fields.emplace(match[1], match[2]);
    }
  }
  return resources;
}

std::vector<std::string> Evaluate(const std::vector<std::byte>& dsdt,
                                  const std::vector<std::string>& objects) {
  std::string commands;
  for (const std::string& object : objects) commands += fmt::format("evaluate {};", object);
  commands.pop_back();
  const std::string output = AcpiExec(dsdt, commands);
  std::vector<std::string> results;
  size_t at = output.find("returned object");
  while (at != std::string::npos) {
    const size_t next = output.find("returned object", at + 1);
    results.push_back(output.substr(at, next - at));
    at = next;
  }
  EXPECT_EQ(results.size(), objects.size()) << output;
  results.resize(objects.size());
  return results;
}

}  // namespace crossbar::testing_tables
