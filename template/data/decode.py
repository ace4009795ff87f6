"""Every picture is decoded once, and kept as uint8 in a cache file that later runs find by the pictures' contents."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import device, disk, runs
from ..config import Data
from .examples import Examples
from .images import VERSION, BadImageError, ImageSource, ReadError, load_image, read
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
    with device.threads() as pool:
        results = list(pool.map(_digest, examples.images))
        examples = dataclasses.replace(examples, digests=np.array(results, object))
        unread = {row: result for row, result in enumerate(results) if isinstance(result, ReadError)}
        examples = _without(examples, unread)
        while unread := _fill(examples, data, pool):
            examples = _without(examples, unread)
    folder = _folder(examples, data)
    bad = {int(row): reason for row, reason in runs.read_json(folder / "bad.json").items()}
    examples = _without(examples, bad)
    shape = (len(examples), data.image_size, data.image_size, 3)
    return examples, Rows(folder / "pixels", shape, np.uint8, _memory(data, np.prod(shape)), key=folder.name)


def _folder(examples: Examples, data: Data) -> Path:
    """Where the pixels of these contents are, or are to be."""
    key = hashlib.sha256(f"{VERSION} {data.image_size} {data.resize} {' '.join(examples.digests)}".encode())
    return Path(data.cache).expanduser() / f"pixels-{key.hexdigest()[:16]}"


def _without(examples: Examples, bad: Mapping[int, object]) -> Examples:
    """The examples but these, which are named with the reason in `skipped`."""
    good = np.array([row not in bad for row in range(len(examples))], bool)
    kept = examples.take(good, [(str(examples.ids[row]), str(reason)) for row, reason in bad.items()])
    return dataclasses.replace(kept, digests=kept.digests.astype(str))


def _memory(data: Data, size: float) -> float:
    """Bytes of pixels that may be held: as the settings say, but no more than half of the memory that is free."""
    wanted, free = data.memory_gb * 2**30, device.available_memory() / 2
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


def _digest(source: ImageSource) -> str | ReadError:
    """sha256 of a picture's bytes, of an array's shape and values, or why a file's bytes cannot be had."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.dtype} {source.shape}".encode() + source.tobytes()).hexdigest()
    try:
        return hashlib.sha256(source if isinstance(source, bytes) else read(source)).hexdigest()
    except ReadError as error:
        return error


class _IncompleteError(Exception):
    """Some contents could not be read again, so the cache would not be that of its name."""


def _fill(examples: Examples, data: Data, pool: ThreadPoolExecutor) -> dict[int, ReadError]:
    """Write `pixels` and `bad.json` ({row: reason}) into a cache folder, which appears when both are whole.

    What is written is decoded from the very bytes that the folder's name is a digest of, and `bad.json` remembers what
    is wrong with such bytes, never that they could not be read: a network drive may be well again tomorrow.

    Returns:
        Rows that could not be read any more. If there are any, nothing is kept.
    """

    def load(row: int) -> np.ndarray | BadImageError:
        source = examples.images[row]
        try:
            contents = read(source) if isinstance(source, Path) else source
            if isinstance(source, Path) and _digest(contents) != examples.digests[row]:
                return ReadError("it changed while it was read; is something still writing it? Start again")
            return load_image(contents, data.image_size, data.resize)
        except BadImageError as error:
            return error

    folder, bad, unread = _folder(examples, data), {}, {}
    if _whole(folder, len(examples), data.image_size):
        return unread
    disk.require({folder: len(examples) * data.image_size**2 * 3})
    with contextlib.suppress(_IncompleteError), disk.replacing_folder(folder) as temporary:
        with (temporary / "pixels").open("wb") as file:
            for start in range(0, len(examples), 256):  # a few at a time: memory does not grow with the data
                rows = range(start, min(start + 256, len(examples)))
                for row, result in zip(rows, pool.map(load, rows), strict=True):
                    if isinstance(result, np.ndarray):
                        file.write(result.tobytes())
                    else:
                        (unread if isinstance(result, ReadError) else bad)[row] = result
        if unread:
            raise _IncompleteError
        runs.write_json(temporary / "bad.json", {row: str(reason) for row, reason in bad.items()})
    return unread
