// An NVMe disk, just enough to DMA with: an admin queue and one I/O queue, polled, one command at a
// time, always on the first blocks of namespace 1 (NVM Express base specification 1.4).
//
// One CPU at a time, any; Start on the boot CPU.
#pragma once

#include <stdint.h>

#include "lib/pci.h"

namespace guest {

class Nvme {
 public:
  // Finds the first NVMe controller that is not at `other`, and brings it up. False where there is
  // none, or it does not come up.
  bool Start(Bdf other);

  // The disk's first `size` bytes from memory at `address`, and the other way. `size` is a multiple
  // of its block size; all of it is within one page. False if the command does not complete within
  // five seconds; a command that failed has completed.
  bool WriteDisk(uint64_t address, uint64_t size);
  bool ReadDisk(uint64_t address, uint64_t size);

 private:
  struct Queue {
    unsigned number = 0;
    uint64_t submission = 0, completion = 0;  // their addresses
    unsigned tail = 0, head = 0;
    bool phase = true;  // of the next completion that is new
  };
  struct Command {
    uint32_t words[16] = {};
  };

  static Queue MakeQueue(unsigned number);
  bool Enable();
  bool CreateIoQueue();
  bool ReadBlockSize();
  // Runs one command to its end. False if there is none in time; `status` is its status field.
  bool Run(Queue& queue, const Command& command, uint16_t* status);
  // The same, and it must succeed.
  bool Succeeds(const Command& command);
  void Ring(unsigned doorbell, uint32_t value) const;
  bool Move(uint8_t opcode, uint64_t address, uint64_t size);

  PciFunction function_{};
  uint64_t registers_ = 0;
  uint64_t doorbell_stride_ = 4;
  uint64_t block_size_ = 512;
  Queue admin_, io_;
};

}  // namespace guest
