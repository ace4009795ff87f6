"""What is known of each image before training: format, size, and a thumbnail."""

import dataclasses
from dataclasses import dataclass, field, fields

import cv2
import numpy as np

from ... import device, progress
from ...config import Data
from ..array_file import Rows
from ..decode import contents_digest, with_bits
from ..examples import Examples
from ..images.load import load
from ..images.read import ImageSource, read, read_header
from ..images.reasons import BadImageError

THUMBNAIL = 64
"""Side of the thumbnails, in pixels."""


@dataclass
class Facts:
    """What is known of each image, [n] each; NaN, zero or "" where it could not be read.

    Args:
        reason: why it could not be read, or "".
        digest: sha256 of the contents.
        format: as the contents say.
        mode: of its colours, in Pillow's words.
        width: in pixels.
        height: in pixels.
        file_size: in bytes.
        thumbnails: uint8 [n, THUMBNAIL, THUMBNAIL, 3].
        note: what had to be assumed to decode it, or "".
    """

    reason: np.ndarray
    digest: np.ndarray
    format: np.ndarray
    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    file_size: np.ndarray
    thumbnails: np.ndarray
    note: np.ndarray
    brightness: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.brightness = self.thumbnails.mean(axis=(1, 2, 3))

    @property
    def readable(self) -> np.ndarray:
        """Bool [n]."""
        return self.reason == ""

    def take(self, rows: np.ndarray) -> "Facts":
        """The facts of these rows."""
        return Facts(*(getattr(self, name.name)[rows] for name in fields(self) if name.init))


def read_facts(examples: Examples, data: Data | None = None) -> Facts:
    """Facts from the files: every image is read and decoded once, in threads.

    Args:
        examples: n of them.
        data: settings of reading; the default ones if None.
    """
    data = dataclasses.replace(with_bits(data or Data(), examples.images), image_size=THUMBNAIL, resize="stretch")
    with device.threads() as pool:
        facts = pool.map(lambda source: _read_one(source, data), examples.images)
        rows = list(progress.track(facts, "reading", len(examples)))
    return Facts(*(np.array(column) for column in zip(*rows, strict=True)))


def facts_from_pixels(examples: Examples, pixels: Rows, rows: np.ndarray) -> Facts:
    """Facts from images that are decoded already: only the headers of their files are read.

    Of a file that was deleted since, the reason says so.

    Args:
        examples: n of them, with digests and notes.
        pixels: uint8 [n or more, size, size, 3].
        rows: of the examples in the pixels, int64 [n].
    """
    with device.threads() as pool:
        rows_read = progress.track(pool.map(_read_header_again, examples.images), "reading headers", len(examples))
        reasons, *headers = zip(*rows_read, strict=True)
    thumbnails = np.zeros((len(examples), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for start in range(0, len(rows), 256):
        for row, image in enumerate(pixels[rows[start : start + 256]], start):
            thumbnails[row] = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    notes = np.full(len(examples), "") if examples.notes is None else examples.notes
    columns = [np.array(reasons), examples.known_digests, *map(np.array, headers), thumbnails, notes]
    return Facts(*columns)


def _read_one(source: ImageSource, data: Data) -> tuple:
    """The facts of one image, in the order of the fields of `Facts`."""
    try:
        contents = read(source)
        thumbnail, note = load(contents, data)
        return "", contents_digest(contents), *_header(contents), thumbnail, note
    except (BadImageError, OSError) as error:
        return str(error), "", "", "", 0, 0, 0, np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8), ""


def _read_header_again(source: ImageSource) -> tuple:
    """Reason, format, mode, width, height and bytes of an image that could be decoded before."""
    try:
        return "", *_header(source)
    except (OSError, ValueError) as error:
        return f"it was deleted or changed after it was decoded ({error})", "", "", 0, 0, 0


def _header(source: ImageSource) -> tuple[str, str, int, int, int]:
    """Format, mode, width, height and bytes of an image that can be read; decodes nothing."""
    if isinstance(source, np.ndarray):
        return *read_header(source), source.nbytes
    return *read_header(source), len(source) if isinstance(source, bytes) else source.stat().st_size
