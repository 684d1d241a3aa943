// What a run writes must not be what it reads.
#pragma once

#include "base/result.h"
#include "vmm/options.h"

namespace crossbar {

// Whether the console's file and the report are files of their own, by whatever names: opening one for
// writing would empty a kernel, and renaming the report into its place would replace it. The error
// is a usage error.
Result<> CheckOutputs(const RunOptions& options);

}  // namespace crossbar
