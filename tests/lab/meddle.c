// Writes the COMMAND register of a device that a running VMM holds, through the VMM's own descriptor of it:
// the device's driver then does what it does for the VMM, and the VMM knows nothing of it.
//
//   lab-meddle PID 1af4:1110 0    memory decode off: vfio-pci takes the BARs from whoever has mapped them
#include <dirent.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { kCommand = 4 };

static int must(long result, const char* what) {
  if (result < 0) {
    perror(what);
    exit(1);
  }
  return (int)result;
}

// Where the configuration space of `device` begins in its file, or 0 where it is no device with these ids.
static off_t config_of(int device, const char* ids) {
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  uint16_t found[2];
  char text[16];
  if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) != 0) return 0;
  if (pread(device, found, sizeof found, (off_t)config.offset) != sizeof found) return 0;
  snprintf(text, sizeof text, "%04x:%04x", found[0], found[1]);
  return strcmp(text, ids) == 0 ? (off_t)config.offset : 0;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  int process = must(syscall(SYS_pidfd_open, atoi(argv[1]), 0), "pidfd_open");
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/fd", argv[1]);
  DIR* folder = opendir(path);
  if (folder == NULL) must(-1, path);
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    char link[320], target[64] = "";
    snprintf(link, sizeof link, "%s/%s", path, entry->d_name);
    if (readlink(link, target, sizeof target - 1) < 0) continue;
    if (strcmp(target, "anon_inode:[vfio-device]") != 0) continue;
    int device = must(syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0), "pidfd_getfd");
    off_t config = config_of(device, argv[2]);
    uint16_t command = (uint16_t)atoi(argv[3]);
    if (config == 0) continue;
    must(pwrite(device, &command, sizeof command, config + kCommand) - (ssize_t)sizeof command, "COMMAND");
    return 0;
  }
  fprintf(stderr, "process %s has no device %s\n", argv[1], argv[2]);
  return 1;
}
