// FakeDevice: a PCI device behind VfioBackend, as a driver presents it: real config registers, BARs that
// answer only while the device decodes, resets that the driver undoes in config space. What it is told
// to do is written into a Recorder beside what the memslots and domains are told. For tests.
#pragma once

#include <gtest/gtest.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/passthrough/backend.h"
#include "devices/pci_config_space.h"
#include "memory/testing/heart.h"

namespace crossbar::testing {

// What a test may do to the device while its function owns the backend.
struct FakeDevice {
  static constexpr uint8_t kPower = 0x40;
  static constexpr uint8_t kMsi = 0x50;
  static constexpr uint8_t kMsix = 0x70;
  static constexpr uint8_t kExpress = 0x80;
  static constexpr uint8_t kAdvanced = 0xc0;

  explicit FakeDevice(Recorder& log) : recorder(log) {
    config.Set<uint16_t>(PCI_VENDOR_ID, 0x1234);
    config.Set<uint16_t>(PCI_STATUS, PCI_STATUS_CAP_LIST);
    config.Set<uint16_t>(PCI_COMMAND, PCI_COMMAND_MEMORY);  // as the driver leaves it at open
    config.Set<uint8_t>(PCI_CAPABILITY_LIST, kPower);
    config.Set<uint8_t>(PCI_INTERRUPT_PIN, 1);
    Capability(kPower, PCI_CAP_ID_PM, kMsi);
    Capability(kMsi, PCI_CAP_ID_MSI, 0x68);
    Capability(0x68, PCI_CAP_ID_HT, kMsix);
    Capability(kMsix, PCI_CAP_ID_MSIX, kExpress);
    Capability(kExpress, PCI_CAP_ID_EXP, kAdvanced);
    Capability(kAdvanced, PCI_CAP_ID_AF, 0);
    config.Set<uint16_t>(kMsi + PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT | PCI_MSI_FLAGS_MASKBIT | 2 << 1);
    config.Set<uint16_t>(kExpress + PCI_EXP_FLAGS, 2);  // the capability's version
    config.Set<uint32_t>(kExpress + PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR);
    config.Set<uint8_t>(kAdvanced + PCI_AF_CAP, PCI_AF_CAP_FLR);
    // A table of 4 vectors in the third page of BAR 2, its pending bits in the same.
    config.Set<uint16_t>(kMsix + PCI_MSIX_FLAGS, 3);
    config.Set<uint32_t>(kMsix + PCI_MSIX_TABLE, 0x2000 | 2);
    config.Set<uint32_t>(kMsix + PCI_MSIX_PBA, 0x2800 | 2);
    // ATS first, then AER.
    config.Set<uint32_t>(0x100, 0x14010000 | PCI_EXT_CAP_ID_ATS);
    config.Set<uint32_t>(0x140, 0x15020000 | PCI_EXT_CAP_ID_ERR);
    config.Set<uint32_t>(0x150, 0x00010000 | PCI_EXT_CAP_ID_SRIOV);
    Region(0, 0x1000, 0, true);
    Region(2, 0x10000, PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH, true);
    Region(4, 0x100, 0, false);
    Region(5, 0x20, PCI_BASE_ADDRESS_SPACE_IO, false);
    regions[VFIO_PCI_CONFIG_REGION_INDEX] = {PciConfigSpace::kSize, true, true, {}};
    interrupts[VFIO_PCI_INTX_IRQ_INDEX] = {1, false};
    interrupts[VFIO_PCI_MSI_IRQ_INDEX] = {4, false};
    interrupts[VFIO_PCI_MSIX_IRQ_INDEX] = {4, true};
    interrupts[VFIO_PCI_REQ_IRQ_INDEX] = {1, false};
    interrupts[VFIO_PCI_ERR_IRQ_INDEX] = {1, false};
  }

  void Capability(uint8_t at, uint8_t id, uint8_t next) {
    config.Set<uint8_t>(at, id);
    config.Set<uint8_t>(at + 1, next);
  }
  void Region(unsigned index, uint64_t size, uint32_t type, bool mappable) {
    regions[index] = {size, true, true, {}};
    if (mappable) regions[index].mappable.push_back({0, size});
    config.Set<uint32_t>(static_cast<uint16_t>(PCI_BASE_ADDRESS_0 + 4 * index), 0xc0000000 | type);
    memory[index].resize(size);
  }

  bool answers() const {
    return !gone && (config.Get<uint16_t>(kPower + PCI_PM_CTRL) & PCI_PM_CTRL_STATE_MASK) == 0 &&
           (config.Get<uint16_t>(PCI_COMMAND) & PCI_COMMAND_MEMORY) != 0;
  }

