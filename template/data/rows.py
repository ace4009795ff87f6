"""A large array that is read by rows: from memory if it fits a budget, else from its file."""

import math
import os
from pathlib import Path

import numpy as np


class Rows:
    """Array in a raw file, [n, ...].

    The file is read with `pread` and not memory-mapped, so that data larger than memory stay out of it.

    Args:
        file: C-ordered values without a header.
        shape: of the array.
        dtype: of the values.
        memory_bytes: an array of at most this size is read into memory now.
        key: names the contents; empty if nobody knows.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], dtype: type, memory_bytes: float, key: str = "") -> None:
        self.shape, self.dtype, self.key = shape, np.dtype(dtype), key
        self._bytes = math.prod(shape[1:]) * self.dtype.itemsize
        self._file = file.open("rb")
        self._array = None
        if shape[0] * self._bytes <= memory_bytes:
            with self._file:
                self._array = np.fromfile(self._file, dtype).reshape(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows at these positions, copied."""
        if self._array is not None:
            return self._array[rows]
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for row, target in zip(rows, out, strict=True):
            if (
                os.preadv(self._file.fileno(), [target.reshape(-1).view(np.uint8)], int(row) * self._bytes)
                != self._bytes
            ):
                raise OSError(f"Cache file {self._file.name!r} has become shorter while it was read.")
        return out
