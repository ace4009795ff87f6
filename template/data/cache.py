"""A folder of computed arrays that any number of processes share, on one machine or several.

One protocol for pixels and activations. Each is one file, which is written under a random name and appears by one
rename: whole or not at all. Two that make the same at once write the same bytes, and the last one's file stays. Whoever
reads has the file open, so that deleting it takes nothing from him; who has written goes on with the very file that he
wrote, whatever has become of its name. Nobody waits for anybody, and there are no locks to be left behind.
"""

import contextlib
import errno
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import disk
from .array_file import ArrayFile, Stored, open_stored, write

_OURS = re.compile(r"(pixels|features)-[0-9a-f]{16}(\.rows)?")
"""What may be deleted to make room; without an ending, from before there was one protocol."""
_in_use: "weakref.WeakSet[ArrayFile]" = weakref.WeakSet()


@dataclass(frozen=True)
class Cache:
    """Arrays in a folder, which may be deleted at any time: what is needed is computed again.

    Args:
        folder: on disk.
        limit_bytes: of all files. The least recently used make room for new ones, but none that this process uses.
    """

    folder: Path
    limit_bytes: float

    def rows(
        self,
        name: str,
        batches: Callable[[dict[str, Any]], Iterable[np.ndarray]],
        shape: tuple[int, ...],
        dtype: type,
        *,
        memory_bytes: float,
        key: str = "",
    ) -> ArrayFile:
        """The array of this name, found or made.

        Args:
            name: `pixels-` or `features-` and 16 hexadecimal digits that stand for all that decides about the
                contents; or "" for what nobody shall find again.
            batches: makes the array, [some, *shape[1:]] at a time; may put notes (JSON) into the dict that it is given.
            shape: [n, ...], with the most rows that there can be.
            dtype: of the values.
            memory_bytes: an array of at most this size is held in memory.
            key: of the rows.

        Raises:
            DiskError: if there is no room, or the folder cannot be written to.
            OSError: if the disk is full nevertheless.
        """

        def make() -> Stored:
            disk.require_writable(self.folder, "folder", "--data.cache")
            self._make_room(np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize)
            return self._made(name, batches, shape[1:], dtype)

        rows = ArrayFile((self._found(name) if name else None) or make(), memory_bytes, key, make)
        rows.path = self._path(name)
        _in_use.add(rows)
        return rows

    def size_bytes(self) -> int:
        """Bytes of all files that are there."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name or 'features'}.rows"

    def _found(self, name: str) -> Stored | None:
        """What is there and whole; a file that has just gone is one that is not there."""
        try:
            file = self._path(name).open("rb")
        except OSError:
            return None
        try:
            stored = open_stored(file)
        except (OSError, disk.DamagedError):
            file.close()
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read is of use too
            os.utime(self._path(name))
        return stored

    def _made(
        self, name: str, batches: Callable[[dict], Iterable[np.ndarray]], shape: tuple[int, ...], dtype: type
    ) -> Stored:
        temporary, notes = disk.temporary_name(self._path(name)), {}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = temporary.open("x+b")
        try:
            stored = write(file, batches(notes), shape, dtype, notes)
            os.fsync(file.fileno())
            if name:
                self._publish(temporary, self._path(name))
            return stored
        except BaseException:
            file.close()
            raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, path: Path) -> None:
        try:
            temporary.replace(path)
            disk.sync(self.folder)
        except OSError as error:
            emptied = {errno.ENOENT, errno.ESTALE}  # by somebody; we have the file open
            if error.errno not in emptied:
                raise

    def _make_room(self, coming: float) -> None:
        """Delete what was not used for longest, until so many more bytes fit the limit."""
        entries, used = sorted(self._entries()), {rows.path for rows in _in_use}
        total = coming + sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total > self.limit_bytes and path not in used:
                with contextlib.suppress(OSError):  # somebody else may have been faster
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                total -= size
        disk.require_space({self.folder: coming})

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each array that is there."""
        for path in self.folder.glob("*-*"):
            with contextlib.suppress(OSError):
                if _OURS.fullmatch(path.name):
                    files = [path, *path.iterdir()] if path.is_dir() else [path]
                    yield path.stat().st_mtime, sum(file.stat().st_size for file in files), path
