// ServedDevice: what a device server serves: configuration space, BARs, interrupts, and what the model
// behind them does. Models derive from it.
//
// Owned by whoever runs the server, and outlives its sessions. One thread, the server's, calls it; a
// model's own threads use memory(), lines() and bus_master(), from any thread. A copy is wanted only while
// bus_master(): a write that ends it, and a reset, return when none touches mapped memory any more.
//
// A BAR is memory or registers. Memory is a memfd of its own, which clients map: sealed, so that nobody
// who holds it can fault the others.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "devices/pci_config_space.h"
#include "devices/vfio_user/client_memory.h"
#include "devices/vfio_user/interrupt_lines.h"
#include "memory/host_mapping.h"

namespace crossbar::vfio_user {

class ServedDevice {
 public:
  static constexpr unsigned kBars = 6;
  static constexpr unsigned kConfig = 7;  // VFIO_PCI_CONFIG_REGION_INDEX
  static constexpr unsigned kRegions = 9;

  struct Bar {
    uint64_t size = 0;  // 0: there is none
    bool wide = false;  // 64-bit and prefetchable
    Fd file;            // of memory
    HostMapping memory;
  };
  enum class FunctionReset : uint8_t { kNone, kAf, kPcie };  // FLR, by which capability
  struct Doorbell {
    uint64_t offset = 0;
    uint32_t size = 0;
    int eventfd = -1;
  };

  virtual ~ServedDevice() = default;

  const Bar& bar(unsigned index) const { return bars_[index]; }
  uint64_t region_size(unsigned region) const;
  ClientMemory& memory() { return memory_; }
  InterruptLines& lines() { return lines_; }
  bool bus_master() const { return bus_master_.load(std::memory_order_acquire); }

  // False where it is not within the region.
  bool Read(unsigned region, uint64_t offset, std::span<std::byte> data);
  bool Write(unsigned region, uint64_t offset, std::span<const std::byte> data);
  void Reset();
  // Eventfds that stand for writes to registers.
  virtual std::vector<Doorbell> Doorbells(unsigned) const { return {}; }

 protected:
  struct Identity {
    uint16_t vendor = 0;
    uint16_t device = 0;
    uint8_t revision = 0;
    uint32_t class_code = 0;
    bool intx = false;
  };
  // `counts`: interrupts by VFIO_PCI_*_IRQ_INDEX.
  ServedDevice(const Identity& identity, std::array<uint32_t, InterruptLines::kKinds> counts);

  // All while the model is made. Sizes are powers of two, of memory at least a page.
  void AddRegisters(unsigned bar, uint64_t size);
  Result<> AddMemory(unsigned bar, uint64_t size, const char* name);
  Result<> AddFunctionReset(FunctionReset kind);

  PciConfigSpace& config() { return config_; }
  // Any thread.
  void SetIntx(bool asserted) EXCLUDES(intx_mutex_);

  // Registers; `size` is 1, 2, 4 or 8, and `offset` a multiple of it.
  virtual uint64_t ReadRegister(unsigned bar, uint64_t offset, unsigned size) = 0;
  virtual void WriteRegister(unsigned bar, uint64_t offset, unsigned size, uint64_t value) = 0;
  // The model's part of a reset. What BARs hold in memory stays.
  virtual void OnReset() = 0;

 private:
  void SetBarRegister(unsigned bar, uint64_t size, bool wide);
  void NoteCommand() EXCLUDES(intx_mutex_);
  uint64_t ReadConfig(uint16_t offset, unsigned size) EXCLUDES(intx_mutex_);
  // Whether the guest has just asked for a reset; the bit that does reads as 0.
  bool TakeFunctionReset();

  uint64_t config_size_ = 256;  // 4096 of a PCIe device
  uint16_t reset_register_ = 0;  // the byte of config space that asks for FLR; 0: there is none
  uint8_t reset_bit_ = 0;
  PciConfigSpace config_;
  std::array<Bar, kBars> bars_;
  ClientMemory memory_;
  InterruptLines lines_;
  std::atomic<bool> bus_master_ = false;
  Mutex intx_mutex_;
  bool intx_disabled_ GUARDED_BY(intx_mutex_) = false;
  bool intx_ GUARDED_BY(intx_mutex_) = false;
};

}  // namespace crossbar::vfio_user
