#include "vmm/console.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "base/sys.h"

namespace crossbar {
namespace {

constexpr std::byte kCtrlA{0x01};

// What a person may type ahead of a guest that does not read; more is dropped, as terminals do.
constexpr size_t kTypeAhead = 4096;

constexpr const char* kCannotWrite = "cannot write the console's file";

constexpr int kStalledCheckMs = 100;
constexpr auto kForegroundCheck = std::chrono::milliseconds(500);

// What is there is opened, so that the reader of a FIFO is met; what is not there is made and taken
// away again.
Result<Fd> TryFile(const std::string& path) {
  Result<Fd> file = sys::Open(path, O_WRONLY | O_APPEND);
  if (file || file.error().code() != ENOENT) return file;
  file = sys::Open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
  if (!file && file.error().code() != EEXIST) return file;  // EEXIST: a link to nothing yet
  if (file) ::unlink(path.c_str());
  return Fd();
}

}  // namespace

Result<std::unique_ptr<Console>> Console::Create(const RunOptions& options) {
  std::unique_ptr<Console> console(new Console());
  console->path_ = options.console_file();
  if (!console->path_.empty()) {
    console->file_ = TRY(Within(TryFile(console->path_), [] { return kCannotWrite; }));
  } else if (options.console == "stdio") {
    console->input_ = STDIN_FILENO;
    console->output_ = STDOUT_FILENO;
  }
  return console;
}

Result<> Console::BeginOutput(const StopSignal& stop) {
  stop_ = &stop;
  if (path_.empty()) return {};
  file_ = TRY(Within(sys::Open(path_, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644),
                     [] { return kCannotWrite; }));
  output_ = file_.get();
  return {};
}

Result<> Console::Attach(EventLoop& loop, Serial& serial, std::function<void()> quit) {
  if (input_ < 0) return {};
  loop_ = &loop;
  serial_ = &serial;
  quit_ = std::move(quit);
  space_ = TRY(sys::EventFd(0, EFD_NONBLOCK));
  TRY(loop.Add(space_.get(), [this]() -> Result<> {
    TRY(sys::DrainEvent(space_));
    Deliver();
    return {};
  }));
  if (::isatty(input_) == 0) return WatchInput();
  terminal_.emplace(TRY(RawTerminal::Open(input_)));
  return Resume();
}

Result<> Console::WatchInput() {
  const Result<> added = loop_->Add(input_, [this] { return ReadInput(); });
  if (added || added.error().code() == EEXIST) return {};
  // EPERM: a regular file or /dev/null cannot be polled. All of a file is input at once; what does
  // not fit yet follows as the guest makes room.
  if (added.error().code() == EPERM) return ReadInput();
  return added;
}

void Console::Suspend() {
  if (terminal_) terminal_->Release();
}

// In the background the terminal is neither changed nor read, which would stop us.
Result<> Console::Resume() {
  if (!terminal_) return {};
  if (TRY(terminal_->Acquire())) {
    loop_->Remove(timer_.get());
    timer_ = Fd();
    return WatchInput();
  }
  loop_->Remove(input_);
  if (timer_.valid()) return {};
  // A shell that puts a running job into the foreground need not send it a signal; bash does not.
  timer_ = TRY(sys::IntervalTimer(kForegroundCheck));
  return loop_->Add(timer_.get(), [this]() -> Result<> {
    TRY(sys::DrainEvent(timer_));
    return Resume();
  });
}

Result<> Console::ReadInput() {
  std::array<std::byte, 256> buffer;
  const Result<size_t> count = sys::Read(input_, buffer);
  if (!count && count.error().code() == EAGAIN) return {};
  // A pipe waits until all of this is delivered. A terminal is always read, or Ctrl-A x would not
  // work on a guest that hangs.
  if (!terminal_ || !count || *count == 0) loop_->Remove(input_);
  if (!count) {
    LogWarning("console input is lost: {}", count.error().message());
    return {};
  }
  if (*count == 0) return {};
  Filter(std::span(buffer).first(*count));
  Deliver();
  return {};
}

void Console::Filter(std::span<const std::byte> typed) {
  if (!terminal_) {
    pending_.insert(pending_.end(), typed.begin(), typed.end());
    return;
  }
  for (const std::byte byte : typed) {
    if (escape_ && (byte == std::byte{'x'} || byte == std::byte{'X'})) quit_();
    const bool literal = escape_ && byte == kCtrlA;
    escape_ = !escape_ && byte == kCtrlA;
    if ((literal || (!escape_ && byte != kCtrlA)) && pending_.size() < kTypeAhead)
      pending_.push_back(byte);
  }
}

void Console::Deliver() {
  const size_t taken = serial_->Receive(pending_);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<ptrdiff_t>(taken));
  if (!pending_.empty() || terminal_) return;  // OnSpace brings us back
  if (const Result<> watched = WatchInput(); !watched)
    LogWarning("console input is lost: {}", watched.error().message());
}

void Console::OnSpace() {
  if (const Result<> signalled = sys::SignalEvent(space_); !signalled)
    LogWarning("console input is stuck: {}", signalled.error().message());
}

// A vCPU that blocked in write could not be stopped: the kick may come right before.
bool Console::WaitForRoom() const {
  while (!sys::WaitForRoom(output_, kStalledCheckMs)) {
    if (stop_->requested()) return false;
  }
  return true;
}

void Console::Write(std::span<const std::byte> data) {
  if (output_ < 0 || output_broken_.load(std::memory_order_relaxed)) return;
  while (!data.empty() && WaitForRoom()) {
    const Result<size_t> written = sys::Write(output_, data);
    if (written) {
      data = data.subspan(*written);
      continue;
    }
    if (written.error().code() == EAGAIN) continue;
    // The guest must not hang on a reader that went away.
    if (!output_broken_.exchange(true))
      LogWarning("console output is dropped from here on: {}", written.error().message());
    return;
  }
}

}  // namespace crossbar
