"""Distillation: stages learn what finished runs answer about each view of an image, in place of its label.

So a small network learns what a larger one or an ensemble knows, and predicts in one forward pass (Hinton et al. 2015,
"Distilling the knowledge in a neural network"). Teachers see the very views that the student sees (Beyer et al. 2022,
"Knowledge distillation: a good teacher is patient and consistent"), each at the size that it was trained with.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy.special import expit, softmax

from .config import Config, Data
from .data.dataset import ArrayDataset
from .data.examples import DataError, Examples, first_lines
from .data.lineage import parts_in_run
from .data.load import Parts
from .deploy.predictor import load_run
from .labels import is_multi
from .train.features import FeatureCache, cached


@dataclass(frozen=True)
class Teacher:
    """A finished run that another one learns from.

    Args:
        folder: of the run.
        data: its settings: size and resizing of the images that the model takes.
        model: uint8 images to logits.
    """

    folder: Path
    data: Data
    model: keras.Model


def load_teachers(config: Config, examples: Examples) -> tuple[Teacher, ...]:
    """The runs in `train.teachers`.

    Args:
        config: of the run that learns from them.
        examples: its images, with parts.

    Raises:
        DataError: if one is no finished run, has other classes, or has learned from what shall test the student.
    """
    teachers = []
    for folder in map(Path, config.train.teachers):
        try:
            settings, class_names, model = load_run(folder)
        except DataError as error:
            raise DataError(f"train.teachers: {error}") from error
        if class_names != examples.class_names:
            raise DataError(
                f"train.teachers: expected a run of the classes {list(examples.class_names)}. "
                f"Received: {str(folder)!r}, of {list(class_names)}. Train it on the same folder."
            )
        _refuse_test_images(folder, examples)
        print(f"teacher {folder}: {settings.backbone.name}, {settings.data.image_size} pixels")
        teachers.append(Teacher(folder, settings.data, model))
    return tuple(teachers)


def taught(parts: Parts, part: str, config: Config, teachers: Sequence[Teacher], cache: FeatureCache) -> ArrayDataset:
    """The augmented images of a part, with the mean probabilities of teachers for soft labels; as they are without any.

    Args:
        parts: of the run.
        part: name of one.
        config: without `auto`.
        teachers: from `load_teachers`.
        cache: for their logits, so that each view passes through a teacher once.
    """
    images = parts.augmented(part, config)
    if not teachers:
        return images

    def logits(teacher: Teacher) -> ArrayDataset:
        data = dataclasses.replace(config.data, image_size=teacher.data.image_size, resize=teacher.data.resize)
        views = parts.augmented(part, dataclasses.replace(config, data=data))
        return cached(teacher.model, views, 1, 1, cache, np.float32)

    answers = list(map(logits, teachers))
    to_probabilities = expit if is_multi(images.labels) else lambda logits: softmax(logits, axis=1)

    def soft_labels(epoch: int, rows: np.ndarray) -> np.ndarray:
        each = np.stack([to_probabilities(answer.read(epoch, rows)) for answer in answers])
        return each.mean(axis=0).astype(np.float32)

    return dataclasses.replace(images, soft_labels=soft_labels)


def _refuse_test_images(folder: Path, examples: Examples) -> None:
    learned = np.isin(parts_in_run(folder, list(examples.known_digests)), ["train", "val"])
    names = examples.ids[learned & (examples.parts == "test")]
    if len(names):
        raise DataError(
            f"train.teachers: {str(folder)!r} has learned from or chosen by {len(names)} of the test images of this "
            f"run:\n  {first_lines([repr(str(name)) for name in names])}\nThey would measure nothing. Split as that "
            "run did: the same images, data.split_seed, data.val_fraction and data.test_fraction."
        )
