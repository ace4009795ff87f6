"""Images of 16 bits, scaled to 8: cameras and microscopes of 10, 12 and 14 bits leave the upper ones empty.

Scaled by 65,535, such an image is nearly black. A file alone cannot tell a dark image of 12 bits from one of 10, so the
rule has two halves: a file says what it needs at least (`significant_bits`), and all files of one data set are scaled
by what the most demanding of them needs (`bits_of_set`, which a run settles once as `data.bits` and predict.py uses
too), unless the images evidently come from several devices.
"""

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .read import ImageSource, decode_image, memory_lock, open_image, open_within, read
from .reasons import BadImageError, declared_bits

Bits = int | Literal["auto"]
"""`data.bits`: how many of 16 bits all images of a data set use, or `auto` for each on its own."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths that devices have."""


def significant_bits(values: np.ndarray, declared: int = 0) -> int:
    """How many bits the values of an image need: of `DEPTHS` the smallest that holds them, or what the file declares.

    Args:
        values: uint16, of any shape.
        declared: bits that the file says it has (sBIT of PNG, MaxSampleValue or BitsPerSample of TIFF), or 0.

    Returns:
        8 to 16; 0 if the values do not tell: all zero, or 8 bits that were stretched to 16 (multiples of 257).
    """
    most = int(values.max())
    if declared and most < 2**declared:
        return max(declared, DEPTHS[0])
    if not most or (most < 2**14 and not (values % 257).any()):
        return 0
    return next(bits for bits in DEPTHS if most < 2**bits)


def bits_of_set(files: Sequence[tuple[int, int]]) -> int:
    """By how many bits to scale all 16-bit files of a data set.

    By what the most demanding needs, so that dark images stay dark beside bright ones. But where most of those that
    need fewer fill these nearly, they are no dark images: they come from another device, and each file is on its own.

    Args:
        files: the bits that each file needs, and its largest value.

    Returns:
        8 to 16; 0 if each is on its own, or none has 16 bits.
    """
    most = max((bits for bits, _ in files), default=0)
    for depth in {bits for bits, _ in files} - {0, most}:
        full = [largest >= 7 / 8 * 2**depth for bits, largest in files if bits == depth]
        if 2 * sum(full) > len(full):
            return 0
    return most


