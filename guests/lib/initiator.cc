#include "lib/initiator.h"

#include "lib/command_line.h"
#include "lib/string.h"

namespace guest {

bool Initiator::Start(const Target& target) {
  char name[8] = "edu";
  CommandLineText("peer", name, sizeof name);
  is_nvme_ = Equal(name, "nvme");
  if (is_nvme_) return nvme_.Start(target.function().bdf);
  return Equal(name, "edu") && edu_.Start() && edu_.Alive();
}

bool Initiator::Load(uint64_t address, uint64_t size) {
  return is_nvme_ ? nvme_.WriteDisk(address, size)
                  : edu_.Transfer(Edu::Direction::kToDevice, address, size);
}

bool Initiator::Store(uint64_t address, uint64_t size) {
  return is_nvme_ ? nvme_.ReadDisk(address, size)
                  : edu_.Transfer(Edu::Direction::kFromDevice, address, size);
}

}  // namespace guest
