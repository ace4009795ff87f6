"""What Windows does in another way than POSIX: locks, reads at an offset, syncing, renaming what is open, quoting."""

import contextlib
import io
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

msvcrt: Any
fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None  # and then there is
    import msvcrt

WINDOWS = fcntl is None
PATIENCE = 2.0
"""Seconds for which a file is tried that a virus scanner or indexer may have open for a moment."""
_BYTE = 2**30
"""Which byte stands for a file, far beyond its end: on Windows nobody else could read one that is locked."""
_position = threading.Lock()


def lock(file: IO) -> None:
    """Lock an open file, until `unlock` or until this process ends, however it does.

    Raises:
        BlockingIOError: if another has locked it.
        OSError: if there are no locks, as on some network file systems.
    """
    if not WINDOWS:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    try:
        _at_the_byte(file, msvcrt.LK_NBLCK)
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from error


def unlock(file: IO) -> None:
    """Let go of a file that `lock` has locked."""
    if WINDOWS:
        _at_the_byte(file, msvcrt.LK_UNLCK)
    else:
        fcntl.flock(file, fcntl.LOCK_UN)


def _at_the_byte(file: IO, mode: int) -> None:
    """Lock or unlock what is at the position of the file, which is then where it was."""
    number = file.fileno()
    before = os.lseek(number, 0, os.SEEK_CUR)
    try:
        os.lseek(number, _BYTE, os.SEEK_SET)
        msvcrt.locking(number, mode, 1)
    finally:
        os.lseek(number, before, os.SEEK_SET)


def read_into(file: BinaryIO, buffer: bytearray | memoryview, offset: int) -> int:
    """Fill a buffer from an offset of a file, which several threads may do at once; says how many bytes were there."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [buffer], offset)
    with _position:
        os.lseek(file.fileno(), offset, os.SEEK_SET)
        return io.FileIO(file.fileno(), closefd=False).readinto(buffer)


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are safely on the disk.

    Of names, Windows says nothing: NTFS has them in its journal.
    """
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)  # which Windows syncs only if it may be written to
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def patiently(change: Callable[[Path], object], path: Path) -> None:
    """Rename or replace: `patiently(temporary.replace, path)`. On Windows again, while somebody else has it open.

    Raises:
        PermissionError: if that does not end.
        OSError: as `change` does.
    """
    end = time.monotonic() + PATIENCE * WINDOWS
    while True:
        try:
            change(path)
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def rename_open(file: BinaryIO, path: Path) -> BinaryIO:
    """Give an open file, all of which is written, another name, replacing what has it.

    Returns:
        The file to read from. On Windows that is the same opened again; under its old name, if somebody reads the one
        that it would replace.
    """
    written = Path(file.name)
    if not WINDOWS:
        written.replace(path)
        return file
    file.close()
    with contextlib.suppress(PermissionError):
        patiently(written.replace, path)
        return path.open("rb")
    return written.open("rb")


def quote(text: str) -> str:
    """A text as one argument of a command line that a person pastes into the system's shell."""
    return subprocess.list2cmdline([text]) if WINDOWS else shlex.quote(text)
