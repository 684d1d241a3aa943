#include "devices/serial.h"

#include <linux/serial_reg.h>

#include <algorithm>
#include <utility>

namespace crossbar {
namespace {

constexpr uint8_t kIerMask = 0x0f;
constexpr uint8_t kMcrMask = 0x1f;
constexpr uint8_t kIirFifosEnabled = 0xc0;
constexpr uint8_t kTransmitterEmpty = UART_LSR_THRE | UART_LSR_TEMT;
// The other end of the cable is always there and ready.
constexpr uint8_t kPeerReady = UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS;

}  // namespace

bool Serial::State::fifo_enabled() const {
  return (fcr & UART_FCR_ENABLE_FIFO) != 0;
}
bool Serial::State::loopback() const {
  return (mcr & UART_MCR_LOOP) != 0;
}

size_t Serial::State::trigger() const {
  static constexpr std::array<size_t, 4> kLevels = {1, 4, 8, 14};
  return fifo_enabled() ? kLevels[fcr >> 6] : 1;
}

// In loopback the modem outputs are wired to the inputs.
uint8_t Serial::State::modem_lines() const {
  if (!loopback()) return kPeerReady;
  uint8_t lines = 0;
  if (mcr & UART_MCR_RTS) lines |= UART_MSR_CTS;
  if (mcr & UART_MCR_DTR) lines |= UART_MSR_DSR;
  if (mcr & UART_MCR_OUT1) lines |= UART_MSR_RI;
  if (mcr & UART_MCR_OUT2) lines |= UART_MSR_DCD;
  return lines;
}

// The enabled source of highest priority.
uint8_t Serial::State::interrupt_id() const {
  if ((ier & UART_IER_RLSI) && lsr_errors != 0) return UART_IIR_RLSI;
  if ((ier & UART_IER_RDI) && fifo_count != 0) {
    return fifo_count >= trigger() ? UART_IIR_RDI : UART_IIR_RX_TIMEOUT;
  }
  if ((ier & UART_IER_THRI) && thre_pending) return UART_IIR_THRI;
  if ((ier & UART_IER_MSI) && msr_deltas != 0) return UART_IIR_MSI;
  return UART_IIR_NO_INT;
}

// On overrun the FIFO keeps what it has; the single buffer of 16450 mode is overwritten.
void Serial::State::Push(uint8_t byte) {
  if (fifo_count == capacity()) {
    lsr_errors |= UART_LSR_OE;
    if (fifo_enabled()) return;
    ClearFifo();
  }
  fifo[(fifo_head + fifo_count) % kFifoSize] = byte;
  ++fifo_count;
}

uint8_t Serial::State::Pop() {
  if (fifo_count == 0) return 0;
  const uint8_t byte = fifo[fifo_head];
  fifo_head = (fifo_head + 1) % kFifoSize;
  --fifo_count;
  return byte;
}

void Serial::State::ClearFifo() {
  fifo_head = 0;
  fifo_count = 0;
}

// Bit 0 changing clears the FIFOs, and while it is 0 no other bit counts.
void Serial::State::WriteFcr(uint8_t value) {
  const bool enable = (value & UART_FCR_ENABLE_FIFO) != 0;
  if (enable != fifo_enabled() || (enable && (value & UART_FCR_CLEAR_RCVR))) ClearFifo();
  fcr = value;
  attended |= enable;
}

void Serial::State::WriteMcr(uint8_t value) {
  const uint8_t before = modem_lines();
  mcr = value & kMcrMask;
  const uint8_t after = modem_lines();
  const uint8_t changed = before ^ after;
  if (changed & UART_MSR_CTS) msr_deltas |= UART_MSR_DCTS;
  if (changed & UART_MSR_DSR) msr_deltas |= UART_MSR_DDSR;
  if (changed & UART_MSR_DCD) msr_deltas |= UART_MSR_DDCD;
  // Only the trailing edge of the ring indicator counts.
  if (changed & before & UART_MSR_RI) msr_deltas |= UART_MSR_TERI;
}

Serial::Serial(IrqLine& irq, SerialOutput& output, std::function<void()> on_space)
    : irq_(irq), output_(output), on_space_(std::move(on_space)) {}

uint64_t Serial::Read(uint64_t offset, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; ++i) value |= uint64_t{ReadByte(offset + i)} << (8 * i);
  return value;
}

void Serial::Write(uint64_t offset, unsigned size, uint64_t value) {
  for (unsigned i = 0; i < size; ++i) WriteByte(offset + i, static_cast<uint8_t>(value >> (8 * i)));
}

