"""What cannot be done is refused: one line that names the cause and the next step, the right status, nothing left."""
import grp
import gzip
import os
import random
import re
import resource
import shutil
import stat
import struct
import unittest

from program import (CRASH, HOST_ERROR, PROGRAM, SANITIZER, SUCCESS, USAGE, Case, bz_image, debug_exit, drop_devices, guest,
                     limits, pvh_image)

HELLO = guest("hello")
SEE_HELP = "see crossbar run --help"


class Errors(Case):
    """`refused(status, words, arguments...)`: that, and the working directory is as it was."""

    def refused(self, status, words, *arguments, **options):
        with self.subTest(arguments=arguments):
            before = self.files()
            words = (words,) if isinstance(words, str) else words
            self.assert_refused(self.crossbar(*arguments, **options), status, *words)
            self.assertEqual(self.files(), before)


class Kernels(Errors):
    def refused_kernel(self, content, *words):
        path = self.write("kernel", content)
        self.refused(HOST_ERROR, ("kernel'", *words), "run", "--kernel", path, "--report", "report.json")

    def test_that_are_no_files(self):
        os.mkdir(os.path.join(self.folder, "folder"))
        os.mkfifo(os.path.join(self.folder, "fifo"))
        for option in ("--kernel", "--initrd", "--module"):
            kernel = () if option == "--kernel" else ("--kernel", HELLO)
            self.refused(HOST_ERROR, f"{option}: cannot open 'missing': No such file or directory\n", "run", *kernel, option,
                         "missing")
            for name in ("folder", "fifo", "/dev/null", "/dev/kvm"):
                self.refused(HOST_ERROR, (f"'{name}'", "not a regular file", option), "run", *kernel, option, name)

    def test_whose_name_a_module_cannot_have(self):
        self.refused(HOST_ERROR, ("--module: cannot open 'a': ", "what follows the first '='"), "run", "--kernel", HELLO,
                     "--module", "a=b/m")

    def test_that_may_not_be_read(self):
        path = self.write("kernel", b"secret")
        os.chmod(path, 0)
        # Root may read everything.
        denied = ("--failpoint", "open#2=EACCES") if os.getuid() == 0 else ()
        self.refused(HOST_ERROR, ("--kernel", "kernel'", "Permission denied"), "run", "--kernel", path, *denied)

    def test_that_are_empty(self):
        self.refused_kernel(b"", "is empty")

    def test_of_random_bytes(self):
        for seed in range(8):
            self.refused_kernel(random.Random(seed).randbytes(1 << 16), "give a Linux bzImage, an ELF file")

    def test_of_zeros(self):
        self.refused_kernel(bytes(1 << 16), "give a Linux bzImage, an ELF file")

    def test_of_other_architectures(self):
        for machine in (183, 243, 40, 21, 0):  # AArch64, RISC-V, ARM, PowerPC64, none
            self.refused_kernel(pvh_image(debug_exit(0), machine), "x86")
        aarch64 = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 183, 1, 0x80000, 64, 0, 0, 64, 56, 0,
                              64, 0, 0)
        self.refused_kernel(aarch64, "x86")
        big_endian = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHIQQQIHHHHHH", 2, 22, 1, 0, 64, 0, 0, 64, 56, 0,
                                                                      64, 0, 0)
        self.refused_kernel(big_endian)
        self.refused_kernel(b"\x7fELF\x09" + aarch64[5:], "unknown class 9", "give an x86 kernel")
        self.refused_kernel(bytes(0x38) + b"ARM\x64" + bytes(4096), "AArch64", "give an x86 kernel")
        self.refused_kernel(bytes(0x38) + b"RSC\x05" + bytes(4096), "RISC-V", "give an x86 kernel")

    def test_that_are_compressed(self):
        with open(HELLO, "rb") as file:
            self.refused_kernel(gzip.compress(file.read()), "gzip-compressed", "uncompress it with gunzip")

    def test_that_are_ELF_files_for_people(self):
        # The program itself: an ELF file that no boot protocol knows.
        self.refused(HOST_ERROR, ("PVH note", "bzImage"), "run", "--kernel", PROGRAM)

    @limits(timeout=300)
    def test_that_were_cut_off_anywhere(self):
        """No cut crashes the loader. Where only what no segment needs is gone, the guest boots."""
        code = pvh_image(debug_exit(0) + bytes(4096))
        for cut in [*range(1, 160, 7), 511, 1024, len(code) - 1]:
            self.refused_kernel(code[:cut])
        for name in ("hello", "hello32", "multiboot"):
            with open(guest(name), "rb") as file:
                image = file.read()
            for cut in (4, 16, 52, 64, 100, 300, 4095, 4097, 8192, 20000):
                path = self.write("kernel", image[:cut])
                outcome = self.crossbar("run", "--kernel", path)
                if outcome.status != SUCCESS:
                    self.assert_refused(outcome, HOST_ERROR, "kernel'")

    @limits(timeout=300)
    def test_with_damaged_headers_do_no_harm(self):
        """Whatever the headers say, the VMM refuses or starts the guest, which may do what it likes."""
        rng = random.Random(1)
        original = pvh_image(debug_exit(0))
        for round_ in range(60):
            image = bytearray(original)
            for _ in range(rng.randrange(1, 4)):
                image[rng.randrange(0x34 + 0x40 + 20)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            path = self.write("kernel", image)
            session = self.start(path, "--memory", "4M")
            try:
                session.until(lambda: session.process.poll() is not None, 2)
            except self.failureException:
                session.signal(15)  # it runs something; that is its affair
            outcome = session.finish()
            self.assertIn(outcome.status, (SUCCESS, HOST_ERROR, 6, 8), f"round {round_} {outcome}")
            if outcome.status == HOST_ERROR:
                self.assert_refused(outcome, HOST_ERROR)


class Ram(Errors):
    def test_that_the_host_does_not_have(self):
        for size in ("1T", "100T", "4095T"):
            self.refused(HOST_ERROR, ("--memory", "more than the", "host", "lower --memory"), "run", "--kernel", HELLO,
                         "--memory", size)

    def test_that_a_control_group_does_not_allow(self):
        for folder, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            group = os.path.join(folder, f"crossbar-test-{os.getpid()}")
            try:
                os.mkdir(group)
                self.addCleanup(os.rmdir, group)
                with open(os.path.join(group, file), "w", encoding="ascii") as limit:
                    limit.write(str(200 << 20))
                break
            except OSError:
                continue
        else:
            self.skipTest("no control group can be made here")

        def enter():
            with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as procs:
                procs.write(str(os.getpid()))
        self.refused(HOST_ERROR, ("--memory: 1024 MiB", "the 200 MiB", "control group", "--prefault"), "run", "--kernel",
                     HELLO, "--memory", "1G", "--prefault", before=enter)
        self.assert_succeeds(self.crossbar("run", "--kernel", HELLO, "--memory", "1G", before=enter))

    def test_that_is_not_available(self):
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(re.findall(r"(\w+): +(\d+) kB", file.read()))
        between = (int(sizes["MemTotal"]) + int(sizes["MemAvailable"])) // 2048
        self.refused(HOST_ERROR, (f"--memory: {between} MiB", "--prefault"), "run", "--kernel", HELLO, "--memory",
                     f"{between}M", "--prefault", "--failpoint", "madvise=EIO")  # rather than try it

    def test_that_is_no_size(self):
        for size in ("0", "abc", "12X", "-1", "512 M", "1e3", "0x100000", "nan", "inf", "M", "99999999999999T", "1MM"):
            self.refused(USAGE, (f"'{size}'", "--memory", "512M"), "run", "--kernel", HELLO, f"--memory={size}")

    def test_that_is_no_whole_number_of_pages(self):
        for size in ("1", "4097", "3.00001M"):
            self.refused(USAGE, ("--memory", "multiple of the page size"), "run", "--kernel", HELLO, "--memory", size)
        self.refused(USAGE, ("--memory", "multiple of the page size"), "run", "--kernel", HELLO, "--memory", "513M",
                     "--hugepages", "1G")
        self.refused(USAGE, ("3M", "2M or 1G"), "run", "--kernel", HELLO, "--hugepages", "3M")

    def test_that_the_limit_on_files_does_not_allow(self):
        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        self.refused(HOST_ERROR, ("512 MiB of guest RAM", "File too large", "ulimit -f"), "run", "--kernel", HELLO,
                     before=small_files)

    def test_that_is_too_little(self):
        self.refused(USAGE, ("--memory: 1024 KiB", "at least 2 MiB", SEE_HELP), "run", "--kernel", HELLO, "--memory", "1M")

    def test_that_does_not_hold_the_initrd(self):
        path = self.write("initrd", b"")
        os.truncate(path, 100 << 20)
        self.refused(HOST_ERROR, ("initrd'", "RAM is 64 MiB", "more memory"), "run", "--kernel", HELLO, "--memory",
                     "64M", "--initrd", path)

    def test_that_does_not_hold_the_kernel(self):
        kernel = self.write("kernel", pvh_image(debug_exit(0) + bytes(8 << 20)))
        self.refused(HOST_ERROR, ("kernel'", "memory"), "run", "--kernel", kernel, "--memory", "4M")


class Cpus(Errors):
    def test_that_are_no_number(self):
        for count in ("0", "-1", "abc", "1.5", " 2", "2x", "99999999999999999999"):
            self.refused(USAGE, ("--cpus", f"'{count}'", "from 1 up"), "run", "--kernel", HELLO, f"--cpus={count}")

    def test_that_are_too_many(self):
        for count in (255, 300, 1025, 100000):
            self.refused(USAGE, (f"--cpus: {count} is", "at most 254", SEE_HELP), "run", "--kernel", HELLO, "--cpus", count)
        # A KVM that does not say how many it takes is taken for one of 4 (KVM API, KVM_CAP_MAX_VCPUS).
        self.refused(HOST_ERROR, ("--cpus: 5 is more than this host's KVM allows", "at most 4"), "run", "--kernel", HELLO,
                     "--cpus", 5, "--failpoint", "KVM_CHECK_EXTENSION#7=EIO*1")


    @unittest.skipIf(SANITIZER, "a sanitizer needs the address space")
    def test_whose_threads_the_limits_do_not_allow(self):
        def room_for_stacks(count):
            resource.setrlimit(resource.RLIMIT_STACK, (256 << 20, 256 << 20))
            resource.setrlimit(resource.RLIMIT_AS, ((count * 256 + 190) << 20,) * 2)
        # Prefault does without a thread.
        self.refused(HOST_ERROR, "cannot start the thread of vCPU 0", "run", "--kernel", HELLO, "--prefault", "--memory",
                     "4M", before=lambda: room_for_stacks(0))
        self.write("console.txt", b"of an earlier run")
        before = self.files()
        outcome = self.crossbar("run", "--kernel", HELLO, "--cpus", 8, "--memory", "4M", "--console", "file:console.txt",
                                before=lambda: room_for_stacks(2))
        self.assert_refused(outcome, HOST_ERROR, "cannot start the thread of vCPU ", "lower --cpus", "ulimit -u",
                            "ulimit -v")
        self.assertEqual(self.files(), before)
        with open(os.path.join(self.folder, "console.txt"), "rb") as file:
            self.assertEqual(file.read(), b"of an earlier run", "no CPU ran")


class Options(Errors):
    def test_that_are_unknown(self):
        self.refused(USAGE, ("--bogus", SEE_HELP), "run", "--kernel", HELLO, "--bogus")
        self.refused(USAGE, ("--kern", SEE_HELP), "run", "--kern", HELLO)
        self.refused(USAGE, ("-k", SEE_HELP), "run", "-k", HELLO)
        self.refused(USAGE, ("'frob'", "crossbar --help"), "frob")

    def test_without_a_name(self):
        self.refused(USAGE, ("'stray'", SEE_HELP), "run", "--kernel", HELLO, "stray")
        self.refused(USAGE, ("'stray'", SEE_HELP), "run", "stray")

    def test_without_a_value(self):
        for name in ("kernel", "memory", "cpus", "console", "report", "log", "config", "initrd", "module", "hugepages"):
            self.refused(USAGE, (f"--{name}", "missing", SEE_HELP), "run", f"--{name}")

    def test_that_contradict_one_another(self):
        self.refused(USAGE, ("--kernel", "more than once"), "run", "--kernel", HELLO, "--kernel", HELLO)
        self.refused(USAGE, ("--memory", "more than once"), "run", "--kernel", HELLO, "--memory", "1G", "--memory=2G")
        self.refused(USAGE, ("--prefault", "not take any arguments"), "run", "--kernel", HELLO, "--prefault=no")

    def test_that_are_missing(self):
        self.refused(USAGE, ("--kernel", "missing", SEE_HELP), "run")
        self.refused(USAGE, ("--kernel", "missing", SEE_HELP), "run", "--kernel", "")

    def test_with_values_that_mean_nothing(self):
        self.refused(USAGE, ("--log", "'nonsense'", "use error, warning"), "run", "--kernel", HELLO, "--log", "nonsense")
        for console in ("bogus", "file:", "stdio:", ""):
            self.refused(USAGE, ("--console", f"'{console}'", "stdio, file:PATH or none"), "run", "--kernel", HELLO,
                         "--console", console)
        self.refused(USAGE, "--report", "run", "--kernel", HELLO, "--report", "")
        for rule in ("x", "=EIO", "open=EFOO", "open#0=EIO", "open#x=EIO", "open=EIO*x", "open=delay(x)", "open=0"):
            self.refused(USAGE, "failpoint", "run", "--kernel", HELLO, "--failpoint", rule)

    def test_with_failpoints_that_name_no_call_of_the_run(self):
        outcome = self.crossbar("run", "--kernel", HELLO, "--failpoint", "opne=EIO", "--failpoint", "pread#9999=EIO")
        self.assertEqual(outcome.status, SUCCESS, outcome)
        self.assertRegex(outcome.err, r"\A[^\n]* warning: failpoint 'opne=EIO' never fired[^\n]*: 0 [^\n]*\n"
                                      r"[^\n]* warning: failpoint 'pread#9999=EIO' never fired[^\n]*: [1-9][^\n]*\n\Z")
        self.assert_succeeds(self.crossbar("run", "--kernel", HELLO, "--failpoint", "pread=delay(1)"))

    def test_that_only_ask(self):
        for arguments, word in ((("--version",), b"crossbar "), (("--help",), b"crossbar run"),
                                (("run", "--help"), b"--kernel FILE"), (("run", "-h"), b"--kernel FILE")):
            outcome = self.crossbar(*arguments)
            self.assertEqual((outcome.status, outcome.err), (0, ""), outcome)
            self.assertIn(word, outcome.out)
        outcome = self.crossbar()
        self.assertEqual((outcome.status, outcome.out), (USAGE, b""), outcome)


class ConfigFile(Errors):
    def config(self, text):
        return self.write("vm.conf", text.encode())

    def test_is_read(self):
        path = self.config(f"# a comment\nkernel = {HELLO}\nmemory = 64M\ncpus = 2\ncmdline = a b\nprefault = true\n")
        outcome = self.crossbar("run", "--config", path)
        self.assert_succeeds(outcome)
        self.assertIn("  RAM      0x000000000-0x003ffffff (65536 KiB)", outcome.lines())
        self.assertIn('  command  "a b"', outcome.lines())
        self.assertIn("  CPUs     2, this one has APIC id 0", outcome.lines())

    def test_gives_way_to_the_command_line(self):
        path = self.config(f"kernel = {HELLO}\nmemory = 64M\ncmdline = file\n")
        outcome = self.crossbar("run", "--config", path, "--memory", "128M", "--cmdline", "line")
        self.assert_succeeds(outcome)
        self.assertIn("  RAM      0x000000000-0x007ffffff (131072 KiB)", outcome.lines())
        self.assertIn('  command  "line"', outcome.lines())

    def test_may_name_a_list(self):
        path = self.config(f"kernel = {HELLO}\nmodule = {HELLO}\nmodule = {HELLO}=arguments\n")
        outcome = self.crossbar("run", "--config", path)
        self.assert_succeeds(outcome)
        self.assertIn("  boot     PVH, modules: 3, device tree", outcome.lines())

    def test_takes_a_value_as_it_stands(self):
        path = self.config(f"\n  # a comment\n  kernel={HELLO}  \r\n\tcmdline =  a#b #c \"d=e\" \n")
        outcome = self.crossbar("run", "--config", path)
        self.assert_succeeds(outcome)
        self.assertIn('  command  "a#b #c "d=e""', outcome.lines())

    def test_is_named_in_errors_of_its_values(self):
        for line in ("memory = 12X", "memory = 4097", "cpus = none", "cpus = 500", "hugepages = 3M", "console = bogus",
                     "log = loud", "report =", "failpoint = open=EFOO"):
            path = self.config(f"kernel = {HELLO}\n{line}\n")
            self.refused(USAGE, (f"{path}: ", f"--{line.split()[0]}" if "failpoint" not in line else "EFOO"), "run", "--config",
                         path)
            name = line.split()[0]
            value = {"memory": "x", "cpus": "x", "hugepages": "x", "console": "x", "log": "x", "report": "",
                     "failpoint": "x"}[name]
            if name != "failpoint":  # the command line's fault
                outcome = self.crossbar("run", "--config", path, f"--{name}={value}")
                self.assert_refused(outcome, USAGE, f"--{name}")
                self.assertNotIn(path, outcome.err)

    def test_must_be_there(self):
        self.refused(USAGE, ("missing.conf", "No such file"), "run", "--config", "missing.conf")
        self.refused(USAGE, (self.folder, "directory"), "run", "--config", self.folder)

    def test_must_make_sense(self):
        for text, word in ((f"kernel = {HELLO}\nfrobnicate = 3\n", "frobnicate"),
                           (f"kernel = {HELLO}\nconfig = other.conf\n", "cannot name another"),
                           (f"kernel = {HELLO}\nnonsense\n", "nonsense"),
                           (f"kernel = {HELLO}\nkernel = {HELLO}\n", "more than once"),
                           (f"kernel = {HELLO}\nprefault = perhaps\n", "perhaps")):
            path = self.config(text)
            self.refused(USAGE, (path, word, SEE_HELP), "run", "--config", path)
        self.refused(USAGE, "'12X'", "run", "--config", self.config(f"kernel = {HELLO}\nmemory = 12X\n"))


class Kvm(Errors):
    def test_that_is_missing(self):
        for code in ("ENOENT", "ENODEV", "ENXIO"):
            self.refused(HOST_ERROR, ("/dev/kvm", "virtualization", "kvm_amd"), "run", "--kernel", HELLO, "--failpoint",
                         f"open#1={code}")

    @staticmethod
    def group_name(number):
        try:
            return grp.getgrgid(number).gr_name
        except KeyError:
            return str(number)

    def test_that_may_not_be_opened(self):
        node = os.stat("/dev/kvm")
        usable = node.st_mode & 0o060 == 0o060 and node.st_gid != 0
        group = self.group_name(node.st_gid)
        for code in ("EACCES", "EPERM"):
            self.refused(HOST_ERROR, ("/dev/kvm", f"usermod -aG {group}" if usable else "setfacl -m"), "run", "--kernel",
                         HELLO, "--failpoint", f"open#1={code}*1")

    @unittest.skipUnless(os.getuid() == 0, "needs root, for a mount namespace")
    def test_that_may_not_be_opened_says_who_owns_it(self):
        for group, mode, words in ((0, 0o600, "setfacl -m"), (0, 0o660, "setfacl -m"), (1, 0o600, "setfacl -m"),
                                   (1, 0o660, f"the group {self.group_name(1)} "), (54321, 0o660, "the group 54321 ")):
            def node():
                drop_devices()
                os.mknod("/dev/kvm", stat.S_IFCHR | mode, os.makedev(10, 232))
                os.chown("/dev/kvm", 0, group)
                os.chmod("/dev/kvm", mode)
            self.refused(HOST_ERROR, ("/dev/kvm", words), "run", "--kernel", HELLO, "--failpoint", "open#1=EACCES*1",
                         before=node)

    @unittest.skipUnless(os.getuid() == 0, "needs root, to be somebody else")
    def test_that_really_may_not_be_opened(self):
        if os.stat("/dev/kvm").st_mode & 0o007:
            self.skipTest("everybody may open /dev/kvm here")
        program = os.path.join(self.scratch, "crossbar")
        shutil.copy(PROGRAM, program)
        os.chmod(program, 0o755)
        self.refused(HOST_ERROR, ("/dev/kvm", "Permission denied"), "run", "--kernel", HELLO,
                     user=65534, group=65534, extra_groups=[], program=program)

    @unittest.skipUnless(os.getuid() == 0, "needs root, for a mount namespace")
    def test_that_really_is_missing(self):
        self.refused(HOST_ERROR, ("/dev/kvm", "No such file", "virtualization"), "run", "--kernel", HELLO,
                     before=drop_devices)

    def test_that_lacks_what_is_needed(self):
        self.refused(HOST_ERROR, ("KVM_CAP_USER_MEMORY", "Linux 6.1 or later"), "run", "--kernel", HELLO, "--failpoint",
                     "KVM_CHECK_EXTENSION#1=EIO*1")


class Output(Errors):
    def test_that_cannot_be_written(self):
        os.mkdir(os.path.join(self.folder, "folder"))
        for path in ("missing/report.json", "folder", "/proc/report.json"):
            self.refused(HOST_ERROR, (f"cannot write the report {path}: ", "--report"), "run", "--kernel", HELLO, "--report",
                         path)
            self.refused(HOST_ERROR, ("console", path), "run", "--kernel", HELLO, "--console", f"file:{path}")
        self.assertNotIn("partial", self.crossbar("run", "--kernel", HELLO, "--report", "missing/x").err)

    FAILURES = (("--kernel", PROGRAM), ("--kernel", "missing"), ("--kernel", HELLO, "--initrd", "missing"),
                ("--kernel", HELLO, "--failpoint", "KVM_CREATE_VM=EIO"),
                ("--kernel", HELLO, "--failpoint", "KVM_SET_SREGS=EIO"),
                ("--kernel", HELLO, "--failpoint", "signalfd=EIO"),
                ("--kernel", HELLO, "--failpoint", "epoll_ctl#2=EIO"),
                ("--kernel", HELLO, "--report", "missing/report.json"))

    def test_of_the_console_is_not_begun_where_start_up_fails(self):
        for arguments in self.FAILURES:
            self.refused(HOST_ERROR, (), "run", *arguments, "--console", "file:console.txt")
        path = self.write("console.txt", b"of an earlier run")
        for arguments in self.FAILURES:
            self.refused(HOST_ERROR, (), "run", *arguments, "--console", f"file:{path}")
            with open(path, "rb") as file:
                self.assertEqual(file.read(), b"of an earlier run", arguments)

    def test_of_the_console_goes_through_a_link_to_nothing(self):
        os.symlink("target", os.path.join(self.folder, "link"))
        self.assert_succeeds(self.crossbar("run", "--kernel", HELLO, "--console", "file:link"))
        with open(os.path.join(self.folder, "target"), "rb") as file:
            self.assertIn(b"Hello", file.read())

    def refused_place(self, other, *arguments):
        before = self.contents()
        self.refused(USAGE, (f"and {other} name the same file", SEE_HELP), "run", *arguments)
        self.assertEqual(self.contents(), before)

    def contents(self):
        def content(name):
            with open(os.path.join(self.folder, name), "rb") as file:
                return file.read()
        return {name: content(name) for name in self.files() if os.path.isfile(os.path.join(self.folder, name))}

    def test_in_place_of_an_input_or_of_another_output(self):
        shutil.copy(HELLO, os.path.join(self.folder, "k.elf"))
        os.symlink("k.elf", os.path.join(self.folder, "link"))
        os.link(os.path.join(self.folder, "k.elf"), os.path.join(self.folder, "twin"))
        os.mkdir(os.path.join(self.folder, "sub"))
        self.write("vm.conf", b"kernel = k.elf\nreport = vm.conf\n")
        for name in ("k.elf", "./k.elf", os.path.join(self.folder, "k.elf"), "link", "twin"):
            self.refused_place("--kernel", "--kernel", "k.elf", "--console", f"file:{name}")
            self.refused_place("--kernel", "--kernel", "k.elf", "--report", name)
            self.refused_place("--initrd", "--kernel", HELLO, "--initrd", "k.elf", "--report", name)
            self.refused_place("--module", "--kernel", HELLO, "--module", "k.elf=a", "--console", f"file:{name}")
            self.refused_place("--device rom=", "--kernel", HELLO, "--device", "model=memory,rom=k.elf", "--report", name)
        self.refused_place("--config", "--config", "vm.conf")
        for name in ("same", "./same", "sub/../same", "link"):
            self.refused_place("--console", "--kernel", HELLO, "--report", "same" if name != "link" else "k.elf",
                               "--console", f"file:{name}")

    def test_in_one_place_that_is_no_file(self):
        outcome = self.crossbar("run", "--kernel", HELLO, "--report", "/dev/null", "--console", "file:/dev/null")
        self.assert_succeeds(outcome)


class Order(Errors):
    """What is cheap to refuse is refused before RAM is made and touched."""

    def test_of_inputs_before_RAM(self):
        self.write("bzImage", bz_image())
        self.write("cut", bz_image()[:0x1000])
        for words, *arguments in (("'missing'", "--kernel", "missing"), ("PVH note", "--kernel", PROGRAM),
                                  ("'missing'", "--kernel", HELLO, "--initrd", "missing"),
                                  ("'missing'", "--kernel", HELLO, "--module", "missing"),
                                  ("'cut' is truncated", "--kernel", "cut"),
                                  ("takes no modules", "--kernel", "bzImage", "--module", HELLO),
                                  ("takes at most 255", "--kernel", "bzImage", "--cmdline", "x" * 256),
                                  ("missing/x", "--kernel", HELLO, "--console", "file:missing/x"),
                                  ("missing/x", "--kernel", HELLO, "--report", "missing/x")):
            self.refused(HOST_ERROR, words, "run", *arguments, "--prefault", "--failpoint", "memfd_create=EIO")


class Stderr(Case):
    """A last line that nobody can take changes nothing about the status."""

    ENDS = ((CRASH, "run", "--kernel", guest("crash"), "--console", "none"),
            (HOST_ERROR, "run", "--kernel", "missing"),
            (HOST_ERROR, "run", "--kernel", HELLO, "--failpoint", "KVM_CREATE_VM=EIO", "--log", "debug"),
            (USAGE, "run", "--bogus"), (USAGE, "frob"), (USAGE,))

    def assert_ends(self, stderr):
        for status, *arguments in self.ENDS:
            with self.subTest(arguments=arguments):
                self.assertEqual(self.crossbar(*arguments, stderr=stderr).status, status)

    def test_that_is_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            self.assert_ends(full)

    def test_that_nobody_reads(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        self.assert_ends(writer)

    @unittest.skipIf(SANITIZER, "ThreadSanitizer makes a file of its own before main")
    def test_that_is_a_file_as_large_as_the_limit_allows(self):
        def no_growth():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        with open(self.write("err", b""), "wb") as file:
            for status, *arguments in self.ENDS[1:]:  # guest RAM is a file too
                self.assertEqual(self.crossbar(*arguments, stderr=file, before=no_growth).status, status)

    def test_has_one_line_for_a_name_of_two(self):
        outcome = self.crossbar("run", "--kernel", "new\nline\x1b[31m")
        self.assert_refused(outcome, HOST_ERROR, "new\\nline\\x1b[31m")
