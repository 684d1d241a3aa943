// Reads a disk straight into the memory of another PCI device, and writes what that memory then holds to stdout.
//
//   lab-p2p /dev/nvme0n1 0000:00:02.0 1048576 >copy     the first 1048576 bytes of the disk
//
// For Linux guests. The device is one that offers memory to its peers by sysfs, p2pmem/allocate: an NVMe controller with
// a memory buffer. Exit status 1 and a message where it has none, or where the disk cannot reach it.
#define _GNU_SOURCE  // O_DIRECT
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kBefore = 0xa5 };

static void fail(const char* what) {
  fprintf(stderr, "lab-p2p: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void* peer_memory(const char* address, size_t size) {
  char path[128];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/p2pmem/allocate", address);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) fail(path);
  void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) fail(path);
  close(fd);
  memset(memory, kBefore, size);
  return memory;
}

// O_DIRECT: the buffer itself is the target of the disk's DMA.
static void read_disk(const char* disk, char* buffer, size_t size) {
  int fd = open(disk, O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd < 0) fail(disk);
  for (size_t done = 0; done < size;) {
    ssize_t n = pread(fd, buffer + done, size - done, (off_t)done);
    if (n < 0) fail(disk);
    if (n == 0) errno = ENODATA, fail(disk);
    done += (size_t)n;
  }
  close(fd);
}

int main(int argc, char** argv) {
  size_t size = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
  if (size == 0 || size % 4096 != 0) {
    fprintf(stderr, "usage: lab-p2p DISK BDF BYTES (a multiple of 4096)\n");
    return 2;
  }
  void* memory = peer_memory(argv[2], size);
  read_disk(argv[1], memory, size);
  // By way of a page of our own: the kernel would not take device memory for every kind of stdout.
  static char page[4096];
  for (size_t at = 0; at < size; at += sizeof page) {
    memcpy(page, (char*)memory + at, sizeof page);
    if (fwrite(page, sizeof page, 1, stdout) != 1) fail("stdout");
  }
  return fflush(stdout) == 0 ? 0 : (fail("stdout"), 1);
}
