"""Images without labels (`data.unlabelled`): found, decoded, and held against those with labels.

What a run will be measured with must not be among them, under no name and in no other form: it would be learned from.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Data
from .array_file import ArrayFile
from .audit.duplicates import copies_of
from .audit.facts import facts_from_pixels
from .dataset import ArrayDataset, eval_dataset, evenly_spaced, share
from .decode import decode
from .examples import DataError, Examples, first_lines
from .sources.files import collect_files, require_outside

MOST = 5_000
"""Images that are used; of more, every second or tenth. Features of so many take minutes to compute."""
NAMED = 100
"""Test images that are named at most."""
COPY = "it shows what an image with a label shows"
TWICE = "it has the contents of another one without a label"
SURPLUS = f"of more than {MOST:,} every second, tenth or so is used"


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels that a run may learn from.

    Args:
        examples: all that were decoded, with labels that mean nothing; part `unlabelled`, or "" where one is left out,
            which `skipped` gives the reason of.
        pixels: (settings) -> theirs, at that size and resizing.
    """

    examples: Examples
    pixels: Callable[[Data], ArrayFile]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the examples that are used, int64."""
        return np.flatnonzero(self.examples.parts != "")

    def images(self, data: Data) -> ArrayDataset:
        """Those that are used, not augmented; their features are cached with those of all."""
        everything = eval_dataset(self.pixels(data), np.arange(len(self.examples)), self.examples.labels)
        return share(everything, self.rows)

    def without(self, reasons: Mapping[int, str]) -> "Unlabelled":
        """The same without the images in these rows, which are skipped for a reason."""
        parts = self.examples.parts.copy()
        parts[list(reasons)] = ""
        skipped = [(str(self.examples.ids[row]), reason) for row, reason in sorted(reasons.items())]
        examples = dataclasses.replace(self.examples, parts=parts, skipped=(*self.examples.skipped, *skipped))
        return dataclasses.replace(self, examples=examples)


def load_unlabelled(data: Data, examples: Examples, pixels: ArrayFile) -> Unlabelled | None:
    """The images in `data.unlabelled`, without copies of each other and of images with labels; None if it is empty.

    Args:
        data: without `auto`, and with the bits of the images with labels.
        examples: with labels, and with parts.
        pixels: theirs.

    Raises:
        DataError: if there are none, or one shows what a test image shows: naming all of these.
        DiskError: if there is no room for their pixels.
    """
    if not data.unlabelled:
        return None
    found = _find(data)
    decoded = functools.lru_cache(maxsize=2)(lambda data: decode(found, data))
    own, own_pixels = decoded(data)
    reasons = _repeated(own)
    rows = np.flatnonzero(examples.parts != "")
    known = facts_from_pixels(examples.take(rows), pixels, rows)
    pairs = copies_of(known, facts_from_pixels(own, own_pixels, np.arange(len(own))))
    _refuse_test_images(data, own, examples.take(rows), pairs)
    copies = {row for _, row in pairs}
    reasons |= dict.fromkeys(copies, COPY)
    usable = np.setdiff1d(np.arange(len(own)), list(reasons))
    reasons |= dict.fromkeys(np.setdiff1d(usable, usable[evenly_spaced(len(usable), MOST)]).tolist(), SURPLUS)
    if len(reasons) == len(own):
        raise DataError(f"data.unlabelled: none of {len(own)} images in {data.unlabelled!r} is new. Leave it out.")
    return Unlabelled(own, lambda data: decoded(data)[1]).without(reasons)


def check_folder(data: Data) -> None:
    """See that `data.unlabelled`, if it is given, is a folder, and not among the images with labels.

    Raises:
        DataError: if it is not.
    """
    if data.unlabelled:
        folder = Path(data.unlabelled).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.unlabelled: expected a folder of images. Received: {data.unlabelled!r}")
        require_outside(str(Path(data.path).expanduser().absolute()), {"--data.unlabelled": folder.absolute()})


def _find(data: Data) -> Examples:
    folder = Path(data.unlabelled).expanduser()
    files, skipped = collect_files([folder])
    names = np.array([file.relative_to(folder).as_posix() for file in files])
    labels, left = np.zeros(len(files), np.int64), tuple((str(file), reason) for file, reason in skipped)
    return Examples(names, files, labels, ("",), np.full(len(files), "unlabelled"), skipped=left)


def _repeated(examples: Examples) -> dict[int, str]:
    """Rows of images whose contents an earlier one has."""
    first = np.unique(examples.known_digests, return_index=True)[1]
    return dict.fromkeys(np.setdiff1d(np.arange(len(examples)), first).tolist(), TWICE)


def _refuse_test_images(data: Data, own: Examples, labelled: Examples, pairs: list[tuple[int, int]]) -> None:
    found = {row: labelled.ids[other] for other, row in reversed(pairs) if labelled.parts[other] == "test"}
    if found:
        lines = [f"{str(own.ids[row])!r} is {str(name)!r}" for row, name in sorted(found.items())]
        raise DataError(
            f"data.unlabelled: {len(lines)} images in {data.unlabelled!r} are test images, or recoded, resized, turned "
            f"or flipped copies of some:\n  {first_lines(lines, NAMED)}\nLearned from, they would measure nothing. "
            "Move them out of that folder."
        )
