"""What names mean: the parts of a data set, and classes that are one class however they are spelled."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...runs import legible

PART_OF = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
"""What folders and tables call the parts, in lower case and without what `part_of` takes off."""
_BESIDE = r"(?:images?|imgs?|pictures?|pics?|photos?|dataset|data|set|split|samples?)"
_MISSING = {"nan", "na", "n/a", "#n/a", "#na", "<na>", "null", "nat", "#value!", "#ref!"}
"""What programs write where there is no value, in lower case."""
_INVISIBLE = re.compile("[\u034f\u2800\u115f\u1160\u3164\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # beside the formats (Cf)
_JOINERS = "\u200c\u200d\ufe0f"  # some scripts and emoji are not spelled without
_TWINS = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u04bb\u0410\u0412\u0415\u041a\u041c\u041d"
    "\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0405\u0408\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d"
    "\u039f\u03a1\u03a4\u03a5\u03a7\u03bf\u0131\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019\u02bc`"
    "\u201c\u201d\u201e",
    "aeopcyxisjdhABEKMHOPCTYXISJABEZHIKMNOPTYXoi------''''\"\"\"",
)
"""Cyrillic and Greek letters, hyphens and quotation marks that are drawn as one of ASCII is."""


class DataError(ValueError):
    """Data that cannot be trained on or scored. The message says what was found and what to do."""


class Found(NamedTuple):
    """An image, and what its source says of it.

    Args:
        id: what a person would call it.
        image: the file.
        label: its class, as the source spells it.
        part: "train", "val", "test", or "" where the source does not say.
        group: of what must not be divided between parts, or "".
    """

    id: str
    image: Path
    label: str
    part: str
    group: str = ""


def part_of(name: str) -> str:
    """The part that a folder or a cell means (`Training`, `val_images`, `test set`, `hold-out`, `train2017`), or ""."""
    words = "".join(re.findall(r"[^\W\d_]+", look(name).lower()))
    return PART_OF.get(words) or PART_OF.get(re.sub(f"^{_BESIDE}+|{_BESIDE}+$", "", words), "")


def part_within(name: str) -> str:
    """The one part that stands as a word in a longer name (`seg_train`, `flowers-test`), or ""."""
    parts = {PART_OF[word] for word in re.findall(r"[^\W\d_]+", name.lower()) if word in PART_OF}
    return parts.pop() if len(parts) == 1 else ""


def is_missing(label: str) -> bool:
    """Whether a label is what programs write for a missing value."""
    return label.lower() in _MISSING


def tidy(text: str) -> str:
    """A name in composed Unicode, without what cannot be seen (but for joiners inside, which some scripts need)."""
    seen = "".join(c for c in unicodedata.normalize("NFC", legible(text)) if c in _JOINERS or not _invisible(c))
    return re.sub(r"^[\s\u200c\u200d]+|[\s\u200c\u200d]+$", "", seen)


def look(name: str) -> str:
    """How a name looks: equal for names that a person takes for one.

    That is in composed and decomposed Unicode, with spaces and invisible characters where none can be seen, in full
    and half width, with letters of another script that are drawn the same; and in upper and lower case, except for a
    single letter at the end, since `A` and `a` are classes of handwriting.
    """
    text = unicodedata.normalize("NFKC", name).translate(_TWINS)
    text = " ".join("".join(c for c in text if not _invisible(c)).split())
    alone = re.fullmatch(r"(?:.*[\W\d_])?[^\W\d_]", text)
    return unicodedata.normalize("NFC", text[:-1].lower() + text[-1] if alone else text.lower())


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """One spelling for each name, the commonest of those that look the same; what is merged is printed.

    Args:
        names: as the source spells them, one an image.
    """
    counts: dict[str, Counter[str]] = {}
    for name, count in Counter(names).items():
        counts.setdefault(look(name), Counter())[name] = count
    spelling = {}
    for spelled in counts.values():
        common = sorted(spelled, key=lambda name: (-spelled[name], name != tidy(name), name))
        kept = tidy(common[0]) or ascii(common[0])[1:-1]
        spelling |= dict.fromkeys(common, kept)
        if len(common) > 1:
            said = ", ".join(f"{_spelled(name)} ({spelled[name]} images)" for name in common)
            print(
                f"one class, {kept!r}, is spelled in {len(common)} ways that look the same: {said}. If they are "
                "different classes, give them names that differ in more than case, spaces or the form of a letter."
            )
    return spelling


def matched(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The known name for each name: itself, or the only one that looks the same; the others have none."""
    looks = Counter(map(look, known))
    by_look = {look(name): name for name in known if looks[look(name)] == 1}
    found = {name: name if name in known else by_look.get(look(name)) for name in names}
    return {name: other for name, other in found.items() if other is not None}


def _invisible(character: str) -> bool:
    formats = unicodedata.category(character) in {"Cf", "Cc"} and not character.isspace()
    return formats or bool(_INVISIBLE.match(character))


def _spelled(name: str) -> str:
    """A name, and its characters where they are not all of ASCII: what looks the same is told apart by these."""
    return repr(name) if name.isascii() else f"{name!r} = {ascii(name)}"
