"""A large array that is read by rows: from memory if it is small enough, else from its file, with checksums.

An array file is the rows, C-ordered; a CRC-32 of each; a JSON of shape, dtype and notes; and last a footer that only a
complete file has.
"""

import functools
import json
import math
import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import disk, system

_FOOTER = struct.Struct("<QI8s")
"""Bytes of the JSON, CRC-32 of it and of those of the rows, and:"""
_MAGIC = b"rows-v1\n"


@dataclass(frozen=True)
class Stored:
    """An open array file. It can be read even after the file is deleted or replaced.

    Args:
        file: with the rows from its beginning.
        shape: [n, ...].
        dtype: of the values.
        sums: CRC-32 of each row, uint32 [n].
        notes: metadata of its writer.
    """

    file: BinaryIO
    shape: tuple[int, ...]
    dtype: np.dtype
    sums: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)

    def read(self, rows: Iterable[int], out: np.ndarray) -> None:
        """Read these rows into an array; not memory-mapped, so that data larger than memory do not fill it.

        Raises:
            DamagedError: if the checksum of a row is wrong, or the row is missing.
            OSError: if the file cannot be read.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        for row, target in zip(rows, out, strict=True):
            view = target.reshape(-1).view(np.uint8)
            got = system.read_into(self.file, view, int(row) * size)
            if got != size or zlib.crc32(view) != self.sums[row]:
                raise disk.DamagedError(f"Row {row} of {self.file.name!r} is damaged: its checksum is wrong.")


def write(
    file: BinaryIO, batches: Iterable[np.ndarray], shape: tuple[int, ...], dtype: type, notes: dict[str, Any]
) -> Stored:
    """Write an array file.

    Args:
        file: empty, open for writing and reading.
        batches: arrays [any n, *shape], in order.
        shape: of one row.
        dtype: of the values.
        notes: JSON, written after the last batch.
    """
    sums, size = [], math.prod(shape) * np.dtype(dtype).itemsize
    for batch in batches:
        data = memoryview(np.asarray(batch, dtype).tobytes())
        file.write(data)
        sums += [zlib.crc32(data[row * size : (row + 1) * size]) for row in range(len(batch))]
    stored = Stored(file, (len(sums), *shape), np.dtype(dtype), np.array(sums, np.uint32), dict(notes))
    head = json.dumps({"shape": stored.shape, "dtype": stored.dtype.str, "notes": stored.notes}).encode()
    tail = stored.sums.tobytes() + head
    file.write(tail + _FOOTER.pack(len(head), zlib.crc32(tail), _MAGIC))
    file.flush()
    return stored


def open_stored(file: BinaryIO) -> Stored:
    """Open an array file.

    Raises:
        DamagedError: if it is cut short, damaged at its end, or no array file.
        OSError: if it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        footer = _read(file, _FOOTER.size, max(0, size - _FOOTER.size))
        length, crc, magic = _FOOTER.unpack(footer)
        if magic != _MAGIC or length > size:
            raise ValueError("it has no footer")
        head = json.loads(_read(file, length, size - _FOOTER.size - length))
        shape, dtype = tuple(head["shape"]), np.dtype(head["dtype"])
        before = math.prod(shape) * dtype.itemsize
        if before + 4 * shape[0] + length + _FOOTER.size != size:
            raise ValueError("it is cut short")
        tail = _read(file, 4 * shape[0] + length, before)
        if zlib.crc32(tail) != crc:
            raise ValueError("its checksums are damaged")
        return Stored(file, shape, dtype, np.frombuffer(tail, np.uint32, shape[0]), head["notes"])
    except (struct.error, ValueError, TypeError, KeyError, OverflowError) as error:
        raise disk.DamagedError(f"{file.name!r} is not a complete array file: {error}") from error


@dataclass(frozen=True)
class Selection:
    """Some rows, again in each pass, of an array file that holds passes over n rows: [passes * m, ...].

    Args:
        whole: [passes * n, ...].
        rows: int64 [m], from 0 to n - 1.
        n: rows of a pass.
    """

    whole: "ArrayFile | Selection"
    rows: np.ndarray
    n: int

    def __len__(self) -> int:
        return len(self.whole) // self.n * len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows at these positions, copied."""
        return self.whole[rows // len(self.rows) * self.n + self.rows[rows % len(self.rows)]]


class Divided:
    """Rows in several array files, each of which is made when one of its rows is first required: [n, ...].

    Args:
        parts: int64, rows of each file; together all rows.
        made: rows of a file -> the file. It may raise.
        shape: of one row.
        dtype: of the values.
        key: as that of an `ArrayFile` of all rows.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        made: Callable[[np.ndarray], "ArrayFile"],
        shape: tuple[int, ...],
        dtype: type,
        key: str,
    ) -> None:
        self.shape, self.dtype, self.key = (sum(map(len, parts)), *shape), np.dtype(dtype), key
        self._file, self._row = np.empty((2, len(self)), np.int64)
        for file, rows in enumerate(parts):
            self._file[rows], self._row[rows] = file, np.arange(len(rows))
        self._made = functools.cache(lambda file: made(parts[file]))

    def __len__(self) -> int:
        return self.shape[0]

    def require(self, rows: np.ndarray) -> "Divided":
        """Itself, once the files of these rows are there."""
        for file in np.unique(self._file[rows]).tolist():
            self._made(file)
        return self

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows at these positions, copied."""
        out, files = np.empty((len(rows), *self.shape[1:]), self.dtype), self._file[rows]
        for file in np.unique(files).tolist():
            inside = files == file
            out[inside] = self._made(file)[self._row[rows[inside]]]
        return out


def _read(file: BinaryIO, size: int, offset: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: system.read_into(file, buffer, offset)])


class ArrayFile:
    """Array in an array file, [n, ...], read by rows.

    Args:
        stored: the file.
        memory_bytes: an array of at most this size is read into memory now.
        key: cache key of the contents; empty if unknown.
        recreate: writes the file again. Called if a row cannot be read or its checksum is wrong: on a network drive, a
            deleted file cannot be read even if it is open.

    Raises:
        DamagedError: if what `recreate` wrote cannot be read either.
    """

    def __init__(
        self, stored: Stored, memory_bytes: float, key: str = "", recreate: Callable[[], Stored] | None = None
    ) -> None:
        self.shape, self.dtype, self.notes, self.key = stored.shape, stored.dtype, stored.notes, key
        self.path = Path(stored.file.name)
        self._stored, self._recreate, self._lock, self._array = stored, recreate, threading.Lock(), None
        if math.prod(self.shape) * self.dtype.itemsize <= memory_bytes:
            self._array = self._read(np.arange(len(self)))
            self._stored.file.close()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows at these positions, copied."""
        return self._read(rows) if self._array is None else self._array[rows]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        out, stored = np.empty((len(rows), *self.shape[1:]), self.dtype), self._stored
        try:
            stored.read(rows, out)
        except (OSError, disk.DamagedError) as error:
            self._recreated(stored, error).read(rows, out)
        return out

    def _recreated(self, failed: Stored, error: Exception) -> Stored:
        with self._lock:  # several threads prefetch
            if self._stored is failed:
                if self._recreate is None:
                    raise error
                print(f"{error} It is computed again.", file=sys.stderr)
                stored = self._recreate()
                if stored.shape != self.shape:
                    raise error
                self._stored = stored
            return self._stored


Rows = ArrayFile | Divided
"""What is read by rows."""