  Recorder& recorder;
  PciConfigSpace config;
  std::array<VfioBackend::Region, 9> regions;
  std::array<VfioBackend::Interrupt, 5> interrupts;
  std::map<unsigned, std::vector<uint8_t>> memory;
  std::map<unsigned, std::vector<IoEvent>> io_events;   // by region; addresses are offsets into it
  std::map<std::pair<unsigned, uint32_t>, int> events;  // (kind, vector) -> eventfd
  bool can_reset = true;
  bool takes_unmask_event = true;
  bool gone = false;  // every call fails
  bool open = true;
};

class FakeBackend : public VfioBackend {
 public:
  explicit FakeBackend(FakeDevice& device) : device_(device) {}
  ~FakeBackend() override {
    device_.recorder.Hardware("close");
    device_.open = false;
  }

  std::string name() const override { return "fake"; }
  Region region(unsigned index) const override { return device_.regions[index]; }
  Interrupt interrupt(unsigned index) const override { return device_.interrupts[index]; }
  bool can_reset() const override { return device_.can_reset; }

  Result<> Read(unsigned region, uint64_t offset, std::span<std::byte> data) override {
    TRY(Check(region, offset, data.size()));
    if (region == VFIO_PCI_CONFIG_REGION_INDEX) {
      for (size_t i = 0; i < data.size(); ++i)
        data[i] = std::byte{device_.config.Get<uint8_t>(static_cast<uint16_t>(offset + i))};
    } else {
      std::memcpy(data.data(), device_.memory[region].data() + offset, data.size());
    }
    return {};
  }
  Result<> Write(unsigned region, uint64_t offset, std::span<const std::byte> data) override {
    TRY(Check(region, offset, data.size()));
    if (region != VFIO_PCI_CONFIG_REGION_INDEX) {
      std::memcpy(device_.memory[region].data() + offset, data.data(), data.size());
      return {};
    }
    uint32_t value = 0;
    std::memcpy(&value, data.data(), std::min(data.size(), sizeof value));
    device_.recorder.Hardware(fmt::format("config {:#x} = {:#x}", offset, value));
    for (size_t i = 0; i < data.size(); ++i)
      device_.config.Set<uint8_t>(static_cast<uint16_t>(offset + i), static_cast<uint8_t>(data[i]));
    // A reset bit reads as 0; what the reset did to config space, the driver has undone.
    device_.config.Set<uint16_t>(
        FakeDevice::kExpress + PCI_EXP_DEVCTL,
        static_cast<uint16_t>(device_.config.Get<uint16_t>(FakeDevice::kExpress + PCI_EXP_DEVCTL) &
                              ~PCI_EXP_DEVCTL_BCR_FLR));
    device_.config.Set<uint8_t>(FakeDevice::kAdvanced + PCI_AF_CTRL, 0);
    return {};
  }

  Result<Backing> MapArea(unsigned region, const Area& area) override {
    Backing backing;
    backing.host = Hva(kHost + (uint64_t{region} << 32) + area.offset);
    return backing;
  }
  std::vector<IoEvent> IoEvents(unsigned region) override { return device_.io_events[region]; }

  Result<> SetInterrupts(unsigned index, uint32_t start, std::span<const int> fds) override {
    if (device_.gone) return std::unexpected(Error(EIO, "gone"));
    device_.recorder.Hardware(fmt::format("irq {} set {}+{}", index, start, fds.size()));
    for (uint32_t i = 0; i < fds.size(); ++i) device_.events[{index, start + i}] = fds[i];
    return {};
  }
  Result<> DisableInterrupts(unsigned index) override {
    device_.recorder.Hardware(fmt::format("irq {} off", index));
    std::erase_if(device_.events, [&](const auto& entry) { return entry.first.first == index; });
    return {};
  }
  Result<> UnmaskIntx() override {
    device_.recorder.Hardware("intx unmask");
    return {};
  }
  Result<bool> SetIntxUnmaskEvent(int) override { return device_.takes_unmask_event; }
  Result<> Reset() override {
    device_.recorder.Hardware("reset");
    return {};
  }
  int lost_event() const override { return -1; }
  void LeaveBus() override { device_.recorder.Hardware("leave bus"); }

 private:
  Result<> Check(unsigned region, uint64_t offset, uint64_t size) const {
    EXPECT_TRUE(offset + size <= device_.regions[region].size)
        << "region " << region << ": " << offset << " + " << size;
    if (device_.gone) return std::unexpected(Error(EIO, "gone"));
    if (region < VFIO_PCI_ROM_REGION_INDEX && !device_.answers())
      return std::unexpected(Error(EIO, "decode is off"));
    return {};
  }

  FakeDevice& device_;
};

}  // namespace crossbar::testing
