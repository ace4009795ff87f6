"""How an image becomes pixels, in training, evaluation and prediction alike.

With Pillow and not TensorFlow: TensorFlow's decoders ignore EXIF rotation, drop alpha, misread palette BMPs, and can be
made to stall for seconds by a few malicious bytes.
"""

import base64
import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from .color import flatten_alpha, to_srgb
from .depth import Bits, scale_to_8_bits, significant_bits, to_8_bits, without_alpha
from .read import ImageSource, is_large, memory_lock, open_image, read
from .reasons import BadImageError, ReadError

if TYPE_CHECKING:  # an exported network is served where pydantic is not installed
    from ...config import Data

VERSION = 6
"""Part of every cache key. Raise it when the same file would become different pixels or notes."""

_TRANSPOSES = dict(enumerate(
    (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
     Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    start=2,
))  # fmt: skip
"""The transpose that an EXIF orientation asks for."""


class DecodeSettings(Protocol):
    """What decoding asks of `Data`, or of the inputs of an exported network."""

    @property
    def image_size(self) -> int | str: ...  # noqa: D102
    @property
    def bits(self) -> Bits: ...  # noqa: D102
    @property
    def max_megapixels(self) -> float: ...  # noqa: D102


def load_image(source: ImageSource, size: int, resize: Literal["crop", "pad", "stretch"]) -> np.ndarray:
    """`load` with the default limits, without the note."""
    return load(source, _default(size, resize))[0]


@functools.cache
def _default(size: int, resize: Literal["crop", "pad", "stretch"]) -> "Data":
    from ...config import Data

    return Data(image_size=size, resize=resize)


def load(source: ImageSource, settings: "Data") -> tuple[np.ndarray, str]:
    """Decode an image, apply its EXIF orientation, convert it to sRGB without alpha, and resize it to a square.

    Args:
        source: file, bytes or array.
        settings: image_size and resize (not `auto`), max_megapixels, bits.

    Returns:
        uint8 [size, size, 3], RGB; and a note on what had to be assumed to decode it, or "".

    Raises:
        BadImageError: with the reason, if the image cannot be used; ReadError, if that may be temporary.
    """
    (pixels,), note = load_views(source, settings, [settings.resize])
    return pixels, note


def load_views(source: ImageSource, settings: DecodeSettings, resizes: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """`load` for each of several `resize`, from an image that is decoded once."""
    notes: list[str] = []
    try:
        if isinstance(source, np.ndarray):
            image, profile = _of_array(source, settings, notes), None
        else:
            image, profile = _decoded(read(source), settings, notes)
        image, note = flatten_alpha(image)
        notes.append(note)
        image, note = to_srgb(image, profile)
        notes.append(note)
        views = [np.asarray(to_square(image, int(settings.image_size), resize)) for resize in resizes]
        return views, "; ".join(filter(None, notes))
    except BadImageError:
        raise
    except MemoryError:
        raise ReadError("not enough memory to decode it now; close other programs, or make it smaller") from None
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error, ... on broken files
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise BadImageError(f"cannot be decoded ({what}); convert it to JPEG or PNG") from error


def to_square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Resize to size x size with antialiasing: crop the longer side, pad with grey, or change the aspect ratio."""
    bilinear = Image.Resampling.BILINEAR  # Pillow's filters widen with the scale, so they antialias
    if resize == "crop":
        return ImageOps.fit(image, (size, size), bilinear)
    if resize == "pad":
        if 2 * size * min(image.size) <= max(image.size):  # Pillow would return the border and no image
            raise BadImageError(
                f"{image.width} x {image.height} is too narrow to keep its aspect ratio in {size} pixels; crop it"
            )
        return ImageOps.pad(image, (size, size), bilinear, color=(128, 128, 128))
    return image.resize((size, size), bilinear)


def zoom_center(images: np.ndarray) -> np.ndarray:
    """The centre of images uint8 [n, size, size, 3], two thirds of each side, resized to the size of the whole."""
    size, out = images.shape[1], np.empty_like(images)
    box = (size / 6, size / 6, size * 5 / 6, size * 5 / 6)
    for image, result in zip(images, out, strict=True):
        result[:] = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)
    return out


def data_url(image: np.ndarray) -> str:
    """`data:image/jpeg;base64,...` of uint8 [height, width, 3], for a self-contained page."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _decoded(contents: bytes, settings: DecodeSettings, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The image in 8 bits and any mode, its EXIF orientation applied; and its colour profile."""
    opened, contents = open_image(contents, settings.max_megapixels, notes)
    size, large = int(settings.image_size), is_large(opened)
    with memory_lock(opened):
        if opened.format in {"JPEG", "MPO"}:
            opened.draft(None, (2 * size, 2 * size))  # decode at 1/2, 1/4 or 1/8, never below twice the size
        profile = opened.info.get("icc_profile")
        image = _upright(to_8_bits(opened, contents, settings.bits, notes))
        return (_smaller(image, size) if large else image), profile


def _of_array(array: np.ndarray, settings: DecodeSettings, notes: list[str]) -> Image.Image:
    """An array as an image of 8 bits."""
    if array.dtype not in (np.uint8, np.uint16) or array.size == 0:
        raise BadImageError(f"expected an array of uint8 or uint16, received {array.dtype} {list(array.shape)}")
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if array.dtype == np.uint16:
        array = scale_to_8_bits(array, significant_bits(without_alpha(array)), settings.bits, notes)
    return Image.fromarray(array)


def _upright(image: Image.Image) -> Image.Image:
    """With its EXIF orientation applied. No other tag is read, so a damaged one does not matter."""
    try:
        method = _TRANSPOSES.get(image.getexif().get(0x0112, 1))
    except Exception:  # whatever Pillow makes of a damaged block
        return image
    return image if method is None else image.transpose(method)


def _smaller(image: Image.Image, size: int) -> Image.Image:
    """A large image reduced by a whole factor, never below four times the wanted size."""
    image = image.convert("L") if image.mode == "1" else image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = min(image.size) // (4 * size)
    return image.reduce(factor) if factor > 1 else image
