"""The one way an image becomes pixels, for training, evaluation and prediction alike.

Pillow and not TensorFlow: TensorFlow's decoders ignore EXIF rotation, drop alpha, misread palette BMPs, and can be made
to stall for seconds by a few hostile bytes.
"""

import base64
import contextlib
import ctypes
import functools
import io
import itertools
import logging
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ...config import Data
from .color import on_background, to_srgb
from .depth import significant_bits, to_uint8
from .reasons import (
    FORMATS,
    RAW,
    BadImageError,
    ReadError,
    black_is_zero,
    declared_bits,
    is_raw,
    is_reduced,
    lean,
    misread,
    why_not,
)

ImageSource = Path | bytes | np.ndarray
"""A file, its bytes, or an array: uint8 or uint16 [height, width], [.., .., 1], [.., .., 3] or [.., .., 4]."""

MAX_BYTES = 500_000_000
"""A file is read as a whole; no photograph is larger."""
MAX_PIXELS_PER_BYTE = 2000
"""Of files that claim more than 25 million pixels: a photograph has 10, a scanned page 200, a trap any number."""
LARGE = 50_000_000
"""Pixels beyond which images are decoded one at a time, and made smaller before anything else."""
VERSION = 5
"""Part of every cache key. Raise it when the same file would become different pixels."""