def to_uint8(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale uint16 by a range of so many bits; what lies beyond becomes white."""
    table = np.minimum(np.arange(65536) * 255 / (2**bits - 1), 255).round().astype(np.uint8)
    return table[values]


def needed_bits(source: ImageSource, max_megapixels: float) -> tuple[int, int]:
    """How many bits the values of a 16-bit image need, 8 to 16, and the largest; 0, 0 of others and damaged ones.

    Args:
        source: file, bytes or array.
        max_megapixels: larger images are not decoded.
    """
    try:
        if isinstance(source, np.ndarray):
            bits = significant_bits(without_alpha(source)) if source.dtype == np.uint16 else 0
            return bits, int(without_alpha(source).max())
        if not _may_be_deep(read(source, 32)):  # for most files the first bytes are enough
            return 0, 0
        image, contents = open_image(read(source), max_megapixels, [])
        with memory_lock(image):
            if not _is_deep(image):
                return 0, 0
            values, bits = _deep(image, contents)
        return bits, 2**16 - 1 if values is None else int(without_alpha(values).max())
    except Exception:  # the reason is given where it is decoded
        return 0, 0


def to_8_bits(image: ImageFile, contents: bytes, bits: Bits, notes: list[str]) -> Image.Image:
    """Decode to 8 bits: 16 are scaled by the bits that are used, 32 by least and greatest value."""
    inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0 and image.mode not in {"1", "L", "P"}
    inverted |= "white is zero" in image.info
    values, needed = _deep(image, contents)
    if values is not None:
        pixels = scale_to_8_bits(values, needed, bits, notes)
    elif image.mode in {"I", "F"}:
        pixels = _stretch(np.asarray(image, np.float64))
        notes.append("32 bits have no customary range: each image is scaled by its least and greatest value")
    else:
        return image
    return Image.fromarray(255 - pixels if inverted else pixels)


def _deep(image: ImageFile, contents: bytes) -> tuple[np.ndarray | None, int]:
    """Decode, and give what 8 bits would lose.

    Returns:
        uint16 [h, w], [h, w, 3] or [h, w, 4] if the image has 16 bits that must be scaled, else None; and how many of
        16 bits it needs: 8 to 16, or 0 if that cannot be told.
    """
    page, raw = image.tell(), _raw(image)
    codec, _, offset, args = image.tile[0] if image.tile else ("", None, 0, None)
    decode_image(image)
    declared = declared_bits(contents, image.tag_v2 if isinstance(image, TiffImageFile) else None)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
    elif image.format == "PPM" and image.mode == "I":  # which Pillow scales to 16 bits and keeps in 32
        values, declared = np.asarray(image).astype(np.uint16), 0 if codec == "raw" else 16
    elif image.format == "PPM" and codec == "ppm" and args is not None and args[1] == 65535:
        values = np.frombuffer(contents, ">u2", image.width * image.height * 3, offset).astype(np.uint16)
        values = values.reshape(image.height, image.width, 3)
    elif image.mode in {"RGB", "RGBA"} and ";16" in raw:
        high = np.asarray(image)
        if high[..., :3].max() >= 64 or declared == 16:
            return None, 16
        values = high.astype(np.uint16) * 256 + _low_bytes(contents, page, raw)
    else:
        return None, 0
    return values, significant_bits(without_alpha(values), declared)


def _raw(image: ImageFile) -> str:
    """Pillow's name of how the values lie in the file, such as `RGB;16B`; "" if it has none."""
    args = image.tile[0].args if image.tile else ""
    return str(args if isinstance(args, str) else (args or ("",))[0])


def _is_deep(image: ImageFile) -> bool:
    """Whether an image may have 16 bits, before it is decoded."""
    return image.mode.startswith("I") or ";16" in _raw(image) or image.format == "PPM"


def without_alpha(values: np.ndarray) -> np.ndarray:
    """Without alpha."""
    return values[..., :3] if values.ndim == 3 else values


def _low_bytes(contents: bytes, page: int, raw: str) -> np.ndarray:
    """The lower half of 16 bits in colour, of which Pillow keeps the upper: decoded once more in the other byte order.

    Pillow calls the order `RGB;16B` (ig), `RGB;16L` (ittle) or `RGB;16N` (ative). It has one of grey with alpha only;
    but those four bytes may be read as those of RGBA.
    """
    big = raw.endswith("B") or (raw.endswith("N") and sys.byteorder == "big")
    other = "RGBA" if raw == "LA;16B" else raw[:-1] + ("L" if big else "B")
    again = open_within(contents, None)
    if page:
        again.seek(page)
    again.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
        for tile in again.tile
    ]
    decode_image(again)
    return np.asarray(again)[..., [1, 1, 1, 3]] if other == "RGBA" else np.asarray(again)


def scale_to_8_bits(values: np.ndarray, needed: int, bits: Bits, notes: list[str]) -> np.ndarray:
    """8 of 16 bits: by the range of the data set if that is known, else by what the image needs; uint8 of one shape."""
    used = max(needed, 0 if bits == "auto" else bits) if needed else 16
    if used < 16:
        notes.append(f"{used} of 16 bits are used and scaled to 8")
    pixels = to_uint8(values, used)
    if values.ndim == 3 and values.shape[2] == 4 and int(values[..., 3].max()) >= 2**used:
        pixels[..., 3] = to_uint8(values[..., 3], 16)  # alpha uses another range
    return pixels


def _stretch(values: np.ndarray) -> np.ndarray:
    """Scaled so that the least value is 0 and the greatest 255, uint8."""
    if not np.isfinite(values).all():
        raise BadImageError("has values that are not finite (NaN, infinity); repair or remove it")
    extent = np.ptp(values)
    scaled = (values - values.min()) * (255 / extent) if extent > 0 else np.clip(values, 0, 255)
    return scaled.astype(np.uint8)


def _may_be_deep(beginning: bytes) -> bool:
    """Whether a file may have 16 bits: a PNG whose header says so, a TIFF, a PGM or PPM."""
    if beginning.startswith(b"\x89PNG"):
        return beginning[24:25] == b"\x10"
    return beginning[:2] in {b"II", b"MM", b"P2", b"P3", b"P5", b"P6"}
