#include "vmm/passthrough_report.h"

#include <chrono>
#include <nlohmann/json.hpp>

namespace crossbar {
namespace {

using Json = nlohmann::ordered_json;

// Microseconds from when a zap was noticed.
double Since(const ZapNotification& zap, ZapNotification::Clock::time_point at) {
  return std::chrono::duration<double, std::micro>(at - zap.noticed).count();
}

Json DevicesJson(const Passthrough& passthrough) {
  Json list = Json::array();
  for (const auto& function : passthrough.functions()) {
    Json device;
    device["id"] = function->id();
    device["lost"] = function->lost();
    list.push_back(std::move(device));
  }
  return list;
}

Json MatrixJson(const P2pMatrix& matrix) {
  Json list = Json::array();
  for (const P2pMatrix::Cell& cell : matrix.cells) {
    Json entry;
    entry["initiator"] = cell.initiator;
    entry["target"] = cell.target;
    entry["bar"] = cell.bar;
    entry["offset"] = cell.bar_offset;
    entry["gpa"] = fmt::format("{}", cell.range.start);
    entry["bytes"] = cell.range.size;
    entry["state"] = P2pStateName(cell.state);
    entry["detail"] = cell.detail;
    list.push_back(std::move(entry));
  }
  return list;
}

Json ZapsJson(const ZapLog& zaps) {
  Json counts = Json::object();
  for (size_t i = 0; i < kZapCauses; ++i) {
    const auto cause = static_cast<ZapCause>(i);
    if (const uint64_t count = zaps.count(cause)) counts[ZapCauseName(cause)] = count;
  }
  Json recent = Json::array();
  for (const ZapNotification& zap : zaps.Recent()) {
    Json entry;
    entry["device"] = zap.device;
    entry["cause"] = ZapCauseName(zap.cause);
    entry["injected"] = zap.injected;
    entry["pieces"] = zap.pieces;
    entry["dma_out_us"] = Since(zap, zap.dma_out);
    entry["slots_out_us"] = Since(zap, zap.slots_out);
    entry["hardware_done_us"] = Since(zap, zap.hardware_done);
    recent.push_back(std::move(entry));
  }
  Json zaps_json;
  zaps_json["counts"] = std::move(counts);
  zaps_json["recent"] = std::move(recent);
  return zaps_json;
}

}  // namespace

Json PassthroughJson(const Passthrough& passthrough, const P2pMatrix& matrix) {
  Json json;
  json["devices"] = DevicesJson(passthrough);
  json["p2p"] = MatrixJson(matrix);
  json["zaps"] = ZapsJson(passthrough.zaps());
  return json;
}

std::string PassthroughText(const Passthrough& passthrough, const P2pMatrix& matrix) {
  std::string text = "P2P matrix: which domain's devices can DMA into which BAR\n";
  text += matrix.cells.empty() ? "  no BAR is mapped\n" : matrix.ToString();
  const ZapLog& zaps = passthrough.zaps();
  for (size_t i = 0; i < kZapCauses; ++i) {
    const auto cause = static_cast<ZapCause>(i);
    if (const uint64_t count = zaps.count(cause))
      text += fmt::format("zaps and maps by {}: {}\n", ZapCauseName(cause), count);
  }
  for (const ZapNotification& zap : zaps.Recent())
    text += fmt::format("{}: {}{}, {} pieces: DMA out {:.0f} us, slots out {:.0f} us, hardware done {:.0f} us\n",
                        zap.device, ZapCauseName(zap.cause), zap.injected ? " (injected)" : "",
                        zap.pieces, Since(zap, zap.dma_out), Since(zap, zap.slots_out),
                        Since(zap, zap.hardware_done));
  return text;
}

}  // namespace crossbar
