#include "devices/vfio_user/dma_device.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "base/sys.h"
#include "base/sys_socket.h"
#include "base/thread.h"

namespace crossbar::vfio_user {
namespace {

constexpr uint64_t kRegisters = 1u << 20;
constexpr unsigned kMsixBar = 4;
constexpr uint64_t kMsixBarSize = 4096;
constexpr uint64_t kPbaOffset = 2048;

constexpr uint64_t kIdentification = 0x00;
constexpr uint64_t kLiveness = 0x04;
constexpr uint64_t kFactorial = 0x08;
constexpr uint64_t kStatus = 0x20;
constexpr uint64_t kCauses = 0x24;
constexpr uint64_t kRaise = 0x60;
constexpr uint64_t kAcknowledge = 0x64;
constexpr uint64_t kEduChannel = 0x80;
constexpr uint64_t kEduChannelEnd = 0xa0;

constexpr uint64_t kSource = 0x00;
constexpr uint64_t kDestination = 0x08;
constexpr uint64_t kCount = 0x10;
constexpr uint64_t kCommand = 0x18;
constexpr uint64_t kError = 0x1c;
constexpr uint64_t kDoorbell = 0x20;

constexpr uint32_t kVersion = 0x010000ed;
constexpr uint32_t kFactorialInterrupt = 0x80;
constexpr uint32_t kFactorialCause = 0x1;
constexpr uint32_t kDmaCause = 0x100;
constexpr uint64_t kNobody = ~uint64_t{0};

// What a channel's thread wakes up for.
constexpr uint64_t kRung = 0;
constexpr uint64_t kWoken = 1;

// Modulo 2^32; from 34 on that is 0.
uint32_t Factorial(uint32_t n) {
  if (n >= 34) return 0;
  uint32_t product = 1;
  for (; n > 1; --n) product *= n;
  return product;
}

std::array<uint32_t, InterruptLines::kKinds> Interrupts(const DmaDevice::Options& options) {
  return {1, 1, options.msix ? options.channels : 0, 0, 0};
}

}  // namespace

// --- Making ----------------------------------------------------------------------------------------

DmaDevice::DmaDevice(const Options& options,
                     std::array<uint32_t, InterruptLines::kKinds> counts)
    : ServedDevice({.vendor = 0x1234, .device = 0x11e8, .revision = 0x10, .class_code = 0x00ff00,
                    .intx = true},
                   counts),
      options_(options),
      address_mask_(~uint64_t{0} >> (64 - options.address_bits)),
      buffer_(options.buffer_size),
      msix_table_(options.msix ? kMsixBarSize : 0) {}

Result<> DmaDevice::Check(const Options& options) {
  if (options.address_bits < 12 || options.address_bits > 64)
    return Fail("address-bits {}: 12 to 64", options.address_bits);
  if (options.channels < 1 || options.channels > kMaxChannels)
    return Fail("channels {}: 1 to {}", options.channels, kMaxChannels);
  if (options.buffer_size < 16 || options.buffer_size > kGiB)
    return Fail("buffer {:#x}: 16 bytes to 1G", options.buffer_size);
  return {};
}

Result<std::unique_ptr<DmaDevice>> DmaDevice::Create(const Options& options) {
  TRY(Check(options));
  std::unique_ptr<DmaDevice> device(new DmaDevice(options, Interrupts(options)));
  device->AddRegisters(0, kRegisters);
  if (options.msix) device->AddRegisters(kMsixBar, kMsixBarSize);
  TRY(device->AddCapabilities());
  TRY(device->StartChannels());
  return device;
}

Result<> DmaDevice::AddCapabilities() {
  const auto at = [](uint8_t base, unsigned offset) { return static_cast<uint16_t>(base + offset); };
  const auto msi = config().AddCapability(PCI_CAP_ID_MSI, 14);
  const auto msix = options_.msix ? config().AddCapability(PCI_CAP_ID_MSIX, 12) : uint8_t{0};
  if (!msi || !msix) return Fail("no room for capabilities");
  config().Set<uint16_t>(at(*msi, PCI_MSI_FLAGS), PCI_MSI_FLAGS_64BIT);
  config().SetWritable<uint16_t>(at(*msi, PCI_MSI_FLAGS), PCI_MSI_FLAGS_ENABLE);
  config().SetWritable<uint32_t>(at(*msi, PCI_MSI_ADDRESS_LO), 0xfffffffc);
  config().SetWritable<uint32_t>(at(*msi, PCI_MSI_ADDRESS_HI), 0xffffffff);
  config().SetWritable<uint16_t>(at(*msi, PCI_MSI_DATA_64), 0xffff);
  if (options_.msix) {
    config().Set<uint16_t>(at(*msix, PCI_MSIX_FLAGS), static_cast<uint16_t>(options_.channels - 1));
    config().SetWritable<uint16_t>(at(*msix, PCI_MSIX_FLAGS),
                                   PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    config().Set<uint32_t>(at(*msix, PCI_MSIX_TABLE), kMsixBar);
    config().Set<uint32_t>(at(*msix, PCI_MSIX_PBA), kPbaOffset | kMsixBar);
  }
  return AddFunctionReset(options_.reset);
}

Result<> DmaDevice::StartChannels() {
  for (unsigned i = 0; i < options_.channels; ++i) {
    auto channel = std::make_unique<Channel>();
    channel->doorbell = TRY(sys::EventFd());
    channel->wake = TRY(sys::EventFd(0, EFD_NONBLOCK));
    channel->epoll = TRY(sys::EpollCreate());
    const int epoll = channel->epoll.get();
    TRY(sys::EpollControl(epoll, EPOLL_CTL_ADD, channel->doorbell.get(), EPOLLIN | EPOLLET, kRung));
    TRY(sys::EpollControl(epoll, EPOLL_CTL_ADD, channel->wake.get(), EPOLLIN, kWoken));
    channels_.push_back(std::move(channel));
  }
  for (unsigned i = 0; i < options_.channels; ++i)
    channels_[i]->thread = TRY(StartThread(fmt::format("channel {}", i), [this, i] { RunChannel(i); }));
  return {};
}

DmaDevice::~DmaDevice() {
  stopping_ = true;
  // What a transfer asks the client for ends too.
  memory().Clear();
  for (const auto& channel : channels_) {
    (void)sys::SignalEvent(channel->wake);
    if (channel->thread.joinable()) channel->thread.join();
  }
}

std::vector<ServedDevice::Doorbell> DmaDevice::Doorbells(unsigned bar) const {
  std::vector<Doorbell> doorbells;
  // edu has none.
  if (bar != 0 || options_.channels == 1) return doorbells;
  for (unsigned i = 0; i < options_.channels; ++i)
    doorbells.push_back({kChannels + i * kChannelSize + kDoorbell, 4, channels_[i]->doorbell.get()});
  return doorbells;
}

// --- Registers -------------------------------------------------------------------------------------

uint64_t DmaDevice::ReadRegister(unsigned bar, uint64_t offset, unsigned size) {
  if (bar == kMsixBar) {
    uint64_t value = 0;
    std::memcpy(&value, msix_table_.data() + offset, size);
    return value;
  }
  if (offset < kEduChannel ? size != 4 : size < 4) return kNobody;
  MutexLock lock(mutex_);
  if (offset < kEduChannel) return ReadEdu(offset);
  if (offset < kEduChannelEnd) {
    // edu has no registers between those of a channel.
    return offset % 8 == 0 ? ReadChannel(*channels_[0], offset - kEduChannel) : kNobody;
  }
  if (offset >= kExtensions && offset < kChannels) return ReadExtension(offset - kExtensions);
  const uint64_t index = (offset - kChannels) / kChannelSize;
  if (offset < kChannels || index >= channels_.size()) return kNobody;
  return ReadChannel(*channels_[index], offset % kChannelSize);
}

uint64_t DmaDevice::ReadExtension(uint64_t offset) const {
  switch (offset) {
    case 0x00: return kMagic;
    case 0x04: return options_.channels;
    case 0x08: return options_.buffer_size;
    case 0x10: return address_mask_;
  }
  return kNobody;
}

uint64_t DmaDevice::ReadEdu(uint64_t offset) const {
  switch (offset) {
    case kIdentification: return kVersion;
    case kLiveness: return liveness_;
    case kFactorial: return factorial_;
    case kStatus: return status_;
    case kCauses: return causes_;
  }
  return kNobody;
}

uint64_t DmaDevice::ReadChannel(const Channel& channel, uint64_t offset) const {
  switch (offset) {
    case kSource: return channel.source;
    case kDestination: return channel.destination;
    case kCount: return channel.count;
    case kCommand: return channel.command;
    case kError: return channel.error;
  }
  return kNobody;
}

void DmaDevice::WriteRegister(unsigned bar, uint64_t offset, unsigned size, uint64_t value) {
  if (bar == kMsixBar) {
    std::memcpy(msix_table_.data() + offset, &value, size);
    return;
  }
  if (offset < kEduChannel ? size != 4 : size < 4) return;
  MutexLock lock(mutex_);
  if (offset < kEduChannel) {
    WriteEdu(offset, value);
  } else if (offset < kEduChannelEnd) {
    if (offset % 8 == 0) WriteChannel(*channels_[0], offset - kEduChannel, value);
  } else if (offset >= kChannels && (offset - kChannels) / kChannelSize < channels_.size()) {
    WriteChannel(*channels_[(offset - kChannels) / kChannelSize], offset % kChannelSize, value);
  }
}

void DmaDevice::WriteEdu(uint64_t offset, uint64_t value) {
  const auto low = static_cast<uint32_t>(value);
  switch (offset) {
    case kLiveness:
      liveness_ = ~low;
      break;
    case kFactorial:
      // Done at once: a driver that waits for the status bit never finds it set.
      factorial_ = Factorial(low);
      if ((status_ & kFactorialInterrupt) != 0) Raise(kFactorialCause, 0);
      break;
    case kStatus:
      status_ = low & kFactorialInterrupt;
      break;
    case kRaise:
      Raise(low, 0);
      break;
    case kAcknowledge:
      causes_ &= ~low;
      if (causes_ == 0) SetIntx(false);
      break;
  }
}

void DmaDevice::WriteChannel(Channel& channel, uint64_t offset, uint64_t value) {
  if (offset == kDoorbell) {
    channel.rung = true;
    (void)sys::SignalEvent(channel.wake);
    return;
  }
  if ((channel.command & kRun) != 0) return;  // busy
  switch (offset) {
    case kSource:
      channel.source = value;
      break;
    case kDestination:
      channel.destination = value;
      break;
    case kCount:
      channel.count = value;
      break;
    case kCommand:
      channel.command = static_cast<uint32_t>(value) & (kRun | kToBus | kInterrupt);
      if ((channel.command & kRun) != 0) (void)sys::SignalEvent(channel.wake);
      break;
  }
}

void DmaDevice::Raise(uint32_t cause, uint32_t vector) {
  causes_ |= cause;
  if (causes_ != 0 && !lines().SendMessage(vector)) SetIntx(true);
}

// --- Reset -----------------------------------------------------------------------------------------

void DmaDevice::OnReset() {
  MutexLock lock(mutex_);
  liveness_ = factorial_ = status_ = causes_ = 0;
  for (const auto& channel : channels_) {
    ++channel->epoch;
    (void)TakeRings(*channel);  // what was rung before starts nothing after
    channel->source = channel->destination = channel->count = 0;
    channel->command = channel->error = 0;
  }
  std::ranges::fill(msix_table_, std::byte{0});
  for (const uint8_t id : {uint8_t{PCI_CAP_ID_MSI}, uint8_t{PCI_CAP_ID_MSIX}}) {
    const auto found = config().FindCapability(id);
    if (!found) continue;
    const auto flags = static_cast<uint16_t>(*found + PCI_MSI_FLAGS);
    const unsigned keep = id == PCI_CAP_ID_MSI ? ~unsigned{PCI_MSI_FLAGS_ENABLE}
                                               : unsigned{PCI_MSIX_FLAGS_QSIZE};
    config().Set<uint16_t>(flags, static_cast<uint16_t>(config().Get<uint16_t>(flags) & keep));
  }
}

// --- Transfers -------------------------------------------------------------------------------------

bool DmaDevice::AwaitStart(const Channel& channel) const {
  pollfd events{channel.epoll.get(), POLLIN, 0};
  // Asked first: who took the rings last may have taken the one that ends this thread, too.
  while (!stopping_ && sys::Poll({&events, 1}, -1) <= 0) {
  }
  return !stopping_;
}

bool DmaDevice::TakeRings(Channel& channel) {
  std::array<epoll_event, 2> events;
  const int count = std::max(sys::EpollWait(channel.epoll.get(), events, 0), 0);
  bool rung = std::exchange(channel.rung, false);
  for (const epoll_event& event : std::span(events).first(static_cast<size_t>(count))) {
    if (event.data.u64 == kRung) rung = true;
    if (event.data.u64 == kWoken) (void)sys::DrainEvent(channel.wake);
  }
  return rung;
}

void DmaDevice::RunChannel(unsigned index) {
  Channel& channel = *channels_[index];
  while (AwaitStart(channel)) {
    uint64_t source = 0;
    uint64_t destination = 0;
    uint64_t count = 0;
    uint32_t command = 0;
    uint64_t epoch = 0;
    {
      MutexLock lock(mutex_);
      if (TakeRings(channel)) channel.command |= kRun;
      // A reset may have come between a start and this.
      if ((channel.command & kRun) == 0) continue;
      source = channel.source;
      destination = channel.destination;
      count = channel.count;
      command = channel.command;
      epoch = channel.epoch;
    }
    const uint32_t error = Transfer(source, destination, count, command,
                                    [&] { return channel.epoch == epoch && bus_master(); });
    MutexLock lock(mutex_);
    if (channel.epoch != epoch) continue;
    channel.error = error;
    channel.command &= ~kRun;
    if ((command & kInterrupt) != 0) Raise(kDmaCause, index);
  }
}

uint32_t DmaDevice::Transfer(uint64_t source, uint64_t destination, uint64_t count,
                             uint32_t command, const ClientMemory::Wanted& wanted) {
  const bool to_bus = (command & kToBus) != 0;
  const uint64_t inside = to_bus ? source : destination;
  const uint64_t address = (to_bus ? destination : source) & address_mask_;
  if (inside < kBuffer || inside - kBuffer > buffer_.size() ||
      count > buffer_.size() - (inside - kBuffer))
    return ERANGE;
  if (!bus_master()) return EPERM;
  const std::span<std::byte> data = std::span(buffer_).subspan(inside - kBuffer, count);
  return to_bus ? memory().Write(address, data, wanted) : memory().Read(address, data, wanted);
}

}  // namespace crossbar::vfio_user
