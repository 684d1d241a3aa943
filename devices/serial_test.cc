#include "devices/serial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/serial_reg.h>

#include <atomic>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace crossbar {
namespace {

using ::testing::ElementsAre;

class RecordingLine : public IrqLine {
 public:
  void Set(bool asserted) override {
    EXPECT_NE(asserted, level) << "only changes reach the line";
    level = asserted;
    edges.push_back(asserted);
  }
  bool level = false;
  std::vector<bool> edges;
};

class RecordingOutput : public SerialOutput {
 public:
  void Write(std::span<const std::byte> data) override {
    for (const std::byte byte : data) text += static_cast<char>(byte);
  }
  std::string text;
};

class SerialTest : public ::testing::Test {
 protected:
  uint8_t In(uint64_t reg) { return static_cast<uint8_t>(serial_.Read(reg, 1)); }
  void Out(uint64_t reg, unsigned value) { serial_.Write(reg, 1, value); }
  size_t Receive(std::string_view text) { return serial_.Receive(std::as_bytes(std::span(text))); }
  // What a driver sets up: FIFOs with a trigger level, and the interrupt connected.
  void Start(unsigned fcr, unsigned ier) {
    Out(UART_FCR, fcr);
    Out(UART_MCR, UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT2);
    Out(UART_IER, ier);
  }

  RecordingLine line_;
  RecordingOutput output_;
  int spaces_ = 0;
  Serial serial_{line_, output_, [this] {
                   ++spaces_;
                   serial_.Read(UART_SCR, 1);  // would deadlock if a lock were held
                 }};
};

constexpr unsigned kFifo14 = UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_14;

TEST_F(SerialTest, PowersOnWithAnEmptyTransmitterAndNoInterrupt) {
  EXPECT_EQ(In(UART_IER), 0);
  EXPECT_EQ(In(UART_IIR), UART_IIR_NO_INT);
  EXPECT_EQ(In(UART_LCR), 0);
  EXPECT_EQ(In(UART_MCR), 0);
  EXPECT_EQ(In(UART_LSR), UART_LSR_THRE | UART_LSR_TEMT);
  EXPECT_EQ(In(UART_MSR), UART_MSR_DCD | UART_MSR_DSR | UART_MSR_CTS);
  EXPECT_TRUE(line_.edges.empty());
}

TEST_F(SerialTest, BytesComeOutInTheOrderOfTheirWrites) {
  for (const char c : std::string_view("hello")) Out(UART_TX, static_cast<uint8_t>(c));
  EXPECT_EQ(output_.text, "hello");
  EXPECT_EQ(In(UART_LSR) & UART_LSR_THRE, UART_LSR_THRE);
}

TEST_F(SerialTest, TheDivisorIsBehindTheDivisorLatchBit) {
  Out(UART_LCR, UART_LCR_DLAB | UART_LCR_WLEN8);
  Out(UART_DLL, 0x34);
  Out(UART_DLM, 0x12);
  EXPECT_EQ(In(UART_DLL), 0x34);
  EXPECT_EQ(In(UART_DLM), 0x12);
  Out(UART_LCR, UART_LCR_WLEN8);
  EXPECT_EQ(In(UART_IER), 0) << "the divisor went nowhere else";
  EXPECT_EQ(output_.text, "");
  EXPECT_EQ(In(UART_LCR), UART_LCR_WLEN8);
}

TEST_F(SerialTest, ReceivedBytesAreReadInOrder) {
  Start(kFifo14, 0);
  EXPECT_EQ(In(UART_LSR) & UART_LSR_DR, 0);
  EXPECT_EQ(Receive("abc"), 3u);
  EXPECT_EQ(In(UART_LSR) & UART_LSR_DR, UART_LSR_DR);
  EXPECT_EQ(In(UART_RX), 'a');
  EXPECT_EQ(In(UART_RX), 'b');
  EXPECT_EQ(In(UART_RX), 'c');
  EXPECT_EQ(In(UART_LSR) & UART_LSR_DR, 0);
  EXPECT_EQ(In(UART_RX), 0) << "an empty FIFO reads as 0";
}

TEST_F(SerialTest, NothingArrivesBeforeTheGuestAttendsToTheReceiver) {
  const auto waits = [this](auto&& attend) {
    serial_.Reset();
    Out(UART_LCR, UART_LCR_WLEN8);
    Out(UART_MCR, UART_MCR_DTR | UART_MCR_RTS);
    Out(UART_IER, 0);
    EXPECT_EQ(Receive("a"), 0u) << "setting up would clear it";
    const int before = spaces_;
    attend();
    EXPECT_EQ(spaces_, before + 1) << "now the console is to try again";
    EXPECT_EQ(Receive("a"), 1u);
    EXPECT_EQ(In(UART_RX), 'a');
  };
  waits([this] { Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR); });
  waits([this] { Out(UART_IER, UART_IER_RDI); });
  waits([this] { In(UART_LSR); });
}

