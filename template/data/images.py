"""The one way a picture becomes pixels, for training, evaluation and prediction alike.

Pillow and not TensorFlow: TensorFlow's decoders ignore EXIF rotation, drop alpha, misread palette BMPs, and can be made
to stall for seconds by a few hostile bytes.
"""

import base64
import io
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

ImageSource = Path | bytes | np.ndarray
"""A file, its bytes, or an array: uint8 or uint16 [height, width], [.., .., 1], [.., .., 3] or [.., .., 4]."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")  # JPEG opens MPO too
MAX_PIXELS = 50_000_000
"""Read from the header before anything is decoded: a file of 400 bytes can claim gigabytes of pixels."""

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
MAX_BYTES = 500_000_000
"""A file is read as a whole; no photograph is larger."""

MAX_PIXELS_PER_BYTE = 2000
"""Of files that claim more than a million pixels: a photograph has 10, a scanned page 200, a trap any number."""

VERSION = 3
"""Part of every cache key. Raise it when the same file would become different pixels."""


class BadImageError(ValueError):
    """A picture that cannot be used; the message is the reason, without the file's name."""


class ReadError(BadImageError):
    """Contents that could not be had or held now. It says nothing about them, so nobody may remember it."""


def load_image(source: ImageSource, size: int, resize: Literal["crop", "pad", "squash"]) -> np.ndarray:
    """Decode, turn upright, flatten to RGB and resize a picture.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        BadImageError: with the reason, if the picture cannot be read; ReadError, if that may pass.
    """
    try:
        image = Image.fromarray(_as_pillow(source)) if isinstance(source, np.ndarray) else _open(source, size)
        return np.asarray(to_square(to_rgb(ImageOps.exif_transpose(image)), size, resize))
    except BadImageError:
        raise
    except MemoryError:
        raise ReadError("there is not enough memory to decode it now; end other programs, or make it smaller") from None
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, ... on broken files
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadImageError(f"cannot be decoded ({what}); convert it to JPEG or PNG") from error


def dimensions(source: ImageSource) -> tuple[int, int]:
    """Width and height of a picture that `load_image` can read, from its header, before it is turned upright."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        return image.size


def address(image: np.ndarray) -> str:
    """`data:image/jpeg;base64,...` of uint8 [height, width, 3], for a page that needs no other file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode: alpha on white, 16-bit scaled by its range, palettes and CMYK converted."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:  # 32 bits have no customary range: use the picture's own
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all():
            raise BadImageError("has values that are not finite; mend or remove it")
        spread = np.ptp(values)
        scaled = (values - values.min()) * (255 / spread) if spread > 0 else np.clip(values, 0, 255)
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_square(image: Image.Image, size: int, resize: Literal["crop", "pad", "squash"]) -> Image.Image:
    """Resize to size x size with antialiasing: cut the longer side, add a grey border, or change the aspect."""
    bilinear = Image.Resampling.BILINEAR  # Pillow's filters widen with the scale, so they antialias
    if resize == "crop":
        return ImageOps.fit(image, (size, size), bilinear)
    if resize == "pad":
        if 2 * size * min(image.size) <= max(image.size):  # Pillow would return the border and no picture
            raise BadImageError(
                f"{image.width} x {image.height} is too narrow to keep its aspect in {size} pixels; crop it"
            )
        return ImageOps.pad(image, (size, size), bilinear, color=(128, 128, 128))
    return image.resize((size, size), bilinear)


def _open(source: Path | bytes, size: int) -> Image.Image:
    """Check the header, then decode the first frame."""
    data = source if isinstance(source, bytes) else read(source)
    if not data:
        raise BadImageError("the file is empty; copy or download it again")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception:
        raise BadImageError(_what_it_is(data)) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels; make it smaller")
    if image.width * image.height > max(1_000_000, MAX_PIXELS_PER_BYTE * len(data)):
        claims = f"{image.width} x {image.height} pixels in {len(data):,} bytes"
        raise BadImageError(f"{image.format} claims {claims}: nothing to see, or a trap; remove it")
    if image.format in {"JPEG", "MPO"}:
        image.draft(None, (2 * size, 2 * size))  # decode large photographs at 1/2, 1/4 or 1/8, never below twice size
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise BadImageError(f"{image.format} is damaged or cut short ({why}); copy or download it again") from error
    if image.format == "PPM" and image.mode == "I":  # Pillow scales these to 16 bits and keeps them in 32
        return image.convert("I;16")
    return image


def read(path: Path) -> bytes:
    """Contents of a file.

    Raises:
        ReadError: if there is none that can be read. A pipe or a device is not opened: reading could last for ever.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ReadError("a directory, pipe or device and not a file; remove it")
        if facts.st_size > MAX_BYTES:
            raise ReadError(f"{facts.st_size:,} bytes are more than {MAX_BYTES:,}; is it a picture? Make it smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise ReadError("no such file (or a link to nowhere); restore or remove it") from None
    except PermissionError:
        raise ReadError("no permission to read it; change its rights") from None
    except MemoryError:
        raise ReadError("there is not enough memory to read it now; end other programs, or remove it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or error
        raise ReadError(f"cannot be read: {why}; try again, or restore or remove it") from None


def _what_it_is(data: bytes) -> str:
    """Say what undecodable bytes look like and what to do."""
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return f"a web page or SVG, not a photograph ({len(data):,} bytes; a failed download? Get it again)"
    if data[4:12] in {b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"}:
        return "HEIC (iPhone); convert it to JPEG"
    if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
        return "JPEG XL; convert it to JPEG or PNG"
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning):
            return f"{kind} is damaged or cut short (it cannot be opened); copy or download it again"
    if head[:64].isascii() and head[:64].decode().isprintable():
        return "text, not an image; remove it"
    return f"not an image in {', '.join(FORMATS)}; convert it to JPEG or PNG if it is one"


def _as_pillow(array: np.ndarray) -> np.ndarray:
    """16 bits scaled to 8, and [h, w, 1] -> [h, w]: what Pillow takes."""
    if array.dtype not in (np.uint8, np.uint16) or array.size == 0:
        raise BadImageError(f"expected an array of uint8 or uint16, received {array.dtype} {list(array.shape)}")
    array = (array // 257).astype(np.uint8) if array.dtype == np.uint16 else array
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
