"""From a file to an opened image: its bytes, its header, and what is refused before anything is decoded."""

import contextlib
import ctypes
import functools
import io
import itertools
import logging
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .reasons import (
    FORMATS,
    RAW,
    BadImageError,
    ReadError,
    TooLargeError,
    black_is_zero,
    explain_failure,
    is_raw,
    is_reduced,
    strip_chunks,
    unsupported_layout,
)

ImageSource = Path | bytes | np.ndarray
"""A file, its bytes, or an array: uint8 or uint16 [height, width], [.., .., 1], [.., .., 3] or [.., .., 4]."""

MAX_BYTES = 500_000_000
"""Of a file, which is read as a whole; no photograph is larger."""
MAX_PIXELS_PER_BYTE = 2000
"""Of files that claim more than 25 million pixels: a photograph has 10, a scanned page 200, a bomb any number."""
LARGE = 50_000_000
"""Pixels beyond which images are decoded one at a time, and made smaller before anything else."""

_one_at_a_time, _one_opens = threading.Lock(), threading.Lock()

warnings.filterwarnings("ignore", module=r"PIL\.")  # nameless, of damaged tags; what matters becomes a reason or a note
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@overload
def read(source: Path | bytes, most: int | None = None) -> bytes: ...
@overload
def read(source: np.ndarray, most: int | None = None) -> np.ndarray: ...
def read(source: ImageSource, most: int | None = None) -> bytes | np.ndarray:
    """Contents of a file, or its first bytes; bytes and arrays as they are.

    Raises:
        ReadError: if the file cannot be read. A pipe or a device is not opened: reading could last for ever.
    """
    if not isinstance(source, Path):
        return source
    try:
        facts = source.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ReadError("a directory, pipe or device, not a file; remove it")
        if facts.st_size > MAX_BYTES:
            raise ReadError(f"{facts.st_size:,} bytes are more than {MAX_BYTES:,}; is it an image? Make it smaller")
        if most is None:
            return source.read_bytes()
        with source.open("rb") as file:
            return file.read(most)
    except ReadError:
        raise
    except FileNotFoundError:
        raise ReadError("no such file (or a broken link); restore or remove it") from None
    except PermissionError:
        raise ReadError("no permission to read it; change its permissions") from None
    except MemoryError:
        raise ReadError("not enough memory to read it now; close other programs, or remove it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or error
        raise ReadError(f"cannot be read: {why}; try again, or restore or remove it") from None


def read_header(source: ImageSource) -> tuple[str, str, int, int]:
    """Format, mode, width and height of an image that `load` can read, before its EXIF orientation is applied."""
    if isinstance(source, np.ndarray):
        return "array", str(source.dtype), source.shape[1], source.shape[0]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _choose_page(image, b"", [])
            return str(image.format), image.mode, *image.size
    except Exception:  # what `open_image` repairs, and sizes that only the settings allow
        repaired = _open(strip_chunks(read(source)), megapixels=10_000)
        return str(repaired.format), repaired.mode, *repaired.size


def open_image(contents: bytes, max_megapixels: float, notes: list[str]) -> tuple[ImageFile, bytes]:
    """An image that is checked and at the right page, but not decoded; and the bytes that it is read from.

    Args:
        contents: of a file.
        max_megapixels: images that claim more are refused.
        notes: what had to be assumed is added to it.

    Raises:
        BadImageError: with the reason, if it cannot be used.
    """
    if not contents:
        raise BadImageError("the file is empty; copy or download it again")
    contents = strip_chunks(contents)
    image = _open(contents, max_megapixels)
    _choose_page(image, contents, notes)
    _refuse_bombs(image, len(contents), max_megapixels)
    return image, contents


def decode_image(image: Image.Image) -> None:
    """Decode its pixels, in place.

    Raises:
        BadImageError: if it is damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise BadImageError(f"{image.format} is damaged or cut short ({why}); copy or download it again") from error


def memory_lock(image: Image.Image) -> contextlib.AbstractContextManager:
    """What to hold while an image is decoded: large ones are decoded one at a time, whatever the number of threads."""
    return _one_at_a_time if is_large(image) else contextlib.nullcontext()


def is_large(image: Image.Image) -> bool:
    """Whether it is decoded alone, and made smaller before anything else."""
    return image.width * image.height > LARGE


def open_within(contents: bytes, megapixels: float | None) -> ImageFile:
    """Pillow's `open`, with a limit that holds for this image alone.

    Pillow has one for the whole process, and a server has runs with others: nobody opens meanwhile, and it is as before
    afterwards. It refuses twice its limit, before the memory that some formats take when they are opened.

    Args:
        contents: of a file.
        megapixels: None for one that is known to be within its limit.
    """
    with _one_opens:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if megapixels is None else int(megapixels * 500_000)
        try:
            return Image.open(io.BytesIO(contents), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(contents: bytes, megapixels: float) -> ImageFile:
    """Read the header. Our own limit, which a setting raises, comes next."""
    try:
        image = open_within(contents, megapixels)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"(\d+) pixels", str(error))
        raise TooLargeError(f"{int(pixels[1]):,} pixels" if pixels else "it", megapixels) from None
    except Exception as error:
        other = black_is_zero(contents)
        if other is None:
            raise BadImageError(explain_failure(contents, error)) from None
        image = _open(other, megapixels)
        image.info["white is zero"] = True
    if image.format == "TIFF":
        _silence_libtiff()
    return image


def _refuse_bombs(image: Image.Image, length: int, megapixels: float) -> None:
    """Before anything is decoded: a file of 400 bytes can claim gigabytes of pixels."""
    pixels, claims = image.width * image.height, f"{image.width} x {image.height}"
    if pixels > megapixels * 1e6:
        raise TooLargeError(claims, megapixels)
    # A page that is nearly empty packs to any degree, and in one byte a pixel it costs little.
    plain = image.format in {"PNG", "TIFF", "BMP"} and image.mode in {"1", "L", "P"}
    if not plain and pixels > max(25_000_000, MAX_PIXELS_PER_BYTE * length):
        claims = f"{claims} pixels in {length:,} bytes"
        raise BadImageError(f"{image.format} claims {claims}: empty, or a decompression bomb; remove it")


def _choose_page(image: ImageFile, contents: bytes, notes: list[str]) -> None:
    """Go to the first page that is no thumbnail of another, and note if there are more."""
    if not isinstance(image, TiffImageFile):
        if image.format != "MPO" and getattr(
            image, "is_animated", False
        ):  # the other images of an MPO are the other eye's
            notes.append("only the first frame of the animation is used")
        return
    if is_raw(image.tag_v2, contents):
        raise BadImageError(RAW)
    if image.is_animated or is_reduced(image.tag_v2):
        full = list(itertools.islice(_full_pages(image), 2))
        if not full:
            raise BadImageError(RAW)
        image.seek(full[0])
        if len(full) > 1:
            notes.append("only the first of several pages is used")
    if kind := unsupported_layout(image.tag_v2):
        raise BadImageError(f"not supported: TIFF with {kind}; convert it to PNG")


def _full_pages(image: TiffImageFile) -> Iterator[int]:
    """Pages of a TIFF that are no thumbnails or masks, and of a kind that can be read."""
    for page in range(16):
        try:
            image.seek(page)
        except EOFError:
            return
        except Exception:  # whatever Pillow makes of a page that it does not know
            continue
        if not is_reduced(image.tag_v2):
            yield page


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to the terminal, without the name of a file; what matters is in the error."""
    with contextlib.suppress(OSError, AttributeError):  # where it cannot be found, it goes on writing
        libtiff = ctypes.CDLL(Image.core.__file__)  # its C library
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)
