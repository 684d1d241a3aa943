"""What the lab keeps between runs: folders that are made once, whole or not at all, whoever asks at the same time."""
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time

HOME = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "crossbar", "lab")


class LabError(Exception):
    """The lab cannot be had. The message says why and what to do next; `status` is the exit status of lab/run."""

    def __init__(self, message, status=121):
        super().__init__(message)
        self.status = status


def say(text):
    with contextlib.suppress(OSError):  # a full disk, say: the status tells as well
        print(f"lab: {text}", file=sys.stderr, flush=True)


def output_of(words, package, **options):
    """What a program writes that has to succeed. `package` is where it comes from, for one who has it not."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
                              env={**os.environ, "LC_ALL": "C"}, **options)
    except FileNotFoundError as error:
        raise LabError(f"there is no {words[0]} here: apt-get install {package}") from error
    if done.returncode != 0:
        # The end is enough: tar says of each file that the disk is full.
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise LabError(f"{' '.join(words[:3])} failed: {said or f'status {done.returncode}'}")
    return done.stdout


class News:
    """Progress of long work: a line from time to time, with the seconds that it has taken so far."""
    SECONDS_BETWEEN = 20

    def __init__(self):
        self.began = self.told = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.began

    def tell(self, how_far):
        """To be called often; how_far() is the text."""
        if time.monotonic() - self.told > self.SECONDS_BETWEEN:
            self.told = time.monotonic()
            say(f"{how_far()}, {self.seconds():.0f} s")


@contextlib.contextmanager
def locked(name):
    """Holds the lock `name`. The kernel gives it back however this process ends."""
    path = os.path.join(HOME, "locks", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another lab run that is making {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def need_space(gigabytes, what):
    """Better said before a download than by a disk that is full."""
    os.makedirs(HOME, exist_ok=True)
    free = shutil.disk_usage(HOME).free / 1e9
    if free < gigabytes:
        raise LabError(f"{what} needs {gigabytes} GB on disk, and {HOME} has {free:.1f} GB free. Make room, or set"
                       " XDG_CACHE_HOME to a folder with more")


def produce(name, make):
    """The path of the folder `name`, which make(new folder) fills if it is not there yet."""
    path = os.path.join(HOME, name)
    if os.path.isdir(path):
        return path
    with locked(name.replace("/", "-")):
        if os.path.isdir(path):
            return path
        new = path + ".new"  # what an interrupted run left goes first
        shutil.rmtree(new, ignore_errors=True)
        os.makedirs(new)
        try:
            make(new)
            os.rename(new, path)
        except OSError as error:
            raise LabError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return path
