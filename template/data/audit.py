"""What is wrong with a set of images, before anything is trained on it. Looks, and never deletes or moves a file.

Most failed projects fail here: the same image in training and test, under two labels, or a class that gives itself
away by the size of its files (Karpathy 2019, "A recipe for training neural networks": become one with the data).
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from scipy.fft import dctn
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from .. import device
from ..config import Data
from .array_file import ArrayFile
from .decode import with_bits
from .examples import Examples
from .images.load import BadImageError, address, load
from .images.read import ImageSource, read, read_header
from .sources.names import part_of

SIDE = 64
"""Pixels of the small copies that everything here looks at."""
NEAR_BITS = 10
"""Of the 64 of a perceptual hash: images that differ in no more are compared closely."""
NEAR_CORRELATION = 0.96
"""Of two small copies in grey: those above it count as the same image."""
ALIKE = 0.4
"""Of the median distance of an image to the one most like it: features closer than that are of copies."""
DARK, BRIGHT, FLAT, TINY, NARROW = 15, 240, 3.0, 48, 4.0
"""Mean brightness below and above, standard deviation below, shorter side below, aspect above: worth a look."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        check: what was looked for.
        severity: `mend` (a number measured on these images would be wrong), `look` (perhaps), `know` (a fact).
        message: what was found, with the number and what would be expected.
        advice: what to do about it.
        images: groups of rows of the examples that it is about; those of a pair stand together.
    """

    check: str
    severity: Literal["mend", "look", "know"]
    message: str
    advice: str = ""
    images: Sequence[tuple[int, ...]] = ()


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
        size: of the file, in bytes.
        small: uint8 [n, SIDE, SIDE, 3].
        note: what had to be assumed to see something in it, or "".
    """

    reason: np.ndarray
    digest: np.ndarray
    format: np.ndarray
    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    size: np.ndarray
    small: np.ndarray
    note: np.ndarray
    brightness: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.brightness = self.small.mean(axis=(1, 2, 3))

    @property
    def readable(self) -> np.ndarray:
        """Bool [n]."""
        return self.reason == ""

    def take(self, rows: np.ndarray) -> "Facts":
        """The facts of these rows."""
        return Facts(*(getattr(self, name.name)[rows] for name in fields(self) if name.init))


def read_facts(examples: Examples, data: Data | None = None) -> Facts:
    """Read every image once, in threads, into a small copy and a few facts, as these settings of reading say."""
    how = dataclasses.replace(with_bits(data or Data(), examples.images), image_size=SIDE, resize="stretch")
    with device.threads() as pool:
        rows = list(pool.map(lambda source: _look_at(source, how), examples.images))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Facts(*columns)


def facts_from_pixels(examples: Examples, pixels: ArrayFile, rows: np.ndarray) -> Facts:
    """The same of images that have been decoded already, of whose files only the headers are read again.

    Of a file that has gone since, the reason says so.

    Args:
        examples: with digests and notes.
        pixels: uint8 [more, size, size, 3].
        rows: of the examples in the pixels, int64 [n].
    """
    with device.threads() as pool:
        reasons, *headers = zip(*pool.map(_header_again, examples.images), strict=True)
    small = np.zeros((len(examples), SIDE, SIDE, 3), np.uint8)
    for start in range(0, len(rows), 256):
        for row, image in enumerate(pixels[rows[start : start + 256]], start):
            small[row] = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Facts(np.array(reasons), examples.digests, *map(np.array, headers), small, examples.notes)


def audit(examples: Examples, facts: Facts) -> list[Finding]:
    """All findings, those to mend first.

    Args:
        examples: from `load_examples`, before a split.
        facts: from `look`.
    """
    checks = (
        _unreadable, _outside, _assumed, _few, _duplicates, _nearly_equal, _shortcuts, _misnamed, _odd, _sizes,
        _folders_of_parts,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(examples, facts)]
    return sorted(findings, key=lambda finding: ("mend", "look", "know").index(finding.severity))


def clean_rows(examples: Examples, findings: Sequence[Finding]) -> np.ndarray:
    """Rows worth training on: without what cannot be read, contradicts itself or repeats another, int64 [m]."""
    out = set()
    for finding in findings:
        if finding.check in {"unreadable", "two labels", "nearly equal, two labels"}:
            out |= set(itertools.chain(*finding.images))
        elif finding.check in {"equal", "nearly equal", "equal across parts", "nearly equal across parts"}:
            for pair in finding.images:  # what is held out stays, and of equals the first
                kept = min(pair, key=lambda row: ({"test": 0, "val": 1}.get(str(examples.parts[row]), 2), row))
                out |= set(pair) - {kept}
    return np.array([row for row in range(len(examples)) if row not in out], np.int64)


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """64 bits of each image that recoding and resizing hardly change, uint64 [n, 8]: as it is, turned and mirrored.

    The signs of the 8 x 8 lowest frequencies of the grey image, about their median (Zauner 2010, "Implementation and
    benchmarking of perceptual image hash functions").

    Args:
        small: uint8 [n, SIDE, SIDE, 3].
    """
    grey = small.astype(np.float32).mean(axis=3)
    turned = [np.rot90(g, k, axes=(1, 2)) for g in (grey, grey[:, :, ::-1]) for k in range(4)]
    hashes = []
    for images in turned:
        low = dctn(images, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(small), 64)
        bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
    return np.stack(hashes, axis=1)