_TURNS = dict(enumerate(
    (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
     Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    start=2,
))  # fmt: skip
"""What makes an image upright, by its EXIF orientation."""
_one_at_a_time = threading.Lock()

warnings.filterwarnings("ignore", module=r"PIL\.")  # nameless, of damaged tags; what matters becomes a reason or a note
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def load_image(source: ImageSource, size: int, resize: Literal["crop", "pad", "stretch"]) -> np.ndarray:
    """`load` with the default settings of what may be read, and without the note."""
    return load(source, _default(size, resize))[0]


_default = functools.cache(lambda size, resize: Data(image_size=size, resize=resize))


def load(source: ImageSource, how: Data) -> tuple[np.ndarray, str]:
    """Decode, turn upright, flatten to sRGB and resize an image.

    Args:
        source: file, bytes or array.
        how: image_size and resize (not `auto`), max_megapixels, bits.

    Returns:
        uint8 [size, size, 3], RGB; and a note on what had to be assumed to see something, or "".

    Raises:
        BadImageError: with the reason, if the image cannot be read; ReadError, if that may pass.
    """
    notes: list[str] = []
    try:
        if isinstance(source, np.ndarray):
            image, profile = _of_array(source, how, notes), None
        else:
            image, profile = _decoded(read(source) if isinstance(source, Path) else source, how, notes)
        image, note = on_background(image)
        notes.append(note)
        image, note = to_srgb(image, profile)
        notes.append(note)
        pixels = np.asarray(to_square(image, how.image_size, how.resize))
        return pixels, "; ".join(filter(None, notes))
    except BadImageError:
        raise
    except MemoryError:
        raise ReadError("there is not enough memory to decode it now; end other programs, or make it smaller") from None
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, ... on broken files
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadImageError(f"cannot be decoded ({what}); convert it to JPEG or PNG") from error


def header(source: ImageSource) -> tuple[str, str, int, int]:
    """Format, mode, width and height of an image that `load` can read, before it is turned upright."""
    if isinstance(source, np.ndarray):
        return "array", str(source.dtype), source.shape[1], source.shape[0]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _choose_page(image, b"", [])
            return str(image.format), image.mode, *image.size
    except Exception:  # what `load` mends before it is opened, and sizes that only the settings allow
        image = _open(lean(read(source) if isinstance(source, Path) else source), megapixels=10_000)
        return str(image.format), image.mode, *image.size


def needed_bits(source: ImageSource, how: Data) -> tuple[int, int]:
    """How many bits the values of a 16-bit image need, 8 to 16, and the largest; 0, 0 of others and damaged ones."""
    try:
        if isinstance(source, np.ndarray):
            bits = significant_bits(_colours(source)) if source.dtype == np.uint16 else 0
            return bits, int(_colours(source).max())
        if isinstance(source, Path):
            source = read(source) if _may_be_deep(read(source, 32)) else b""  # of most the beginning is enough
        image, contents = _opened(source, how, [])
        with _turn(image):
            if not (_may_be_deep(source) and _is_deep(image)):
                return 0, 0
            values, bits = _deep(image, contents)
        return bits, 2**16 - 1 if values is None else int(_colours(values).max())
    except Exception:  # why it cannot be used is said where it is decoded
        return 0, 0


def address(image: np.ndarray) -> str:
    """`data:image/jpeg;base64,...` of uint8 [height, width, 3], for a page that needs no other file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def to_square(image: Image.Image, size: int, resize: Literal["crop", "pad", "stretch"]) -> Image.Image:
    """Resize to size x size with antialiasing: cut the longer side, add a grey border, or change the aspect."""
    bilinear = Image.Resampling.BILINEAR  # Pillow's filters widen with the scale, so they antialias
    if resize == "crop":
        return ImageOps.fit(image, (size, size), bilinear)
    if resize == "pad":
        if 2 * size * min(image.size) <= max(image.size):  # Pillow would return the border and no image
            raise BadImageError(
                f"{image.width} x {image.height} is too narrow to keep its aspect in {size} pixels; crop it"
            )
        return ImageOps.pad(image, (size, size), bilinear, color=(128, 128, 128))
    return image.resize((size, size), bilinear)


def read(path: Path, most: int | None = None) -> bytes:
    """Contents of a file, or its first bytes.

    Raises:
        ReadError: if there is none that can be read. A pipe or a device is not opened: reading could last for ever.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ReadError("a directory, pipe or device and not a file; remove it")
        if facts.st_size > MAX_BYTES:
            raise ReadError(f"{facts.st_size:,} bytes are more than {MAX_BYTES:,}; is it an image? Make it smaller")
        if most is None:
            return path.read_bytes()
        with path.open("rb") as file:
            return file.read(most)
    except ReadError:
        raise
    except FileNotFoundError:
        raise ReadError("no such file (or a link to nowhere); restore or remove it") from None
    except PermissionError:
        raise ReadError("no permission to read it; change its rights") from None
    except MemoryError:
        raise ReadError("there is not enough memory to read it now; end other programs, or remove it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or error
        raise ReadError(f"cannot be read: {why}; try again, or restore or remove it") from None


def _decoded(contents: bytes, how: Data, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The upright image in 8 bits and any mode, and its colour profile."""
    image, contents = _opened(contents, how, notes)
    size, large = int(how.image_size), image.width * image.height > LARGE
    with _turn(image):
        if image.format in {"JPEG", "MPO"}:
            image.draft(None, (2 * size, 2 * size))  # decode at 1/2, 1/4 or 1/8, never below twice the size
        profile = image.info.get("icc_profile")
        image = _upright(_in_8_bits(image, contents, how, notes))
        return (_smaller(image, size) if large else image), profile


def _opened(contents: bytes, how: Data, notes: list[str]) -> tuple[Image.Image, bytes]:
    """Checked and at the right page, but not decoded; and the bytes that it is read from."""
    if not contents:
        raise BadImageError("the file is empty; copy or download it again")
    contents = lean(contents)
    image = _open(contents, how.max_megapixels)
    _choose_page(image, contents, notes)
    _refuse_traps(image, len(contents), how.max_megapixels)
    return image, contents


def _turn(image: Image.Image) -> contextlib.AbstractContextManager:
    """Large images are decoded one at a time, whatever the number of threads."""
    return _one_at_a_time if image.width * image.height > LARGE else contextlib.nullcontext()


def _too_many(size: str, megapixels: float) -> str:
    return f"{size} is more than {megapixels:g} megapixels; make it smaller, or raise data.max_megapixels"


def _open(contents: bytes, megapixels: float) -> Image.Image:
    """Read the header."""
    # Pillow refuses twice its limit: some formats take memory when they are opened. Ours, with a setting, comes next.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 500_000)
    try:
        image = Image.open(io.BytesIO(contents), formats=FORMATS)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+ pixels", str(error))
        raise BadImageError(_too_many(pixels[0] if pixels else "it", megapixels)) from None
    except Exception as error:
        other = black_is_zero(contents)
        if other is None:
            raise BadImageError(why_not(contents, error)) from None
        image = _open(other, megapixels)
        image.info["white is zero"] = True
    if image.format == "TIFF":
        _silence_libtiff()
    return image


def _refuse_traps(image: Image.Image, length: int, megapixels: float) -> None:
    """Before anything is decoded: a file of 400 bytes can claim gigabytes of pixels."""
    pixels, claims = image.width * image.height, f"{image.width} x {image.height}"
    if pixels > megapixels * 1e6:
        raise BadImageError(_too_many(claims, megapixels))
    # A page that is nearly empty packs to any degree, and in one byte a pixel it costs little.
    plain = image.format in {"PNG", "TIFF", "BMP"} and image.mode in {"1", "L", "P"}
    if not plain and pixels > max(25_000_000, MAX_PIXELS_PER_BYTE * length):
        claims = f"{claims} pixels in {length:,} bytes"
        raise BadImageError(f"{image.format} claims {claims}: nothing to see, or a trap; remove it")


def _choose_page(image: Image.Image, contents: bytes, notes: list[str]) -> None:
    """Go to the first page that is no thumbnail of another, and note if it is not alone."""
    if image.format != "TIFF":
        if image.format != "MPO" and getattr(image, "is_animated", False):  # of MPO the others are the other eye's
            notes.append("an animation, of which the first frame is used")
        return
    if is_raw(image.tag_v2, contents):
        raise BadImageError(RAW)
    if image.is_animated or is_reduced(image.tag_v2):
        full = list(itertools.islice(_full_pages(image), 2))
        if not full:
            raise BadImageError(RAW)
        image.seek(full[0])
        if len(full) > 1:
            notes.append("more than one page, of which the first is used")
    if kind := misread(image.tag_v2):
        raise BadImageError(f"not supported: TIFF with {kind}; convert it to PNG")


def _full_pages(image: Image.Image) -> Iterator[int]:
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


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise BadImageError(f"{image.format} is damaged or cut short ({why}); copy or download it again") from error


def _in_8_bits(image: Image.Image, contents: bytes, how: Data, notes: list[str]) -> Image.Image:
    """Decode. More than 8 bits are scaled by the range that they use, 32 by what is there."""
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0 and image.mode not in {"1", "L", "P"}
    inverted |= "white is zero" in image.info
    values, bits = _deep(image, contents)
    if values is not None:
        pixels = _scaled(values, bits, how, notes)
    elif image.mode in {"I", "F"}:
        pixels = _spread(np.asarray(image, np.float64))
        notes.append("32 bits have no customary range: spread over that of each image")
    else:
        return image
    return Image.fromarray(255 - pixels if inverted else pixels)


def _deep(image: Image.Image, contents: bytes) -> tuple[np.ndarray | None, int]:
    """Decode, and give what 8 bits would lose.

    Returns:
        uint16 [h, w], [h, w, 3] or [h, w, 4] if the image has 16 bits that must be scaled, else None; and how many of
        16 bits it needs: 8 to 16, or 0 if that cannot be told.
    """
    page, tile, raw = image.tell(), image.tile[0] if image.tile else None, _raw(image)
    _load(image)
    declared = declared_bits(contents, image.tag_v2 if image.format == "TIFF" else None)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
    elif image.format == "PPM" and image.mode == "I":  # which Pillow scales to 16 bits and keeps in 32
        values, declared = np.asarray(image).astype(np.uint16), 0 if tile.codec_name == "raw" else 16
    elif image.format == "PPM" and tile.codec_name == "ppm" and tile.args[1] == 65535:
        values = np.frombuffer(contents, ">u2", image.width * image.height * 3, tile.offset).astype(np.uint16)
        values = values.reshape(image.height, image.width, 3)
    elif image.mode in {"RGB", "RGBA"} and ";16" in raw:
        high = np.asarray(image)
        if high[..., :3].max() >= 64 or declared == 16:
            return None, 16
        values = high.astype(np.uint16) * 256 + _low_bytes(contents, page, raw)
    else:
        return None, 0
    return values, significant_bits(_colours(values), declared)


def _raw(image: Image.Image) -> str:
    """Pillow's name of how the values lie in the file, such as `RGB;16B`; "" if it has none."""
    args = image.tile[0].args if image.tile else ""
    return str(args if isinstance(args, str) else (args or ("",))[0])


def _is_deep(image: Image.Image) -> bool:
    """Whether an image may have 16 bits, before it is decoded."""
    return image.mode.startswith("I") or ";16" in _raw(image) or image.format == "PPM"


def _colours(values: np.ndarray) -> np.ndarray:
    """Without alpha."""
    return values[..., :3] if values.ndim == 3 else values


def _low_bytes(contents: bytes, page: int, raw: str) -> np.ndarray:
    """The lower half of 16 bits in colour, of which Pillow keeps the upper: decoded once more in the other byte order.

    Pillow calls the order `RGB;16B` (ig), `RGB;16L` (ittle) or `RGB;16N` (ative). It has one of grey with alpha only;
    but those four bytes may be read as those of RGBA.
    """
    big = raw.endswith("B") or (raw.endswith("N") and sys.byteorder == "big")
    other = "RGBA" if raw == "LA;16B" else raw[:-1] + ("L" if big else "B")
    again = Image.open(io.BytesIO(contents), formats=FORMATS)
    if page:
        again.seek(page)
    again.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in again.tile
    ]
    _load(again)
    return np.asarray(again)[..., [1, 1, 1, 3]] if other == "RGBA" else np.asarray(again)


def _scaled(values: np.ndarray, needed: int, how: Data, notes: list[str]) -> np.ndarray:
    """8 of 16 bits: by the range of the data set if that is known, else by what the image needs; uint8 of one shape."""
    bits = max(needed, 0 if how.bits == "auto" else how.bits) if needed else 16
    if bits < 16:
        notes.append(f"{bits} of 16 bits are used, and scaled by that")
    pixels = to_uint8(values, bits)
    if values.ndim == 3 and values.shape[2] == 4 and int(values[..., 3].max()) >= 2**bits:
        pixels[..., 3] = to_uint8(values[..., 3], 16)  # an alpha of its own range
    return pixels


def _spread(values: np.ndarray) -> np.ndarray:
    """From least to most, as 0 to 255."""
    if not np.isfinite(values).all():
        raise BadImageError("has values that are not finite; mend or remove it")
    spread = np.ptp(values)
    scaled = (values - values.min()) * (255 / spread) if spread > 0 else np.clip(values, 0, 255)
    return scaled.astype(np.uint8)


def _of_array(array: np.ndarray, how: Data, notes: list[str]) -> Image.Image:
    """An array as an image of 8 bits."""
    if array.dtype not in (np.uint8, np.uint16) or array.size == 0:
        raise BadImageError(f"expected an array of uint8 or uint16, received {array.dtype} {list(array.shape)}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype == np.uint16:
        array = _scaled(array, significant_bits(_colours(array)), how, notes)
    return Image.fromarray(array)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. Only the turn is read: other tags may be as odd as they like."""
    try:
        method = _TURNS.get(image.getexif().get(0x0112))
    except Exception:  # whatever Pillow makes of a damaged block
        return image
    return image if method is None else image.transpose(method)


def _smaller(image: Image.Image, size: int) -> Image.Image:
    """A large image at a whole fraction of its size, never below four times the size that is wanted."""
    image = image.convert("L") if image.mode == "1" else image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = min(image.size) // (4 * size)
    return image.reduce(factor) if factor > 1 else image


def _may_be_deep(beginning: bytes) -> bool:
    """Whether a file may have 16 bits: a PNG whose header says so, a TIFF, a PGM or PPM."""
    if beginning.startswith(b"\x89PNG"):
        return beginning[24:25] == b"\x10"
    return beginning[:2] in {b"II", b"MM", b"P2", b"P3", b"P5", b"P6"}


@functools.cache
def _silence_libtiff() -> None:
    """It writes to the terminal by itself, without the name of the file; what matters of it is in the error."""
    with contextlib.suppress(OSError, AttributeError):  # where it cannot be found, it goes on talking
        libtiff = ctypes.CDLL(Image.core.__file__)
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)
