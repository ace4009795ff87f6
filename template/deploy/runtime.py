"""An exported network put to use, with onnxruntime, Pillow and NumPy alone: no TensorFlow, no Keras.

    classifier = Classifier.of_run(Path("runs/RUN"))
    pixels, note = classifier.inputs.load(contents_of_a_file)
    probabilities, novelty = classifier.answer(pixels[None])[0]

Files become pixels by the same code as in training. Several threads may share a classifier.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .. import device, disk, runs
from ..data.images.load import BadImageError, ImageSource, load_views, zoom_center
from ..data.sources.names import DataError

# From 1.29 on, onnxruntime keeps a number for this machine and tells its makers of each process and network, unless
# this stands there before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FOLDER, CARD = "export", "model_card.json"
FILES = {"float32": "model.onnx", "float16": "model.float16.onnx", "int8": "model.int8.onnx"}
BATCH = 32
"""Images that are classified at once; more are no faster, and take more memory."""
INSTALL = 'pip install -c constraints.txt -e ".[onnx]"'
OUTPUT, NOVELTY = "probabilities", "novelty"
"""Names of what a network gives; `novelty` where its run has something to compare with."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How an image file becomes what a network is asked about: one view of it, or several.

    Args:
        image_size: as in the run's `[data]`, and so the next three.
        resize: how an image becomes square.
        bits: of 16-bit files.
        max_megapixels: of a file, at most.
        full_image: as in its `[tta]`: whether a view of the whole image is added.
        center_zoom: likewise, of its middle.
    """

    image_size: int
    resize: Literal["crop", "pad", "stretch"]
    bits: Literal["auto"] | int
    max_megapixels: float
    full_image: bool
    center_zoom: bool

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, in the order of `load`."""
        whole, zoomed = self.full_image and self.resize == "crop", self.center_zoom
        return (self.resize, *["stretch"] * whole, *["center_zoom"] * zoomed)

    def load(self, source: ImageSource) -> tuple[np.ndarray, str]:
        """Pixels of all views, uint8 [views, size, size, 3]; and what had to be assumed to see them, or "".

        Args:
            source: path, contents (bytes) or array.

        Raises:
            BadImageError: with the reason, if the image cannot be used.
        """
        pixels, note = load_views(source, self, [name for name in self.views if name != "center_zoom"])
        views = np.stack(pixels)
        return np.concatenate([views, zoom_center(views[:1])]) if self.center_zoom else views, note


def classify_all(
    sources: Sequence[ImageSource],
    inputs: Inputs,
    classify: Callable[[np.ndarray], Iterable[Any]],
    batch: int,
    assumed: Callable[[ImageSource, str], None],
) -> Iterator[tuple[ImageSource, Any]]:
    """Classify images a batch at a time, so that memory does not grow with their number.

    Args:
        sources: files, bytes or arrays.
        inputs: how they become pixels.
        classify: pixels uint8 [n, views, size, size, 3] to n answers.
        batch: most images at once.
        assumed: called with a source and what had to be assumed to see something in it.

    Yields:
        Each source in order with its answer, or with the reason (a `BadImageError`) why it could not be read.
    """

    def load(source: ImageSource) -> tuple[np.ndarray, str] | BadImageError:
        try:
            return inputs.load(source)
        except BadImageError as error:
            return error

    with device.threads() as pool:
        for start in range(0, len(sources), batch):
            chunk = sources[start : start + batch]
            results: list[Any] = list(pool.map(load, chunk))
            good = [row for row, result in enumerate(results) if isinstance(result, tuple)]
            for row in good:
                if note := results[row][1]:
                    assumed(chunk[row], note)
            if good:
                answers = classify(np.stack([results[row][0] for row in good]))
                for row, answer in zip(good, answers, strict=True):
                    results[row] = answer
            yield from zip(chunk, results, strict=True)


Infer = Callable[[np.ndarray], Sequence[np.ndarray]]
"""A network: pixels to its outputs."""


class Answer(NamedTuple):
    """What is said of an image.

    Attributes:
        probabilities: calibrated, float64 [classes]; where an image may have several labels, of each alone.
        novelty: from `Novelty.score`: above 1, the image is like nothing in training; NaN where nobody can say.
    """

    probabilities: np.ndarray
    novelty: float


