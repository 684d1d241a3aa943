// Initiator: a device that can move bytes between addresses on the bus and a buffer of its own: an
// edu-compatible DMA engine (lib/edu.h) or an NVMe disk (lib/nvme.h), whose first blocks that is.
//
// One CPU at a time, any; Start on the boot CPU.
#pragma once

#include <stdint.h>

#include "lib/edu.h"
#include "lib/nvme.h"
#include "lib/p2p.h"

namespace guest {

class Initiator {
 public:
  // peer=edu (the default) or peer=nvme on the command line says which. An NVMe disk that is the
  // target itself is passed over. False where there is none, or it is dead.
  bool Start(const Target& target);

  // Into its buffer from `address`, and out of it to there. `size` is a multiple of 512, all within
  // a page. False where that does not end within five seconds: a transfer that the bus refuses ends
  // too, with what the device likes in its buffer, or nothing at the address.
  bool Load(uint64_t address, uint64_t size);
  bool Store(uint64_t address, uint64_t size);

 private:
  bool is_nvme_ = false;
  Edu edu_;
  Nvme nvme_;
};

}  // namespace guest
