#include "devices/passthrough/function.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/sys.h"

namespace crossbar {
namespace {

using ResetKind = ConfigView::ResetKind;

Result<> NoHardwareStep() { return {}; }

ResetKind ResetOf(ZapCause cause) {
  if (cause == ZapCause::kFunctionReset) return ResetKind::kFunction;
  return cause == ZapCause::kBusReset ? ResetKind::kBus : ResetKind::kPower;
}

}  // namespace

PassthroughFunction::PassthroughFunction(std::unique_ptr<VfioBackend> backend, Settings settings,
                                         Surroundings surroundings, const ConfigView& config)
    : settings_(std::move(settings)),
      around_(std::move(surroundings)),
      zaps_(around_.zaps),
      backend_(std::move(backend)),
      config_(config),
      bars_(around_.space, around_.windows),
      largest_access_(backend_->largest_access()),
      forward_(backend_) {
  for (unsigned bar = 0; bar < Bars::kCount; ++bar) traps_.emplace_back(*this, bar);
}

PassthroughFunction::~PassthroughFunction() { Close(); }

Result<std::shared_ptr<PassthroughFunction>> PassthroughFunction::Create(
    std::unique_ptr<VfioBackend> backend, Settings settings, Surroundings surroundings) {
  if (backend->can_reset()) {
    TRY(Within(backend->Reset(), [] { return "cannot reset it"; }));
  } else {
    LogWarning("{} has no reset method: it starts in the state it was left in, and keeps its state "
               "over reboots of the guest", backend->name());
  }
  ConfigView config = TRY(ConfigView::Create(*backend));
  TRY(backend->JoinBus(surroundings.space));
  std::shared_ptr<PassthroughFunction> function(new PassthroughFunction(
      std::move(backend), std::move(settings), std::move(surroundings), config));
  Result<> ready = function->Discover();
  if (ready) ready = function->WatchDevice();
  if (ready) return function;
  function->Close();
  return std::unexpected(std::move(ready).error());
}

Result<> PassthroughFunction::Discover() {
  ExclusiveLock lock(access_);
  if (const auto layout = config_.msix_layout()) {
    const auto fits = [&backend = *backend_](unsigned bar, uint64_t offset, uint64_t size) {
      const uint64_t whole = bar < Bars::kRom ? backend.region(bar).size : 0;
      return offset < whole && size <= whole - offset;
    };
    if (!fits(layout->table_bar, layout->table_offset, layout->table_size()) ||
        !fits(layout->pba_bar, layout->pba_offset, layout->pba_size()))
      return Fail("its MSI-X capability names a table outside its BARs");
    msix_ = std::make_unique<Msix>(*backend_, around_.interrupts, *layout);
  }
  if (const auto layout = config_.msi_layout())
    msi_ = std::make_unique<Msi>(*backend_, around_.interrupts, *layout);
  const uint32_t pin = config_.Read(PCI_INTERRUPT_PIN, 1);
  if (backend_->interrupt(VFIO_PCI_INTX_IRQ_INDEX).count != 0 && pin >= 1 && pin <= 4)
    intx_ = std::make_unique<Intx>(*backend_, around_.interrupts, around_.watcher,
                                   around_.intx_gsi[pin - 1]);

  Bars::Options options;
  options.peers_may_map = settings_.p2p;
  if (settings_.rom)
    options.rom_size = settings_.rom_image.empty() ? backend_->region(Bars::kRom).size
                                                   : settings_.rom_image.size();
  TRY(bars_.Discover(*backend_, *this, msix_.get(), options));
  for (unsigned bar = 0; bar < Bars::kCount; ++bar)
    bars_.SetTrap(bar, std::shared_ptr<BusDevice>(shared_from_this(), &traps_[bar]));
  // The driver enabled the device when it opened it; the guest finds it as after power-on.
  ForgetReset(ResetKind::kPower);
  if (lost_) return Fail("it does not answer");
  return config_.HoldMaster(MasterHeld());
}

Result<> PassthroughFunction::WatchDevice() {
  ExclusiveLock lock(access_);
  struct Source {
    unsigned index;
    Fd& event;
    ZapCause cause;
  };
  for (const Source& source : {Source{VFIO_PCI_REQ_IRQ_INDEX, request_event_, ZapCause::kWantedBack},
                               Source{VFIO_PCI_ERR_IRQ_INDEX, error_event_, ZapCause::kDeviceError}}) {
    if (backend_->interrupt(source.index).count == 0) continue;
    source.event = TRY(sys::EventFd(0, EFD_NONBLOCK));
    const std::array events = {source.event.get()};
    TRY(backend_->SetInterrupts(source.index, 0, events));
    TRY(Watch(source.event.get(), source.cause));
  }
  if (backend_->lost_event() >= 0) TRY(Watch(backend_->lost_event(), ZapCause::kDeviceGone));
  return {};
}

Result<> PassthroughFunction::Watch(int fd, ZapCause cause) {
  TRY(around_.watcher.Watch(fd, [this, cause] { OnEvent(cause); }));
  watched_.push_back(fd);
  return {};
}

// On the watcher's thread.
void PassthroughFunction::OnEvent(ZapCause cause, bool injected) {
  {
    ExclusiveLock lock(access_);
    // A device with an error stays ours until the host wants it back, lost as it is. After the rest it has no more to say.
    const bool stays = cause == ZapCause::kDeviceError;
    const std::vector<int> over = stays ? std::vector{error_event_.get()} : watched_;
    for (const int fd : over) {
      around_.watcher.Unwatch(fd);
      std::erase(watched_, fd);
    }
    const bool was_lost = lost_;
    if (!was_lost) Transition(cause, injected, NoHardwareStep);
    // The host, or the server's parent, waits for that. Not while a peer may reach it: the VM is about to end (G5).
    if (!stays && !around_.space.unsafe()) CloseBackend();
    if (was_lost) return;
  }
  // Here, as a reader of our stderr may be slow, and vCPUs wait for the lock.
  LogWarning("{}: {}{}; the guest has lost it", settings_.id, ZapCauseName(cause), injected ? " (injected)" : "");
}

void PassthroughFunction::OnVanished(Gpa address) {
  {
    ExclusiveLock lock(access_);
    if (lost_ || IsWell()) return;
    Transition(ZapCause::kDeviceGone, /*injected=*/false, NoHardwareStep);
  }
  LogWarning("{}: its memory at {} does not answer any more; the guest has lost it", settings_.id, address);
}

// KVM does not say which memory it could not reach, and the access that trapped then may have been an interrupt
// handler's. The device says whether it decodes; but where it is blamed again and again, that is not why.
bool PassthroughFunction::IsWell() {
  constexpr unsigned kMostBlames = 8;
  const auto now = ZapNotification::Clock::now();
  if (now - blamed_ > std::chrono::seconds(1)) blames_ = 0;
  blamed_ = now;
  return ReadDecode().memory && ++blames_ < kMostBlames;
}

uint32_t PassthroughFunction::ReadConfig(uint16_t offset, unsigned size) {
  ExclusiveLock lock(access_);
  if (lost_) return static_cast<uint32_t>(AllOnes(size));
  if (Bars::Holds(offset)) return bars_.Read(offset, size);
  if (msi_ != nullptr && offset >= config_.capabilities().msi &&
      offset < config_.capabilities().msi + msi_->layout().size())
    config_.SetMsiPending(msi_->Pending());
  return config_.Read(offset, size);
}

std::optional<uint16_t> PassthroughFunction::Written(uint16_t reg, uint16_t offset, unsigned size,
                                                     uint32_t value) const {
  if (offset + size <= reg || offset >= reg + 2) return std::nullopt;
  auto written = static_cast<uint16_t>(config_.Read(reg, 2));
  for (unsigned i = 0; i < size; ++i) {
    if (offset + i < reg || offset + i >= reg + 2u) continue;
    const unsigned shift = 8 * (offset + i - reg);
    written = static_cast<uint16_t>((written & ~(0xffu << shift)) |
                                    ((value >> (8 * i) & 0xff) << shift));
  }
  return written;
}

std::optional<ZapCause> PassthroughFunction::CauseOf(uint16_t offset, unsigned size,
                                                     uint32_t value) const {
  const ConfigView::Capabilities& at = config_.capabilities();
  if (const auto command = Written(PCI_COMMAND, offset, size, value)) {
    const bool memory = (*command & PCI_COMMAND_MEMORY) != 0;
    const bool ports = (*command & PCI_COMMAND_IO) != 0;
    if (decode_.memory && !memory) return ZapCause::kDecodeOff;
    if (decode_.memory != memory || decode_.ports != ports) return ZapCause::kDecodeOn;
    return std::nullopt;
  }
  if (at.power != 0) {
    if (const auto control = Written(at.power + PCI_PM_CTRL, offset, size, value)) {
      const auto now = static_cast<uint16_t>(config_.Read(at.power + PCI_PM_CTRL, 2));
      if (((*control ^ now) & PCI_PM_CTRL_STATE_MASK) == 0) return std::nullopt;
      return (*control & PCI_PM_CTRL_STATE_MASK) == 0 ? ZapCause::kPowerUp : ZapCause::kPowerDown;
    }
  }
  if (config_.has_express_flr()) {
    const auto control = Written(at.express + PCI_EXP_DEVCTL, offset, size, value);
    if (control && (*control & PCI_EXP_DEVCTL_BCR_FLR) != 0) return ZapCause::kFunctionReset;
  }
  if (config_.has_advanced_flr()) {
    const auto control = Written(at.advanced_features + PCI_AF_CTRL, offset, size, value);
    if (control && (*control & PCI_AF_CTRL_FLR) != 0) return ZapCause::kFunctionReset;
  }
  return std::nullopt;
}

void PassthroughFunction::WriteConfig(uint16_t offset, unsigned size, uint32_t value) {
  ExclusiveLock lock(access_);
  if (lost_) return;
  if (Bars::Holds(offset)) {
    bars_.Write(offset, size, value);
    // In hardware the BAR moves with the write; nothing else of the device has to know.
    if (decode_ != Bars::Decode()) Transition(ZapCause::kBarMoved, false, NoHardwareStep);
    return;
  }
  ConfigView* const config = &config_;
  const auto step = [config, offset, size, value] { return config->Write(offset, size, value); };
  if (const auto cause = CauseOf(offset, size, value)) return Transition(*cause, false, step);
  const Result<> written = step();
  static RateLimit limit;
  if (!written)
    LogGuest(limit, "{}: a write to config register {:#x} failed: {}", settings_.id, offset,
             written.error().message());
  UpdateInterrupts();
}

void PassthroughFunction::Transition(ZapCause cause, bool injected, const HardwareStep& hardware) {
  ZapNotification notification;
  notification.device = settings_.id;
  notification.cause = cause;
  notification.injected = injected;
  notification.noticed = ZapNotification::Clock::now();
  const ZapPolicy policy = PolicyOf(cause);
  // Before the hardware stops answering; free if nothing is placed.
  Bars::Zapped zapped;
  if (policy.interrupts_decode) bars_.Zap(zapped);
  if (policy.resets) DisableInterrupts();
  // G5: what a peer may still reach goes on answering; the VM is about to stop, and cuts the peers first.
  const bool held = around_.space.unsafe();
  const Result<> done = policy.stays_down || held ? Result<>() : hardware();
  if (!done)
    LogWarning("{}: {} failed, the guest has lost it: {}", settings_.id, ZapCauseName(cause),
               done.error().message());
  if (policy.stays_down || !done) {
    Lose();
  } else if (!held) {
    if (policy.resets) ForgetReset(ResetOf(cause));
    if (lost_)
      LogWarning("{}: no answer after {}; the guest has lost it", settings_.id, ZapCauseName(cause));
    decode_ = ReadDecode();
    bars_.Place(decode_, zapped);  // it answers again; free for what is placed
  }
  notification.hardware_done = ZapNotification::Clock::now();
  notification.pieces = static_cast<unsigned>(zapped.pieces);
  const bool took = zapped.pieces != 0;
  notification.dma_out = took ? zapped.dma_out : notification.noticed;
  notification.slots_out = took ? zapped.slots_out : notification.noticed;
  zaps_.Add(std::move(notification));
}

// Sticky: a lost device reads all ones, and its end as an initiator comes with its end as a target.
void PassthroughFunction::Lose() {
  Bars::Zapped zapped;
  bars_.Zap(zapped);
  decode_ = {};
  bars_.Place(decode_, zapped);
  DisableInterrupts();
  if (backend_ != nullptr) backend_->LeaveBus();
  lost_ = true;
}

// The guest finds reset values, whatever the driver restored underneath: drivers of the host save and
// restore config space around a reset (pci_try_reset_function).
void PassthroughFunction::ForgetReset(ResetKind kind) {
  bars_.Reset();
  if (!config_.Reset(kind) || !config_.Write(PCI_COMMAND, 2, 0)) return Lose();
  decode_ = ReadDecode();
  UpdateInterrupts();
}

Bars::Decode PassthroughFunction::ReadDecode() const {
  const auto command = static_cast<uint16_t>(config_.Read(PCI_COMMAND, 2));
  if (command == 0xffff) return {};
  Bars::Decode decode{(command & PCI_COMMAND_MEMORY) != 0, (command & PCI_COMMAND_IO) != 0};
  const uint8_t power = config_.capabilities().power;
  if (power == 0) return decode;
  const uint32_t state = config_.Read(power + PCI_PM_CTRL, 2) & PCI_PM_CTRL_STATE_MASK;
  return state == 0 ? decode : Bars::Decode();
}

// Of the three kinds a device may use one at a time; switching goes through none.
void PassthroughFunction::UpdateInterrupts() {
  const bool msix = msix_ != nullptr && (config_.msix_control() & PCI_MSIX_FLAGS_ENABLE) != 0;
  const auto registers = config_.MsiRegisters();
  const bool msi = !msix && msi_ != nullptr && (registers[PCI_MSI_FLAGS] & PCI_MSI_FLAGS_ENABLE) != 0;
  if (intx_ != nullptr && (msix || msi)) intx_->Disable();
  if (msi_ != nullptr && !msi) msi_->Reset();
  if (msix_ != nullptr)
    msix_->SetControl(msix, (config_.msix_control() & PCI_MSIX_FLAGS_MASKALL) != 0);
  if (msi) msi_->Apply(registers);
  if (intx_ == nullptr || msix || msi) return;
  const Result<> enabled = intx_->Enable();
  static RateLimit limit;
  if (!enabled) LogGuest(limit, "{}: no INTx: {}", settings_.id, enabled.error().message());
}

void PassthroughFunction::DisableInterrupts() {
  if (msix_ != nullptr) msix_->Reset();
  if (msi_ != nullptr) msi_->Reset();
  if (intx_ != nullptr) intx_->Disable();
}

bool PassthroughFunction::Decodes(unsigned bar) const {
  if (lost_) return false;
  return bars_.kind(bar) == Bars::Kind::kPorts ? decode_.ports : decode_.memory;
}

uint64_t PassthroughFunction::ReadRom(uint64_t offset, unsigned size) const {
  uint64_t value = AllOnes(size);
  const std::vector<std::byte>& image = settings_.rom_image;
  const uint64_t held = image.empty() ? backend_->region(Bars::kRom).size : image.size();
  if (offset >= held || size > held - offset) return value;
  if (!image.empty()) {
    value = 0;
    std::memcpy(&value, image.data() + offset, size);
    return value;
  }
  std::array<std::byte, 8> bytes{};
  if (!backend_->Read(Bars::kRom, offset, std::span(bytes).first(size))) return value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

uint64_t PassthroughFunction::TrapRead(unsigned bar, uint64_t offset, unsigned size) {
  SharedLock lock(access_);
  if (!Decodes(bar)) return AllOnes(size);
  if (bars_.kind(bar) == Bars::Kind::kRom) return ReadRom(offset, size);
  if (msix_ != nullptr && msix_->Holds(bar, offset, size)) return msix_->Read(bar, offset, size);
  std::array<std::byte, 8> bytes{};
  if (!backend_->Read(bar, offset, std::span(bytes).first(size))) return AllOnes(size);
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

void PassthroughFunction::TrapWrite(unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
  SharedLock lock(access_);
  if (!Decodes(bar) || bars_.kind(bar) == Bars::Kind::kRom) return;
  if (msix_ != nullptr && msix_->Holds(bar, offset, size))
    return msix_->Write(bar, offset, size, value);
  std::array<std::byte, 8> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  // A device that does not take it is the guest's to notice, as on hardware.
  static_cast<void>(backend_->Write(bar, offset, std::span(bytes).first(size)));
}

Result<std::shared_ptr<VfioBackend>> PassthroughFunction::Forward() const {
  MutexLock lock(forward_mutex_);
  if (forward_ == nullptr) return std::unexpected(Error(EIO, "the device is closed"));
  return forward_;
}

Result<> PassthroughFunction::ReadBar(uint8_t bar, uint64_t offset, std::span<std::byte> data) {
  const std::shared_ptr<VfioBackend> backend = TRY(Forward());
  return backend->Read(bar, offset, data);
}

Result<> PassthroughFunction::WriteBar(uint8_t bar, uint64_t offset,
                                       std::span<const std::byte> data) {
  const std::shared_ptr<VfioBackend> backend = TRY(Forward());
  return backend->Write(bar, offset, data);
}

void PassthroughFunction::ResetBy(ZapCause cause, bool injected) {
  Transition(cause, injected, [&backend = *backend_]() -> Result<> {
    return backend.can_reset() ? backend.Reset() : Result<>();
  });
}

void PassthroughFunction::Reset() {
  ExclusiveLock lock(access_);
  if (!lost_) ResetBy(ZapCause::kMachineReset);
}

void PassthroughFunction::OnBusReset() {
  ExclusiveLock lock(access_);
  if (lost_) return;
  static RateLimit limit;
  if (!backend_->can_reset())
    LogGuest(limit, "{} has no reset method: it keeps its state over the reset of its bus", settings_.id);
  ResetBy(ZapCause::kBusReset);
}

bool PassthroughFunction::MasterHeld() const {
  return around_.windows.above != nullptr && !around_.windows.above->forwarding().upstream;
}

void PassthroughFunction::OnForwardingChange() {
  ExclusiveLock lock(access_);
  if (lost_) return;
  const bool hold = MasterHeld();
  if (decode_ == Bars::Decode() && hold == config_.holds_master()) return;
  ConfigView* const config = &config_;
  Transition(ZapCause::kPortChange, false, [config, hold] { return config->HoldMaster(hold); });
}

void PassthroughFunction::Inject(ZapCause cause) {
  const ZapPolicy policy = PolicyOf(cause);
  if (policy.stays_down) return OnEvent(cause, /*injected=*/true);
  ExclusiveLock lock(access_);
  if (lost_) return;
  if (policy.resets) return ResetBy(cause, /*injected=*/true);
  Transition(cause, /*injected=*/true, NoHardwareStep);
}

bool PassthroughFunction::lost() const {
  SharedLock lock(access_);
  return lost_;
}

void PassthroughFunction::Close() {
  const std::vector<int> watched = [&] {
    ExclusiveLock lock(access_);
    return std::exchange(watched_, {});
  }();
  for (const int fd : watched) around_.watcher.Unwatch(fd);  // without the lock that its handler takes
  ExclusiveLock lock(access_);
  if (backend_ == nullptr) return;
  if (!lost_) Transition(ZapCause::kClosing, false, NoHardwareStep);
  CloseBackend();
}

// What calls it goes before it; the traps because they hold this object.
void PassthroughFunction::CloseBackend() {
  for (unsigned bar = 0; bar < Bars::kCount; ++bar) bars_.SetTrap(bar, nullptr);
  intx_.reset();
  msi_.reset();
  msix_.reset();
  {
    MutexLock lock(forward_mutex_);
    forward_.reset();
  }
  backend_.reset();
}

}  // namespace crossbar
