"""The data of a run: images found, decoded, split into train, val and test, and returned as datasets."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Config, ConfigError, Data
from .array_file import ArrayFile, Divided, Rows
from .dataset import ArrayDataset, eval_dataset, share, train_dataset
from .decode import decode, pixels_key, pixels_shape, with_bits, with_digests
from .examples import PARTS, DataError, Examples, first_lines, load_examples
from .sources.names import match_names
from .split import clusters, split, to_csv
from .unlabelled import Unlabelled, check_folder, load_unlabelled


@dataclass(frozen=True)
class Parts:
    """The readable images of a run, split into train, val and test.

    Args:
        examples: with their `parts`.
        pixels: (settings, rows) -> pixels of all examples at that size and resizing, of which those in these rows are
            decoded. So whether another size is better is asked of the training images, and no other is decoded for it.
        groups: int64 [n]; cross-validation keeps a group in one fold (`split.clusters`).
        pool: rows of the images that are divided in turn into other parts, which share their features; or None.
        unlabelled: images without labels to learn from too; or None.
    """

    examples: Examples
    pixels: Callable[[Data, np.ndarray], Rows]
    groups: np.ndarray
    pool: np.ndarray | None = None
    unlabelled: Unlabelled | None = None

    @classmethod
    def of(cls, examples: Examples, pixels: Rows, part: str, data: Data) -> "Parts":
        """Examples that are all in one part, and their pixels at these settings; at others they are decoded again."""
        together = dataclasses.replace(examples, parts=np.full(len(examples), part))
        return cls(together, decoded_once(together, pixels, data), np.arange(len(examples)))

    def rows(self, part: str) -> np.ndarray:
        """Rows of the examples in a part, int64."""
        return np.flatnonzero(self.examples.parts == part)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each part, and of those without labels."""
        return {part: len(self.rows(part)) for part in PARTS} | {"unlabelled": len(self.unlabelled or ())}

    def all_pixels(self, data: Data) -> Rows:
        """Pixels of all examples, decoded."""
        return self.pixels(data, np.arange(len(self.examples)))

    def plain(self, part: str, data: Data) -> ArrayDataset:
        """The images of a part, not augmented."""
        labels, groups = self.examples.labels, self.groups
        return self._take(part, lambda rows: eval_dataset(self.pixels(data, rows), rows, labels, groups))

    def augmented(self, part: str, config: Config) -> ArrayDataset:
        """The images of a part, augmented differently in every epoch, with their names."""
        how = self.examples.labels, config.augment, config.train.seed
        dataset = self._take(part, lambda rows: train_dataset(self.pixels(config.data, rows), rows, *how))
        return dataclasses.replace(dataset, names=self.examples.ids[self.rows(part)])

    def train(self, config: Config) -> tuple[ArrayDataset, ArrayDataset]:
        """The training images as they are, and augmented."""
        return self.plain("train", config.data), self.augmented("train", config)

    def without_labels(self, data: Data) -> ArrayDataset | None:
        """The images without labels, not augmented, if there are any."""
        return self.unlabelled.images(data) if self.unlabelled else None

    def tables(self) -> dict[str, str]:
        """What a run records of its images, by the name of its file; empty where there are none."""
        others = to_csv(self.unlabelled.examples) if self.unlabelled else ""
        return {"split.csv": to_csv(self.examples), "unlabelled.csv": others}

    def _take(self, part: str, dataset: Callable[[np.ndarray], ArrayDataset]) -> ArrayDataset:
        """The dataset of the rows of a part, as a share of the pool if there is one."""
        rows = self.rows(part)
        return dataset(rows) if self.pool is None else share(dataset(self.pool), np.searchsorted(self.pool, rows))


def load_data(config: Config, first: Data) -> tuple[Config, Parts]:
    """Find, decode and split the images of a run.

    Args:
        config: with or without `auto`.
        first: its `data` without `auto`: size and resizing in which images are decoded once, to find damaged ones.

    Returns:
        The configuration with the bits of 16-bit files, and the parts.

    Raises:
        DataError: if they cannot be trained on.
        ConfigError: if a class weight is given for a class that does not exist.
        DiskError: if there is no room for their pixels.
    """
    check_folder(config.data)
    found = load_examples(config.data.path, config.data.class_folders, config.data.labels)
    check_class_names(config.train.class_weights, found.class_names)
    data = with_bits(config.data, found.images)
    found = with_digests(found)
    first = dataclasses.replace(first, bits=data.bits)
    examples, pixels = decode(found, first)
    fractions = {"val_fraction": data.val_fraction, "test_fraction": data.test_fraction}
    examples = split(examples, **fractions, seed=data.split_seed)
    parts = Parts(examples, decoded_once(examples, pixels, first), clusters(examples))
    parts = dataclasses.replace(parts, unlabelled=load_unlabelled(first, examples, pixels))
    return dataclasses.replace(config, data=data), parts


def decoded_once(examples: Examples, pixels: Rows, first: Data) -> Callable[[Data, np.ndarray], Rows]:
    """(settings, rows) -> pixels, as `Parts` has them: those at the first settings, others as they are asked for."""
    others = functools.lru_cache(maxsize=3)(functools.partial(by_part, examples))  # as many sizes a run looks at
    return lambda data, rows: pixels if data == first else others(data).require(rows)


def by_part(examples: Examples, data: Data) -> Divided:
    """Pixels of examples at another size or resizing, decoded part by part, as they are required."""

    def decoded(rows: np.ndarray) -> ArrayFile:
        mine, share = examples.take(rows), len(rows) / len(examples)  # also of the memory
        return same_images(mine, *decode(mine, dataclasses.replace(data, memory_gb=data.memory_gb * share)))

    parts = [np.flatnonzero(examples.parts == part) for part in (*PARTS, "")]
    return Divided(parts, decoded, pixels_shape(data), np.uint8, pixels_key(examples, data))


def same_images(examples: Examples, again: Examples, pixels: ArrayFile) -> ArrayFile:
    """The pixels, if they belong to the examples, row by row.

    Raises:
        DataError: if an image that could be decoded before cannot be decoded with these settings.
    """
    if again.ids.tolist() != examples.ids.tolist():
        reasons = [f"{name!r}: {reason}" for name, reason in again.skipped if (name, reason) not in examples.skipped]
        raise DataError(
            f"Images that were decoded before cannot be decoded at another size:\n  {first_lines(reasons)}\n"
            "Restore or remove them, and start again."
        )
    return pixels


def check_class_names(weights: str | Mapping[str, float], class_names: Sequence[str]) -> None:
    """Check that class weights are given for classes that exist.

    Raises:
        ConfigError: naming the first unknown class, the most similar known one, and all classes.
    """
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in match_names([name], class_names):
            near = difflib.get_close_matches(name, class_names, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"train.class_weights: expected names of classes. Received: {name!r}.{meant} "
                f"The classes are {list(class_names)}."
            )
