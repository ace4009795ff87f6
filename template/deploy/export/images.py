"""Images of a finished run, by which its files are made and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import device, runs
from ...config import Config
from ...data.dataset import evenly_spaced
from ...data.examples import DataError, Examples, load_examples
from ...data.images.load import BadImageError, ImageSource
from ...evaluate.predictions import Predictions
from ...labels import thresholds_of
from ..runtime import Inputs
from .model_card import parts_of

LEAST = 32
"""Images on which an export is held against Keras, at least."""
CALIBRATION = 100
"""Training images that set the scales of int8."""


@dataclass(frozen=True)
class Images:
    """Images of a run.

    Args:
        compared: whose answers are compared: of the validation part first, and of the training part where they are few.
        labels: int64 [v] of those of the validation part, or [v, classes] where an image may have several.
        groups: [v] names, or None.
        calibration: of the training part.
        thresholds: of each class where an image may have several labels, float64 [classes], or None.
    """

    compared: Sequence[ImageSource]
    labels: np.ndarray
    groups: np.ndarray | None
    calibration: Sequence[ImageSource]
    thresholds: np.ndarray | None = None

    def answers(self, probabilities: np.ndarray) -> np.ndarray:
        """What is said of images, by their probabilities [n, classes]: the class, or yes and no for each class."""
        return probabilities.argmax(axis=1) if self.thresholds is None else probabilities >= self.thresholds


def images_of(run: Path, config: Config, class_names: Sequence[str], path: str | None, most: int) -> Images:
    """Images of a run to compare with and to calibrate by, as they are on disk now.

    Raises:
        DataError: if some are missing.
    """
    val, parts = Predictions.load(run / "predictions_val.npz"), parts_of(run)
    val = val.take(evenly_spaced(len(val.ids), most))
    train = np.array([name for name, part in parts.items() if part == "train"])
    train = train[evenly_spaced(len(train), max(CALIBRATION, LEAST - len(val.ids)))]
    data, thresholds = config.data, None
    if data.labels == "multi":
        thresholds = thresholds_of(runs.read_json(run / "calibration.json"), class_names)
    examples = load_examples(path or data.path, data.class_folders, data.labels).with_classes(class_names)
    calibration = _sources(examples, train)
    more = calibration[: max(0, LEAST - len(val.ids))]
    compared = [*_sources(examples, val.ids), *more]
    return Images(compared, val.labels, val.groups, calibration[:CALIBRATION], thresholds)


def _sources(examples: Examples, names: np.ndarray) -> list[ImageSource]:
    where = {str(name): row for row, name in enumerate(examples.ids)}
    gone = [str(name) for name in names if str(name) not in where]
    if gone:
        raise DataError(f"{len(gone)} images of the run are missing, such as {gone[0]!r}.")
    return [examples.images[where[str(name)]] for name in names]


def load_pixels(sources: Sequence[ImageSource], inputs: Inputs) -> np.ndarray:
    """All views of images, uint8 [n, size, size, 3]."""
    try:
        with device.threads() as pool:
            return np.concatenate(list(pool.map(lambda source: inputs.load(source)[0], sources)))
    except BadImageError as error:
        raise DataError(f"An image of the run cannot be read any more: {error}") from error
