r"""Windows, as far as files are concerned, for tests on Linux: what is not there, what is refused, how text is written.

A file that is open cannot be renamed, replaced or deleted, nor a folder that holds one; a folder cannot be opened; only
what may be written to is synced; text is cp1252 with \r\n unless something else is asked for; locks are mandatory.
"""

import errno
import io
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from template import system

POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
"""Modules that Windows has not, https://docs.python.org/3/library/unix.html."""
OF_OS = ("fork", "pread", "preadv", "sched_getaffinity")
FDS = Path("/proc/self/fd")


class Msvcrt(SimpleNamespace):
    """`msvcrt.locking`: a byte belongs to one open file, and nobody else can read it."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self) -> None:
        super().__init__(held={})

    def locking(self, number: int, mode: int, many: int) -> None:
        at, there = os.lseek(number, 0, os.SEEK_CUR), os.fstat(number)
        assert many == 1 and at > there.st_size, "text under the lock could be read by nobody"
        byte = (there.st_dev, there.st_ino, at)
        if mode == self.LK_NBLCK and byte not in self.held:
            self.held[byte] = number
        elif mode == self.LK_UNLCK and self.held.get(byte) == number:
            del self.held[byte]
        else:
            raise PermissionError(errno.EACCES, "Permission denied")


def is_open(path: Path) -> bool:
    """Whether this process has a file open, or one below a folder."""
    for number in FDS.iterdir():
        with suppress(OSError):  # of the one of this very look
            if number.readlink().is_relative_to(path) and not number.readlink().is_dir():
                return True
    return False


def refusing(change):
    """A function of `os` that takes no path that is open."""

    def refused(*paths, **how):
        for path in paths:
            if is_open(Path.cwd() / os.fsdecode(path)):
                raise PermissionError(errno.EACCES, "The process cannot access the file", path)
        return change(*paths, **how)

    return refused


def opening(function):
    """`io.open` with what text files are on Windows."""

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **how):
        if "b" not in mode:
            encoding = "cp1252" if encoding in {None, "locale"} else encoding
            newline = "\r\n" if newline is None and "r" not in mode else newline
        return function(file, mode, buffering, encoding, errors, newline, *more, **how)

    return opened


def no_folder(function):
    def opened(path, flags, *more, **how):
        temporary = flags & os.O_DIRECTORY  # of tempfile: a file without a name in it
        if isinstance(path, (str, Path)) and Path(path).is_dir() and not temporary:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return function(path, flags, *more, **how)

    return opened


def synced(number: int) -> None:
    flags = int((FDS.parent / "fdinfo" / str(number)).read_text().split("flags:")[1].split()[0], 8)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")


@contextmanager
def windows() -> Iterator[Msvcrt]:
    """Within the block it is like on Windows. Skips the test where that cannot be imitated."""
    if not FDS.is_dir():
        pytest.skip("needs /proc to see what is open")
    with pytest.MonkeyPatch.context() as patched:
        for name in OF_OS:
            patched.delattr(os, name)
        patched.delattr(signal, "SIGHUP")
        patched.setattr(shutil, "_use_fd_functions", False)
        patched.setattr(system, "WINDOWS", True)
        patched.setattr(system, "fcntl", None)
        patched.setattr(system, "msvcrt", fake := Msvcrt(), raising=False)
        for name in ("rename", "replace", "unlink", "remove", "rmdir"):
            patched.setattr(os, name, refusing(getattr(os, name)))
        patched.setattr(os, "open", no_folder(os.open))
        patched.setattr(os, "fsync", synced)
        patched.setattr(io, "open", opening(io.open))
        yield fake
