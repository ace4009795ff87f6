"""A run in one object that travels to any machine, and what becomes of it there: a network that classifies pixels.

By the run's ONNX export where it has one, so that no worker loads TensorFlow; by TensorFlow otherwise.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ... import runs
from ...data.sources.names import DataError
from ..novelty import FILE as NOVELTY_FILE
from ..novelty import Novelty
from ..runtime import BATCH, CARD, FILES, FOLDER, NOVELTY, OUTPUT, Classifier, Inputs, open_session

FEATURES = "features"
_HEAD = re.compile(r"/(head_hidden|logits)(_\d+)?/")
"""In the names of nodes of the layers that look at the features."""
KERAS = ("config.toml", "classes.json", "model.keras", "model.json", "calibration.json")
"""What classifying by TensorFlow needs of a run."""

Answers = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of n images: calibrated probabilities float64 [n, classes]; novelty float64 [n], NaN where nobody can say; features
float32 [n, f], with f = 0 where there are none."""


@dataclass(frozen=True, kw_only=True)
class PackedRun:
    """All of a run that answers need.

    Args:
        runtime: by which it answers.
        files: contents, by their names in the folder of the run.
        digest: sha256 of all that its rows depend on.
        class_names: in the order of the probabilities.
        inputs: how an image becomes pixels.
        least: confidence below which the answer is "not sure"; 0 where none was found.
        above: the same of the levels above the classes, where their names are a tree; None where nobody is sure.
        features: how many features it gives, or 0.
    """

    runtime: Literal["onnx", "keras"]
    files: dict[str, bytes]
    digest: str
    class_names: tuple[str, ...]
    inputs: Inputs
    least: float | None
    above: tuple[float | None, ...]
    features: int


def pack_run(run: Path, runtime: Literal["auto", "onnx", "keras"] = "auto", precision: str = "float32") -> PackedRun:
    """Read a run, and see that it answers.

    Args:
        run: folder of a finished run.
        runtime: "auto" for the ONNX export where there is one, and TensorFlow otherwise.
        precision: of the export.

    Raises:
        DataError: if it cannot be loaded.
    """
    exported, calibration = run / FOLDER / FILES[precision], run / "calibration.json"
    runtime = ("onnx" if exported.is_file() else "keras") if runtime == "auto" else runtime
    if runtime == "onnx":
        Classifier.of_run(run, precision)  # that the file is the one that was exported
        decided = runs.read_json(calibration if calibration.is_file() else run / FOLDER / CARD)
        original = exported.read_bytes()
        files, own = {"model.onnx": _with_features(original)}, [original]
    else:
        if missing := [name for name in KERAS if not (run / name).is_file()]:
            raise DataError(f"{str(run)!r} does not hold a finished run: it has no {', '.join(missing)}.")
        decided = runs.read_json(calibration)
        files = {name: (run / name).read_bytes() for name in (*KERAS, NOVELTY_FILE) if (run / name).is_file()}
        own = list(files.values())
    if decided.get("labels") == "multi":
        raise DataError(
            "predict_many.py is for images of one class each, and those of this run may have several labels."
        )
    least, above = decided["reject"]["confidence"], tuple(level["confidence"] for level in decided.get("levels", ()))
    own.append(json.dumps([least, above]).encode())
    digest = hashlib.sha256(b"".join(hashlib.sha256(contents).digest() for contents in own)).hexdigest()
    network = Network(files, runtime)
    return PackedRun(
        runtime=runtime,
        files=files,
        digest=digest,
        class_names=network.class_names,
        inputs=network.inputs,
        least=least if above else least or 0.0,
        above=above,
        features=network.features,
    )


class Network:
    """A packed run, opened.

    Args:
        files, runtime: as of `PackedRun`.
        threads: that compute; all cores by default.
    """

    def __init__(self, files: dict[str, bytes], runtime: str, threads: int | None = None) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            for name, contents in files.items():
                (Path(temporary) / name).write_bytes(contents)
            opened = _open_onnx if runtime == "onnx" else _open_keras
            self.class_names, self.inputs, self.batch, self._answer = opened(Path(temporary), threads)
        size, views = self.inputs.image_size, len(self.inputs.views)
        self.features = self.classify(np.zeros((1, views, size, size, 3), np.uint8))[2].shape[1]

    def classify(self, images: np.ndarray) -> Answers:
        """What it says of images, uint8 [n, views, size, size, 3], however many."""
        parts = [self._answer(images[start : start + self.batch]) for start in range(0, len(images), self.batch)]
        probabilities, novelty, features = (np.concatenate(each) for each in zip(*parts, strict=True))
        return probabilities, novelty, features


_Opened = tuple[tuple[str, ...], Inputs, int, Callable[[np.ndarray], Answers]]
"""Class names; inputs; most images at once; what is said of so many."""


def _open_onnx(folder: Path, threads: int | None) -> _Opened:
    session = open_session(folder / "model.onnx", threads)
    name, given = session.get_inputs()[0].name, {output.name for output in session.get_outputs()}
    outputs, seen = [OUTPUT, *{NOVELTY} & given, *{FEATURES} & given], list[np.ndarray]()

    def infer(pixels: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = session.run(outputs, {name: pixels})
        if FEATURES in given:
            seen.append(found.pop()[: len(pixels)])  # those of mirror images come after them
        return found

    classifier = Classifier.of_session(session, folder / "model.onnx", infer)

    def answer(images: np.ndarray) -> Answers:
        seen.clear()
        probabilities, novelty = map(np.array, zip(*classifier.answer(images), strict=True))
        features = np.concatenate(seen)[:: images.shape[1]] if seen else np.zeros((len(images), 0), np.float32)
        return probabilities, novelty, features  # of the first view

    return classifier.class_names, classifier.inputs, BATCH, answer


def _open_keras(folder: Path, threads: int | None) -> _Opened:
    runs.import_tensorflow()
    import tensorflow as tf

    from ..predictor import answers_of, inputs_of, load_run

    if threads and not tf.config.get_visible_devices("GPU"):
        _limit_threads(threads)
    config, class_names, model = load_run(folder)
    temperature = runs.read_json(folder / "calibration.json")["temperature"]
    answers, novelty = answers_of(model, config, temperature, features=True), Novelty.load(folder)

    def answer(images: np.ndarray) -> Answers:
        probabilities, features = answers(images)
        features = np.asarray(features)
        return probabilities, novelty.score(features) if novelty else np.full(len(images), np.nan), features

    return class_names, inputs_of(config), config.train.batch_size, answer


def _limit_threads(threads: int) -> None:
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # this process has computed already
        pass


def _with_features(contents: bytes) -> bytes:
    """An exported network that gives the features as a second output; itself where they are not found.

    They are what its first layer after the pooling multiplies, found by the names of layers. Without the package onnx
    nothing is changed: the answers are the same.
    """
    try:
        import onnx
    except ImportError:
        return contents
    model = onnx.load_from_string(contents)
    products = (node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"})
    head = next((node for node in products if _HEAD.search(node.name)), None)
    if head is None:
        return contents
    model.graph.node.append(onnx.helper.make_node("Identity", [head.input[0]], [FEATURES]))
    model.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, [None, None]))
    return model.SerializeToString()
