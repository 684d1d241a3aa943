// Small files and folders of sysfs and procfs, through the door for system calls (base/sys.h).
// Stateless; any thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace crossbar::sys {

// What the symbolic link at `path` says.
Result<std::string> ReadLink(const std::string& path);
// `path` without symbolic links, dots and doubled slashes; it exists.
Result<std::string> RealPath(const std::string& path);
// The whole of a small text file, at most 64 KiB of it.
Result<std::string> ReadText(const std::string& path);
// The names in a folder, sorted, without "." and "..".
Result<std::vector<std::string>> ListFolder(const std::string& path);

}  // namespace crossbar::sys