def near_pairs(small: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows that show the same image, perhaps recoded, resized, turned or mirrored.

    Candidates by the distance of their hashes, then by the correlation of the small copies in grey.

    Args:
        small: uint8 [n, SIDE, SIDE, 3].
    """
    hashes, pairs = perceptual_hashes(small), []
    grey = small.astype(np.float32).mean(axis=3).reshape(len(small), 16, 4, 16, 4).mean(axis=(2, 4))
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=(1, 2))) + 1e-6
    varied = norms > 16 * FLAT  # of an image without contrast every other is a copy
    for row in range(len(small) - 1):
        if not varied[row]:
            continue
        distances = np.bitwise_count(hashes[row + 1 :, :1] ^ hashes[row]).min(axis=1)
        for other in row + 1 + np.flatnonzero(distances <= NEAR_BITS):
            ways = [np.rot90(g, k) for g in (centred[row], centred[row][:, ::-1]) for k in range(4)]
            alike = max(float((way * centred[other]).sum()) for way in ways) / (norms[row] * norms[other])
            if varied[other] and alike > NEAR_CORRELATION:
                pairs.append((row, int(other)))
    return pairs


def feature_duplicates(examples: Examples, features: np.ndarray) -> Iterator[Finding]:
    """Images that a network finds alike: copies that were cropped, turned a little or recoloured.

    By the cosine of their features. How alike strangers are differs between networks and kinds of images; so a pair
    counts whose distance is small beside that of most images to their nearest.

    Args:
        examples: n of them.
        features: float32 [n, f].
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    close = np.argwhere(np.triu(distances < ALIKE * np.median(distances.min(axis=1))))
    pairs = sorted(map(tuple, close.tolist()), key=lambda pair: distances[pair])
    if pairs:
        yield Finding(
            "alike",
            "look",
            f"Images that the network finds alike (cropped, turned a little, recoloured): {len(pairs)}",
            "If they are of one thing, keep them in one part: give them one `group` in a CSV file.",
            pairs,
        )


def _look_at(source: ImageSource, how: Data) -> tuple:
    """Reason, digest, format, mode, width, height, size, small copy, note."""
    nothing = np.zeros((SIDE, SIDE, 3), np.uint8)
    try:
        data = read(source)
        digest = hashlib.sha256(data.tobytes() if isinstance(data, np.ndarray) else data).hexdigest()
        small, note = load(data, how)
        return "", digest, *_header_of(data), small, note
    except (BadImageError, OSError) as error:
        return str(error), "", "", "", 0, 0, 0, nothing, ""


def _header_again(source: ImageSource) -> tuple:
    """Reason, format, mode, width, height and bytes of an image that could be read a while ago."""
    try:
        return "", *_header_of(source)
    except (OSError, ValueError) as error:
        return f"it has gone or changed since it was decoded ({error})", "", "", 0, 0, 0


def _header_of(source: ImageSource) -> tuple[str, str, int, int, int]:
    """Format, mode, width, height and bytes of an image that can be read; decodes nothing."""
    if isinstance(source, np.ndarray):
        return *read_header(source), source.nbytes
    return *read_header(source), len(source) if isinstance(source, bytes) else source.stat().st_size


def _unreadable(examples: Examples, facts: Facts) -> Iterator[Finding]:
    for reason in dict.fromkeys(facts.reason[~facts.readable]):
        rows = np.flatnonzero(facts.reason == reason)
        yield Finding(
            "unreadable",
            "look",
            f"{len(rows)} cannot be used: {reason}",
            "Training leaves them out; mend or replace them.",
            [(int(row),) for row in rows],
        )


def _outside(examples: Examples, _: Facts) -> Iterator[Finding]:
    for reason in dict.fromkeys(reason for _, reason in examples.skipped):
        names = [name for name, why in examples.skipped if why == reason]
        yield Finding(
            "outside",
            "look",
            f"{len(names)} were passed over: {', '.join(map(repr, names[:5]))}: {reason}",
            "If they are images, put them into the folder of their class.",
        )


def _assumed(_: Examples, facts: Facts) -> Iterator[Finding]:
    for note in dict.fromkeys(facts.note[facts.note != ""]):
        rows = np.flatnonzero(facts.note == note)
        yield Finding(
            "assumed",
            "look",
            f"{len(rows)}: {note}",
            "Do they show what they should? If not, convert them to plain JPEG or PNG of 8 bits.",
            [(int(row),) for row in rows],
        )


def _few(examples: Examples, facts: Facts) -> Iterator[Finding]:
    counts = np.bincount(examples.labels[facts.readable], minlength=len(examples.class_names))
    names = examples.class_names
    table = ", ".join(f"{name!r} {count}" for name, count in zip(names, counts, strict=True))
    yield Finding("classes", "know", f"{len(names)} classes, {facts.readable.sum()} images: {table}")
    few = [names[i] for i in np.flatnonzero(counts < 10)]
    if few:
        yield Finding(
            "few",
            "look",
            f"Fewer than 10 images: {few}. Expected: 20 and more a class.",
            "Collect more, or merge classes; with so few, validation and test parts measure little.",
        )
    if counts.min() and counts.max() > 10 * counts.min():
        most, least = names[int(counts.argmax())], names[int(counts.argmin())]
        yield Finding(
            "imbalance",
            "look",
            f"{most!r} has {counts.max() / counts.min():.0f} times as many as {least!r}.",
            "Read balanced accuracy and macro F1, not accuracy; `train.monitor=macro_f1` chooses by them.",
        )


def _duplicates(examples: Examples, facts: Facts) -> Iterator[Finding]:
    _, group, sizes = np.unique(facts.digest, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(facts.readable & (sizes[group] > 1))
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(int(group[row]), []).append(int(row))
    yield from _same(examples, [tuple(members) for members in groups.values()], "equal", "Equal images")


def _nearly_equal(examples: Examples, facts: Facts) -> Iterator[Finding]:
    # Of a few pixels strangers look alike.
    good = np.flatnonzero(facts.readable & (np.minimum(facts.width, facts.height) >= SIDE // 2))
    pairs = [(int(good[a]), int(good[b])) for a, b in near_pairs(facts.small[good])]
    pairs = [(a, b) for a, b in pairs if facts.digest[a] != facts.digest[b]]
    yield from _same(examples, pairs, "nearly equal", "Nearly equal images (recoded, resized, turned or mirrored)")


def _same(examples: Examples, groups: list[tuple[int, ...]], check: str, what: str) -> Iterator[Finding]:
    """Groups of images that are the same: under two labels, across parts, or only repeated."""
    labels, parts = examples.labels, examples.parts
    contradicting = [g for g in groups if len({int(labels[row]) for row in g}) > 1]
    across = [g for g in groups if g not in contradicting and len({str(parts[row]) for row in g}) > 1]
    only = [g for g in groups if g not in contradicting and g not in across]
    if contradicting:
        name = "two labels" if check == "equal" else f"{check}, two labels"
        yield Finding(
            name,
            "mend",
            f"{what} under two labels: {len(contradicting)}",
            "One of the labels is wrong, or the classes overlap. Decide, and remove the other.",
            contradicting,
        )
    if across:
        yield Finding(
            f"{check} across parts",
            "mend",
            f"{what} in training and in validation or test: {len(across)}",
            "They make the measured accuracy too good. Remove them from train/.",
            across,
        )
    if only:
        kept = "A split keeps equal ones together." if check == "equal" else "Give them one `group` in a CSV file."
        yield Finding(
            check,
            "look",
            f"{what} of one class: {len(only)}",
            f"Repeats teach nothing, and a split may put one into test. {kept}",
            only,
        )


def _shortcuts(examples: Examples, facts: Facts) -> Iterator[Finding]:
    """Can the class be told without looking at the image?"""
    good, labels = facts.readable, examples.labels[facts.readable]
    counts = np.bincount(labels)
    if (counts > 0).sum() < 2 or counts[counts > 0].min() < 5:
        return
    formats, modes = (np.unique(values[good], return_inverse=True)[1] for values in (facts.format, facts.mode))
    clues = {
        "width and height": np.stack([facts.width[good], facts.height[good]], axis=1),
        "the size of the file": facts.size[good, None],
        "format and colour mode": np.stack([formats, modes], axis=1),
        "mean brightness": facts.brightness[good, None],
        "mean colour": facts.small[good].mean(axis=(1, 2)),
    }
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    commonest = (cross_val_predict(DummyClassifier(), clues["mean brightness"], labels, cv=folds) == labels).mean()
    for clue, values in clues.items():
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=0)
        accuracy = (cross_val_predict(tree, values, labels, cv=folds) == labels).mean()
        wrong = 1 - commonest
        if accuracy - commonest > max(0.4 * wrong, 4 * np.sqrt(wrong * commonest / len(labels))):
            inside = clue.startswith("mean")
            yield Finding(
                "shortcut",
                "look" if inside else "mend",
                f"{clue} alone tells the class in {100 * accuracy:.0f} % (the commonest class: "
                f"{100 * commonest:.0f} %).",
                "If that is how the images were made and not what they show, a network will learn it and "
                "fail elsewhere. Bring the classes into one form.",
            )


def _misnamed(examples: Examples, facts: Facts) -> Iterator[Finding]:
    formats = Image.registered_extensions()
    rows = [
        row
        for row, image in enumerate(examples.images)
        if isinstance(image, Path)
        and facts.readable[row]
        and image.suffix
        and formats.get(image.suffix.lower()) != str(facts.format[row]).replace("MPO", "JPEG")
    ]
    if rows:
        first = f"{str(examples.ids[rows[0]])!r} is {facts.format[rows[0]]}"
        yield Finding(
            "misnamed",
            "know",
            f"{len(rows)} files are of another format than they say, such as {first}.",
            "Training reads contents and not names; other programs may not.",
            [(row,) for row in rows],
        )


def _odd(examples: Examples, facts: Facts) -> Iterator[Finding]:
    shorter, longer = np.minimum(facts.width, facts.height), np.maximum(facts.width, facts.height)
    spread = facts.small.std(axis=(1, 2)).max(axis=1)
    checks = (
        ("tiny", shorter < TINY, f"shorter side below {TINY} pixels"),
        ("narrow", longer > NARROW * np.maximum(shorter, 1), f"one side more than {NARROW:g} times the other"),
        ("one colour", spread < FLAT, "hardly any contrast"),
        ("dark", (facts.brightness < DARK) & (spread >= FLAT), f"mean brightness below {DARK} of 255"),
        ("bright", (facts.brightness > BRIGHT) & (spread >= FLAT), f"mean brightness above {BRIGHT} of 255"),
    )
    for name, mask, meaning in checks:
        rows = np.flatnonzero(mask & facts.readable)
        if 0 < len(rows) < 0.5 * facts.readable.sum():  # what most are is no oddity
            yield Finding(
                name,
                "look",
                f"{meaning}: {len(rows)}",
                "Do they show what their label says?",
                [(int(row),) for row in rows],
            )


def _sizes(_: Examples, facts: Facts) -> Iterator[Finding]:
    if facts.readable.any():
        width, height = facts.width[facts.readable], facts.height[facts.readable]
        low, middle, high = np.quantile(np.minimum(width, height), [0.05, 0.5, 0.95])
        modes, counts = np.unique(facts.mode[facts.readable], return_counts=True)
        said = ", ".join(f"{mode} {count}" for mode, count in zip(modes, counts, strict=True))
        yield Finding(
            "sizes",
            "know",
            f"Shorter side: {middle:.0f} pixels in the middle, 90 % from {low:.0f} to "
            f"{high:.0f}; width / height {np.median(width / height):.2f} in the middle; colours: {said}",
        )


def _folders_of_parts(examples: Examples, _: Facts) -> Iterator[Finding]:
    """Folders that hold the same sub-folders: was a level too high given?"""
    inside: dict[str, set[str]] = {}
    for name in examples.ids:
        above = Path(str(name)).parts[:-1]
        above = above[1:] if above and part_of(above[0]) else above
        if len(above) > 1:
            inside.setdefault(above[0], set()).add(above[1])
    folders = [names for names in inside.values() if len(names) > 1]
    if len(folders) > 1 and all(names == folders[0] for names in folders):
        yield Finding(
            "level",
            "mend",
            f"Every class folder ({sorted(inside)}) has the same folders {sorted(folders[0])}.",
            "Perhaps these are the classes: give data.path one level deeper, or rename the folders to "
            "train/, val/ and test/.",
        )


def as_json(examples: Examples, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings with the ids of their images."""
    return [
        {
            "check": f.check,
            "severity": f.severity,
            "message": f.message,
            "advice": f.advice,
            "images": [[str(examples.ids[row]) for row in group] for group in f.images],
        }
        for f in findings
    ]


def as_page(title: str, examples: Examples, facts: Facts, findings: Sequence[Finding], most: int = 24) -> str:
    """Findings as a page that needs nothing but itself, with at most so many groups of images each."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)

    def shown(row: int) -> dict[str, str]:
        return {"id": str(examples.ids[row]), "image": address(facts.small[row]) if facts.readable[row] else ""}

    shown_findings = [
        {
            "check": f.check,
            "severity": f.severity,
            "message": f.message,
            "advice": f.advice,
            "groups": [[shown(row) for row in group] for group in f.images[:most]],
            "more": max(0, len(f.images) - most),
        }
        for f in findings
    ]
    return environment.get_template("audit.html").render(title=title, findings=shown_findings)