TEST_F(SerialTest, ReceiveTakesWhatTheFifoHoldsRoomFor) {
  In(UART_LSR);
  EXPECT_EQ(Receive("xyz"), 1u) << "16450 mode has one byte";
  EXPECT_EQ(In(UART_RX), 'x');
  Start(kFifo14, 0);
  EXPECT_EQ(Receive("0123456789"), 10u);
  EXPECT_EQ(Receive("0123456789"), 6u);
  EXPECT_EQ(Receive("0"), 0u);
  EXPECT_EQ(In(UART_LSR) & UART_LSR_OE, 0) << "the console waits: nothing overran";
}

TEST_F(SerialTest, SpaceIsAnnouncedOnceWhenAFullFifoHasRunDry) {
  Start(kFifo14, 0);
  EXPECT_EQ(Receive("0123456789abcdefXYZ"), 16u);
  for (int i = 0; i < 15; ++i) In(UART_RX);
  EXPECT_EQ(spaces_, 0);
  In(UART_RX);
  EXPECT_EQ(spaces_, 1);
  In(UART_RX);
  EXPECT_EQ(Receive("XYZ"), 3u);
  for (int i = 0; i < 3; ++i) In(UART_RX);
  EXPECT_EQ(spaces_, 1) << "nothing was left behind";
}

TEST_F(SerialTest, SpaceIsAlsoAnnouncedAfterAFifoClearAndAReset) {
  Start(kFifo14, 0);
  EXPECT_EQ(Receive("0123456789abcdefXYZ"), 16u);
  Out(UART_FCR, kFifo14 | UART_FCR_CLEAR_RCVR);
  EXPECT_EQ(spaces_, 1);
  EXPECT_EQ(Receive("0123456789abcdefXYZ"), 16u);
  serial_.Reset();
  Start(kFifo14, 0);
  EXPECT_EQ(spaces_, 2);
}

TEST_F(SerialTest, TheReceiveInterruptIsTriggerLevelOrTimeout) {
  Start(UART_FCR_ENABLE_FIFO | UART_FCR_TRIGGER_4, UART_IER_RDI);
  EXPECT_FALSE(line_.level);
  Receive("abc");
  EXPECT_TRUE(line_.level);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_RX_TIMEOUT);
  Receive("d");
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_RDI);
  In(UART_RX);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_RX_TIMEOUT);
  for (int i = 0; i < 3; ++i) In(UART_RX);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_NO_INT);
  EXPECT_FALSE(line_.level);
  EXPECT_THAT(line_.edges, ElementsAre(true, false));
}

TEST_F(SerialTest, WithoutFifosEveryByteIsReceivedDataAndBits6And7AreClear) {
  Start(0, UART_IER_RDI);
  Receive("a");
  EXPECT_EQ(In(UART_IIR), UART_IIR_RDI);
}

TEST_F(SerialTest, EnablingTheThreInterruptRaisesItAndReadingIirClearsIt) {
  Start(kFifo14, UART_IER_THRI);
  EXPECT_TRUE(line_.level);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_THRI);
  EXPECT_FALSE(line_.level);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_NO_INT);
  Out(UART_IER, UART_IER_THRI);
  EXPECT_FALSE(line_.level) << "it was enabled before";
  Out(UART_IER, 0);
  Out(UART_IER, UART_IER_THRI);
  EXPECT_TRUE(line_.level);
}

TEST_F(SerialTest, EachByteSentRaisesTheThreInterruptAnew) {
  Start(kFifo14, UART_IER_THRI);
  for (const char c : std::string_view("abc")) {
    EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_THRI);
    EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_NO_INT);
    Out(UART_TX, static_cast<uint8_t>(c));
    EXPECT_TRUE(line_.level);
  }
  EXPECT_EQ(output_.text, "abc");
}

TEST_F(SerialTest, ReadingIirClearsTheThreInterruptOnlyWhereItWasReported) {
  Start(kFifo14, UART_IER_THRI | UART_IER_RDI);
  Receive("a");
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_RX_TIMEOUT) << "receive comes first";
  In(UART_RX);
  EXPECT_TRUE(line_.level);
  EXPECT_EQ(In(UART_IIR), 0xc0 | UART_IIR_THRI) << "still pending";
  EXPECT_FALSE(line_.level);
}

