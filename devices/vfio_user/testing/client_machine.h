// ClientMachine: an AddressSpace over fakes with real RAM in it, a peer's BAR, and a client that is made
// to go through all that a passed-through device goes through. For tests and fuzzers.
#pragma once

#include <linux/pci_regs.h>
#include <poll.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "devices/vfio_user/client.h"
#include "devices/vfio_user/testing/scripted_server.h"
#include "memory/testing/recorder.h"
#include "memory/testing/recording_slots.h"

namespace crossbar::vfio_user::testing {

// A BAR that is registers: what the VMM forwards arrives here.
class RegisterOwner : public BarOwner {
 public:
  using Contents = std::array<std::byte, 0x1000>;

  std::string bar_owner_name() const override { return "peer"; }
  void OnVanished(Gpa) override {}
  Result<> ReadBar(uint8_t, uint64_t offset, std::span<std::byte> data) override {
    Enter();
    MutexLock lock(mutex_);
    std::memcpy(data.data(), bytes_.data() + offset, data.size());
    return {};
  }
  Result<> WriteBar(uint8_t, uint64_t offset, std::span<const std::byte> data) override {
    Enter();
    MutexLock lock(mutex_);
    std::memcpy(bytes_.data() + offset, data.data(), data.size());
    return {};
  }

  Contents contents() {
    MutexLock lock(mutex_);
    return bytes_;
  }
  void Fill(const Contents& contents) {
    MutexLock lock(mutex_);
    bytes_ = contents;
  }
  // How long an access takes, and whether one has come.
  std::atomic<milliseconds> delay = milliseconds(0);
  std::atomic<bool> entered = false;

 private:
  void Enter() {
    entered = true;
    std::this_thread::sleep_for(delay.load());
  }

  Mutex mutex_;
  Contents bytes_ GUARDED_BY(mutex_) = {};
};

// A function over a backend, as far as forwarded DMA is concerned.
class BackendOwner : public BarOwner {
 public:
  explicit BackendOwner(VfioUserBackend& backend) : backend_(backend) {}
  std::string bar_owner_name() const override { return backend_.name(); }
  void OnVanished(Gpa) override {}
  Result<> ReadBar(uint8_t bar, uint64_t offset, std::span<std::byte> data) override {
    return backend_.Read(bar, offset, data);
  }
  Result<> WriteBar(uint8_t bar, uint64_t offset, std::span<const std::byte> data) override {
    return backend_.Write(bar, offset, data);
  }
  uint64_t largest_access() const override { return backend_.largest_access(); }

 private:
  VfioUserBackend& backend_;
};

// Places all areas of one BAR at `start`.
inline AddressSpace::Mapping PlaceBar(AddressSpace& space, VfioUserBackend& backend, BarOwner& owner,
                                      uint8_t bar, uint64_t start) {
  AddressSpace::Placement placement;
  for (const VfioBackend::Area& area : backend.region(bar).mappable) {
    Backing backing = backend.MapArea(bar, area).value();
    backing.owner = &owner;
    backing.bar = bar;
    backing.bar_offset = area.offset;
    placement.pieces.push_back({{Gpa(start + area.offset), area.size}, backing});
  }
  return space.Map(std::move(placement)).value();
}

struct ClientMachine {
  static constexpr uint64_t kRam = 0x100000;
  static constexpr uint64_t kRamSize = 0x20000;
  static constexpr uint64_t kBar = 0x10000000;  // of a peer: memory
  static constexpr uint64_t kBarSize = 0x4000;
  static constexpr uint64_t kRegisters = 0x20000000;  // of a peer: no memory

  explicit ClientMachine(milliseconds zap_deadline = milliseconds(5000))
      : space(slots, {.zap_deadline = zap_deadline, .on_unsafe = [this](const Error& error) {
                        unsafe.push_back(error.message());
                      }}) {
    AddressSpace::Piece piece{{Gpa(kRam), kRamSize}, {}};
    piece.backing.host = ram.map.address();
    piece.backing.file = Backing::Handle{ram.fd.get(), 0};
    ram_mapping = space.Map({{piece}, {}}).value();
  }

  static AddressSpace::Piece Peer(uint64_t start, uint64_t size, BarOwner* owner) {
    AddressSpace::Piece piece{{Gpa(start), size}, {}};
    piece.backing.kind = Backing::Kind::kBar;
    piece.backing.owner = owner;
    return piece;
  }
  Result<> MapPeers() {
    AddressSpace::Piece bar = Peer(kBar, kBarSize, &registers);
    bar.backing.host = peer.map.address();
    bar.backing.file = Backing::Handle{peer.fd.get(), 0};
    peer_mapping = TRY(space.Map({{bar}, {}}));
    register_mapping = TRY(space.Map({{Peer(kRegisters, 0x1000, &registers)}, {}}));
    return {};
  }
  Result<> ZapPeers() {
    const std::array<AddressSpace::Mapping*, 2> both = {&peer_mapping, &register_mapping};
    space.Zap(both);
    return {};
  }

  static Result<std::unique_ptr<VfioUserBackend>> Connect(
      Fd socket, Connection::Limits limits = {}, std::shared_ptr<ServerProcess> process = {}) {
    return VfioUserBackend::Create(std::move(socket), {"test", std::move(process), limits});
  }
  static Result<> SetBusMaster(VfioUserBackend& backend, bool on = true) {
    const uint16_t command = on ? PCI_COMMAND_MASTER : 0;
    return backend.Write(7, PCI_COMMAND, Bytes(command));
  }

  // All a device goes through in its life. Its errors are the device's; what counts is that it ends.
  void Live(VfioUserBackend& backend) {
    std::array<std::byte, 256> config{};
    (void)backend.Read(7, 0, config);
    for (unsigned region = 0; region < 9; ++region) {
      for (const VfioBackend::Area& area : backend.region(region).mappable)
        (void)backend.MapArea(region, area);
      (void)backend.IoEvents(region);
    }
    (void)SetBusMaster(backend);
    const Result<Fd> event = sys::EventFd();
    if (event) (void)backend.SetInterrupts(2, 0, std::array{event->get(), -1, event->get()});
    (void)backend.JoinBus(space);
    (void)MapPeers();
    uint32_t word = 0;
    (void)backend.Read(0, 0, std::as_writable_bytes(std::span(&word, 1)));
    (void)backend.Write(0, 4, Bytes(word));
    (void)backend.DisableInterrupts(2);
    (void)backend.UnmaskIntx();
    (void)ZapPeers();
    (void)backend.Reset();
    backend.LeaveBus();
  }
  static bool Lost(const VfioUserBackend& backend) {
    pollfd poll{backend.lost_event(), POLLIN, 0};
    return sys::Poll({&poll, 1}, 0) == 1;
  }

  crossbar::testing::Recorder recorder;
  crossbar::testing::RecordingSlots slots{recorder};
  std::vector<std::string> unsafe;
  AddressSpace space;
  SharedMemory ram{kRamSize};
  SharedMemory peer{kBarSize};
  RegisterOwner registers;
  AddressSpace::Mapping ram_mapping;
  AddressSpace::Mapping peer_mapping;
  AddressSpace::Mapping register_mapping;
};

}  // namespace crossbar::vfio_user::testing
