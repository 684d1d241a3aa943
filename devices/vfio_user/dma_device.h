// DmaDevice: a DMA engine with the registers of QEMU's edu device (docs/specs/edu.rst): a driver written for
// the one drives the other. A transfer goes between an address on the bus and a buffer in the device.
//
// Extensions, each off unless asked for: a larger buffer, wider addresses, MSI-X, more channels with doorbells,
// function-level reset. What extends the registers lies from kExtensions on, where edu has nothing:
//   +0x00 RO 4  kMagic          +0x04 RO 4  channels
//   +0x08 RO 8  buffer size     +0x10 RO 8  address mask
// and for channel N from kChannels + N * kChannelSize, as edu's from 0x80, which are those of channel 0:
//   +0x00 RW 8  source          +0x08 RW 8  destination       +0x10 RW 8  count
//   +0x18 RW 4  command         +0x1c RO 4  errno of the last transfer, 0 where it went well
//   +0x20 WO    doorbell: any write starts what the command register says but for its start bit
// With MSI-X, channel N's interrupts are vector N; other causes are vector 0.
//
// Each channel has a thread, which sleeps on its doorbell, an eventfd that clients may hand to KVM. A client
// shares that file, and may read it or set its flags: the thread waits for writes to it, and never reads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/locks.h"
#include "devices/vfio_user/served_device.h"

namespace crossbar::vfio_user {

class DmaDevice : public ServedDevice {
 public:
  static constexpr uint64_t kBuffer = 0x40000;  // the buffer's address in the device
  static constexpr uint64_t kExtensions = 0xf00;
  static constexpr uint64_t kChannels = 0x1000;
  static constexpr uint64_t kChannelSize = 0x100;
  static constexpr uint32_t kMagic = 0x58424152;
  static constexpr unsigned kMaxChannels = 16;
  static constexpr uint32_t kRun = 1;
  static constexpr uint32_t kToBus = 2;
  static constexpr uint32_t kInterrupt = 4;

  struct Options {
    uint64_t buffer_size = 4096;  // up to 1 GiB
    unsigned address_bits = 28;   // 12 to 64
    unsigned channels = 1;        // up to kMaxChannels
    bool msix = false;
    FunctionReset reset = FunctionReset::kNone;
  };

  // An error where one of the options is out of its range.
  static Result<> Check(const Options& options);
  // Errors: Check's and the host's.
  static Result<std::unique_ptr<DmaDevice>> Create(const Options& options);
  ~DmaDevice() override;

  std::vector<Doorbell> Doorbells(unsigned bar) const override;

 private:
  struct Channel {
    Fd doorbell;  // the client has it too
    Fd wake;      // ours alone: registers that start a transfer, and the end
    Fd epoll;     // of both; the wait is without mutex_, and events are taken under it
    std::thread thread;
    std::atomic<uint64_t> epoch = 0;  // grows with each reset, which ends what was begun before
    // Under mutex_.
    bool rung = false;  // by the register
    uint64_t source = 0;
    uint64_t destination = 0;
    uint64_t count = 0;
    uint32_t command = 0;
    uint32_t error = 0;
  };

  DmaDevice(const Options& options, std::array<uint32_t, InterruptLines::kKinds> counts);
  Result<> AddCapabilities();
  Result<> StartChannels();

  uint64_t ReadRegister(unsigned bar, uint64_t offset, unsigned size) override EXCLUDES(mutex_);
  void WriteRegister(unsigned bar, uint64_t offset, unsigned size, uint64_t value) override
      EXCLUDES(mutex_);
  void OnReset() override EXCLUDES(mutex_);

  uint64_t ReadExtension(uint64_t offset) const;
  uint64_t ReadEdu(uint64_t offset) const REQUIRES(mutex_);
  uint64_t ReadChannel(const Channel& channel, uint64_t offset) const REQUIRES(mutex_);
  void WriteEdu(uint64_t offset, uint64_t value) REQUIRES(mutex_);
  void WriteChannel(Channel& channel, uint64_t offset, uint64_t value) REQUIRES(mutex_);
  void Raise(uint32_t cause, uint32_t vector) REQUIRES(mutex_);

  // Until a transfer is asked for; false: the end.
  bool AwaitStart(const Channel& channel) const;
  // Whether the doorbell was rung since it was asked last.
  bool TakeRings(Channel& channel) REQUIRES(mutex_);
  void RunChannel(unsigned index);
  // An errno, or 0. Goes on while it is `wanted`.
  uint32_t Transfer(uint64_t source, uint64_t destination, uint64_t count, uint32_t command,
                    const ClientMemory::Wanted& wanted);

  const Options options_;
  const uint64_t address_mask_;
  std::vector<std::byte> buffer_;
  std::vector<std::byte> msix_table_;
  std::atomic<bool> stopping_ = false;

  Mutex mutex_;
  std::vector<std::unique_ptr<Channel>> channels_;  // the vector is constant after Create
  uint32_t liveness_ GUARDED_BY(mutex_) = 0;
  uint32_t factorial_ GUARDED_BY(mutex_) = 0;
  uint32_t status_ GUARDED_BY(mutex_) = 0;
  uint32_t causes_ GUARDED_BY(mutex_) = 0;
};

}  // namespace crossbar::vfio_user