class Classifier:
    """An exported network, and how it wants to be fed.

    Args:
        infer: float32 [n, size, size, 3], RGB 0-255, to calibrated probabilities float32 [n, classes]; and after them
            novelty, float32 [n], if it is known.
        about: `class_names`, `inputs` (the fields of `Inputs`) and `temperature`, as they are in the file; and
            `labels`, "multi" where an image may have several.
    """

    def __init__(self, infer: Infer, about: dict[str, Any]) -> None:
        self.infer = infer
        self.class_names: tuple[str, ...] = tuple(about["class_names"])
        self.inputs, self.temperature = Inputs(**about["inputs"]), float(about["temperature"])
        self.multi = about.get("labels") == "multi"

    @classmethod
    def of_file(cls, file: Path) -> "Classifier":
        """Read an .onnx file of export.py; all that is needed is in it.

        Raises:
            DataError: if it is none, or onnxruntime is not installed.
        """
        session = open_session(file)
        name, given = session.get_inputs()[0].name, {output.name for output in session.get_outputs()}
        wanted = [OUTPUT, *{NOVELTY} & given]  # exports of before have no novelty
        return cls.of_session(session, file, lambda pixels: session.run(wanted, {name: pixels}))

    @classmethod
    def of_session(cls, session: Any, file: Path, infer: Infer) -> "Classifier":
        """What an opened file says of itself, with a function of one's own that runs it.

        Raises:
            DataError: if it is no file of export.py.
        """
        saved = session.get_modelmeta().custom_metadata_map
        try:
            about = {name: json.loads(saved[name]) for name in ("class_names", "inputs", "temperature")}
            return cls(infer, about | ({"labels": json.loads(saved["labels"])} if "labels" in saved else {}))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{str(file)!r} does not say how images are prepared for it: {error!r}. Expected a file of export.py"
            ) from error

    @classmethod
    def of_run(cls, run: Path, precision: str = "float32") -> "Classifier":
        """What export.py wrote into the folder of a run.

        Raises:
            DataError: if there is no such export, or a file is not the one that was written.
        """
        file, card = run / FOLDER / FILES[precision], run / FOLDER / CARD
        if not (file.is_file() and card.is_file()):
            raise DataError(
                f"{str(run)!r} has no ONNX export of precision {precision}: "
                f"python scripts/export.py --run {run} --format onnx --precision {precision}"
            )
        listed = {row["file"]: row["sha256"] for row in runs.read_json(card)["artefacts"]}
        if listed.get(file.name) != disk.sha256(file):
            raise DataError(
                f"{str(file)!r} is not the file that was exported (another sha256 than in {CARD}): damaged, cut short "
                "or exchanged. Export the run again."
            )
        return cls.of_file(file)

    def answer(self, images: np.ndarray) -> list[Answer]:
        """Probabilities of images, means over their views; and the novelty of the first view.

        The network divides by the temperature for one view; the mean is of what it said before.

        Args:
            images: uint8 [n, views, size, size, 3], of `inputs.load`.
        """
        count, views = images.shape[:2]
        pixels = images.reshape(-1, *images.shape[2:])
        parts = [pixels[start : start + BATCH].astype(np.float32) for start in range(0, len(pixels), BATCH)]
        outputs = [np.concatenate(part).astype(np.float64) for part in zip(*map(self.infer, parts), strict=True)]
        each = outputs[0].reshape(count, views, -1)
        if views > 1:
            before = _power(each, self.temperature, multi=self.multi).mean(axis=1, keepdims=True)
            each = _power(before, 1 / self.temperature, multi=self.multi)
        probabilities = _power(each[:, 0], 1.0, multi=self.multi)
        novelty = outputs[1].reshape(count, views)[:, 0] if len(outputs) > 1 else np.full(count, np.nan)
        return [Answer(row, float(far)) for row, far in zip(probabilities, novelty, strict=True)]

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The probabilities of `answer` alone, float64 [n, classes]."""
        return np.stack([answer.probabilities for answer in self.answer(images)])

    def classify_files(
        self,
        sources: Sequence[ImageSource],
        assumed: Callable[[ImageSource, str], None] = lambda source, note: None,
    ) -> Iterator[tuple[ImageSource, Answer | BadImageError]]:
        """`classify_all` with this network."""
        return classify_all(sources, self.inputs, self.answer, BATCH, assumed)


def _power(probabilities: np.ndarray, exponent: float, *, multi: bool) -> np.ndarray:
    """Probabilities to a power, so that they sum to 1 again, or each with its complement: logits times this number."""
    raised = np.clip(probabilities, 1e-30, None) ** exponent
    if multi:
        return raised / (raised + np.clip(1 - probabilities, 1e-30, None) ** exponent)
    return raised / raised.sum(axis=-1, keepdims=True)


def open_session(file: Path, threads: int | None = None) -> Any:
    """A session of onnxruntime on CPUs.

    Args:
        file: an .onnx file.
        threads: that compute; as many as there are cores by default.

    Raises:
        DataError: if it cannot be loaded, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError(f"onnxruntime is not installed ({error}): {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    # The memory that a network computes in stays its own, and goes with it when a run is swapped. Several networks in
    # one (session.use_env_allocators) leave their weights scattered over it, and it grows with each.
    options.enable_mem_pattern = False  # one block of memory for each size of batch, of which others use little
    options.intra_op_num_threads = threads or device.cores()
    # Idle threads sleep: those that spin take the cores from decoding, and from whatever else the machine does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; the rest would be among the rows that are printed
    try:
        return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of protobuf, or of a graph that this version does not run
        why = " ".join(str(error).split())
        raise DataError(f"{str(file)!r} cannot be loaded by onnxruntime {onnxruntime.__version__}: {why}") from error
