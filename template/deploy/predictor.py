"""A finished run put to use: load its model, and classify files with it."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.special import expit, logit, softmax

from .. import config as configuration
from .. import disk, runs
from ..config import Config, settled
from ..data.examples import DataError
from ..data.images.load import BadImageError, ImageSource
from ..model.hub_layer import HubLayer, import_keras_hub
from ..model.inference import fold_batch_norm
from ..model.layers import strip_training_layers
from ..model.weights import WeightsError
from ..suggest import uses_full_image, uses_hflip
from .novelty import Novelty
from .runtime import Answer, Inputs, classify_all

KNOWN = frozenset({
    # of networks
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Cropping1D", "Dense",
    "DepthwiseConv2D", "Dropout", "Flatten", "Functional", "GaussianDropout", "GlobalAveragePooling1D",
    "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GroupNormalization", "InputLayer",
    "LayerNormalization", "LayerScale", "LeakyReLU", "Maximum", "MaxPooling2D", "Multiply", "Normalization", "PReLU",
    "ReLU", "Rescaling", "Reshape", "SeparableConv2D", "Sequential", "ZeroPadding2D",
    # operations between layers
    "Absolute", "Flip", "Rsqrt", "Split",
    # of layers
    "Constant", "DTypePolicy", "GlorotUniform", "L1L2", "MaxNorm", "Ones", "VarianceScaling", "Zeros",
    "__keras_tensor__",
})  # fmt: skip
"""Classes of Keras that a run's model.keras may name; none of them executes or reads what is written in the file."""
HUB = keras.saving.get_registered_name(HubLayer)
"""Beside them: a layer of KerasHub, which makes nothing but such layers."""


def save_model(model: keras.Model, folder: Path) -> keras.Model:
    """Write model.keras, and into model.json the digests by which `load_run` knows file and weights again.

    The file holds the network as it is at inference, in float32, without code of ours, but for `HubLayer`, where its
    layers are those of KerasHub: any program with Keras 3.15 loads it. Earlier ones do not, because files of Keras name
    settings that earlier versions have not heard of (tried: 3.14.1, 3.13.2 and 3.12.0 stop at `input_axes` of
    initializers, the latter two at batch normalisation as well).

    Returns:
        The model in the file. What is measured should be this one: another precision gives other answers.
    """
    model = strip_training_layers(model)
    with runs.replacing(folder / "model.keras") as file:
        model.save(file)
    runs.write_json(folder / "model.json", {"file": disk.sha256(folder / "model.keras"), "weights": _digest(model)})
    return model


def load_run(folder: Path) -> tuple[Config, tuple[str, ...], keras.Model]:
    """The model of a finished run, with its configuration and class names.

    The network, its preprocessing included, is the one in the file: nothing about it is inferred from settings. A file
    of somebody else's is not even opened, one with other parts than `KNOWN` is not built, so that nothing in it is
    executed, and every weight must be the one that was saved: Keras reads a file that lacks some without a word.

    Raises:
        DataError: if the folder does not hold a finished run, or its model is not the one that was saved.
    """
    needed = ("config.toml", "classes.json", "model.keras", "model.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{str(folder)!r} does not hold a finished run: it has no {', '.join(missing)}.")
    config, expected = configuration.load(folder / "config.toml"), _expected(folder / "model.json")
    file, class_names = folder / "model.keras", tuple(runs.read_json(folder / "classes.json"))
    if disk.sha256(file) != expected["file"]:
        raise DataError(
            f"{str(file)!r} is not the file that the run saved (another sha256 than in model.json): "
            "damaged, cut short or exchanged. Copy it again, or resume the run if it was interrupted."
        )
    try:
        named = _names(file)
        if strange := sorted(named - KNOWN - {HUB}):
            raise ValueError(
                f"it names {', '.join(strange)}, which no run does. If these are layers of Keras in a network of your "
                "own, add them to KNOWN in deploy/predictor.py"
            )
        if HUB in named:
            import_keras_hub()
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except WeightsError as error:
        raise DataError(f"{str(file)!r} cannot be loaded here. {error}") from error
    except Exception as error:  # of zip, JSON, HDF5 or Keras
        raise DataError(f"{str(file)!r} does not hold this run's network: {error}") from error
    shapes, side = (model.input_shape, model.output_shape), config.data.image_size
    if shapes != ((None, side, side, 3), (None, len(class_names))):
        raise DataError(
            f"{str(file)!r} does not hold this run's network: expected images of {side} x {side} pixels (config.toml) "
            f"and {len(class_names)} classes (classes.json). Received: {shapes}. Was one of these files edited?"
        )
    if _digest(model) != expected["weights"] or not all(np.isfinite(w).all() for w in model.get_weights()):
        raise DataError(
            f"The weights in {str(file)!r} do not fill its network as they were saved, or are not finite. Was the file "
            "edited?"
        )
    return config, class_names, model


def _names(file: Path) -> set[str]:
    """Classes and functions that a .keras file names; nothing of it is made here."""
    with zipfile.ZipFile(file) as archive:
        saved = json.loads(archive.read("config.json"))
    saved.pop("compile_config", None)  # older runs have losses and optimizers there; nobody reads them
    return _named(saved)


