// ImageFile: a kernel, initrd or module as the loaders see it: a name, a size and reads.
//
// Reads go straight to where the bytes belong, guest RAM in most cases, so a large kernel costs the
// VMM no memory of its own, and a file that somebody truncates meanwhile is an error, not a SIGBUS.
// Owned by the caller of LoadGuest, constant after construction; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/result.h"

namespace crossbar {

class ImageFile {
 public:
  ImageFile(const ImageFile&) = delete;
  ImageFile& operator=(const ImageFile&) = delete;
  virtual ~ImageFile() = default;

  const std::string& name() const { return name_; }  // the path, for messages
  uint64_t size() const { return size_; }

  // Fills all of `out` from `offset`. Errors: the file has no such bytes (any more), pread's.
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) const;

 protected:
  ImageFile(std::string name, uint64_t size) : name_(std::move(name)), size_(size) {}

 private:
  // Some bytes from `offset`, 0 at the end of the file. The range is within size().
  virtual Result<size_t> ReadSome(uint64_t offset, std::span<std::byte> out) const = 0;

  const std::string name_;
  const uint64_t size_;
};

// A file on the host, read with pread.
class FdImage final : public ImageFile {
 public:
  static Result<std::unique_ptr<FdImage>> Open(const std::string& path);

 private:
  FdImage(std::string name, uint64_t size, Fd fd)
      : ImageFile(std::move(name), size), fd_(std::move(fd)) {}
  Result<size_t> ReadSome(uint64_t offset, std::span<std::byte> out) const override;

  const Fd fd_;
};

// Bytes in our memory, which must outlive this.
class MemoryImage final : public ImageFile {
 public:
  MemoryImage(std::string name, std::span<const std::byte> bytes)
      : ImageFile(std::move(name), bytes.size()), bytes_(bytes) {}

 private:
  Result<size_t> ReadSome(uint64_t offset, std::span<std::byte> out) const override;

  const std::span<const std::byte> bytes_;
};

}  // namespace crossbar
