"""Every picture is decoded once, and kept as uint8 in a cache file that later runs find by the pictures' contents."""

import dataclasses
import hashlib
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import runs
from ..config import Data
from .examples import Examples
from .images import VERSION, BadImageError, ImageSource, load_image


class Pixels:
    """Decoded pictures, uint8 [n, size, size, 3]: in memory if they fit the budget, else read from the cache file.

    The file is read with `pread` and not memory-mapped, so that a data set larger than memory stays out of it.
    """

    def __init__(self, file: Path, shape: tuple[int, ...], memory_bytes: float) -> None:
        self.shape = shape
        self._row = math.prod(shape[1:])
        self._file = file.open("rb")
        self._array = None
        if shape[0] * self._row <= memory_bytes:
            self._array = np.fromfile(self._file, np.uint8).reshape(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The pictures at these positions, copied."""
        if self._array is not None:
            return self._array[rows]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for row, target in zip(rows, out, strict=True):
            os.preadv(self._file.fileno(), [target.reshape(-1)], int(row) * self._row)
        return out


def decode(examples: Examples, data: Data) -> tuple[Examples, Pixels]:
    """Decode all pictures, or find them in the cache from an earlier run.

    The cache is known by the contents of the pictures, so renaming files keeps it and changing one makes a new one.

    Returns:
        The examples that could be read, with digests, those that could not in `skipped`; and their pixels.
    """
    with ThreadPoolExecutor() as pool:
        digests = np.array(list(pool.map(_digest, examples.images)))
        key = hashlib.sha256(f"{VERSION} {data.image_size} {data.resize} {' '.join(digests)}".encode())
        folder = Path(data.cache).expanduser() / f"pixels-{key.hexdigest()[:16]}"
        if not (folder / "bad.json").exists():
            _fill(folder, examples, data, pool)
    bad = {int(row): reason for row, reason in runs.read_json(folder / "bad.json").items()}
    good = np.array([row not in bad for row in range(len(examples))], bool)
    shape = (int(good.sum()), data.image_size, data.image_size, 3)
    if (folder / "pixels").stat().st_size != math.prod(shape):
        raise OSError(f"Cache {str(folder)!r} is damaged: delete that folder and start again.")
    skipped = [(str(examples.ids[row]), reason) for row, reason in bad.items()]
    examples = dataclasses.replace(examples, digests=digests).take(good, skipped)
    return examples, Pixels(folder / "pixels", shape, data.memory_gb * 2**30)


def _digest(source: ImageSource) -> str:
    """sha256 of a picture's bytes; of an array's shape and values; of nothing for a file that cannot be read."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.dtype} {source.shape}".encode() + source.tobytes()).hexdigest()
    try:
        return hashlib.sha256(source if isinstance(source, bytes) else source.read_bytes()).hexdigest()
    except OSError:
        return hashlib.sha256(str(source).encode()).hexdigest()


def _fill(folder: Path, examples: Examples, data: Data, pool: ThreadPoolExecutor) -> None:
    """Write `pixels` and `bad.json` ({row: reason}) into a new cache folder; it appears when both are whole."""

    def load(source: ImageSource) -> np.ndarray | BadImageError:
        try:
            return load_image(source, data.image_size, data.resize)
        except BadImageError as error:
            return error

    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        bad = {}
        with (temporary / "pixels").open("wb") as file:
            for start in range(0, len(examples), 256):  # a few at a time: memory does not grow with the data
                for row, result in enumerate(pool.map(load, examples.images[start : start + 256]), start):
                    if isinstance(result, np.ndarray):
                        file.write(result.tobytes())
                    else:
                        bad[row] = str(result)
            file.flush()
            os.fsync(file.fileno())
        runs.write_json(temporary / "bad.json", bad)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
