"""Every image is decoded once, into a cache of uint8 pixels that later runs find by the contents of the images."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import device, disk, progress
from ..config import Data, settled
from .array_file import ArrayFile
from .cache import Cache
from .examples import DataError, Examples, first_lines
from .images.depth import bits_of_set, needed_bits
from .images.load import VERSION, load
from .images.read import ImageSource, read
from .images.reasons import BadImageError, ReadError


def decode(examples: Examples, data: Data) -> tuple[Examples, ArrayFile]:
    """Decode all images, or find their pixels in the cache of an earlier run.

    The cache is keyed by the contents of the images in their order, so moving the folder keeps it, and changing an
    image makes a new one. If the examples have digests and are in the cache, no file is read.

    Returns:
        The examples that could be read, with digests and notes, those that could not in `skipped`; and their pixels.

    Raises:
        DiskError: if there is no room for the cache.
    """
    data = with_bits(data, examples.images)
    examples, pixels = with_digests(examples) if examples.digests is None else examples, None
    while pixels is None:
        try:
            pixels = _pixels(examples, data)
        except _UnreadError as error:
            examples = _without(examples, error.rows)
    noted, bad = ({int(row): text for row, text in pixels.notes[name].items()} for name in ("notes", "bad"))
    notes = np.array([noted.get(row, "") for row in range(len(examples))], str)
    return _without(dataclasses.replace(examples, notes=notes), bad), pixels


def with_bits(data: Data, images: Sequence[ImageSource]) -> Data:
    """The settings with the `bits` that these images need, if it is `auto` and some image has 16."""
    if data.bits != "auto":
        return data
    with device.threads() as pool:
        found = pool.map(lambda source: needed_bits(source, data.max_megapixels), images)
        needed = list(progress.track(found, "reading headers", len(images)))
    return dataclasses.replace(data, bits=bits_of_set(needed) or "auto")


def with_digests(examples: Examples) -> Examples:
    """The examples whose files can be read, with their digests; the others are named in `skipped`."""
    with device.threads() as pool:
        results = list(progress.track(pool.map(_digest, examples.images), "reading", len(examples)))
    unread = {row: result for row, result in enumerate(results) if isinstance(result, ReadError)}
    return _without(dataclasses.replace(examples, digests=np.array(results, object)), unread)


def contents_digest(contents: bytes | np.ndarray) -> str:
    """sha256 of an image's bytes, or of an array's type, shape and values."""
    if isinstance(contents, np.ndarray):
        contents = f"{contents.dtype} {contents.shape}".encode() + contents.tobytes()
    return hashlib.sha256(contents).hexdigest()


def _pixels(examples: Examples, data: Data) -> ArrayFile:
    """Pixels of all images that can be decoded, from the cache or computed.

    In their notes (JSON) `bad` is {row: reason} of images that cannot be decoded, `notes` {row: note} of the others.

    What is cached is decoded from the very bytes that its name is a digest of, and the notes say what is wrong with
    these bytes, never that they could not be read: a network drive may work again tomorrow.
    """

    def loaded(row: int) -> tuple[np.ndarray, str] | BadImageError:
        source = examples.images[row]
        try:
            contents = read(source)
            if isinstance(source, Path) and contents_digest(contents) != examples.known_digests[row]:
                return ReadError("it changed while it was read; is it still being copied? Start again")
            return load(contents, data)
        except BadImageError as error:
            return error

    def batches(written: dict) -> Iterator[np.ndarray]:
        bad, notes = written.setdefault("bad", {}), written.setdefault("notes", {})
        unread: dict[int, ReadError] = {}
        with device.threads() as pool, progress.step("decoding", len(examples)) as step:
            for start in range(0, len(examples), 256):  # a few at a time: memory does not grow with the data
                rows = range(start, min(start + 256, len(examples)))
                results = dict(zip(rows, step.over(pool.map(loaded, rows)), strict=True))
                unread |= {row: result for row, result in results.items() if isinstance(result, ReadError)}
                bad |= {row: str(result) for row, result in results.items() if isinstance(result, BadImageError)}
                fine = {row: result for row, result in results.items() if not isinstance(result, BadImageError)}
                notes |= {row: note for row, (_, note) in fine.items() if note}
                good = [pixels for pixels, _ in fine.values()]
                yield np.stack(good) if good else np.empty((0, *shape[1:]), np.uint8)
        if unread:
            raise _UnreadError({row: unread[row] for row in sorted(unread)}, examples)

    name, cache = pixels_key(examples, data), Cache(Path(data.cache).expanduser(), data.cache_gb * 2**30)
    shape = (len(examples), *pixels_shape(data))
    return cache.rows(name, batches, shape, np.uint8, memory_bytes=_memory(data, math.prod(shape)), key=name)


def pixels_key(examples: Examples, data: Data) -> str:
    """Cache key of the pixels of these images, and name of their file."""
    settings = f"{VERSION} {data.image_size} {data.resize} {data.max_megapixels} {data.bits}"
    key = hashlib.sha256(f"{settings} {' '.join(examples.known_digests)}".encode())
    return f"pixels-{key.hexdigest()[:16]}"


def pixels_shape(data: Data) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    size = settled(data.image_size)
    return size, size, 3


class _UnreadError(DataError):
    """Some files could not be read again, so their pixels would not be those of the digests."""

    def __init__(self, rows: dict[int, ReadError], examples: Examples) -> None:
        named = [f"{str(examples.ids[row])!r}: {reason}" for row, reason in rows.items()]
        super().__init__(
            f"{len(rows)} images that were readable before cannot be read any more:\n  {first_lines(named)}"
        )
        self.rows = rows


def _without(examples: Examples, bad: Mapping[int, object]) -> Examples:
    """The examples without these, which are named with the reason in `skipped`."""
    good = np.array([row not in bad for row in range(len(examples))], bool)
    kept = examples.take(good, [(str(examples.ids[row]), str(reason)) for row, reason in bad.items()])
    return dataclasses.replace(kept, digests=kept.known_digests.astype(str))


def _memory(data: Data, size: float) -> float:
    """Bytes of pixels that may be kept in memory: `data.memory_gb`, but no more than half of the free memory."""
    wanted, free = data.memory_gb * 2**30, device.available_memory() / 2
    if free < size <= wanted:
        needed = disk.format_bytes(size)
        print(f"decoded images take {needed}, more than half of the free memory: they are read from {data.cache}")
    return min(wanted, free)


def _digest(source: ImageSource) -> str | ReadError:
    """`contents_digest`, or why a file cannot be read."""
    try:
        return contents_digest(read(source))
    except ReadError as error:
        return error
