"""A folder of cached arrays that any number of processes share, on one machine or several.

Pixels and activations are cached alike. Each array is one file, written under a random name and then renamed: complete
or not there at all. Two processes that compute the same at once write the same bytes, and the last file stays. Readers
keep the file open, so that deleting it does not matter; a writer reads from the very file that it wrote. No process
waits for another, and there are no locks that could be left behind.
"""

import contextlib
import dataclasses
import errno
import math
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import disk, system
from .array_file import ArrayFile, Stored, open_stored, write

_OURS = re.compile(r"(pixels|features)-[0-9a-f]{16}(\.rows)?")
"""Names of what may be deleted to make room; without an extension, of an earlier version."""
_in_use: "weakref.WeakSet[ArrayFile]" = weakref.WeakSet()


@dataclass(frozen=True)
class Cache:
    """Arrays in a folder, which may be deleted at any time: what is missing is computed again.

    Args:
        folder: on disk.
        limit_bytes: of all files. The least recently used are deleted for new ones, but none that this process uses.
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
        """The array of this name, from the cache or computed.

        Args:
            name: `pixels-` or `features-` and 16 hexadecimal digits, a hash of all that the contents depend on; or ""
                for what must not be found again.
            batches: computes the array, [any n, *shape[1:]] at a time; may put notes (JSON) into the given dict.
            shape: [n, ...], with the largest possible n.
            dtype: of the values.
            memory_bytes: an array of at most this size is kept in memory.
            key: of the `ArrayFile`.

        Raises:
            DiskError: if there is no room, or the folder cannot be written to.
            OSError: if the disk is full nevertheless.
        """

        def compute() -> Stored:
            disk.require_writable(self.folder, "folder", "--data.cache")
            self._make_room(math.prod(shape) * np.dtype(dtype).itemsize)
            return self._write(name, batches, shape[1:], dtype)

        rows = ArrayFile((self._found(name) if name else None) or compute(), memory_bytes, key, compute)
        rows.path = self._path(name)
        _in_use.add(rows)
        return rows

    def size_bytes(self) -> int:
        """Bytes of all files in the cache."""
        return sum(size for _, size, _ in self.entries())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name or 'features'}.rows"

    def _found(self, name: str) -> Stored | None:
        """The array of this name if it is there and complete."""
        try:
            file = self._path(name).open("rb")
        except OSError:
            return None
        try:
            stored = open_stored(file)
        except (OSError, disk.DamagedError):
            file.close()
            return None
        with contextlib.suppress(OSError):  # a read-only cache is of use too
            os.utime(self._path(name))
        return stored

    def _write(
        self, name: str, batches: Callable[[dict], Iterable[np.ndarray]], shape: tuple[int, ...], dtype: type
    ) -> Stored:
        temporary, notes = disk.temporary_name(self._path(name)), dict[str, Any]()
        self.folder.mkdir(parents=True, exist_ok=True)
        file = temporary.open("x+b")
        try:
            stored = write(file, batches(notes), shape, dtype, notes)
            os.fsync(file.fileno())
            return dataclasses.replace(stored, file=self._published(file, self._path(name))) if name else stored
        except BaseException:
            file.close()
            raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _published(self, file: BinaryIO, path: Path) -> BinaryIO:
        """The file under its own name, to read from."""
        try:
            file = system.rename_open(file, path)
            system.sync(self.folder)
        except OSError as error:
            deleted = {errno.ENOENT, errno.ESTALE}  # by another process; we have the file open
            if error.errno not in deleted:
                raise
        return file

    def _make_room(self, coming: float) -> None:
        """Delete the least recently used until so many more bytes fit the limit."""
        entries, used = sorted(self.entries()), {rows.path for rows in _in_use}
        total = coming + sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total > self.limit_bytes and path not in used:
                with contextlib.suppress(OSError):  # on Windows another process may have it open
                    with contextlib.suppress(FileNotFoundError):  # or may have been faster
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                    total -= size
        disk.require_space({self.folder: coming})

    def entries(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each array in the cache."""
        for path in self.folder.glob("*-*"):
            with contextlib.suppress(OSError):
                if _OURS.fullmatch(path.name):
                    files = [path, *path.iterdir()] if path.is_dir() else [path]
                    yield path.stat().st_mtime, sum(file.stat().st_size for file in files), path
