// PassthroughFunction: a passed-through device as the guest sees it: config space, BARs, interrupts.
// One class for kernel VFIO and vfio-user devices, over VfioBackend.
//
// On a PciBus, shared with the windows it has BARs in. vCPU threads call it for config and BAR accesses,
// the watcher's thread for what comes from outside, the main thread for Reset and Close. Whatever begins
// or ends decode goes through Transition, which is the one place where a zap and what the hardware does
// are ordered (G1, G2).
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/locks.h"
#include "base/result.h"
#include "devices/bus.h"
#include "devices/passthrough/backend.h"
#include "devices/passthrough/bars.h"
#include "devices/passthrough/config_view.h"
#include "devices/passthrough/event_watcher.h"
#include "devices/passthrough/interrupt_router.h"
#include "devices/passthrough/intx.h"
#include "devices/passthrough/msi.h"
#include "devices/passthrough/msix.h"
#include "devices/passthrough/zap_notification.h"
#include "devices/pci_function.h"
#include "memory/address_space.h"

namespace crossbar {

class PassthroughFunction : public PciFunction,
                            public BarOwner,
                            public std::enable_shared_from_this<PassthroughFunction> {
 public:
  // What it is connected to; all of it outlives this.
  struct Surroundings {
    AddressSpace& space;
    InterruptRouter& interrupts;
    EventWatcher& watcher;
    ZapLog& zaps;
    Bars::Windows windows;
    std::array<uint32_t, 4> intx_gsi{};  // where INTA to INTD of its place on the bus arrive
  };
  struct Settings {
    std::string id;  // for people; the matrix calls the device so
    bool p2p = true;
    bool rom = true;                // the device's expansion ROM, or rom_image, is there
    std::vector<std::byte> rom_image{};  // in place of the device's
  };

  // Resets the device where it can be reset. Errors: its config space or BARs make no sense; a call to
  // its driver failed. Nothing is left behind then.
  static Result<std::shared_ptr<PassthroughFunction>> Create(std::unique_ptr<VfioBackend> backend,
                                                             Settings settings,
                                                             Surroundings surroundings);
  ~PassthroughFunction() override;

  uint32_t ReadConfig(uint16_t offset, unsigned size) override EXCLUDES(access_);
  void WriteConfig(uint16_t offset, unsigned size, uint32_t value) override EXCLUDES(access_);
  void Reset() override EXCLUDES(access_);
  void OnBusReset() override EXCLUDES(access_);
  void OnForwardingChange() override EXCLUDES(access_);

  std::string bar_owner_name() const override { return settings_.id; }
  void OnVanished(Gpa address) override EXCLUDES(access_);
  // Without access_, which a zap holds while it waits for these to end.
  Result<> ReadBar(uint8_t bar, uint64_t offset, std::span<std::byte> data) override
      EXCLUDES(forward_mutex_);
  Result<> WriteBar(uint8_t bar, uint64_t offset, std::span<const std::byte> data) override
      EXCLUDES(forward_mutex_);
  uint64_t largest_access() const override { return largest_access_; }

  // Does what `cause` asks for as if it had come: for fault plans (fault= of --device). Of hardware steps only a reset's.
  // On the watcher's thread, where those from outside come.
  void Inject(ZapCause cause) EXCLUDES(access_);
  // The end: everything of it is taken away, then its file descriptors close (G11). Idempotent.
  void Close() EXCLUDES(access_);

  bool lost() const EXCLUDES(access_);
  const std::string& id() const { return settings_.id; }

 private:
  using HardwareStep = std::function<Result<>()>;
  // A BAR, as the windows see it.
  class BarTrap final : public BusDevice {
   public:
    BarTrap(PassthroughFunction& function, unsigned bar) : function_(function), bar_(bar) {}
    uint64_t Read(uint64_t offset, unsigned size) override {
      return function_.TrapRead(bar_, offset, size);
    }
    void Write(uint64_t offset, unsigned size, uint64_t value) override {
      function_.TrapWrite(bar_, offset, size, value);
    }

   private:
    PassthroughFunction& function_;
    const unsigned bar_;
  };

  PassthroughFunction(std::unique_ptr<VfioBackend> backend, Settings settings,
                      Surroundings surroundings, const ConfigView& config);

  Result<> Discover() EXCLUDES(access_);
  Result<std::shared_ptr<VfioBackend>> Forward() const EXCLUDES(forward_mutex_);
  Result<> WatchDevice() EXCLUDES(access_);
  Result<> Watch(int fd, ZapCause cause) REQUIRES(access_);
  void OnEvent(ZapCause cause, bool injected = false) EXCLUDES(access_);
  bool IsWell() REQUIRES(access_);

  uint64_t TrapRead(unsigned bar, uint64_t offset, unsigned size) EXCLUDES(access_);
  void TrapWrite(unsigned bar, uint64_t offset, unsigned size, uint64_t value) EXCLUDES(access_);
  bool Decodes(unsigned bar) const REQUIRES_SHARED(access_);
  uint64_t ReadRom(uint64_t offset, unsigned size) const REQUIRES_SHARED(access_);

  // `offset` to `offset + size` with `value`, as 16 bits of the register at `reg`; nothing where the
  // write does not touch it.
  std::optional<uint16_t> Written(uint16_t reg, uint16_t offset, unsigned size, uint32_t value) const
      REQUIRES(access_);
  // What a config write begins or ends, by the register it hits.
  std::optional<ZapCause> CauseOf(uint16_t offset, unsigned size, uint32_t value) const
      REQUIRES(access_);

  void Transition(ZapCause cause, bool injected, const HardwareStep& hardware) REQUIRES(access_);
  void ResetBy(ZapCause cause, bool injected = false) REQUIRES(access_);
  // Whether the port above lets none of its requests through.
  bool MasterHeld() const;
  void Lose() REQUIRES(access_);
  void CloseBackend() REQUIRES(access_);
  void ForgetReset(ConfigView::ResetKind kind) REQUIRES(access_);
  void UpdateInterrupts() REQUIRES(access_);
  void DisableInterrupts() REQUIRES(access_);
  // What the device says now, not what the guest asked for.
  Bars::Decode ReadDecode() const REQUIRES(access_);

  const Settings settings_;
  const Surroundings around_;
  ZapLog& zaps_;

  // Trapped accesses hold it shared and check decode inside; whatever changes anything, alone.
  mutable SharedMutex access_;
  std::shared_ptr<VfioBackend> backend_ GUARDED_BY(access_);  // null once closed
  ConfigView config_ GUARDED_BY(access_);
  Bars bars_ GUARDED_BY(access_);
  Bars::Decode decode_ GUARDED_BY(access_);
  bool lost_ GUARDED_BY(access_) = false;
  std::unique_ptr<Msi> msi_ GUARDED_BY(access_);
  std::unique_ptr<Msix> msix_ GUARDED_BY(access_);
  std::unique_ptr<Intx> intx_ GUARDED_BY(access_);

  const uint64_t largest_access_;
  mutable Mutex forward_mutex_;  // held for a moment
  std::shared_ptr<VfioBackend> forward_ GUARDED_BY(forward_mutex_);  // backend_, for peers' DMA

  std::vector<BarTrap> traps_;  // by BAR; constant after construction
  Fd request_event_;            // REQ; constant after Create
  Fd error_event_;              // ERR
  std::vector<int> watched_ GUARDED_BY(access_);
  ZapNotification::Clock::time_point blamed_ GUARDED_BY(access_);  // last, by OnVanished, while it was well
  unsigned blames_ GUARDED_BY(access_) = 0;                        // none a second after the one before
};

}  // namespace crossbar
