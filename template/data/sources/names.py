"""Names of parts (train, val, test) and of classes, and which of them are the same in another spelling."""

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
"""How programs write a missing value, in lower case."""
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
    """Data that cannot be trained on or scored. The message says what was expected, what was found and what to do."""


class Entry(NamedTuple):
    """An image as a folder or a table lists it.

    Attributes:
        id: its path as it is listed.
        image: the file.
        label: its class, as it is spelled there.
        part: "train", "val", "test", or "" where that is not given.
        group: images of one group are never divided between parts (patient, camera), or "".
    """

    id: str
    image: Path
    label: str
    part: str
    group: str = ""


def part_of(name: str) -> str:
    """The part that a folder or a cell means (`Training`, `val_images`, `test set`, `hold-out`, `train2017`), or ""."""
    words = "".join(re.findall(r"[^\W\d_]+", normalize(name).lower()))
    return PART_OF.get(words) or PART_OF.get(re.sub(f"^{_BESIDE}+|{_BESIDE}+$", "", words), "")


def part_within(name: str) -> str:
    """The one part that stands as a word in a longer name (`seg_train`, `flowers-test`), or ""."""
    parts = {PART_OF[word] for word in re.findall(r"[^\W\d_]+", name.lower()) if word in PART_OF}
    return parts.pop() if len(parts) == 1 else ""


def is_missing(label: str) -> bool:
    """Whether a label is how programs write a missing value (NaN, null)."""
    return label.lower() in _MISSING


def tidy(text: str) -> str:
    """A name in composed Unicode, without what cannot be seen (but for joiners inside, which some scripts need)."""
    visible = "".join(c for c in unicodedata.normalize("NFC", legible(text)) if c in _JOINERS or not _invisible(c))
    return re.sub(r"^[\s\u200c\u200d]+|[\s\u200c\u200d]+$", "", visible)


def normalize(name: str) -> str:
    """A form of a name that is equal for names that look the same.

    That is: in composed and decomposed Unicode, with spaces and invisible characters where none can be seen, in full
    and half width, with letters of another script that look the same; and in upper and lower case, except for a
    single letter at the end, since `A` and `a` are classes of handwriting.
    """
    text = unicodedata.normalize("NFKC", name).translate(_TWINS)
    text = " ".join("".join(c for c in text if not _invisible(c)).split())
    alone = re.fullmatch(r"(?:.*[\W\d_])?[^\W\d_]", text)
    return unicodedata.normalize("NFC", text[:-1].lower() + text[-1] if alone else text.lower())


def merge_spellings(names: Iterable[str]) -> dict[str, str]:
    """One spelling for each name, the most frequent of those that look the same; what is merged is printed.

    Args:
        names: as they are spelled, one per image.
    """
    counts: dict[str, Counter[str]] = {}
    for name, count in Counter(names).items():
        counts.setdefault(normalize(name), Counter())[name] = count
    spelling: dict[str, str] = {}
    for spelled in counts.values():
        common = sorted(spelled, key=lambda name: (-spelled[name], name != tidy(name), name))
        kept = tidy(common[0]) or ascii(common[0])[1:-1]
        spelling |= dict.fromkeys(common, kept)
        if len(common) > 1:
            variants = ", ".join(f"{_spelled(name)} ({spelled[name]} images)" for name in common)
            print(
                f"class {kept!r} is spelled in {len(common)} ways that look the same, and they are merged: {variants}. "
                "If they are different classes, give them names that differ in more than case, spaces or similar signs."
            )
    return spelling


def merge_levels(names: Iterable[str]) -> dict[str, str]:
    """`merge_spellings`, and before it of what stands before each `/`: `Dog/husky` and `dog/poodle` have one parent.

    Args:
        names: as they are spelled, one per image.
    """
    names = list(names)
    spelling = dict(zip(names, names, strict=True))
    for depth in range(1, 1 + max((name.count("/") for name in names), default=0)):
        heads = {name: "/".join(new.split("/")[:depth]) for name, new in spelling.items()}
        merged = merge_spellings(heads[name] for name in names)
        spelling = {name: merged[heads[name]] + new[len(heads[name]) :] for name, new in spelling.items()}
    merged = merge_spellings(spelling[name] for name in names)
    return {name: merged[new] for name, new in spelling.items()}


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """{name: known name} for each name that is known, or of which exactly one known name looks the same."""
    counts = Counter(map(normalize, known))
    unique = {normalize(name): name for name in known if counts[normalize(name)] == 1}
    matches = {name: name if name in known else unique.get(normalize(name)) for name in names}
    return {name: match for name, match in matches.items() if match is not None}


def _invisible(character: str) -> bool:
    formats = unicodedata.category(character) in {"Cf", "Cc"} and not character.isspace()
    return formats or bool(_INVISIBLE.match(character))


def _spelled(name: str) -> str:
    """A name, and its characters where they are not all of ASCII: what looks the same is told apart by these."""
    return repr(name) if name.isascii() else f"{name!r} = {ascii(name)}"
