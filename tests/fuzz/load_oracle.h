// What the loader fuzz targets share: one load into a small machine, and what must hold after it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace crossbar::fuzz {

// Loads `kernel` with an initrd, a module and a device tree. Aborts where the load wrote over
// anything else that it placed or over the ACPI tables, or enters outside of RAM.
void LoadAndCheck(std::span<const std::byte> kernel);

}  // namespace crossbar::fuzz