TEST_F(SerialTest, SourcesAreReportedInTheirOrderOfPriority) {
  Start(0, 0x0f);
  Out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2);  // deltas
  Out(UART_TX, 'a');
  Out(UART_TX, 'b');  // overrun
  EXPECT_EQ(In(UART_IIR), UART_IIR_RLSI);
  EXPECT_EQ(In(UART_LSR), UART_LSR_OE | UART_LSR_DR | UART_LSR_THRE | UART_LSR_TEMT);
  EXPECT_EQ(In(UART_IIR), UART_IIR_RDI);
  EXPECT_EQ(In(UART_RX), 'b') << "a 16450's buffer is overwritten";
  EXPECT_EQ(In(UART_IIR), UART_IIR_THRI);
  EXPECT_EQ(In(UART_IIR), UART_IIR_MSI);
  EXPECT_TRUE(line_.level);
  In(UART_MSR);
  EXPECT_EQ(In(UART_IIR), UART_IIR_NO_INT);
  EXPECT_FALSE(line_.level);
}

TEST_F(SerialTest, Out2ConnectsTheInterrupt) {
  Out(UART_IER, UART_IER_RDI);
  Receive("a");
  EXPECT_FALSE(line_.level);
  EXPECT_EQ(In(UART_IIR), UART_IIR_RDI) << "the register does not mind";
  Out(UART_MCR, UART_MCR_OUT2);
  EXPECT_TRUE(line_.level);
  Out(UART_MCR, 0);
  EXPECT_FALSE(line_.level);
}

TEST_F(SerialTest, LoopbackSendsToItselfAndCutsTheWire) {
  Start(kFifo14, 0);
  Out(UART_MCR, UART_MCR_LOOP);
  Out(UART_TX, 'q');
  EXPECT_EQ(output_.text, "");
  EXPECT_EQ(Receive("outside"), 0u);
  EXPECT_EQ(In(UART_RX), 'q');
  EXPECT_EQ(spaces_, 0);
  Out(UART_MCR, 0);
  EXPECT_EQ(spaces_, 1) << "the console may try again";
  EXPECT_EQ(Receive("outside"), 7u);
}

TEST_F(SerialTest, LoopbackOverrunKeepsTheFifo) {
  Start(kFifo14, UART_IER_RLSI);
  Out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2);
  for (unsigned i = 0; i < 17; ++i) Out(UART_TX, i);
  EXPECT_TRUE(line_.level);
  EXPECT_NE(In(UART_LSR) & UART_LSR_OE, 0);
  EXPECT_FALSE(line_.level);
  EXPECT_EQ(In(UART_LSR) & UART_LSR_OE, 0) << "cleared by reading";
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(In(UART_RX), i);
  EXPECT_EQ(In(UART_LSR) & UART_LSR_DR, 0);
}

TEST_F(SerialTest, LoopbackWiresModemOutputsToInputs) {
  Out(UART_MCR, UART_MCR_LOOP);
  EXPECT_EQ(In(UART_MSR), UART_MSR_DCTS | UART_MSR_DDSR | UART_MSR_DDCD);
  EXPECT_EQ(In(UART_MSR), 0) << "deltas are cleared by reading";
  Out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT1);
  EXPECT_EQ(In(UART_MSR), UART_MSR_RI) << "a rising ring is no event";
  Out(UART_MCR, UART_MCR_LOOP);
  EXPECT_EQ(In(UART_MSR), UART_MSR_TERI);
}

// The checks of Linux's 8250 driver (drivers/tty/serial/8250/8250_port.c, autoconfig).
TEST_F(SerialTest, LinuxDetectsA16550A) {
  Out(UART_IER, 0);
  EXPECT_EQ(In(UART_IER) & 0x0f, 0);
  Out(UART_IER, 0xff);
  EXPECT_EQ(In(UART_IER), 0x0f) << "no XScale UUE bit";
  Out(UART_IER, 0);

  Out(UART_MCR, 0xff);
  EXPECT_EQ(In(UART_MCR), 0x1f) << "no flow control of a later chip";
  Out(UART_MCR, UART_MCR_LOOP | UART_MCR_OUT2 | UART_MCR_RTS);
  EXPECT_EQ(In(UART_MSR) & 0xf0, UART_MSR_DCD | UART_MSR_CTS);
  Out(UART_MCR, 0);

  Out(UART_LCR, UART_LCR_CONF_MODE_B);
  Out(UART_EFR, 0);
  Out(UART_LCR, 0);
  Out(UART_FCR, UART_FCR_ENABLE_FIFO);
  EXPECT_EQ(In(UART_IIR) >> 6, 3) << "FIFOs that work";
  Out(UART_LCR, UART_LCR_CONF_MODE_A);
  EXPECT_NE(In(UART_EFR), 0) << "no 16650";
  Out(UART_LCR, 0);
  Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR7_64BYTE);
  EXPECT_EQ(In(UART_IIR) >> 5, 6) << "no 16750";

  for (const unsigned value : {0xa5u, 0x5au}) {
    Out(UART_SCR, value);
    EXPECT_EQ(In(UART_SCR), value);
  }
}

