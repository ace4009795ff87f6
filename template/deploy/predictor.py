"""A finished run put to use: rebuild its model, and classify files with it."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax

from .. import config as configuration
from .. import device, disk, runs
from ..config import Config
from ..data.augment import magnify
from ..data.examples import DataError
from ..data.images import BadImageError, ImageSource, load_image
from ..model.build import build
from ..model.layers import bare


def save_model(model: keras.Model, folder: Path) -> None:
    """Write model.keras, and into model.json the digests by which `load_run` knows file and weights again.

    The file holds the network as it is at inference: Keras loads it anywhere, without code of ours.
    """
    model = bare(model)
    with runs.replacing(folder / "model.keras") as file:
        model.save(file)
    runs.write_json(folder / "model.json", {"file": disk.sha256(folder / "model.keras"), "weights": _digest(model)})


def load_run(folder: Path) -> tuple[Config, tuple[str, ...], keras.Model]:
    """Rebuild the model of a finished run, with its configuration and class names.

    The network is built by our own code and only weights are read from the file: nothing in the file is executed. A
    file of somebody else's is not even opened, and every weight must be the one that was saved: Keras reads a file
    that lacks layers, or has some left over, without a word.

    Raises:
        DataError: if the folder does not hold a finished run, or its model is not the one that was saved.
    """
    needed = ("config.toml", "classes.json", "model.keras", "model.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{str(folder)!r} does not hold a finished run: it has no {', '.join(missing)}.")
    config, expected = configuration.load(folder / "config.toml"), _expected(folder / "model.json")
    if disk.sha256(folder / "model.keras") != expected["file"]:
        raise DataError(
            f"{str(folder / 'model.keras')!r} is not the file that the run saved (another sha256 than in model.json): "
            "damaged, cut short or exchanged. Copy it again, or resume the run if it was interrupted."
        )
    class_names = tuple(runs.read_json(folder / "classes.json"))
    # All weights come from the run, and what only training drops is not in its file.
    backbone = dataclasses.replace(config.backbone, weights="none", stochastic_depth=0.0)
    head = dataclasses.replace(config.head, drop_block=0.0, drop_connect=0.0)
    model = build(backbone, head, config.data.image_size, np.ones(len(class_names)))
    try:
        model.load_weights(folder / "model.keras")
    except Exception as error:  # of zip, HDF5 or Keras
        raise DataError(f"{str(folder / 'model.keras')!r} does not hold this run's weights: {error}") from error
    if _digest(model) != expected["weights"] or not all(np.isfinite(w).all() for w in model.get_weights()):
        raise DataError(
            f"The weights in {str(folder / 'model.keras')!r} do not fill the network of config.toml and classes.json "
            "as they were saved, or are not finite. Was one of these files edited?"
        )
    return config, class_names, model


def _expected(file: Path) -> dict[str, str]:
    try:
        expected = runs.read_json(file)
        return {name: str(expected[name]) for name in ("file", "weights")}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{str(file)!r} is damaged: {error}") from error


def _digest(model: keras.Model) -> str:
    """Of all weights in order, with their shapes and types."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode())
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


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
    with device.threads() as pool:
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
