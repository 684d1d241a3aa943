#include "boot/image_file.h"

#include <fcntl.h>

#include <cstring>

#include "base/sys.h"

namespace crossbar {

Result<> ImageFile::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  if (out.empty()) return {};  // of a segment that is all bss the offset means nothing
  if (offset > size_ || out.size() > size_ - offset) {
    return Fail(
        "'{}' is truncated: it has {:#x} bytes, and {:#x} at offset {:#x} are needed; copy it again",
        name_, size_, out.size(), offset);
  }
  while (!out.empty()) {
    const size_t n =
        TRY(Within(ReadSome(offset, out), [&] { return fmt::format("cannot read '{}'", name_); }));
    if (n == 0) {
      return Fail("'{}' was cut to {:#x} bytes while it was read; wait until it is written", name_,
                  offset);
    }
    offset += n;
    out = out.subspan(n);
  }
  return {};
}

Result<std::unique_ptr<FdImage>> FdImage::Open(const std::string& path) {
  // O_NONBLOCK: a FIFO without a writer would hang us here.
  Result<Fd> fd = sys::Open(path, O_RDONLY | O_NONBLOCK);
  if (!fd) {
    const int code = fd.error().code();
    return std::unexpected(
        Error(code, fmt::format("cannot open '{}': {}", path, sys::ErrnoText(code))));
  }
  const uint64_t size = TRY(
      Within(sys::FileSize(fd->get()), [&] { return fmt::format("cannot use '{}'", path); }));
  return std::unique_ptr<FdImage>(new FdImage(path, size, *std::move(fd)));
}

Result<size_t> FdImage::ReadSome(uint64_t offset, std::span<std::byte> out) const {
  return sys::Pread(fd_.get(), out, offset);
}

Result<size_t> MemoryImage::ReadSome(uint64_t offset, std::span<std::byte> out) const {
  std::memcpy(out.data(), bytes_.subspan(offset).data(), out.size());
  return out.size();
}

}  // namespace crossbar
