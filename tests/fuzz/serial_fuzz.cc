// Fuzzes the UART against a model written from the data sheet's tables: after every access the
// bytes sent and received, the interrupt identification and the interrupt line must be the model's.
#include <algorithm>
#include <cstring>
#include <deque>
#include <span>
#include <string>

#include "base/check.h"
#include "devices/serial.h"
#include "tests/fuzz/fuzz_input.h"

namespace crossbar {
namespace {

struct Line : IrqLine {
  void Set(bool asserted) override {
    CHECK(asserted != level, "Set({}) is no change", asserted);
    level = asserted;
  }
  bool level = false;
};

struct Output : SerialOutput {
  void Write(std::span<const std::byte> data) override {
    for (const std::byte byte : data) text += static_cast<char>(byte);
  }
  std::string text;
};

struct Model {
  unsigned ier = 0, lcr = 0, mcr = 0, scr = 0, dll = 12, dlm = 0;
  bool fifos = false, thre = false, overrun = false;
  bool attended = false;  // FIFOs on, receive interrupts on, or LSR read: bytes may arrive
  size_t trigger = 1;
  unsigned deltas = 0;
  std::deque<unsigned> rx;
  std::string sent;

  size_t room() const { return (fifos ? 16 : 1) - rx.size(); }
  bool receiving() const { return attended && !(mcr & 0x10); }

  unsigned ModemStatus() const {
    if (!(mcr & 0x10)) return 0xb0;
    const auto wire = [this](unsigned from, unsigned to) { return mcr & from ? to : 0u; };
    return wire(0x02, 0x10) | wire(0x01, 0x20) | wire(0x04, 0x40) | wire(0x08, 0x80);
  }

  unsigned Identification() const {
    if ((ier & 4) && overrun) return 0x6;
    if ((ier & 1) && rx.size() >= trigger) return 0x4;
    if ((ier & 1) && !rx.empty()) return 0xc;
    if ((ier & 2) && thre) return 0x2;
    if ((ier & 8) && deltas) return 0x0;
    return 0x1;
  }

  bool line() const { return (mcr & 8) && !(Identification() & 1); }

  unsigned Read(unsigned reg) {
    unsigned value = 0;
    switch (reg) {
      case 0:
        if (lcr & 0x80) return dll;
        if (rx.empty()) return 0;
        value = rx.front();
        rx.pop_front();
        return value;
      case 1:
        return lcr & 0x80 ? dlm : ier;
      case 2:
        value = Identification();
        if (value == 2) thre = false;
        return value | (fifos ? 0xc0 : 0);
      case 3:
        return lcr;
      case 4:
        return mcr;
      case 5:
        value = 0x60u | (rx.empty() ? 0 : 1) | (overrun ? 2 : 0);
        overrun = false;
        attended = true;
        return value;
      case 6:
        value = ModemStatus() | deltas;
        deltas = 0;
        return value;
      default:
        return scr;
    }
  }

  void Send(unsigned value) {
    thre = true;
    if (!(mcr & 0x10)) {
      sent += static_cast<char>(value);
    } else if (room() != 0) {
      rx.push_back(value);
    } else {
      overrun = true;
      if (!fifos) rx = {value};
    }
  }

  void WriteModemControl(unsigned value) {
    const unsigned before = ModemStatus();
    mcr = value & 0x1f;
    const unsigned changed = before ^ ModemStatus();
    deltas |= (changed & 0xb0) >> 4;           // DCTS, DDSR, DDCD
    deltas |= (changed & before & 0x40) >> 4;  // TERI: only the trailing edge
  }

  void Write(unsigned reg, unsigned value) {
    switch (reg) {
      case 0:
        if (lcr & 0x80)
          dll = value;
        else
          Send(value);
        break;
      case 1:
        if (lcr & 0x80) {
          dlm = value;
          break;
        }
        if ((value & 2) && !(ier & 2)) thre = true;
        ier = value & 0xf;
        attended |= (value & 1) != 0;
        break;
      case 2: {
        constexpr size_t kTriggers[] = {1, 4, 8, 14};
        const bool enable = value & 1;
        if (enable != fifos || (enable && (value & 2))) rx.clear();
        fifos = enable;
        attended |= enable;
        trigger = enable ? kTriggers[value >> 6] : 1;
        break;
      }
      case 3:
        lcr = value;
        break;
      case 4:
        WriteModemControl(value);
        break;
      case 7:
        scr = value;
        break;
    }
  }
};

class Machine {
 public:
  void Step(fuzz::FuzzInput& input) {
    const unsigned size = 1u << input.InRange(0, 3);
    const unsigned reg = input.InRange(0, 8 - size);
    switch (input.InRange(0, 15)) {
      case 0:
        Reset();
        break;
      case 1:
      case 2:
      case 3:
        Receive(std::as_bytes(input.Bytes(input.InRange(0, 20))));
        break;
      case 4:
      case 5:
      case 6:
      case 7:
      case 8:
        Read(reg, size);
        break;
      default:
        Write(reg, size, Value(input, size));
        break;
    }
    CHECK(line_.level == model_.line(), "line {}, IIR {:#x}", line_.level, model_.Identification());
    CHECK(output_.text == model_.sent, "{} bytes came out, {} went in", output_.text.size(),
          model_.sent.size());
    CHECK(spaces_ <= short_receives_, "{} announcements for {}", spaces_, short_receives_);
    // Whatever the guest did: with room for input, nobody is left waiting.
    const bool could_take = model_.rx.empty() && model_.receiving();
    CHECK(!could_take || !waiting_, "the console waits, and the FIFO is empty");
  }

 private:
  static uint64_t Value(fuzz::FuzzInput& input, unsigned size) {
    uint64_t value = 0;
    const std::span<const uint8_t> bytes = input.Bytes(size);
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }

  void Reset() {
    serial_.Reset();
    const std::string sent = model_.sent;
    model_ = Model{};
    model_.sent = sent;
  }

  void Receive(std::span<const std::byte> data) {
    const size_t expected = model_.receiving() ? std::min(model_.room(), data.size()) : 0;
    if (expected < data.size()) {
      waiting_ = true;
      ++short_receives_;
    }
    const size_t taken = serial_.Receive(data);
    CHECK(taken == expected, "took {} of {}, not {}", taken, data.size(), expected);
    for (size_t i = 0; i < taken; ++i) model_.rx.push_back(std::to_integer<unsigned>(data[i]));
  }

  void Read(unsigned reg, unsigned size) {
    uint64_t expected = 0;
    for (unsigned i = 0; i < size; ++i) expected |= uint64_t{model_.Read(reg + i)} << (8 * i);
    const uint64_t value = serial_.Read(reg, size);
    CHECK(value == expected, "register {} size {}: {:#x}, not {:#x}", reg, size, value, expected);
  }

  void Write(unsigned reg, unsigned size, uint64_t value) {
    for (unsigned i = 0; i < size; ++i) model_.Write(reg + i, (value >> (8 * i)) & 0xff);
    serial_.Write(reg, size, value);
  }

  Line line_;
  Output output_;
  Model model_;
  uint64_t short_receives_ = 0;
  uint64_t spaces_ = 0;
  bool waiting_ = false;
  Serial serial_{line_, output_, [this] {
                   ++spaces_;
                   waiting_ = false;
                 }};
};

}  // namespace
}  // namespace crossbar

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  crossbar::fuzz::FuzzInput input(data, size);
  crossbar::Machine machine;
  for (int i = 0; i < 2000 && !input.empty(); ++i) machine.Step(input);
  return 0;
}
