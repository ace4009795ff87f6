"""A finished run put to use: rebuild its model, and classify files with it."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax

from .. import config as configuration
from .. import runs
from ..config import Config
from ..data.augment import magnify
from ..data.examples import DataError
from ..data.images import BadImageError, ImageSource, load_image
from ..model.build import build


def load_run(folder: Path) -> tuple[Config, tuple[str, ...], keras.Model]:
    """Rebuild the model of a finished run, with its configuration and class names.

    The network is built by our own code and only weights are read from the file: nothing in the file is executed.

    Raises:
        DataError: if the folder does not hold a finished run.
    """
    missing = [name for name in ("config.toml", "classes.json", "model.keras") if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{str(folder)!r} does not hold a finished run: it has no {', '.join(missing)}.")
    config = configuration.load(folder / "config.toml")
    class_names = tuple(runs.read_json(folder / "classes.json"))
    backbone = dataclasses.replace(config.backbone, weights="none")  # all weights come from the run
    model = build(backbone, config.head, config.data.image_size, np.ones(len(class_names)))
    try:
        model.load_weights(folder / "model.keras")
    except Exception as error:  # of zip, HDF5 or Keras
        raise DataError(f"{str(folder / 'model.keras')!r} does not hold this run's weights: {error}") from error
    return config, class_names, model


def classify(
    model: keras.Model, config: Config, sources: Sequence[ImageSource], temperature: float = 1.0
) -> Iterator[tuple[ImageSource, np.ndarray | BadImageError]]:
    """Class probabilities of pictures, a batch at a time, so that memory does not grow with their number.

    Args:
        model: from `load_run`.
        config: its configuration, for image size, resizing, batch size and views.
        sources: files, bytes or arrays.
        temperature: from the run's calibration.json.

    Yields:
        Each source in order with float64 [classes] probabilities, or with the reason why it could not be read.
    """
    resizes = ["crop", "squash"] if config.evaluate.whole and config.data.resize == "crop" else [config.data.resize]

    def load(source: ImageSource) -> list[np.ndarray] | BadImageError:
        try:
            return [load_image(source, config.data.image_size, resize) for resize in resizes]
        except BadImageError as error:
            return error

    size = config.train.batch_size
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(sources), size):
            chunk = sources[start : start + size]
            loaded = list(pool.map(load, chunk))
            good = [row for row, images in enumerate(loaded) if isinstance(images, list)]
            results: list[np.ndarray | BadImageError] = list(loaded)
            if good:
                # Filled up to one shape, because TensorFlow traces the network anew for each.
                views = np.zeros((len(resizes), size, *model.input_shape[1:]), np.uint8)
                views[:, : len(good)] = np.stack([loaded[row] for row in good], axis=1)
                views = list(views)
                if config.evaluate.magnify:
                    views.append(magnify(views[0]))
                if config.evaluate.mirror:
                    views += [view[:, :, ::-1] for view in views]
                said = [
                    softmax(np.asarray(model.predict_on_batch(view.astype(np.float32)), np.float64), axis=1)
                    for view in views
                ]
                mean = softmax(np.log(np.clip(np.mean(said, axis=0), 1e-30, None)) / temperature, axis=1)
                for row, probabilities in zip(good, mean, strict=False):  # no more: those were filled
                    results[row] = probabilities
            yield from zip(chunk, results, strict=True)
