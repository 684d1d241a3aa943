#!/usr/bin/env python3
"""Checks the rules that hold between files; ARCHITECTURE.md says why they are there.

Usage: layering.py [FOLDER]    (default: the checkout this file is in)

Prints one line for each place that breaks a rule, and exits with 1 if there is any.
"""
import os
import re
import subprocess
import sys

# Folder -> folders whose headers it may include.
INCLUDES = {
    "base": {"base"},
    "memory": {"base", "memory"},
    "devices": {"base", "memory", "devices"},
    "boot": {"base", "memory", "boot"},
    "vmm": {"base", "memory", "devices", "boot", "vmm"},
    "guests": {"guests"},
    "bench": {"base", "memory", "devices", "boot", "vmm", "bench", "tests"},
    "tests": {"base", "memory", "devices", "boot", "vmm", "tests"},
}
# Tests and fuzz targets stand beside what they test, and may use the helpers in tests/ as well.
TEST_FILE = re.compile(r"(_(test|testing|fuzz)\.(cc|h)$|/testing/)")

# What a freestanding program may include with angle brackets: no libc, no kernel headers.
FREESTANDING = {
    "algorithm", "array", "atomic", "bit", "compare", "concepts", "cstdarg", "cstddef", "cstdint",
    "float.h", "initializer_list", "limits", "limits.h", "new", "stdalign.h", "stdarg.h",
    "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdnoreturn.h", "type_traits", "utility",
    "cpuid.h", "immintrin.h", "x86intrin.h",
}

# System calls go through base/sys.h, where faults are injected and errors get their text.
SYSCALL_FREE = ("memory", "devices", "boot", "vmm")
SYSCALLS = """
    accept accept4 bind close connect dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_wait
    epoll_pwait eventfd eventfd_read eventfd_write execve execv execvp fallocate fcntl fdopen flock
    fopen fork fstat fsync ftruncate getrandom ioctl kill listen lseek lstat madvise mbind
    memfd_create mkdir mkstemp mlock mmap mprotect mremap msync munlock munmap open openat pipe pipe2
    poll posix_fallocate posix_spawn posix_spawnp ppoll prctl pread preadv process_vm_readv pwrite
    pwritev read readv recv recvfrom recvmsg rename sched_setaffinity select send sendfile sendmsg
    sendto setrlimit setsockopt sigaction signal signalfd socket socketpair stat statfs syscall
    system tcgetattr tcsetattr tgkill timerfd_create timerfd_settime unlink vfork waitid waitpid
    write writev
""".split()
# The one list of exceptions: file -> the calls it may make itself, and why.
SYSCALL_EXCEPTIONS = {
    # In destructors, of what is certainly there: a failure is a CHECK.
    "memory/host_mapping.cc": {"munmap"},
    "vmm/vcpu.cc": {"munmap"},
    "vmm/event_loop.cc": {"epoll_ctl"},
    # Cannot fail with one write for each read; and a stop that fault injection lost would hang.
    "vmm/stop.cc": {"eventfd_read", "eventfd_write"},
    # In a signal handler nothing but the calls themselves is safe.
    "vmm/terminal.cc": {"tcsetattr", "signal"},
    # Closed standard descriptors are opened before anything else; nothing better can be done.
    "vmm/main.cc": {"fcntl", "open"},
    # Waits for a slow reader of the console; if it fails, the wait is only shorter. Takes away a file
    # that was made to see whether it can be.
    "vmm/console.cc": {"poll", "unlink"},
    # Takes a half-written report away, as far as that is possible.
    "vmm/report.cc": {"unlink"},
}

MAX_LINES = 500
SOURCE = re.compile(r"\.(cc|h|c|S|ld|asl|py|sh|cmake)$|(^|/)(CMakeLists\.txt|Makefile[^/]*)$")
CXX = re.compile(r"\.(cc|h|c|S)$")
# Files that hold a rule's own patterns, or samples that break rules.
RULE_FILES = ("tests/layering/",)

# Guests' Print knows no alternate form and says so by printing the directive itself.
GUEST_FORMAT = re.compile(r"%[-0-9lz]*#")

LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX)\b")
# Folders of one machine, package hosts and addresses. Addresses of documents are welcome.
MACHINE = re.compile(
    r"(?<![\w.}$)])/(work|root|home/\w+)(?=[/\s\"'`;:,)]|$)"
    r"|\b(deb|ftp|security|snapshot|archive|mirror|mirrors|registry|proxy)\.[\w-]+\.(org|com|net|io)\b"
    r"|\b(10\.\d{1,3}|172\.(1[6-9]|2\d|3[01])|192\.168)(\.\d{1,3}){2}\b")


def tracked_files(root):
    """The files that git knows or would take in; without git, all but build/."""
    try:
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={root}", "-C", root, "ls-files", "-z", "--cached",
             "--others", "--exclude-standard"],
            check=True, capture_output=True, text=True).stdout
        return sorted({name for name in listed.split("\0")
                       if name and os.path.isfile(os.path.join(root, name))})
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in (".git", "build")]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
        return sorted(found)


def without_comments(text):
    """The text with comments and the contents of literals blanked out; lines stay where they are."""
    pattern = re.compile(
        r"//[^\n]*|/\*.*?\*/|R\"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)\"|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'",
        re.DOTALL)
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def check_includes(root, path, text):
    folder = path.split("/")[0]
    if folder not in INCLUDES:
        return
    allowed = set(INCLUDES[folder])
    if TEST_FILE.search(path):
        allowed.add("tests")
    for number, line in enumerate(text.split("\n"), 1):
        found = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
        if not found:
            continue
        quote, target = found.groups()
        if quote == "<":
            if folder == "guests" and target not in FREESTANDING:
                yield number, f"a guest includes <{target}>, which is not freestanding"
        elif folder == "guests":
            places = [os.path.normpath(os.path.join(folder, target))
                      for folder in (os.path.dirname(path), "", "guests")]
            if not any(name.startswith("guests/") and os.path.isfile(os.path.join(root, name))
                       for name in places):
                yield number, f'"{target}" is not in guests/'
        elif target.split("/")[0] not in INCLUDES:
            yield number, f'"{target}": included paths start at the top folder'
        elif target.split("/")[0] not in allowed:
            yield number, f"{folder}/ includes {target}; it may include {', '.join(sorted(allowed))}"


def check_syscalls(path, code):
    if path.split("/")[0] not in SYSCALL_FREE or TEST_FILE.search(path):
        return
    bare = re.compile(r"(?:(?<![\w.>:~])|(?<![\w>])::)(%s)\s*\(" % "|".join(SYSCALLS))
    for number, line in enumerate(code.split("\n"), 1):
        for found in bare.finditer(line):
            if found.group(1) not in SYSCALL_EXCEPTIONS.get(path, ()):
                yield number, f"{found.group(1)}() outside base/: system calls go through base/sys.h"


def check_file(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        text = file.read()
    if CXX.search(path):
        yield from check_includes(root, path, text)
        yield from check_syscalls(path, without_comments(text))
    is_source = SOURCE.search(path) or text.startswith("#!")
    lines = text.count("\n")
    if is_source and lines > MAX_LINES:
        yield lines, f"{lines} lines; a file has at most {MAX_LINES}"
    if path.startswith(RULE_FILES) or path == "LICENSE" or "\0" in text:
        return
    for number, line in enumerate(text.split("\n"), 1):
        if is_source and LEFTOVER.search(line):
            yield number, f"left over: {line.strip()}"
        if path.startswith("guests/") and GUEST_FORMAT.search(line):
            yield number, f"Print does not know '%#': {line.strip()}"
        found = MACHINE.search(line)
        if found:
            yield number, f"names a place on one machine or network: {found.group().strip()}"


def check(root):
    """All broken rules, as 'path:line: what'."""
    return [f"{path}:{number}: {what}" for path in tracked_files(root)
            for number, what in check_file(root, path)]


def main():
    root = os.path.abspath(sys.argv[1] if len(sys.argv) > 1
                           else os.path.join(os.path.dirname(__file__), "..", ".."))
    files = tracked_files(root)
    broken = check(root)
    for line in broken:
        print(line)
    print(f"{len(files)} files, {len(broken)} broken rules")
    # A tree without sources was not checked at all.
    return 1 if broken or not any(CXX.search(path) for path in files) else 0


if __name__ == "__main__":
    sys.exit(main())
