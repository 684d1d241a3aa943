// Serial: a 16550A UART on eight I/O ports, with both FIFOs, interrupts and loopback.
//
// Owned by Vm and the port bus. vCPU threads read and write; the console's thread calls Receive;
// any thread may Reset. Time is not modelled: a byte is sent the moment it is written, and the
// receiver's character timeout (four character times of silence) has always passed already.
// Facts come from the data sheet of National Semiconductor's PC16550D.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/locks.h"
#include "devices/bus.h"
#include "devices/irq_line.h"

namespace crossbar {

// Where sent bytes go. One call at a time, in the order of the guest's writes. It may block: that
// holds up vCPUs that send, and nobody else.
class SerialOutput {
 public:
  virtual ~SerialOutput() = default;
  virtual void Write(std::span<const std::byte> data) = 0;
};

class Serial final : public BusDevice {
 public:
  static constexpr uint64_t kPorts = 8;
  static constexpr size_t kFifoSize = 16;

  // `irq` and `output` outlive the device. `on_space` (may be empty) runs once the guest has made
  // room after a Receive that could not take everything; on the vCPU's thread, with no lock held.
  Serial(IrqLine& irq, SerialOutput& output, std::function<void()> on_space = {});

  // Accesses of 2, 4 and 8 bytes are as many byte accesses, as on an ISA bus.
  uint64_t Read(uint64_t offset, unsigned size) override EXCLUDES(mutex_);
  void Write(uint64_t offset, unsigned size, uint64_t value) override
      EXCLUDES(mutex_, output_mutex_);

  // Bytes on the wire towards the guest: takes what the FIFO holds room for and says how many.
  // Nothing is taken in loopback mode, which cuts the wire, nor before the guest attends to the
  // receiver: its set-up clears the FIFO, and what was sent ahead of it would be lost.
  size_t Receive(std::span<const std::byte> data) EXCLUDES(mutex_);

  // Back to power-on values; the interrupt line falls.
  void Reset() EXCLUDES(mutex_);

 private:
  // The registers; a value, so that reset is one assignment.
  struct State {
    uint8_t ier = 0;
    uint8_t fcr = 0;
    uint8_t lcr = 0;
    uint8_t mcr = 0;
    uint8_t lsr_errors = 0;  // LSR bits that stay until read
    uint8_t msr_deltas = 0;  // MSR bits 0-3
    uint8_t scr = 0;
    uint16_t divisor = 12;
    bool thre_pending = false;  // the THRE interrupt, before IER
    std::array<uint8_t, kFifoSize> fifo = {};
    size_t fifo_head = 0;
    size_t fifo_count = 0;
    bool starved = false;   // a Receive left bytes behind
    bool attended = false;  // the guest switched FIFOs or receive interrupts on, or read LSR

    bool receiving() const { return attended && !loopback(); }

    bool fifo_enabled() const;
    bool loopback() const;
    size_t capacity() const { return fifo_enabled() ? kFifoSize : 1; }
    size_t trigger() const;
    uint8_t modem_lines() const;   // MSR bits 4-7
    uint8_t interrupt_id() const;  // IIR bits 0-3

    void Push(uint8_t byte);
    uint8_t Pop();
    void ClearFifo();
    void WriteFcr(uint8_t value);
    void WriteMcr(uint8_t value);
  };

  uint8_t ReadByte(uint64_t reg);
  void WriteByte(uint64_t reg, uint8_t value);
  void WriteRegister(uint64_t reg, uint8_t value) REQUIRES(mutex_);
  void Transmit(uint8_t byte);
  void UpdateIrq() REQUIRES(mutex_);
  // Whether the caller shall run on_space_ once it holds no lock.
  bool TakeSpaceNotice() REQUIRES(mutex_);

  // Constant after construction.
  IrqLine& irq_;
  SerialOutput& output_;
  const std::function<void()> on_space_;

  // Keeps bytes in the order of their writes while they are handed on without mutex_.
  Mutex output_mutex_ ACQUIRED_BEFORE(mutex_);
  Mutex mutex_;
  State state_ GUARDED_BY(mutex_);
  bool irq_asserted_ GUARDED_BY(mutex_) = false;
};

}  // namespace crossbar
