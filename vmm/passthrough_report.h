// The part of the report, and of what SIGUSR1 prints, that is about passed-through devices.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "memory/p2p_matrix.h"
#include "vmm/passthrough.h"

namespace crossbar {

// Devices, matrix and zaps as JSON; docs/report.md has the fields.
nlohmann::ordered_json PassthroughJson(const Passthrough& passthrough, const P2pMatrix& matrix);

// The same for a person: the matrix, then zaps by cause and the last ones with their times.
std::string PassthroughText(const Passthrough& passthrough, const P2pMatrix& matrix);

}  // namespace crossbar
