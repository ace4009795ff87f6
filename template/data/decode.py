"""Every picture is decoded once, and kept as uint8 in a cache file that later runs find by the pictures' contents."""

import dataclasses
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import disk, runs
from ..config import Data
from .examples import Examples
from .images import VERSION, BadImageError, ImageSource, load_image, read
from .rows import Rows


def decode(examples: Examples, data: Data) -> tuple[Examples, Rows]:
    """Decode all pictures, or find them in the cache from an earlier run.

    The cache is known by the contents of the pictures in their order, so moving the folder keeps it, and changing a
    picture makes a new one. A cache that was cut short is made again.

    Returns:
        The examples that could be read, with digests, those that could not in `skipped`; and their pixels.

    Raises:
        DiskError: if there is no room for the cache.
    """
    with ThreadPoolExecutor() as pool:
        digests = np.array(list(pool.map(_digest, examples.images)))
        key = hashlib.sha256(f"{VERSION} {data.image_size} {data.resize} {' '.join(digests)}".encode())
        folder = Path(data.cache).expanduser() / f"pixels-{key.hexdigest()[:16]}"
        if not _whole(folder, len(examples), data.image_size):
            _fill(folder, examples, data, pool)
    bad = {int(row): reason for row, reason in runs.read_json(folder / "bad.json").items()}
    good = np.array([row not in bad for row in range(len(examples))], bool)
    shape = (int(good.sum()), data.image_size, data.image_size, 3)
    skipped = [(str(examples.ids[row]), reason) for row, reason in bad.items()]
    examples = dataclasses.replace(examples, digests=digests).take(good, skipped)
    return examples, Rows(folder / "pixels", shape, np.uint8, _memory(data, np.prod(shape)), key=folder.name)


def _memory(data: Data, size: float) -> float:
    """Bytes of pixels that may be held: as the settings say, but no more than half of the memory that is free."""
    wanted, free = data.memory_gb * 2**30, disk.available_memory() / 2
    if free < size <= wanted:
        print(f"decoded pictures take {disk.amount(size)}, more than half of the free memory: read from {data.cache}")
    return min(wanted, free)


def _whole(folder: Path, n: int, size: int) -> bool:
    """Whether a cache is there and not cut short."""
    try:
        used = n - len(runs.read_json(folder / "bad.json"))
        return (folder / "pixels").stat().st_size == used * size * size * 3
    except (OSError, ValueError):
        return False


def _digest(source: ImageSource) -> str:
    """sha256 of a picture's bytes; of an array's shape and values; of nothing for a file that cannot be read."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.dtype} {source.shape}".encode() + source.tobytes()).hexdigest()
    try:
        return hashlib.sha256(source if isinstance(source, bytes) else read(source)).hexdigest()
    except BadImageError:
        return hashlib.sha256(os.fsencode(source)).hexdigest()


def _fill(folder: Path, examples: Examples, data: Data, pool: ThreadPoolExecutor) -> None:
    """Write `pixels` and `bad.json` ({row: reason}) into a new cache folder; it appears when both are whole."""

    def load(source: ImageSource) -> np.ndarray | BadImageError:
        try:
            return load_image(source, data.image_size, data.resize)
        except BadImageError as error:
            return error

    disk.require({folder: len(examples) * data.image_size**2 * 3})
    with disk.replacing_folder(folder) as temporary:
        bad = {}
        with (temporary / "pixels").open("wb") as file:
            for start in range(0, len(examples), 256):  # a few at a time: memory does not grow with the data
                for row, result in enumerate(pool.map(load, examples.images[start : start + 256]), start):
                    if isinstance(result, np.ndarray):
                        file.write(result.tobytes())
                    else:
                        bad[row] = str(result)
        runs.write_json(temporary / "bad.json", bad)