def _named(saved: Any) -> set[str]:
    """Names of all classes and functions in a part of a configuration."""
    within = saved.values() if isinstance(saved, dict) else saved if isinstance(saved, list) else ()
    names = set()
    if isinstance(saved, dict) and "class_name" in saved:
        module, name = str(saved.get("module") or "keras"), str(saved["class_name"])
        names = {name if module.partition(".")[0] == "keras" else f"{module}.{name}"}
        if saved.get("registered_name") == HUB:  # by which Keras goes, whatever else is said
            names = {HUB}
    return names.union(*map(_named, within))


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
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def classify(
    model: keras.Model,
    config: Config,
    sources: Sequence[ImageSource],
    temperature: float = 1.0,
    assumed: Callable[[ImageSource, str], None] = lambda source, note: None,
) -> Iterator[tuple[ImageSource, np.ndarray | BadImageError]]:
    """`classify_with_novelty`, for those who want probabilities alone.

    Yields:
        Each source in order with float64 [classes] probabilities, or with the reason why it could not be read.
    """
    for source, result in classify_with_novelty(model, config, sources, temperature, None, assumed):
        yield source, result.probabilities if isinstance(result, Answer) else result


def classify_with_novelty(
    model: keras.Model,
    config: Config,
    sources: Sequence[ImageSource],
    temperature: float,
    novelty: Novelty | None,
    assumed: Callable[[ImageSource, str], None] = lambda source, note: None,
) -> Iterator[tuple[ImageSource, Answer | BadImageError]]:
    """Answers of a run for images, a batch at a time, so that memory does not grow with their number.

    Args:
        model: from `load_run`.
        config: its configuration, for image size, resizing, batch size and views.
        sources: files, bytes or arrays.
        temperature: from the run's calibration.json.
        novelty: of the run, or None.
        assumed: called with a source and what had to be assumed to see something in it.

    Yields:
        Each source in order with its answer, or with the reason why it could not be read.
    """
    answer = answers_of(model, config, temperature, features=novelty is not None)

    def answers(images: np.ndarray) -> list[Answer]:
        mean, features = answer(images)
        scores = novelty.score(features) if novelty and features is not None else np.full(len(images), np.nan)
        return [Answer(row, float(score)) for row, score in zip(mean, scores, strict=True)]

    return classify_all(sources, inputs_of(config), answers, config.train.batch_size, assumed)


def answers_of(
    model: keras.Model, config: Config, temperature: float, *, features: bool
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """What a run says of pixels, for those who decode files themselves.

    Args:
        model: from `load_run`.
        config: its configuration, for batch size and views.
        temperature: from the run's calibration.json.
        features: whether what the head sees is wanted too.

    Returns:
        A function of uint8 [n, views, size, size, 3], with n up to `train.batch_size`: calibrated probabilities float64
        [n, classes], and features of the first view, float32 [n, f], or None.
    """
    model = fold_batch_norm(model)
    size, both = config.train.batch_size, with_features(model) if features else model

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        # Filled up to one shape, because TensorFlow traces the network anew for each.
        views = np.zeros((images.shape[1], size, *images.shape[2:]), np.uint8)
        views[:, : len(images)] = images.swapaxes(0, 1)
        seen = [*views, *(view[:, :, ::-1] for view in views)] if uses_hflip(config) else list(views)
        plain = both.predict_on_batch(seen[0].astype(np.float32))
        first, seen_by_head = plain if features else (plain, None)
        logits = [first, *(model.predict_on_batch(view.astype(np.float32)) for view in seen[1:])]
        mean = _mean_answer(logits, temperature, multi=config.data.labels == "multi")[: len(images)]
        return mean, None if seen_by_head is None else np.asarray(seen_by_head)[: len(images)]

    return answer


def _mean_answer(logits: Sequence[np.ndarray], temperature: float, *, multi: bool) -> np.ndarray:
    """Calibrated mean over the views of the probabilities, float64 [n, classes]."""
    views = np.asarray(logits, np.float64)
    if multi:
        mean = np.clip(expit(views).mean(axis=0), 1e-15, 1 - 1e-15)
        return expit(logit(mean) / temperature)
    return softmax(np.log(np.clip(softmax(views, axis=-1).mean(axis=0), 1e-30, None)) / temperature, axis=1)


def with_features(model: keras.Model) -> keras.Model:
    """A model that gives its logits, and what its head sees: the pooled features, below a hidden layer."""
    return keras.Model(model.inputs[0], [model.outputs[0], model.get_layer("head_dropout").output])


def inputs_of(config: Config) -> Inputs:
    """How images become what the network of a run is asked about; beside each view its mirror image, if it uses one."""
    data = config.data
    return Inputs(
        image_size=settled(data.image_size),
        resize=settled(data.resize),
        bits=data.bits,
        max_megapixels=data.max_megapixels,
        full_image=uses_full_image(config),
        center_zoom=settled(config.tta.center_zoom),
    )