// Linux's size_fifo: how many bytes sent in loopback come back.
TEST_F(SerialTest, TheFifoMeasuresSixteenBytes) {
  Out(UART_FCR, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
  Out(UART_MCR, UART_MCR_LOOP);
  for (unsigned i = 0; i < 256; ++i) Out(UART_TX, i);
  unsigned count = 0;
  while (count < 256 && (In(UART_LSR) & UART_LSR_DR)) {
    In(UART_RX);
    ++count;
  }
  EXPECT_EQ(count, 16u);
}

TEST_F(SerialTest, ProgrammingTheFifoNeedsItsEnableBit) {
  Start(kFifo14, UART_IER_RDI);
  Receive("abc");
  Out(UART_FCR, UART_FCR_TRIGGER_4);  // without the enable bit: FIFOs off and cleared
  EXPECT_EQ(In(UART_LSR) & UART_LSR_DR, 0);
  EXPECT_EQ(In(UART_IIR), UART_IIR_NO_INT);
  EXPECT_FALSE(line_.level);
}

TEST_F(SerialTest, AWideAccessIsThatManyByteAccesses) {
  Start(kFifo14, 0);
  Receive("ab");
  // RBR, IER, IIR, LCR; then MCR, LSR, MSR, SCR.
  EXPECT_EQ(serial_.Read(0, 4), 0x00c10061u);
  EXPECT_EQ(serial_.Read(0, 8), 0x00b0600b00c10062u);
  serial_.Write(UART_MCR, 4, 0x77000003);  // MCR and SCR; LSR and MSR ignore it
  EXPECT_EQ(In(UART_MCR), 3);
  EXPECT_EQ(In(UART_SCR), 0x77);
  serial_.Write(UART_TX, 2, 0x0f41);
  EXPECT_EQ(output_.text, "A");
  EXPECT_EQ(In(UART_IER), 0x0f);
}

TEST_F(SerialTest, ResetLowersTheLineAndRestoresPowerOnValues) {
  Start(kFifo14, 0x0f);
  Receive("abc");
  Out(UART_SCR, 0x55);
  Out(UART_LCR, 0x1b);
  EXPECT_TRUE(line_.level);
  serial_.Reset();
  EXPECT_FALSE(line_.level);
  EXPECT_EQ(serial_.Read(0, 8), 0x00b0600000010000u);
}

class SlowOutput : public SerialOutput {
 public:
  void Write(std::span<const std::byte>) override {
    entered = true;
    while (!released) std::this_thread::yield();
  }
  std::atomic<bool> entered = false;
  std::atomic<bool> released = false;
};

TEST(SerialThreadTest, AnOutputThatBlocksHoldsUpOnlyTheSender) {
  RecordingLine line;
  SlowOutput output;
  Serial serial(line, output);
  std::thread sender([&] { serial.Write(UART_TX, 1, 'x'); });
  while (!output.entered) std::this_thread::yield();
  EXPECT_EQ(serial.Read(UART_LSR, 1), UART_LSR_THRE | UART_LSR_TEMT);
  const std::byte byte{1};
  EXPECT_EQ(serial.Receive(std::span(&byte, 1)), 1u);
  serial.Reset();
  output.released = true;
  sender.join();
}

TEST(SerialThreadTest, SeveralVcpusAndTheConsoleLoseNoByte) {
  RecordingLine line;
  RecordingOutput output;
  std::atomic<bool> space = true;
  Serial serial(line, output, [&] { space = true; });
  serial.Write(UART_FCR, 1, kFifo14);
  serial.Write(UART_MCR, 1, UART_MCR_OUT2);
  serial.Write(UART_IER, 1, 0x0f);
  constexpr size_t kBytes = 2000;

  std::thread console([&] {
    const std::vector<std::byte> data(kBytes, std::byte{'i'});
    for (size_t sent = 0; sent < kBytes;) {
      while (!space.exchange(false)) std::this_thread::yield();
      sent += serial.Receive(std::span(data).subspan(sent));
    }
  });
  std::atomic<size_t> received = 0;
  const auto vcpu = [&] {
    for (size_t i = 0; i < kBytes; ++i) serial.Write(UART_TX, 1, 'o');
    while (received < kBytes) {
      // Both take from the FIFO, so only what is not 0 was a byte.
      if (serial.Read(UART_RX, 1) == 'i') ++received;
      serial.Read(UART_IIR, 1);
    }
  };
  std::thread first(vcpu);
  std::thread second(vcpu);
  console.join();
  first.join();
  second.join();
  EXPECT_EQ(output.text, std::string(2 * kBytes, 'o'));
  EXPECT_EQ(received, kBytes);
}

}  // namespace
}  // namespace crossbar