uint8_t Serial::ReadByte(uint64_t reg) {
  uint8_t value = 0xff;
  bool notify = false;
  {
    MutexLock lock(mutex_);
    const bool dlab = (state_.lcr & UART_LCR_DLAB) != 0;
    switch (reg) {
      case UART_RX:
        value = dlab ? static_cast<uint8_t>(state_.divisor) : state_.Pop();
        break;
      case UART_IER:
        value = dlab ? static_cast<uint8_t>(state_.divisor >> 8) : state_.ier;
        break;
      case UART_IIR:
        value = state_.interrupt_id();
        // Reading clears the THRE interrupt only where that is what was reported.
        if (value == UART_IIR_THRI) state_.thre_pending = false;
        if (state_.fifo_enabled()) value |= kIirFifosEnabled;
        break;
      case UART_LCR:
        value = state_.lcr;
        break;
      case UART_MCR:
        value = state_.mcr;
        break;
      case UART_LSR:
        value = kTransmitterEmpty | std::exchange(state_.lsr_errors, uint8_t{0});
        if (state_.fifo_count != 0) value |= UART_LSR_DR;
        state_.attended = true;
        break;
      case UART_MSR:
        value = state_.modem_lines() | std::exchange(state_.msr_deltas, uint8_t{0});
        break;
      case UART_SCR:
        value = state_.scr;
        break;
    }
    UpdateIrq();
    notify = TakeSpaceNotice();
  }
  if (notify) on_space_();
  return value;
}

void Serial::WriteByte(uint64_t reg, uint8_t value) {
  if (reg == UART_TX) return Transmit(value);
  bool notify = false;
  {
    MutexLock lock(mutex_);
    WriteRegister(reg, value);
    UpdateIrq();
    notify = TakeSpaceNotice();
  }
  if (notify) on_space_();
}

void Serial::WriteRegister(uint64_t reg, uint8_t value) {
  switch (reg) {
    case UART_IER:
      if (state_.lcr & UART_LCR_DLAB) {
        state_.divisor = static_cast<uint16_t>((state_.divisor & 0x00ff) | (value << 8));
        break;
      }
      // Enabling the THRE interrupt while the holding register is empty raises it at once; Linux
      // probes for UARTs that do not (UART_BUG_THRE).
      if ((value & ~state_.ier) & UART_IER_THRI) state_.thre_pending = true;
      state_.ier = value & kIerMask;
      if (value & UART_IER_RDI) state_.attended = true;
      break;
    case UART_FCR:
      state_.WriteFcr(value);
      break;
    case UART_LCR:
      state_.lcr = value;
      break;
    case UART_MCR:
      state_.WriteMcr(value);
      break;
    case UART_SCR:
      state_.scr = value;
      break;
    default:  // LSR and MSR are for reading
      break;
  }
}

// Writing THR clears the THRE interrupt, and sending the byte raises it again: both at once, so
// what remains is a fresh interrupt.
void Serial::Transmit(uint8_t byte) {
  MutexLock output_lock(output_mutex_);
  {
    MutexLock lock(mutex_);
    if (state_.lcr & UART_LCR_DLAB) {
      state_.divisor = static_cast<uint16_t>((state_.divisor & 0xff00) | byte);
      return;
    }
    const bool loopback = state_.loopback();
    if (loopback) state_.Push(byte);
    state_.thre_pending = true;
    UpdateIrq();
    if (loopback) return;
  }
  const std::byte data{byte};
  output_.Write(std::span(&data, 1));
}

size_t Serial::Receive(std::span<const std::byte> data) {
  MutexLock lock(mutex_);
  const size_t room = state_.receiving() ? state_.capacity() - state_.fifo_count : 0;
  const size_t taken = std::min(room, data.size());
  for (const std::byte byte : data.first(taken)) state_.Push(std::to_integer<uint8_t>(byte));
  if (taken < data.size()) state_.starved = true;
  UpdateIrq();
  return taken;
}

void Serial::Reset() {
  bool notify = false;
  {
    MutexLock lock(mutex_);
    const bool starved = state_.starved;
    state_ = State{};
    state_.starved = starved;
    UpdateIrq();
    notify = TakeSpaceNotice();
  }
  if (notify) on_space_();
}

// On a PC, OUT2 connects the UART's interrupt to the controller. Super-I/O chips gate by the
// register bit, so loopback, which holds the OUT2 pin inactive, does not cut interrupts off.
void Serial::UpdateIrq() {
  const bool asserted = (state_.mcr & UART_MCR_OUT2) && state_.interrupt_id() != UART_IIR_NO_INT;
  if (asserted == irq_asserted_) return;
  irq_asserted_ = asserted;
  irq_.Set(asserted);
}

// Waits for an empty FIFO, so that the console is woken once for sixteen bytes and not for each.
bool Serial::TakeSpaceNotice() {
  if (!state_.starved || !state_.receiving() || state_.fifo_count != 0) return false;
  state_.starved = false;
  return on_space_ != nullptr;
}

}  // namespace crossbar
