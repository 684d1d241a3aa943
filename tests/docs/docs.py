#!/usr/bin/env python3
"""Checks what the documents claim, by running it.

  docs.py readme     every command in a sh block of README.md ends with the status it states (default 0)
  docs.py help       README.md quotes `crossbar run --help` word for word, and its exit statuses are the
                     program's
  docs.py zap        docs/zap.md names a test for each of G1 to G12, and all tests it names exist
  docs.py --update   writes the help text into README.md

A command states its status in a comment: `crossbar run ...  # exit status 1`.

Without /dev/kvm what boots a guest runs in a lab machine, which has one.

`./scripts/test` among the commands is not run a second time where this is part of a run of it: that is
established from the process tree, not taken on trust. Everywhere else only its `--list` is run, and
tests/fresh/run runs the real thing.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PROGRAM = "build/release/crossbar"
SKIP = 77
TIMEOUT_SECONDS = 900
TAIL_LINES = 20
LAB_TRIES = 3  # docs/decisions/010


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def sh_commands(text):
    """(command, expected status) of every command in the sh blocks of a Markdown text."""
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").split("\n"):
            command, _, comment = line.partition("  #") if not line.startswith("#") else ("", "", line)
            stated = re.search(r"exit status (\d+)", comment)
            if command.strip():
                commands.append((command.strip(), int(stated.group(1)) if stated else 0))
    return commands


def ancestors():
    """The command lines of this process's ancestors, nearest first."""
    pid = os.getppid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                yield pid, [part.decode(errors="replace") for part in file.read().split(b"\0")]
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return


def running_test_script():
    """Whether this process descends from the run of scripts/test that CROSSBAR_TEST_PID names."""
    claimed = os.environ.get("CROSSBAR_TEST_PID", "")
    return any(str(pid) == claimed and any(re.search(r"(^|/)scripts/test$", word) for word in words[:2])
               for pid, words in ancestors())


def run(command):
    """The status of a shell command, 124 where it takes too long, and what it printed, which is passed through as well."""
    print(f"$ {command}", flush=True)
    environment = {**os.environ, "CROSSBAR_NO_INSTALL": "1"}
    printed = []
    with subprocess.Popen(["timeout", str(TIMEOUT_SECONDS), "bash", "-c", command], cwd=ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
                          errors="replace") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    return process.returncode, "".join(printed)


def have_kvm():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def runs_in_lab(command):
    words = shlex.split(command)
    return words[0] == "lab/run" or "--lab" in words or (words[0] == "./scripts/demo" and not have_kvm())


def check_command(command, expected):
    words = shlex.split(command)
    if words[0] == PROGRAM and not have_kvm():
        command = f"lab/run --here -- {command}"
    if words[0] == "./scripts/test" and not {"--help", "--list"} & set(words):
        if running_test_script():
            print(f"# {command}: a run of scripts/test is under way, and this is part of it")
        else:
            print(f"# {command}: only listed here; scripts/test itself or tests/fresh/run runs it")
        command += " --list"
    if runs_in_lab(command) and not os.environ.get("CROSSBAR_REQUIRE_QEMU") and \
            not shutil.which("qemu-system-x86_64"):
        print(f"# {command}: not run, there is no QEMU here")
        return []
    for _ in range(LAB_TRIES if runs_in_lab(command) else 1):
        status, printed = run(command)
        if status == expected:
            break
        print(f"# ended with status {status}, not {expected}", flush=True)
    else:
        said = "\n".join(printed.splitlines()[-TAIL_LINES:])
        return [f"README.md: '{command}' ended with status {status}, not {expected}. The end of what it printed:\n{said}"]
    return []


def check_readme():
    commands = sh_commands(read("README.md"))
    if [command for command, _ in commands[:2]] != ["./scripts/demo", "./scripts/test"]:
        return [f"README.md does not begin with ./scripts/demo and ./scripts/test: {commands[:2]}"]
    return [problem for command in commands for problem in check_command(*command)]


