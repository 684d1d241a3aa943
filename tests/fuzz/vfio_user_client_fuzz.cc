// Fuzzes the vfio-user client from the server's side: to each message the server does what the input says,
// from a proper answer through one with a few bytes changed to silence and noise. The client lives a
// whole device's life with it. Whatever happens: the VM goes on, nothing stays placed, a request for
// memory that is not mapped is refused, no descriptor is left.
#include <fcntl.h>

#include <memory>

#include "base/check.h"
#include "base/log.h"
#include "devices/vfio_user/testing/client_machine.h"
#include "tests/fuzz/fuzz_input.h"

namespace crossbar::vfio_user {
namespace {

using testing::ByteVector;
using testing::ClientMachine;
using testing::ScriptedServer;
using std::chrono::milliseconds;

class Fiend {
 public:
  explicit Fiend(fuzz::FuzzInput& input) : input_(input) {}

  bool operator()(ScriptedServer& server, Message& message) {
    if (input_.empty()) {
      server.Die();
      return true;
    }
    server.distort = nullptr;
    switch (input_.InRange(0, 15)) {
      case 0: return true;  // silence
      case 1:
        server.Die();
        return true;
      case 2:
        server.Refuse(message, input_.Number<uint32_t>());
        return true;
      case 3:
        server.Raw(std::as_bytes(input_.Bytes(input_.InRange(1, 64))), Descriptors(server));
        return true;
      case 4: {
        const auto body = std::as_bytes(input_.Bytes(input_.InRange(0, 200)));
        server.Reply(message, body, Descriptors(server), input_.Number<uint8_t>());
        return true;
      }
      case 5:
        server.Behave(message);
        return false;
      case 6:
      case 7: return Command(server);
      case 8:
      case 9:
      case 10:
        server.distort = [this, &server](Header& header, ByteVector& body, std::vector<int>& fds) {
          Distort(server, header, body, fds);
        };
        return false;
      default: return false;
    }
  }

 private:
  std::vector<int> Descriptors(ScriptedServer& server) {
    std::vector<int> fds;
    for (uint32_t n = input_.InRange(0, 7); n > 4; --n) {
      fds.push_back(input_.InRange(0, 1) != 0 ? server.memory.fd.get() : event_.get());
    }
    return fds;
  }

  void Distort(ScriptedServer& server, Header& header, ByteVector& body, std::vector<int>& fds) {
    const uint32_t what = input_.InRange(0, 7);
    if (what == 0) header.id = input_.Number<uint16_t>();
    if (what == 1) header.command = input_.Number<uint16_t>();
    if (what == 2) header.flags = input_.Number<uint32_t>();
    if (what == 3) body.resize(input_.InRange(0, 300));
    if (what == 4) fds = Descriptors(server);
    if (what < 5) return;
    for (uint32_t n = input_.InRange(1, 4); n > 0 && !body.empty(); --n) {
      const size_t at = input_.Number<uint16_t>() % body.size();
      for (size_t i = 0; i < (what == 5 ? 1u : what == 6 ? 4u : 8u) && at + i < body.size(); ++i)
        body[at + i] = std::byte{input_.Number<uint8_t>()};
    }
  }

  uint64_t Address() {
    static constexpr uint64_t kPlaces[] = {0, ClientMachine::kRam,
                                           ClientMachine::kRam + ClientMachine::kRamSize,
                                           ClientMachine::kBar, ClientMachine::kRegisters,
                                           ~uint64_t{0}};
    return kPlaces[input_.InRange(0, 5)] + static_cast<uint64_t>(int64_t{input_.Number<int16_t>()});
  }
  static bool IsPlaced(uint64_t address, uint64_t count) {
    const auto range = GuestRange::Checked(address, count);
    if (!range || count == 0) return false;
    return GuestRange{Gpa(ClientMachine::kRam), ClientMachine::kRamSize}.Contains(*range) ||
           GuestRange{Gpa(ClientMachine::kBar), ClientMachine::kBarSize}.Contains(*range) ||
           GuestRange{Gpa(ClientMachine::kRegisters), 0x1000}.Contains(*range);
  }
  bool Command(ScriptedServer& server) {
    const DmaAccess access{Address(), input_.InRange(0, 3) == 0 ? input_.Number<uint64_t>()
                                                                : input_.Number<uint16_t>()};
    const bool write = input_.InRange(0, 1) != 0;
    const size_t data = write ? (input_.InRange(0, 3) == 0 ? input_.Number<uint8_t>()
                                                           : access.count & 0xffff)
                              : 0;
    const ByteVector body = testing::Join({Bytes(access), ByteVector(data, std::byte{0x33})});
    const auto answer =
        server.Ask(write ? vfio_user::Command::kDmaWrite : vfio_user::Command::kDmaRead, body);
    if (!answer) {
      server.Die();
      return true;
    }
    // Without a twin socket this may be the client's next command; then the server has lost its thread.
    if (answer->header.type() != Header::kReply) return true;
    const bool refused = (answer->header.flags & Header::kError) != 0;
    CHECK(refused || IsPlaced(access.address, access.count), "{:#x}+{:#x}", access.address,
          access.count);
    return false;
  }

  fuzz::FuzzInput& input_;
  const Fd event_ = sys::EventFd().value();
};

void Run(fuzz::FuzzInput input) {
  const bool twin = input.InRange(0, 1) != 0;
  ClientMachine machine(milliseconds(2000));
  ScriptedServer server([fiend = std::make_shared<Fiend>(input)](
                            ScriptedServer& self, Message& message) { return (*fiend)(self, message); },
                        twin);
  Connection::Limits limits;
  limits.reply = limits.forward = limits.stall = milliseconds(8);
  auto backend = ClientMachine::Connect(server.TakeClientEnd(), limits);
  if (backend) machine.Live(**backend);
  CHECK(machine.unsafe.empty(), "{}", machine.unsafe.front());
  CHECK(machine.slots.Slots().size() == 1);
}

}  // namespace
}  // namespace crossbar::vfio_user

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace log = crossbar::log;
  log::SetLevel(crossbar::LogLevel::kError);
  static const bool once = [] {
    GTEST_FLAG_SET(break_on_failure, true);  // the fakes' own checks
    crossbar::vfio_user::Run({nullptr, 0});  // what is made once stays open
    return true;
  }();
  (void)once;
  const size_t before = crossbar::vfio_user::testing::OpenDescriptors();
  crossbar::vfio_user::Run({data, size});
  CHECK(crossbar::vfio_user::testing::SettledDescriptors(before) == before, "descriptors leaked");
  return 0;
}
