#include "lib/nvme.h"

#include "lib/heap.h"
#include "lib/io.h"
#include "lib/paging.h"
#include "lib/string.h"
#include "lib/time.h"

namespace guest {
namespace {

constexpr uint32_t kClass = 0x010802;

namespace reg {  // 3.1
constexpr uint64_t kCapabilities = 0x00, kConfiguration = 0x14, kStatus = 0x1c, kAdminSizes = 0x24,
                   kAdminSubmission = 0x28, kAdminCompletion = 0x30, kDoorbells = 0x1000;
}
constexpr uint32_t kEnable = 1, kReady = 1;
constexpr uint32_t kEntrySizes = 6 << 16 | 4 << 20;  // 64 and 16 bytes, as powers of two

constexpr unsigned kDepth = 8;
constexpr uint64_t kSubmissionSize = 64, kCompletionSize = 16;
constexpr uint8_t kCreateSubmission = 0x01, kCreateCompletion = 0x05, kIdentify = 0x06;
constexpr uint8_t kWrite = 0x01, kRead = 0x02;
constexpr uint64_t kTimeLimit = 5'000'000;

uint32_t Low(uint64_t value) {
  return static_cast<uint32_t>(value);
}
uint32_t High(uint64_t value) {
  return static_cast<uint32_t>(value >> 32);
}

bool Same(Bdf a, Bdf b) {
  return a.bus == b.bus && a.device == b.device && a.function == b.function;
}

}  // namespace

bool Nvme::Start(Bdf other) {
  bool found = false;
  ForEachFunction([&](const PciFunction& f) {
    if (found || f.class_code != kClass || Same(f.bdf, other)) return;
    function_ = f;
    found = true;
  });
  Bar bar;
  if (!found || !ReadBar(function_, 0, &bar) || bar.range.size == 0) return false;
  Map(bar.range, Caching::kUncached);
  registers_ = bar.range.start;
  WriteConfig16(function_.bdf, pci::kCommand, pci::kCommandMemory | pci::kCommandMaster);
  return Enable() && CreateIoQueue() && ReadBlockSize();
}

Nvme::Queue Nvme::MakeQueue(unsigned number) {
  Queue queue;
  queue.number = number;
  queue.submission = reinterpret_cast<uint64_t>(AllocatePages(1));
  queue.completion = reinterpret_cast<uint64_t>(AllocatePages(1));
  return queue;
}

bool Nvme::Enable() {
  const auto becomes = [this](uint32_t ready) {
    Deadline deadline(kTimeLimit);
    while ((Read<uint32_t>(registers_ + reg::kStatus) & kReady) != ready) {
      if (deadline.Passed()) return false;
      Pause();
    }
    return true;
  };
  doorbell_stride_ = 4ull << (Read<uint64_t>(registers_ + reg::kCapabilities) >> 32 & 0xf);
  Write<uint32_t>(registers_ + reg::kConfiguration, 0);
  if (!becomes(0)) return false;
  admin_ = MakeQueue(0);
  Write<uint32_t>(registers_ + reg::kAdminSizes, (kDepth - 1) << 16 | (kDepth - 1));
  Write<uint64_t>(registers_ + reg::kAdminSubmission, admin_.submission);
  Write<uint64_t>(registers_ + reg::kAdminCompletion, admin_.completion);
  Write<uint32_t>(registers_ + reg::kConfiguration, kEntrySizes | kEnable);
  return becomes(kReady);
}

bool Nvme::CreateIoQueue() {
  io_ = MakeQueue(1);
  constexpr uint32_t kSize = (kDepth - 1) << 16 | 1;  // of queue 1
  constexpr uint32_t kContiguous = 1;
  Command completion{{kCreateCompletion}};
  completion.words[6] = Low(io_.completion);
  completion.words[7] = High(io_.completion);
  completion.words[10] = kSize;
  completion.words[11] = kContiguous;
  Command submission{{kCreateSubmission}};
  submission.words[6] = Low(io_.submission);
  submission.words[7] = High(io_.submission);
  submission.words[10] = kSize;
  submission.words[11] = 1 << 16 | kContiguous;  // completions go to queue 1
  return Succeeds(completion) && Succeeds(submission);
}

bool Nvme::ReadBlockSize() {
  const auto data = reinterpret_cast<uint64_t>(AllocatePages(1));
  Command identify{{kIdentify, 1}};
  identify.words[6] = Low(data);
  identify.words[7] = High(data);
  if (!Succeeds(identify)) return false;
  const unsigned format = Read<uint8_t>(data + 26) & 0xf;
  block_size_ = 1ull << Read<uint8_t>(data + 128 + 4 * format + 2);
  return block_size_ >= 512 && block_size_ <= kPageSize;
}

void Nvme::Ring(unsigned doorbell, uint32_t value) const {
  Write<uint32_t>(registers_ + reg::kDoorbells + doorbell * doorbell_stride_, value);
}

bool Nvme::Run(Queue& queue, const Command& command, uint16_t* status) {
  memcpy(reinterpret_cast<void*>(queue.submission + queue.tail * kSubmissionSize), &command,
         kSubmissionSize);
  queue.tail = (queue.tail + 1) % kDepth;
  Barrier();
  Ring(2 * queue.number, queue.tail);
  const uint64_t last_word = queue.completion + queue.head * kCompletionSize + 12;
  Deadline deadline(kTimeLimit);
  uint32_t word;
  while (((word = Read<uint32_t>(last_word)) >> 16 & 1) != queue.phase) {
    if (deadline.Passed()) return false;
    Pause();
  }
  *status = static_cast<uint16_t>(word >> 17);
  queue.head = (queue.head + 1) % kDepth;
  if (queue.head == 0) queue.phase = !queue.phase;
  Ring(2 * queue.number + 1, queue.head);
  return true;
}

bool Nvme::Succeeds(const Command& command) {
  uint16_t status;
  return Run(admin_, command, &status) && status == 0;
}

bool Nvme::Move(uint8_t opcode, uint64_t address, uint64_t size) {
  Command command{{opcode, 1}};
  command.words[6] = Low(address);
  command.words[7] = High(address);
  command.words[12] = static_cast<uint32_t>(size / block_size_ - 1);
  uint16_t status;
  return Run(io_, command, &status);
}

bool Nvme::WriteDisk(uint64_t address, uint64_t size) {
  return Move(kWrite, address, size);
}
bool Nvme::ReadDisk(uint64_t address, uint64_t size) {
  return Move(kRead, address, size);
}

}  // namespace guest