def program_help():
    return subprocess.run([os.path.join(ROOT, PROGRAM), "run", "--help"], check=True,
                          capture_output=True, text=True, timeout=60).stdout.strip("\n")


HELP_BLOCK = re.compile(r"(<!-- help:begin.*?-->\n```text\n)(.*?)(```\n<!-- help:end -->)", re.DOTALL)


def check_help():
    readme = read("README.md")
    quoted = HELP_BLOCK.search(readme)
    if not quoted:
        return ["README.md has no help block"]
    problems = []
    if quoted.group(2).strip("\n") != program_help():
        problems.append("README.md does not quote `crossbar run --help` as it is now;"
                        " tests/docs/docs.py --update does")
    ours = set(re.findall(r"= (\d+),", read("vmm/exit_status.h")))
    table = set(re.findall(r"^\| (\d+) \|", readme, re.MULTILINE))
    if ours != table:
        problems.append(f"README.md lists exit statuses {sorted(table)}, the program has {sorted(ours)}")
    return problems


def update():
    readme = read("README.md")
    text = HELP_BLOCK.sub(lambda found: f"{found.group(1)}{program_help()}\n{found.group(3)}", readme)
    with open(os.path.join(ROOT, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return []


def sources():
    listed = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "--cached",
                             "--others", "--exclude-standard", "*_test.cc", "*_test.py"],
                            check=True, capture_output=True, text=True).stdout.split()
    return listed


def existing_tests():
    """The names of all tests in the sources, without their suites, and of all fuzzers."""
    macro = re.compile(r"^\s*(?:TEST|TEST_F|TEST_P|TYPED_TEST)\(\s*\w+\s*,\s*(\w+)\s*\)|^    def test_(\w+)\(",
                       re.MULTILINE)
    fuzzers = {name[:-3] for name in os.listdir(os.path.join(ROOT, "tests/fuzz")) if name.endswith("_fuzz.cc")}
    return fuzzers | {name for path in sources() if os.path.isfile(os.path.join(ROOT, path))
                      for names in macro.findall(read(path)) for name in names if name}


def invariants(text):
    """What a document says on each invariant: from the line that starts with its name to the next."""
    parts = re.split(r"^(?:[|#\-*\s]*)\b(G\d+)\b", text, flags=re.MULTILINE)
    said = {}
    for name, body in zip(parts[1::2], parts[2::2]):
        said[name] = said.get(name, "") + body
    return said


def check_zap(text, tests):
    """Each invariant's row names a test that carries its name, such as `G2ZapTakesDmaOutFirst` or
    `G2.ZapTakesDmaOutFirst`, in its last cell; and every test and fuzzer named there exists."""
    said = invariants(text)
    problems = []
    for name in (f"G{number}" for number in range(1, 13)):
        row = said.get(name, "").split("\n")[0].rstrip("| ")
        named = re.findall(r"`((?:\w+\.)?\w+)`", row.rpartition("|")[2])
        if not any(re.search(rf"{name}(?!\d)", test) for test in named):
            problems.append(f"docs/zap.md names no test for {name}")
        problems += [f"docs/zap.md, {name}: there is no test {test}" for test in named
                     if test.rpartition(".")[2] not in tests]
    return problems


def main():
    what = sys.argv[1] if len(sys.argv) == 2 else ""
    if what == "readme" and not have_kvm() and not shutil.which("qemu-system-x86_64"):
        if not os.environ.get("CROSSBAR_REQUIRE_KVM"):
            print("Skipped: README.md's commands need /dev/kvm, which cannot be opened here, or QEMU for a lab machine")
            return SKIP
    checks = {"readme": check_readme, "help": check_help, "--update": update,
              "zap": lambda: check_zap(read("docs/zap.md"), existing_tests())}
    if what not in checks:
        print(__doc__)
        return 2
    try:
        problems = checks[what]()
    except (OSError, subprocess.SubprocessError) as error:
        problems = [str(error)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
