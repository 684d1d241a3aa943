// The local APIC (xAPIC, by MMIO) and the I/O APIC. LAPIC functions concern the calling CPU.
#pragma once

#include <stdint.h>

namespace guest {

inline constexpr uint64_t kLocalApic = 0xfee00000;
inline constexpr uint64_t kIoApic = 0xfec00000;

// Software-enables the LAPIC with everything masked and task priority 0. Once per CPU that wants
// interrupts; StartCpus does it for the CPUs it starts, GuestMain's CPU has it done.
void LocalApicStart();

uint32_t LocalApicId();

// End of interrupt.
void LocalApicEnd();

// Whether `vector` is being served: delivered, and not ended.
bool LocalApicServes(uint8_t vector);

// Raises `vector` on another CPU or on this one.
void SendIpi(uint32_t apic_id, uint8_t vector);
void SendSelfIpi(uint8_t vector);

// The steps that wake a CPU (Intel SDM volume 3, 11.4.4.1). `page` is its first code page.
void SendInit(uint32_t apic_id);
void SendStartup(uint32_t apic_id, uint8_t page);

// The LAPIC timer counts at the bus clock, 1 GHz in KVM and QEMU. One shot, or periodic.
inline constexpr uint64_t kTimerHz = 1'000'000'000;
void StartTimer(uint8_t vector, uint32_t ticks, bool periodic = false);
void StopTimer();
uint32_t TimerCount();  // what is left

// I/O APIC pins.
enum class Trigger { kEdge, kLevel };
uint32_t IoApicPins();
void RouteIoApicPin(uint32_t pin, uint8_t vector, uint32_t apic_id, Trigger trigger);
void MaskIoApicPin(uint32_t pin);

}  // namespace guest
