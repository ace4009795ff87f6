"""Class names in figures, in the writing of any language: by fonts that are installed, or else by number."""

import functools
import unicodedata
from collections.abc import Iterable, Sequence

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

PLAIN = "DejaVu Sans"
"""Comes with matplotlib."""


def drawable(class_names: Sequence[str]) -> list[str]:
    """The names as a figure can show them: on one line, and `#3` for the class of index 3 that no font can write."""
    plain = [" ".join(visible(name).split()) for name in class_names]
    return [name if name and not _lacking(name) else f"#{index}" for index, name in enumerate(plain)]


def numbered(class_names: Sequence[str]) -> dict[str, str]:
    """What stands for the names that cannot be drawn, and these."""
    pairs = zip(drawable(class_names), class_names, strict=True)
    return {shown: name for index, (shown, name) in enumerate(pairs) if shown == f"#{index}" != name}


def families(names: Iterable[str]) -> list[str]:
    """Fonts for matplotlib that together draw these names: first the plain one, then as few others as are needed."""
    return [PLAIN, *_others("".join(sorted(set("".join(names)))))[0]]


def for_pillow(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font for Pillow, which takes one for a whole text; the plain one where none has all its letters."""
    plain, missing = font_manager.findfont(PLAIN), bool(_lacking_plain(name))
    faces = ((path, face) for path, face in _installed() if {*map(ord, name)} <= _letters(path, face))
    path, face = next(faces, (plain, 0)) if missing else (plain, 0)
    return ImageFont.truetype(path, size, index=face)


def visible(name: str) -> str:
    """A text without characters that have no shape of their own, for which fonts have no glyph: joiners, selectors."""
    shapeless = (c for c in name if unicodedata.category(c) in {"Cf", "Cc"} or "\ufe00" <= c <= "\ufe0f")
    return name.translate({ord(c): None for c in shapeless if not c.isspace()})


def _lacking(text: str) -> str:
    return _others("".join(sorted(set(text))))[1]


def _lacking_plain(text: str) -> set[int]:
    return {ord(c) for c in text if not c.isspace()} - _letters(font_manager.findfont(PLAIN), 0)


@functools.lru_cache(maxsize=4096)
def _others(characters: str) -> tuple[tuple[str, ...], str]:
    """Families beside the plain one that are needed for these characters, and the characters that no font has."""
    missing = _lacking_plain(characters)
    chosen: list[str] = []
    for path, face in _installed() if missing else ():
        if found := missing & _letters(path, face):
            chosen.append(_installed()[path, face])
            missing -= found
    return tuple(chosen), "".join(map(chr, sorted(missing)))


@functools.cache
def _installed() -> dict[tuple[str, int], str]:
    """File and face of each upright font of normal weight, and its family; those of many letters first."""
    fonts = {}
    for entry in font_manager.fontManager.ttflist:
        normal = entry.style == "normal" and str(entry.weight) in {"400", "normal", "regular", "book"}
        if normal and "Last Resort" not in entry.name and not entry.name.startswith("STIX"):  # boxes for any letter
            fonts[entry.fname, getattr(entry, "index", 0)] = entry.name
    return dict(sorted(fonts.items(), key=lambda item: (-len(_letters(*item[0])), item)))


@functools.cache
def _letters(path: str, face: int) -> frozenset[int]:
    """Code points that a font can draw; none, if it cannot be opened."""
    try:
        font = FT2Font(path, face_index=face) if face else FT2Font(path)
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, TypeError, ValueError):
        return frozenset()
