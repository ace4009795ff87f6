"""Test-time augmentation: several views of each image, and the mean of their probabilities."""

import dataclasses
from collections.abc import Sequence

import keras

from .. import progress
from ..config import Config
from ..data.batches import inference_batches
from ..data.dataset import ArrayDataset, center_zoom, hflip
from ..data.examples import Examples
from ..data.load import Parts
from ..data.split import group_names
from ..evaluate.predictions import Predictions, average, predict
from ..model.inference import fold_batch_norm
from ..suggest import uses_full_image, uses_hflip


def build_views(parts: Parts, part: str, config: Config) -> list[ArrayDataset]:
    """The views of the images of a part that are predicted, as the settings ask for; the first is the plain one.

    Args:
        parts: from `load_data` or `Parts.of`.
        part: name of one.
        config: without `auto`, and with stages.

    Raises:
        DataError: if images that must be decoded once more cannot be read any more.
    """
    views = [parts.plain(part, config.data)]
    if config.tta.center_zoom:
        views.append(center_zoom(views[0]))
    if uses_full_image(config):
        views.append(parts.plain(part, dataclasses.replace(config.data, resize="stretch", memory_gb=0.0)))
    return views + ([hflip(view) for view in views] if uses_hflip(config) else [])


def predict_tta(model: keras.Model, examples: Examples, views: Sequence[ArrayDataset], config: Config) -> Predictions:
    """Predictions of these examples, averaged over `build_views` of them."""
    model = fold_batch_norm(model)
    batches = [inference_batches(view, config.train.batch_size) for view in views]
    with progress.step("predicting", sum(map(len, batches)), "batches") as step:
        count = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs: step.advance(), async_safe=True)
        each = [predict(model, b, examples.ids, examples.labels, examples.class_names, [count]) for b in batches]
    groups = None if examples.groups is None else group_names(examples).astype(str)
    return dataclasses.replace(average(each), groups=groups)
