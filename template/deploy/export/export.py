"""A finished run as files for other programs, each held against Keras on images of the run before it is kept."""

import dataclasses
import functools
import gc
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import disk, progress, runs
from ...data.examples import DataError
from ...data.images.load import BadImageError, ImageSource
from ...evaluate.intervals import share_interval
from ...suggest import uses_hflip
from ..novelty import Novelty
from ..predictor import classify_with_novelty, inputs_of, load_run
from ..runtime import CARD, FILES, INSTALL, Answer, Classifier
from .graph import Served, freeze, load_saved_model, write_saved_model
from .images import Images, images_of, load_pixels
from .model_card import describe, markdown

PRECISIONS = {"onnx": tuple(FILES), "litert": ("float32", "float16", "int8"), "savedmodel": ("float32",)}
"""What each format can hold."""
NEEDED = ("calibration.json", "metrics.json", "predictions_val.npz", "run.json", "split.csv")
"""Files of a run, beside its model."""
TOLERANCE = {"float32": 1e-3, "float16": 0.05}
"""Largest difference of a probability from Keras's own: sums in another order, and weights of 11 bits."""
AGREEMENT = 0.8
"""Least share of answers that int8 must have in common with Keras. What is built wrong has a third to a half."""
Answers = tuple[np.ndarray, np.ndarray]
"""Of n images: probabilities [n, classes], and novelty [n], NaN where it is not known."""


class Sources:
    """What several files are made from, made once and when it is needed.

    Args:
        served: the network.
        about: what is known about it, for each file.
    """

    def __init__(self, served: Served, about: dict[str, Any]) -> None:
        self.served, self.about = served, about

    @functools.cached_property
    def frozen(self) -> Any:
        """The graph with its weights."""
        return freeze(self.served)

    @functools.cached_property
    def lean(self) -> Any:
        """The same without novelty, whose images of training take more room than a small network in int8."""
        served = self.served
        return freeze(Served(served.model, served.temperature, served.hflip)) if served.novelty else self.frozen

    @functools.cached_property
    def onnx(self) -> Any:
        """The same as ONNX."""
        from .onnx import converted

        return converted(self.frozen, self.about)


class ExportError(ValueError):
    """A file that could not be made or does not say what Keras says. The message says which and why."""


def export_run(
    run: Path, wanted: Sequence[tuple[str, str]], out: Path, path: str | None = None, most: int = 256
) -> tuple[dict[str, Any], list[str]]:
    """Export a run, and compare each file with Keras.

    Args:
        run: folder of a finished run.
        wanted: format and precision of each file.
        out: folder, which is replaced as a whole.
        path: where the images are now; by default where they were.
        most: validation images that are compared.

    Returns:
        The model card, and what could not be exported, with reasons.

    Raises:
        DataError: if the run or its images are not there.
        ExportError: if nothing could be exported; no file is left then.
    """
    config, class_names, model = load_run(run)
    require_finished(run)
    temperature = runs.read_json(run / "calibration.json")["temperature"]
    images = images_of(run, config, class_names, path, most)
    about = {
        "class_names": list(class_names),
        "inputs": dataclasses.asdict(inputs_of(config)),
        "temperature": temperature,
        "labels": config.data.labels,
    }
    novelty = Novelty.load(run)
    served = Served(model, temperature, uses_hflip(config), novelty, multi=config.data.labels == "multi")
    expected = _answers(classify_with_novelty(model, config, images.compared, temperature, novelty))
    pixels = load_pixels(images.calibration, inputs_of(config))
    timed = np.resize(pixels, (32, *pixels.shape[1:])).astype(np.float32)
    rows, problems = [_row_of_keras(run, served, expected, images, timed)], []
    sources = Sources(served, about)
    with disk.replacing_folder(out) as temporary:
        for kind, precision in progress.track(wanted, "exporting", len(wanted), "files"):
            file = temporary / name_of(kind, precision)
            try:
                found = _export(sources, file, kind, precision, pixels)
                rows.append(_compared(found, expected, images, timed) | _file(file, kind, precision))
                check(rows[-1])
            except ExportError as error:
                problems.append(f"{kind} {precision}: {error}")
                rows = [row for row in rows if row["file"] != file.name]
                _remove(file)
            gc.collect()  # graphs are large, and refer to themselves
        if len(rows) == 1:
            raise ExportError("\n".join(problems))
        card = describe(run, about, inputs_of(config).views, served, rows)
        runs.write_json(temporary / CARD, card)
        runs.write_text((temporary / CARD).with_suffix(".md"), markdown(card))
    return card, problems


def require_finished(run: Path) -> None:
    """See whether a run has all that its model card says.

    Raises:
        DataError: naming what is missing.
    """
    if missing := [name for name in NEEDED if not (run / name).is_file()]:
        raise DataError(f"{str(run)!r} has no {', '.join(missing)}: it is not finished, or of an earlier version.")


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def name_of(kind: str, precision: str) -> str:
    """Of the file in an export."""
    if kind == "savedmodel":
        return "saved_model"
    return FILES[precision].replace(".onnx", ".tflite") if kind == "litert" else FILES[precision]


