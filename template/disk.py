"""What lies on a disk is whole or absent, there is room before it is written, and nobody else is writing."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from . import system

MANIFEST = "manifest.json"
IDLE = 3600.0
"""Seconds for which something half written must have rested in a shared folder before it is swept away. Whoever writes
keeps it young; whether its process lives, nobody can tell from another container."""
_HALF_WRITTEN = re.compile(r"\.tmp-(\d+|[0-9a-f]{16})-.*", re.DOTALL)


class DiskError(RuntimeError):
    """A folder that cannot be written to now, or lacks room. The message says why and what to do."""


class DamagedError(ValueError):
    """Files that are not those that were written. The message names them."""


def temporary_name(path: Path) -> Path:
    """Where to write what is to become `path`: another name at every call, in every process on every machine.

    `sweep` knows the pattern. Of long names the end will do: a file system takes no more than 255 bytes.
    """
    return path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name[-50:]}")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder of files through a temporary name: it appears by one rename when all its files are on the disk.

    Yields:
        The temporary folder, to be filled inside the block.
    """
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            system.sync(file)
        if path.exists():
            remove_folder(path)
        system.patiently(temporary.rename, path)
        system.sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder of ours; if that is interrupted, what is left no longer has its name."""
    aside = temporary_name(path)
    system.patiently(path.rename, aside)
    shutil.rmtree(aside, ignore_errors=True)


def seal(temporary: Path) -> None:
    """Write a manifest into a folder that is being filled: the sha256 of each of its files."""
    (temporary / MANIFEST).write_text(_manifest(temporary), encoding="utf-8", newline="\n")


def verify(folder: Path) -> None:
    """Compare the files of a folder with its manifest.

    Raises:
        DamagedError: if a file is missing, changed or left over, or the manifest itself is damaged.
        OSError: if a file cannot be read.
    """
    expected, found = (folder / MANIFEST).read_bytes(), _manifest(folder).encode()
    if expected != found:  # compared as bytes, so that damage to the manifest itself is seen too
        lines = set(expected.split(b"\n")) ^ set(found.split(b"\n"))
        names = sorted({repr(line.split(b'"')[1].decode(errors="replace")) for line in lines if b'"' in line})
        raise DamagedError(f"{', '.join(names)} not as the manifest says")


def sha256(path: Path) -> str:
    """Digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path, idle: float = IDLE) -> None:
    """Delete what killed processes left half written in a folder: only names of our own pattern, long untouched.

    Args:
        folder: whose direct contents are looked at.
        idle: seconds for which it must have rested; 0 where the caller knows that nobody else writes there.
    """
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError):  # somebody else may have been faster
            newest = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
            if _HALF_WRITTEN.fullmatch(path.name) and not (idle and time.time() - newest < idle):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to ourselves for the block, and sweep away what a killed run left in it.

    The kernel holds the lock and drops it with the process, however that ends: a lock file without one is stale and is
    taken over. (A process number alone would not do: they repeat, in containers above all.)

    Raises:
        DiskError: if another process writes there, naming it, or if the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise DiskError(
            f"{str(folder)!r} cannot be written to: {error.strerror}. Choose another (--runs), or set its permissions."
        ) from error
    with file:
        try:
            system.lock(file)
        except BlockingIOError:
            file.seek(0)
            raise DiskError(
                f"{str(folder)!r} is in use by {file.read().strip() or 'another process'}. "
                "Wait for it, or stop it; then resume."
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(
                f"{str(folder)!r} cannot be locked ({error.strerror}): do not start a second run in it.",
                file=sys.stderr,
            )
        file.seek(0)
        if before := file.read().strip():
            print(f"The run's last {before} was killed; going on from what it saved.")
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}", file=file, flush=True)
        for place in (folder, *(sub for sub in folder.iterdir() if sub.is_dir())):
            sweep(place, idle=0)
        try:
            yield
        finally:
            file.truncate(0)
            with contextlib.suppress(OSError):  # there are no locks
                system.unlock(file)


def in_use(folder: Path) -> bool:
    """Whether another process keeps a folder to itself (`locked`)."""
    try:
        with (folder / ".lock").open("rb") as file:
            if file.read(1):  # whoever holds it has written who it is, and whoever ended has not left that
                system.lock(file)
                system.unlock(file)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or there are no locks
        return False
    return False


def require_writable(path: Path, kind: Literal["file", "folder"], option: str) -> None:
    """See, before there is work to lose, whether a file or folder can be written later. Leaves nothing behind.

    Folders on the way may be missing; they are made when it is written.

    Args:
        path: to be written or replaced.
        kind: what it is to be.
        option: of the command line, with which another can be chosen.

    Raises:
        DiskError: saying what is in the way.
    """
    try:
        place = _lowest_there(path.absolute())
        wanted = kind if place == path.absolute() else "folder"
        found = "folder" if place.is_dir() else "file" if place.is_file() else "device, pipe or link to nowhere"
        if found != wanted:
            raise OSError(errno.EEXIST, f"{str(place)!r} is a {found}, where there must be a {wanted} or nothing")
        with tempfile.TemporaryFile(dir=place if found == "folder" else place.parent):
            pass
    except OSError as error:
        why = "nothing can be made there" if error.errno == errno.ENOENT else error.strerror
        raise DiskError(f"{str(path)!r} cannot be written: {why}. Choose another with {option}.") from error


def _lowest_there(path: Path) -> Path:
    for place in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()
            return place
    return path


def require_space(needs: Mapping[Path, float]) -> None:
    """See whether there is room for so many bytes in each folder; those on one disk are added up.

    Raises:
        DiskError: naming what is needed, what is free, and what helps.
    """
    disks: dict[int, list[tuple[Path, float]]] = {}
    for folder, needed in needs.items():
        here = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        disks.setdefault(here.stat().st_dev, []).append((here, needed))
    for places in disks.values():
        free, needed = shutil.disk_usage(places[0][0]).free, sum(bytes_ for _, bytes_ in places)
        if needed > free:
            raise DiskError(
                f"Too little room on the disk of {', '.join(repr(str(place)) for place, _ in places)}: expected "
                f"{format_bytes(needed)} for what is to come, received {format_bytes(free)}. Delete old runs, or the "
                "cache folder (it is made again); or choose another disk with --runs and data.cache."
            )


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full; TensorFlow hands on those of its threads as text."""
    numbers = {errno.ENOSPC, errno.EDQUOT}
    texts = {os.strerror(number) for number in numbers} - {"Unknown error"} | {
        "not enough space on the disk"
    }  # Windows
    return getattr(error, "errno", None) in numbers or any(text in str(error) for text in texts)


def format_bytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _manifest(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
    return json.dumps({file.name: sha256(file) for file in files}, indent=1)
