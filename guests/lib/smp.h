// Starting the other CPUs, and giving them work.
#pragma once

#include <stdint.h>

#include "lib/cpu.h"
#include "lib/ring3.h"

namespace guest {

using CpuFunction = void (*)(void* argument);

// Starts every CPU of the platform but this one, one after the other, each with its own stacks and
// tables and its LAPIC on. They wait, halted, for work. Returns how many CPUs run now, this one
// included; a CPU that does not come up within five seconds is left out. Boot CPU only, once.
unsigned StartCpus();

unsigned CpuCount();         // that run
Cpu& CpuAt(unsigned index);  // index < CpuCount(); 0 is the boot CPU

// Has CPU `index` (not the calling one) jump to F000:FFF0 in real mode, where the firmware of a PC
// resets the machine. Boot CPU only.
[[noreturn]] void ResetByVector(unsigned index);

// Runs function(argument) on CPU `index` (not the calling one), in ring 0 with interrupts off, and
// returns at once. Wait waits for its end. Boot CPU only.
void RunOn(unsigned index, CpuFunction function, void* argument);
void WaitFor(unsigned index);

// Runs it on all CPUs at the same time, the calling one too, and waits.
void RunOnAll(CpuFunction function, void* argument);

}  // namespace guest
