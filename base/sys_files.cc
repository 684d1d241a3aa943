#include "base/sys_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>

#include "base/failpoint.h"
#include "base/sys.h"

namespace crossbar::sys {
namespace {

constexpr size_t kMostText = size_t{64} * 1024;

// The errno value that a failpoint wants, or what `call` left there; 0 where it succeeded.
template <typename Call>
int Try(std::string_view name, Call&& call) {
  if (const int injected = failpoints::Hit(name); injected != 0) [[unlikely]]
    return injected;
  return call() ? 0 : errno;
}

}  // namespace

Result<std::string> ReadLink(const std::string& path) {
  std::array<char, PATH_MAX> text;
  ssize_t length = 0;
  const int code = Try("readlink", [&] {
    length = ::readlink(path.c_str(), text.data(), text.size());
    return length >= 0;
  });
  if (code != 0) return std::unexpected(ErrnoError(code, "readlink", path));
  return std::string(text.data(), static_cast<size_t>(length));
}

Result<std::string> RealPath(const std::string& path) {
  std::array<char, PATH_MAX> text;
  const int code =
      Try("realpath", [&] { return ::realpath(path.c_str(), text.data()) != nullptr; });
  if (code != 0) return std::unexpected(ErrnoError(code, "realpath", path));
  return std::string(text.data());
}

Result<std::string> ReadText(const std::string& path) {
  const Fd file = TRY(Open(path, O_RDONLY));
  std::string text(kMostText, '\0');
  size_t length = 0;
  while (length < text.size()) {
    const size_t n =
        TRY(Read(file.get(), std::as_writable_bytes(std::span(text).subspan(length))));
    if (n == 0) break;
    length += n;
  }
  text.resize(length);
  return text;
}

Result<std::vector<std::string>> ListFolder(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> folder(nullptr, ::closedir);
  const int code = Try("opendir", [&] {
    folder.reset(::opendir(path.c_str()));
    return folder != nullptr;
  });
  if (code != 0) return std::unexpected(ErrnoError(code, "opendir", path));
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace crossbar::sys
