#include "vmm/kvm_interrupt_router.h"

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/kvm_uapi.h"
#include "base/sys.h"

namespace crossbar {
namespace {

constexpr uint32_t kPicPins = 16;  // of both; 8 each

kvm_irq_routing_entry PinEntry(uint32_t gsi, uint32_t chip, uint32_t pin) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  entry.u.irqchip.irqchip = chip;
  entry.u.irqchip.pin = pin;
  return entry;
}

}  // namespace

Result<uint32_t> KvmInterruptRouter::AllocateGsi() {
  MutexLock lock(mutex_);
  uint32_t gsi = pins_;
  for (const uint32_t taken : allocated_) {
    if (taken != gsi) break;
    ++gsi;
  }
  if (gsi >= limit_)
    return std::unexpected(Error(ENOSPC, fmt::format("KVM routes {} interrupts and no more", limit_)));
  allocated_.insert(gsi);
  return gsi;
}

// A route that leads nowhere does no harm, so KVM is told of it only with the next change.
void KvmInterruptRouter::FreeGsi(uint32_t gsi) {
  MutexLock lock(mutex_);
  allocated_.erase(gsi);
  messages_.erase(gsi);
}

Result<> KvmInterruptRouter::SetRoutes(std::span<const Route> routes) {
  MutexLock lock(mutex_);
  std::map<uint32_t, Message> messages = messages_;
  for (const Route& route : routes) messages[route.gsi] = route.message;
  TRY(Commit(messages));
  messages_ = std::move(messages);
  return {};
}

Result<> KvmInterruptRouter::Commit(const std::map<uint32_t, Message>& messages) const {
  std::vector<kvm_irq_routing_entry> entries;
  for (uint32_t pin = 0; pin < pins_; ++pin) {
    // As KVM's own table has it (arch/x86/kvm/irq_comm.c, default_routing).
    if (pin < kPicPins) {
      const bool first = pin < kPicPins / 2;
      entries.push_back(PinEntry(pin, first ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
                                 pin % (kPicPins / 2)));
    }
    entries.push_back(PinEntry(pin, KVM_IRQCHIP_IOAPIC, pin));
  }
  for (const auto& [gsi, message] : messages) {
    kvm_irq_routing_entry entry{};
    entry.gsi = gsi;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<uint32_t>(message.address);
    entry.u.msi.address_hi = static_cast<uint32_t>(message.address >> 32);
    entry.u.msi.data = message.data;
    entries.push_back(entry);
  }
  constexpr size_t kHeader = offsetof(kvm_irq_routing, entries);
  std::vector<std::byte> table(kHeader + entries.size() * sizeof entries[0]);
  const auto count = static_cast<uint32_t>(entries.size());
  std::memcpy(table.data(), &count, sizeof count);
  std::memcpy(table.data() + kHeader, entries.data(), entries.size() * sizeof entries[0]);
  TRY(sys::Ioctl(vm_fd_, SYS_REQUEST(KVM_SET_GSI_ROUTING), table.data()));
  return {};
}

Result<> KvmInterruptRouter::SetIrqfd(uint32_t gsi, int eventfd, int resample, uint32_t flags) {
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<uint32_t>(eventfd);
  irqfd.gsi = gsi;
  irqfd.flags = flags;
  if (resample >= 0) irqfd.resamplefd = static_cast<uint32_t>(resample);
  TRY(sys::Ioctl(vm_fd_, SYS_REQUEST(KVM_IRQFD), &irqfd, [&] { return fmt::format("GSI {}", gsi); }));
  return {};
}

Result<> KvmInterruptRouter::Attach(uint32_t gsi, int eventfd) { return SetIrqfd(gsi, eventfd, -1, 0); }

Result<> KvmInterruptRouter::AttachLevel(uint32_t gsi, int eventfd, int resample) {
  return SetIrqfd(gsi, eventfd, resample, KVM_IRQFD_FLAG_RESAMPLE);
}

Result<> KvmInterruptRouter::Detach(uint32_t gsi, int eventfd) {
  return SetIrqfd(gsi, eventfd, -1, KVM_IRQFD_FLAG_DEASSIGN);
}

}  // namespace crossbar
