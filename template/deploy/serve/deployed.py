"""A run that is served: its classifier, by onnxruntime or TensorFlow, and its model card."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ... import runs
from ...data.images.reasons import BadImageError, TooLargeError
from ...data.sources.names import DataError
from ..runtime import CARD, FILES, FOLDER, Classifier

Runtime = Literal["auto", "onnx", "keras"]


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A run under its name.

    Args:
        name: of its folder, as it was given.
        runtime: "onnx" or "keras".
        classifier: says the same by either.
        card: from `model_card.describe`.
        megapixels: limit of the server, where it is lower than that of the run.
    """

    name: str
    runtime: str
    classifier: Classifier
    card: dict[str, Any]
    megapixels: float = float("inf")

    def load(self, contents: bytes) -> tuple[np.ndarray, str]:
        """`inputs.load` of the classifier, within the limit of the server.

        Raises:
            BadImageError: with the reason, if the image cannot be used.
        """
        inputs = self.classifier.inputs
        lower = min(inputs.max_megapixels, self.megapixels)
        try:
            return dataclasses.replace(inputs, max_megapixels=lower).load(contents)
        except TooLargeError as error:
            if error.megapixels == inputs.max_megapixels:
                raise
            words = f"{error.size} is more than the {lower:g} megapixels that this server takes; make it smaller"
            raise BadImageError(f"{words} (--max-megapixels)") from None

    @property
    def least(self) -> float:
        """Confidence below which the answer is "not sure"; 0 where none was found."""
        return self.card["reject"]["confidence"] or 0.0


def open_runs(
    folders: Sequence[Path], runtime: Runtime = "auto", megapixels: float = float("inf"), batch: int = 1
) -> list[Deployed]:
    """Load runs, and let each classify a batch: the first time takes longest, and the memory that it will ever take.

    Args:
        folders: of runs; each is known by its own name.
        runtime: "auto" for the ONNX export where there is one, and TensorFlow otherwise.
        megapixels: limit of an image, where that of the run is not lower.
        batch: most images that will be classified at once.

    Raises:
        DataError: if one of them cannot be loaded, or two have one name.
    """
    names = [folder.absolute().name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"Expected runs of different names. Received: {twice[0]!r} twice. Rename one of the folders.")
    return [_open(folder, name, runtime, megapixels, batch) for folder, name in zip(folders, names, strict=True)]


def _open(folder: Path, name: str, runtime: Runtime, megapixels: float, batch: int) -> Deployed:
    if runtime == "auto":
        runtime = "onnx" if (folder / FOLDER / FILES["float32"]).is_file() else "keras"
    if runtime == "onnx":
        classifier, card = Classifier.of_run(folder), runs.read_json(folder / FOLDER / CARD)
    else:
        classifier, card = _by_tensorflow(folder)
    if classifier.multi:
        raise DataError(f"serve.py is for images of one class each, and those of {name!r} may have several labels.")
    inputs = classifier.inputs
    classifier.classify(np.zeros((batch, len(inputs.views), inputs.image_size, inputs.image_size, 3), np.uint8))
    return Deployed(name=name, runtime=runtime, classifier=classifier, card=card, megapixels=megapixels)


def _by_tensorflow(folder: Path) -> tuple[Classifier, dict[str, Any]]:
    if not (folder / "model.keras").is_file():  # before the seconds that TensorFlow takes
        raise DataError(f"{str(folder)!r} does not hold a finished run: it has no model.keras.")
    runs.import_tensorflow()
    import tensorflow as tf

    from ...suggest import uses_hflip
    from ..export.export import require_finished
    from ..export.graph import Served
    from ..export.model_card import describe
    from ..novelty import Novelty
    from ..predictor import inputs_of, load_run

    config, class_names, model = load_run(folder)
    require_finished(folder)
    temperature = runs.read_json(folder / "calibration.json")["temperature"]
    served, inputs = Served(model, temperature, uses_hflip(config), Novelty.load(folder)), inputs_of(config)
    about = {"class_names": list(class_names), "inputs": dataclasses.asdict(inputs), "temperature": temperature}
    about["labels"] = config.data.labels

    def infer(pixels: np.ndarray) -> list[np.ndarray]:
        found = served.signature(tf.constant(pixels))
        return [found[name].numpy() for name in served.outputs]

    return Classifier(infer, about), describe(folder, about, inputs.views, served, [])
