// DeviceServer: serves one device to one vfio-user client at a time, over a connected socket.
//
// The protocol's other side; any client, ours or another VMM's, and it may be hostile: nothing it sends
// reaches memory it did not share or stops the server from serving the next. A descriptor that is neither
// memory nor an eventfd may hang in close and ends the session; while kMaxHangingCloses of them hang, any
// descriptor does. Commands are carried out in order, on the thread that calls Serve. The device keeps its
// state over a change of clients; memory and interrupts do not outlive the client that gave them.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "devices/vfio_user/dma_requester.h"
#include "devices/vfio_user/protocol.h"
#include "devices/vfio_user/served_device.h"

namespace crossbar::vfio_user {

class DeviceServer {
 public:
  static constexpr unsigned kMaxHangingCloses = 16;

  struct Options {
    std::chrono::milliseconds stall{5000};    // within one message, and for the client to read ours
    std::chrono::milliseconds request{10000};  // for the client to answer a DMA_READ or DMA_WRITE
    bool twin_socket = true;                   // where the client offers it
  };

  // `device` outlives the server.
  explicit DeviceServer(ServedDevice& device) : DeviceServer(device, Options()) {}
  DeviceServer(ServedDevice& device, Options options) : device_(device), options_(options) {}

  // Until the client hangs up. Errors: it broke the protocol, or stalled.
  Result<> Serve(Fd socket);

 private:
  struct Reply {
    uint32_t error = 0;
    std::vector<std::byte> body;
    std::vector<int> fds;  // borrowed
  };

  Result<> Converse();
  Result<> Greet(Message& message);
  Result<> Handle(Message message);
  Reply Dispatch(Message& message);
  Reply MapDma(const Message& message);
  Reply UnmapDma(const Message& message);
  Reply GetInfo(const Message& message) const;
  Reply GetRegionInfo(const Message& message) const;
  Reply GetRegionIoFds(const Message& message) const;
  Reply GetIrqInfo(const Message& message);
  Reply SetInterrupts(Message& message);
  Reply ReadRegion(const Message& message);
  Reply WriteRegion(const Message& message);
  Result<> Send(const Header& request, const Reply& reply);
  void UseRequester(const Version& client, std::optional<Fd> twin);

  ServedDevice& device_;
  const Options options_;

  // Of the session under way.
  uint32_t client_max_fds_ = 0;  // in one message
  std::shared_ptr<ServerSocket> socket_;
  std::shared_ptr<DmaRequester> requester_;
};

}  // namespace crossbar::vfio_user