def _answers(answers: Iterable[tuple[ImageSource, Answer | BadImageError]]) -> Answers:
    """As arrays."""
    found = [answer for _, answer in answers]
    for answer in found:
        if isinstance(answer, BadImageError):
            raise DataError(f"An image of the run cannot be read any more: {answer}")
    probabilities, novelty = zip(*found, strict=True)
    return np.stack(probabilities), np.array(novelty)


def _export(sources: Sources, file: Path, kind: str, precision: str, pixels: np.ndarray) -> Classifier:
    """Write a file, and load it with its own runtime."""
    about = sources.about
    try:
        if kind == "savedmodel":
            write_saved_model(sources.served, file, about)
            return Classifier(load_saved_model(file), about)
        if kind == "litert":
            from .litert import load_litert, write_litert

            write_litert(sources.lean, file, precision, pixels, about)
            return Classifier(load_litert(file), about)
        from .onnx import write_onnx

        write_onnx(sources.onnx, file, precision, pixels)
        return Classifier.of_file(file)
    except ImportError as error:
        install = INSTALL.replace("onnx", kind)
        raise ExportError(f"needs packages that are not installed ({error.name}): {install}") from error
    except Exception as error:  # whatever a converter makes of a network that it does not know
        why = " ".join(str(error).split())[:500] or "the converter gives no reason"
        raise ExportError(f"{sources.served.model.name} cannot be converted: {type(error).__name__}: {why}") from error


def _compared(found: Classifier, expected: Answers, images: Images, timed: np.ndarray) -> dict[str, Any]:
    """What an exported network says, against what Keras says."""
    answers = _answers(found.classify_files(images.compared))
    return _scores(answers, expected, images) | {"milliseconds": _milliseconds(found.infer, timed)}


def _scores(answers: Answers, expected: Answers, images: Images) -> dict[str, Any]:
    (given, novelty), (wanted, far) = answers, expected
    predicted, known = images.answers(given), ~np.isnan(novelty)
    right, same = predicted[: len(images.labels)] == images.labels, predicted == images.answers(wanted)
    if images.thresholds is not None:  # all labels of an image
        right, same = right.all(axis=1), same.all(axis=1)
    off = np.abs(novelty - far)[known] / np.maximum(far[known], 1)
    return {
        "images": len(wanted),
        "largest_difference": float(np.abs(given - wanted).max()),
        "agreement": float(same.mean()),
        "novelty_difference": float(off.max()) if off.size else None,
        "accuracy": share_interval(right, groups=images.groups),
    }


def check(row: dict[str, Any]) -> None:
    """Hold what an export says against what it may say.

    Raises:
        ExportError: if it says something else than Keras, or is not a number anywhere.
    """
    difference, same, images = row["largest_difference"], row["agreement"], row["images"]
    most = TOLERANCE.get(row["precision"])
    wrong = not difference <= most if most else not (same >= AGREEMENT and np.isfinite(difference))
    if wrong:
        limit = f"a difference of {most:g}" if most else f"{100 - 100 * AGREEMENT:.0f} % other answers"
        raise ExportError(
            f"says something else than Keras on {images} images of the run: a probability differs by "
            f"{difference:.2g}, and {100 * same:.1f} % of the answers are the same (allowed: {limit}). It was not kept"
        )
    if most and not (row.get("novelty_difference") or 0) <= most:
        raise ExportError(
            f"gives another novelty than Keras on {images} images of the run, by {row['novelty_difference']:.2g} "
            f"(allowed: {most:g}). It was not kept"
        )


def _milliseconds(infer: Callable[[np.ndarray], Any], pixels: np.ndarray) -> dict[str, float]:
    """For one image in batches of 1 and 32: the median of some rounds, after one that does not count."""
    found = {}
    for batch in (1, 32):
        infer(pixels[:batch])
        seconds: list[float] = []
        while len(seconds) < 15 and sum(seconds) < 2:
            start = time.perf_counter()
            infer(pixels[:batch])
            seconds.append(time.perf_counter() - start)
        found[str(batch)] = 1000 * float(np.median(seconds)) / batch
    return found


def _row_of_keras(run: Path, served: Served, expected: Answers, images: Images, timed: np.ndarray) -> dict[str, Any]:
    def infer(pixels: np.ndarray) -> np.ndarray:
        both = np.concatenate([pixels, pixels[:, :, ::-1]]) if served.hflip else pixels
        return served.model.predict(both, batch_size=len(both), verbose=0)

    row = _scores(expected, expected, images) | {"milliseconds": _milliseconds(infer, timed)}
    return row | _file(run / "model.keras", "keras", "float32")


def _file(file: Path, kind: str, precision: str) -> dict[str, Any]:
    """Name, size and digest; of a folder, that of the list of its files with theirs."""
    files = sorted(path for path in file.rglob("*") if path.is_file()) if file.is_dir() else [file]
    digests, size = [disk.sha256(path) for path in files], sum(path.stat().st_size for path in files)
    digest = digests[0]
    if file.is_dir():
        names = [path.relative_to(file.parent).as_posix() for path in files]
        lines = "".join(f"{each}  {name}\n" for each, name in zip(digests, names, strict=True))
        digest = hashlib.sha256(lines.encode()).hexdigest()
    return {"file": file.name, "format": kind, "precision": precision, "bytes": size, "sha256": digest}
