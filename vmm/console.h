// Console: the far end of the guest's serial line: our stdin and stdout, a file, or nothing.
//
// Owned by Vm. vCPU threads write through SerialOutput; the main thread reads input and hands it to
// the serial device. Input that the device has no room for waits here, and we read no more until it
// fits. On a terminal, Ctrl-A x ends the VM and Ctrl-A Ctrl-A sends one Ctrl-A; it is read only while
// we are in its foreground.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "devices/serial.h"
#include "vmm/event_loop.h"
#include "vmm/options.h"
#include "vmm/stop.h"
#include "vmm/terminal.h"

namespace crossbar {

class Console : public SerialOutput {
 public:
  // A file is only tried: until BeginOutput it is not made, and what it holds stays.
  static Result<std::unique_ptr<Console>> Create(const RunOptions& options);

  // Connects input, if there is any: `loop` watches it, `serial` receives it, `quit` is Ctrl-A x.
  // All outlive the console's use.
  Result<> Attach(EventLoop& loop, Serial& serial, std::function<void()> quit);
  // Start-up has succeeded: from here on the file is this run's. Before the guest runs. Once `stop`,
  // which is borrowed, is raised, output that nobody takes is dropped and not waited for.
  Result<> BeginOutput(const StopSignal& stop);
  // The serial device has room again; any thread.
  void OnSpace();

  void Write(std::span<const std::byte> data) override;

  // Job control: before the process stops, and when it goes on.
  void Suspend();
  Result<> Resume();

 private:
  Console() = default;
  // Waits until output can be written without blocking; false where the VM stops meanwhile.
  bool WaitForRoom() const;
  Result<> WatchInput();
  Result<> ReadInput();
  void Deliver();
  // Takes the escape sequences out of what a person typed.
  void Filter(std::span<const std::byte> typed);

  const StopSignal* stop_ = nullptr;
  std::string path_;  // of the file, if it is one
  Fd file_;
  int output_ = -1;
  int input_ = -1;
  std::optional<RawTerminal> terminal_;
  std::atomic<bool> output_broken_ = false;

  EventLoop* loop_ = nullptr;
  Serial* serial_ = nullptr;
  std::function<void()> quit_;
  Fd space_;  // eventfd: OnSpace to the main thread
  Fd timer_;  // while we are in the terminal's background
  std::vector<std::byte> pending_;
  bool escape_ = false;
};

}  // namespace crossbar
