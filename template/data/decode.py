"""Every image is decoded once, and kept as uint8 in a cache file that later runs find by the images' contents."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import device, disk
from ..config import Data
from .array_file import ArrayFile
from .cache import Cache
from .examples import DataError, Examples, first_lines
from .images.depth import bits_of_set, needed_bits
from .images.load import VERSION, load
from .images.read import ImageSource, read
from .images.reasons import BadImageError, ReadError


def decode(examples: Examples, data: Data) -> tuple[Examples, ArrayFile]:
    """Decode all images, or find them in the cache from an earlier run.

    The cache is known by the contents of the images in their order, so moving the folder keeps it, and changing a
    image makes a new one. Of examples with digests no file is read if the cache has them.

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
    said, bad = ({int(row): why for row, why in pixels.notes[name].items()} for name in ("said", "bad"))
    notes = np.array([said.get(row, "") for row in range(len(examples))], str)
    return _without(dataclasses.replace(examples, notes=notes), bad), pixels


def with_bits(data: Data, images: Sequence[ImageSource]) -> Data:
    """The settings with as many `bits` as these images need, if they leave it open and some image has 16."""
    if data.bits != "auto":
        return data
    with device.threads() as pool:
        needed = list(pool.map(lambda source: needed_bits(source, data.max_megapixels), images))
    return dataclasses.replace(data, bits=bits_of_set(needed) or "auto")


def with_digests(examples: Examples) -> Examples:
    """The examples whose contents can be read, with their digests; the others are named in `skipped`."""
    with device.threads() as pool:
        results = list(pool.map(_digest, examples.images))
    unread = {row: result for row, result in enumerate(results) if isinstance(result, ReadError)}
    return _without(dataclasses.replace(examples, digests=np.array(results, object)), unread)


def contents_digest(contents: bytes | np.ndarray) -> str:
    """sha256 of an image's bytes, or of an array's type, shape and values."""
    if isinstance(contents, np.ndarray):
        contents = f"{contents.dtype} {contents.shape}".encode() + contents.tobytes()
    return hashlib.sha256(contents).hexdigest()


def _pixels(examples: Examples, data: Data) -> ArrayFile:
    """Pixels of these contents, found or decoded, but of the bad ones.

    The notes have {row: reason} of those as `bad`, and as `said` what had to be assumed to see something in the others.

    What is kept is decoded from the very bytes that its name is a digest of, and the notes remember what is wrong with
    such bytes, never that they could not be read: a network drive may be well again tomorrow.
    """

    def loaded(row: int) -> tuple[np.ndarray, str] | BadImageError:
        source = examples.images[row]
        try:
            contents = read(source)
            if isinstance(source, Path) and contents_digest(contents) != examples.digests[row]:
                return ReadError("it changed while it was read; is something still writing it? Start again")
            return load(contents, data)
        except BadImageError as error:
            return error

    def batches(notes: dict) -> Iterator[np.ndarray]:
        bad, said, unread = notes.setdefault("bad", {}), notes.setdefault("said", {}), {}
        with device.threads() as pool:
            for start in range(0, len(examples), 256):  # a few at a time: memory does not grow with the data
                rows = range(start, min(start + 256, len(examples)))
                results = dict(zip(rows, pool.map(loaded, rows), strict=True))
                unread |= {row: result for row, result in results.items() if isinstance(result, ReadError)}
                bad |= {row: str(result) for row, result in results.items() if isinstance(result, BadImageError)}
                fine = {row: result for row, result in results.items() if not isinstance(result, BadImageError)}
                said |= {row: note for row, (_, note) in fine.items() if note}
                good = [pixels for pixels, _ in fine.values()]
                yield np.stack(good) if good else np.empty((0, *shape[1:]), np.uint8)
        if unread:
            raise _UnreadError({row: unread[row] for row in sorted(unread)}, examples)

    shape = (len(examples), data.image_size, data.image_size, 3)
    how = f"{VERSION} {data.image_size} {data.resize} {data.max_megapixels} {data.bits}"
    key = hashlib.sha256(f"{how} {' '.join(examples.digests)}".encode())
    name, cache = f"pixels-{key.hexdigest()[:16]}", Cache(Path(data.cache).expanduser(), data.cache_gb * 2**30)
    return cache.rows(name, batches, shape, np.uint8, memory_bytes=_memory(data, np.prod(shape)), key=name)


class _UnreadError(DataError):
    """Some contents could not be read again, so that their pixels would not be those of the digests."""

    def __init__(self, rows: dict[int, ReadError], examples: Examples) -> None:
        named = [f"{str(examples.ids[row])!r}: {reason}" for row, reason in rows.items()]
        super().__init__(
            f"{len(rows)} images that are needed once more cannot be read any more:\n  {first_lines(named)}"
        )
        self.rows = rows


def _without(examples: Examples, bad: Mapping[int, object]) -> Examples:
    """The examples but these, which are named with the reason in `skipped`."""
    good = np.array([row not in bad for row in range(len(examples))], bool)
    kept = examples.take(good, [(str(examples.ids[row]), str(reason)) for row, reason in bad.items()])
    return dataclasses.replace(kept, digests=kept.digests.astype(str))


def _memory(data: Data, size: float) -> float:
    """Bytes of pixels that may be held: as the settings say, but no more than half of the memory that is free."""
    wanted, free = data.memory_gb * 2**30, device.available_memory() / 2
    if free < size <= wanted:
        needed = disk.format_bytes(size)
        print(f"decoded images take {needed}, more than half of the free memory: read from {data.cache}")
    return min(wanted, free)


def _digest(source: ImageSource) -> str | ReadError:
    """`contents_digest`, or why a file cannot be read."""
    try:
        return contents_digest(read(source))
    except ReadError as error:
        return error
