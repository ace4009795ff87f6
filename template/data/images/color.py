"""Colours as a screen shows them: alpha on a background, colour profiles converted to sRGB."""

import functools
import io
from typing import cast

import numpy as np
from PIL import Image, ImageCms

FAINT = 240
"""An image whose darkest value on white is above that cannot be seen on white."""
CLEAR = 16
"""Alpha below that everywhere is no alpha: an unused byte, or a mask of 0 and 1."""


def flatten_alpha(image: Image.Image) -> tuple[Image.Image, str]:
    """The image without alpha, on white; and a note if that was not the right thing. L of grey images, RGB of others.

    Alpha that is 0 everywhere, or nearly, is an unused byte. What is drawn in white is put on black.
    """
    if not image.has_transparency_data:
        return image, ""
    mode = "L" if image.mode in {"LA", "La"} else "RGB"
    image = image.convert("RGBA")
    colours, ((least, most),) = image.convert("RGB").convert(mode), _extrema(image.getchannel("A"))
    if least == 255:
        return colours, ""
    if most < CLEAR and _varies(colours):
        return colours, f"alpha is {'nearly ' * (most > 0)}0 everywhere and was ignored"
    on_white = _composite(image, "white", mode)
    if most > 0 and min(low for low, _ in _extrema(on_white)) >= FAINT:
        on_black = _composite(image, "black", mode)
        if _varies(on_black):
            return on_black, "white on a transparent background: put on black"
    return on_white, ""


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """RGB in sRGB of an image; and a note if its colour profile cannot be used.

    Args:
        image: of any mode of 8 bits, without alpha.
        profile: ICC, or None where the file has none: then sRGB is assumed, as browsers do.
    """
    if image.mode == "LAB":
        profile = _lab()
    image = image if image.mode in _SPACES else image.convert("L" if image.mode == "1" else "RGB")
    if not profile:
        return image.convert("RGB"), ""
    try:
        space, transform = _transform(profile, image.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), "its colour profile is damaged or of another colour space, and was ignored"
    image = image if image.mode == space else image.convert(space)
    if transform is None:
        return image.convert("RGB"), ""
    return cast(Image.Image, ImageCms.applyTransform(image, transform)), ""  # None only of what is done in place


_SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK", "LAB": "Lab "}


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _lab() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and how it becomes sRGB; None if it is sRGB but for rounding.

    Kept by the profile's contents: most files of a data set have the same one.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space
    if mode == "L" and space == "RGB ":  # grey files often carry the profile of a screen
        mode = "RGB"
    if space != _SPACES[mode]:
        raise ValueError(f"a profile of {space!r} in an image of {mode}")
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE  # NOCACHE: threads share it
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB", intent, flags)
    if mode in {"L", "RGB"}:
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
        probe = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
        change = np.asarray(ImageCms.applyTransform(probe, transform), int) - np.asarray(probe.convert("RGB"), int)
        if np.abs(change).max() <= 3:
            return mode, None
    return mode, transform


def _composite(image: Image.Image, ground: str, mode: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB").convert(mode)


def _extrema(image: Image.Image) -> tuple[tuple[int, int], ...]:
    """Least and most of each channel."""
    return tuple(cast(tuple[int, int], channel.getextrema()) for channel in image.split())  # of one channel: a pair


def _varies(image: Image.Image) -> bool:
    return any(low < high for low, high in _extrema(image))
