// Served: one of our own device servers in a thread, and a client that is connected to it. For tests and
// benchmarks.
#pragma once

#include <memory>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/sys_socket.h"
#include "devices/vfio_user/client.h"
#include "devices/vfio_user/device_server.h"
#include "devices/vfio_user/dma_device.h"
#include "devices/vfio_user/memory_device.h"

namespace crossbar::vfio_user::testing {

template <typename Device>
class Served {
 public:
  Served(std::unique_ptr<Device> device, const char* name, DeviceServer::Options options = {},
         Connection::Limits limits = {})
      : device_(std::move(device)), server_(*device_, options) {
    auto ends = sys::SocketPair().value();
    thread_ = std::thread([this, end = std::move(ends.second)]() mutable {
      const Result<> served = server_.Serve(std::move(end));
      CHECK(served, "{}", served.error().message());
    });
    auto made = VfioUserBackend::Create(std::move(ends.first), {name, nullptr, limits});
    CHECK(made, "{}", made.error().message());
    backend_ = *std::move(made);
  }
  ~Served() { Disconnect(); }

  void Disconnect() {
    backend_.reset();
    if (thread_.joinable()) thread_.join();
  }
  Device& device() { return *device_; }
  VfioUserBackend& backend() { return *backend_; }
  VfioUserBackend* operator->() { return backend_.get(); }

 private:
  std::unique_ptr<Device> device_;
  DeviceServer server_;
  std::thread thread_;
  std::unique_ptr<VfioUserBackend> backend_;
};

// A driver of the dma device's channel 0.
class DmaDriver {
 public:
  explicit DmaDriver(VfioUserBackend& backend) : backend_(backend) {}

  void Write(uint64_t offset, uint64_t value, size_t size = 8) {
    const auto done = backend_.Write(0, offset, Bytes(value).first(size));
    CHECK(done, "{}", done.error().message());
  }
  uint64_t Read(uint64_t offset, size_t size = 8) {
    uint64_t value = 0;
    const auto done =
        backend_.Read(0, offset, std::as_writable_bytes(std::span(&value, 1)).first(size));
    CHECK(done, "{}", done.error().message());
    return value;
  }
  void Start(uint64_t source, uint64_t destination, uint64_t count, uint32_t command) {
    Write(0x80, source);
    Write(0x88, destination);
    Write(0x90, count);
    Write(0x98, command, 4);
  }
  // The device's errno.
  uint64_t Finish() {
    while ((Read(0x98, 4) & DmaDevice::kRun) != 0) std::this_thread::yield();
    return Read(DmaDevice::kChannels + 0x1c, 4);
  }
  uint64_t FromBus(uint64_t address, uint64_t count) {
    Start(address, DmaDevice::kBuffer, count, DmaDevice::kRun);
    return Finish();
  }
  uint64_t ToBus(uint64_t address, uint64_t count) {
    Start(DmaDevice::kBuffer, address, count, DmaDevice::kRun | DmaDevice::kToBus);
    return Finish();
  }

 private:
  VfioUserBackend& backend_;
};

inline std::unique_ptr<DmaDevice> WideDma(uint64_t buffer = 64 * kKiB) {
  return DmaDevice::Create({.buffer_size = buffer, .address_bits = 64}).value();
}

}  // namespace crossbar::vfio_user::testing
