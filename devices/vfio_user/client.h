// VfioUserBackend: a PCI device in another process, spoken to over a vfio-user connection.
//
// A VfioBackend like the others (devices/passthrough/backend.h); its server's DMA is a domain of its own
// (dma_domain.h). Everything the server says is checked before it is kept; what cannot be is an error
// of Create, or breaks the connection: the device is then lost, reads fail, and lost_event says so.
//
// Owned by a PassthroughFunction. Threads as VfioBackend says; two of its own (connection.h).
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/locks.h"
#include "devices/passthrough/backend.h"
#include "devices/vfio_user/connection.h"
#include "devices/vfio_user/dma_domain.h"
#include "devices/vfio_user/server_process.h"
#include "memory/address_space.h"
#include "memory/host_mapping.h"

namespace crossbar::vfio_user {

class VfioUserBackend : public VfioBackend {
 public:
  struct Options {
    std::string name;  // for people: "vfio-user PATH"
    // The process at the other end if it is ours to end; null for a foreign server.
    std::shared_ptr<ServerProcess> process{};
    Connection::Limits limits{};
  };

  // Errors, one line each: not this protocol or version, not a PCI device, no BARs, nonsense.
  static Result<std::unique_ptr<VfioUserBackend>> Create(Fd socket, Options options);
  // Connects to PATH and names the backend after it. Errors: it is not there, no socket, no permission.
  static Result<std::unique_ptr<VfioUserBackend>> Connect(const std::string& path,
                                                          Connection::Limits limits = {});
  ~VfioUserBackend() override;

  // VfioBackend.
  std::string name() const override { return connection_->name(); }
  Region region(unsigned index) const override;
  Interrupt interrupt(unsigned index) const override;
  bool can_reset() const override { return can_reset_; }
  Result<> Read(unsigned region, uint64_t offset, std::span<std::byte> data) override;
  Result<> Write(unsigned region, uint64_t offset, std::span<const std::byte> data) override;
  uint64_t largest_access() const override { return std::min(kOurTransfer, version_.max_data_xfer_size); }
  Result<Backing> MapArea(unsigned region, const Area& area) override;
  std::vector<IoEvent> IoEvents(unsigned region) override;
  Result<> SetInterrupts(unsigned index, uint32_t start, std::span<const int> eventfds) override;
  Result<> DisableInterrupts(unsigned index) override;
  Result<> UnmaskIntx() override;
  // False: servers drop the eventfd that is to unmask.
  Result<bool> SetIntxUnmaskEvent(int eventfd) override;
  Result<> Reset() override;
  int lost_event() const override { return connection_->lost_event(); }
  Result<> JoinBus(AddressSpace& space) override;
  void LeaveBus() override;

 private:
  static constexpr unsigned kRegions = 9;  // VFIO_PCI_NUM_REGIONS
  static constexpr unsigned kIrqs = 5;     // VFIO_PCI_NUM_IRQS

  struct RegionState {
    uint64_t size = 0;         // as the server has it
    uint64_t offset = 0;       // within `file`
    std::vector<Area> direct;  // of `file`, for us to map
    Region shown;
    Fd file;
    std::optional<std::vector<IoEvent>> events;
    std::vector<Fd> event_fds;
  };

  VfioUserBackend(std::unique_ptr<Connection> connection, const Version& version,
                  std::shared_ptr<ServerProcess> process);

  Result<> Discover();
  Result<> DiscoverRegion(unsigned index);
  Result<Message> GetRegionInfo(unsigned index);
  void JudgeFile(unsigned index, const RegionReply& reply, Message& message);
  Result<> DiscoverIrq(unsigned index);
  Result<std::vector<IoEvent>> FetchIoEvents(unsigned region);
  Result<> Access(unsigned region, uint64_t offset, uint64_t size) const;
  Result<> CheckReply(const RegionAccess& asked, std::span<const std::byte> reply, uint64_t data);
  Result<> SendIrqs(const SetIrqs& irqs, std::span<const int> fds);
  void NoteCommand(uint64_t offset, std::span<const std::byte> data);

  // Constant after Create, but for what IoEvents fetches on first use.
  const std::unique_ptr<Connection> connection_;
  const Version version_;
  const std::shared_ptr<ServerProcess> process_;
  bool can_reset_ = false;
  std::array<RegionState, kRegions> regions_;
  std::array<Interrupt, kIrqs> irqs_;

  std::vector<HostMapping> mappings_;
  VfioUserDomain domain_;
  AddressSpace::DomainHandle membership_;
};

}  // namespace crossbar::vfio_user
