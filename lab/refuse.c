// Proves that the IOMMU of this lab machine refuses a DMA to an IOVA that nobody mapped, or says that it does not.
//
//   lab-refuse 0000:00:03.0      an edu device that vfio-pci has
//
// The IOVA it aims at is the physical address of a page of its own, so that an IOMMU which lets the DMA through
// untranslated harms nobody. A second DMA, to a mapped IOVA, shows that the device does write.
// Exit status: 0 refused, 1 let through, 2 the proof could not be made.
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kPage = 4096, kMappedIova = 0x100000, kBefore = 0xa5 };

static void fail(const char* what) {
  perror(what);
  exit(2);
}

static int must(int result, const char* what) {
  if (result < 0) fail(what);
  return result;
}

// Physical address of a page that is locked in memory.
static uint64_t physical(void* page) {
  uint64_t entry = 0;
  int fd = must(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "/proc/self/pagemap");
  off_t at = (off_t)((uintptr_t)page / kPage * sizeof entry);
  if (pread(fd, &entry, sizeof entry, at) != sizeof entry || (entry & (UINT64_C(1) << 63)) == 0) fail("pagemap");
  close(fd);
  return (entry & ((UINT64_C(1) << 55) - 1)) * kPage;
}

static int open_group(const char* address) {
  char path[128], target[256], group[64];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
  ssize_t length = readlink(path, target, sizeof target - 1);
  if (length < 0) fail(path);
  target[length] = 0;
  snprintf(group, sizeof group, "/dev/vfio/%s", strrchr(target, '/') + 1);
  return must(open(group, O_RDWR | O_CLOEXEC), group);
}

static int open_device(const char* address, void* mapped) {
  int container = must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), "/dev/vfio/vfio");
  int group = open_group(address);
  must(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
  must(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
  struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                         .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                         .vaddr = (uintptr_t)mapped,
                                         .iova = kMappedIova,
                                         .size = kPage};
  must(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
  return must(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address), "VFIO_GROUP_GET_DEVICE_FD");
}

static void allow_dma(int device) {
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config), "VFIO_DEVICE_GET_REGION_INFO");
  uint16_t command = 0x6;  // memory decode, bus master
  if (pwrite(device, &command, sizeof command, (off_t)config.offset + 4) != sizeof command) fail("COMMAND");
}

static volatile char* map_registers(int device) {
  struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
  must(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar), "VFIO_DEVICE_GET_REGION_INFO");
  void* registers = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
  if (registers == MAP_FAILED) fail("mmap of BAR 0");
  return registers;
}

// Copies a page of edu's buffer, which holds zeros, to an IOVA.
static void dma_write(volatile char* edu, uint64_t iova) {
  *(volatile uint64_t*)(edu + 0x80) = 0x40000;
  *(volatile uint64_t*)(edu + 0x88) = iova;
  *(volatile uint64_t*)(edu + 0x90) = 64;
  *(volatile uint64_t*)(edu + 0x98) = 3;  // start, from the device to memory
  for (int tries = 0; *(volatile uint64_t*)(edu + 0x98) & 1; ++tries) {
    if (tries > 5000) fail("edu: a DMA does not end");
    usleep(1000);
  }
}

static unsigned char* new_page(void) {
  unsigned char* page = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED || mlock(page, kPage) != 0) fail("a page of memory");
  memset(page, kBefore, kPage);
  return page;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  volatile unsigned char* unmapped = new_page();
  volatile unsigned char* mapped = new_page();
  int device = open_device(argv[1], (void*)mapped);
  allow_dma(device);
  volatile char* edu = map_registers(device);
  dma_write(edu, physical((void*)unmapped));
  if (unmapped[0] != kBefore) {
    puts("the IOMMU let a DMA to an IOVA that nobody mapped through to physical memory");
    return 1;
  }
  dma_write(edu, kMappedIova);
  if (mapped[0] != 0) {
    puts("edu's DMA to a mapped IOVA did not arrive, so that nothing is proven");
    return 2;
  }
  return 0;
}
