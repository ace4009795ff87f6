"""The model card of an export: what whoever uses the files must know, for programs (JSON) and for people (Markdown).

Mitchell et al. 2019, "Model cards for model reporting".
"""

import contextlib
import csv
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ... import runs
from ...evaluate import metrics, multilabel
from ...evaluate.document import code
from ...evaluate.intervals import percent
from ..runtime import NOVELTY, OUTPUT
from .graph import INPUT, Served

SQUARES = {
    "crop": "scaled to fill the square, and what is too long cut off evenly at both ends (Pillow's ImageOps.fit)",
    "pad": "scaled to fit into the square, with grey (128, 128, 128) at both sides (Pillow's ImageOps.pad)",
    "stretch": "scaled to the square, its aspect ratio changed (Pillow's Image.resize)",
}
FILTER = "Pillow's BILINEAR filter, which widens with the scale and so antialiases (no other library's is the same)"
NOTE = (
    "Accuracy is on validation images, of which the network may have learned in a refit: compare the rows with each "
    "other, and take the score from the test part. Same answer and largest difference (of a probability): against "
    "Keras. Milliseconds are for one image, with all that is inside the file, on the machine that exported, in "
    "batches of 1 and of 32; Keras by `model.predict`."
)
LIMIT_OF_ONE = (
    "Every image gets one of these classes, also one that shows none of them. Below the confidence of `reject`, or of "
    "a class's threshold, take the answer for `not sure`."
)
LIMIT_OF_SEVERAL = (
    "An image has each label whose probability reaches its threshold: several, or none. What no image of the training "
    "shows may get any."
)
VIEWS = {
    "crop": "the image cut to a square",
    "pad": "the image with grey borders",
    "stretch": "the whole image, scaled to a square",
    "center_zoom": "the middle two thirds of the first view's sides, scaled up (box of Pillow's Image.resize)",
}


def describe(
    run: Path, about: dict[str, Any], views: Sequence[str], served: Served, artefacts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The card, ready for JSON.

    Args:
        run: folder of the run.
        about: `class_names`, `inputs` and `temperature`, as they are in the files.
        views: names of the views that the files are asked about one by one.
        served: what is in the files.
        artefacts: what is known of each file; its first is Keras.
    """
    inputs, size = about["inputs"], about["inputs"]["image_size"]
    saved = {name: runs.read_json(run / f"{name}.json") for name in ("metrics", "calibration", "run")}
    unlike = {
        "name": NOVELTY,
        "shape": ["batch"],
        "type": "float32: distance of what the network sees to the most similar image of training, as a part of what "
        "is usual. Above 1, the image is like nothing in training. Not in LiteRT files; of the first view alone",
    }
    part = next(name for name in ("test", "cross_validation", "val") if saved["metrics"].get(name))
    return {
        "run": run.resolve().name,
        "made": time.strftime("%Y-%m-%d"),
        "classes": about["class_names"],
        "input": {
            "name": INPUT,
            "shape": ["batch", size, size, 3],
            "type": "float32, RGB, 0 to 255 (everything else is inside)",
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", len(about["class_names"])],
            "type": f"float32, calibrated probabilities in the order of the classes{', each alone' * served.multi}",
        },
        **({"novelty": unlike} if NOVELTY in served.outputs else {}),
        "preparation": [
            "The first frame or page is decoded; a JPEG at 1/2, 1/4 or 1/8 where that is at least twice the size.",
            "The EXIF orientation is applied.",
            "Transparent images are put on white (white drawings on black); colours are converted to sRGB.",
            f"It is {SQUARES[inputs['resize']]}: {size} x {size} pixels.",
            f"It is resampled with {FILTER}.",
            "template/data/images/load.py does all of that: use it where you can.",
        ],
        "views": {
            "inside": ["the image", "its mirror image"] if served.hflip else ["the image"],
            "outside": [VIEWS[name] for name in views],
            "mean": "p(view) ** temperature, scaled to sum 1, averaged over the views outside, ** (1 / temperature), "
            "scaled to sum 1; with one view there is nothing to do",
        },
        "inputs": inputs,
        "temperature": about["temperature"],
        "labels": about.get("labels", "single"),
        "reject": saved["calibration"]["reject"],
        "thresholds": saved["calibration"]["thresholds"],
        "scores": {"part": part, **saved["metrics"][part]},
        "images": dict(Counter(parts_of(run).values())),
        "data_sha256": saved["run"].get("split_sha256"),
        "trained_with": saved["run"].get("environment"),
        "exported_with": runs.environment() | _versions(),
        "artefacts": list(artefacts),
        "intended_use": f"To tell photographs like those of the training apart: {', '.join(about['class_names'])}.",
        "limits": [
            LIMIT_OF_SEVERAL if served.multi else LIMIT_OF_ONE,
            "The scores hold for images from where those of the training came. Other cameras, places or times: measure "
            "anew (scripts/evaluate.py --path).",
            "Nothing was measured on how it does with different groups of people; it must not decide about them alone.",
        ],
    }


def _versions() -> dict[str, str]:
    """Of the packages that wrote or ran the files."""
    found = {}
    for name in ("onnx", "tf2onnx", "onnxruntime", "ai-edge-litert"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def parts_of(run: Path) -> dict[str, str]:
    """Part of each image of a run, by its id."""
    with (run / "split.csv").open(newline="", encoding="utf-8") as table:
        return {row["id"]: row["part"] for row in csv.DictReader(table)}


COLUMNS = ("format", "accuracy on validation", "same answer", "largest difference", "MB", "ms at 1", "ms at 32")


def table(artefacts: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What the files cost: a row each, under `COLUMNS`."""
    return [
        (
            f"{row['format']} {row['precision']}",
            percent(row["accuracy"]),
            f"{100 * row['agreement']:.1f} %",
            f"{row['largest_difference']:.1e}",
            f"{row['bytes'] / 1e6:.1f}",
            *(f"{row['milliseconds'][batch]:.1f}" for batch in ("1", "32")),
        )
        for row in artefacts
    ]


def markdown(card: dict[str, Any]) -> str:
    """The card for people."""
    scores, reject = card["scores"], card["reject"]
    several = card["labels"] == "multi"
    titles, k = multilabel.TITLES if several else metrics.TITLES, scores.get("top_k", {}).get("k")
    measured = [f"- {title.format(k=k)}: {' '.join(show(scores[key]))}" for title, (key, show) in titles.items()]
    crossed = scores["part"] == "cross_validation"
    scored = "by cross-validation of the recipe" if crossed else f"on the {scores['part']} part"
    unsure = "" if several else _unsure(reject)
    thresholds = [f"- {code(name)}: {each['threshold']:.3f}" for name, each in card["thresholds"].items()]
    files = [
        f"- `{row['file']}`: {row['format']} {row['precision']}, sha256 `{row['sha256']}`" for row in card["artefacts"]
    ]
    parts = {
        f"{code(card['run'])}, exported {card['made']}": [card["intended_use"], "", *_items(card["limits"])],
        "Classes, in order": [*_items(map(code, card["classes"]))],
        "What goes in and comes out": [*_items(_ports(card)), "", "How an image becomes the input:", ""]
        + _items(card["preparation"])
        + ["", f"Answers are means over {' and '.join(card['views']['inside'])} (inside the files)"]
        + [f"and over these views (outside: a pass each): {'; '.join(card['views']['outside'])}."],
        f"Scores {scored}": [
            f"{scores['images']} images, 95 % intervals.",
            "",
            *measured,
        ],
        "When not to answer": [unsure]
        + ["", "Thresholds of yes-or-no questions, on calibrated probabilities:", "", *thresholds],
        "Files": [*_grid(card["artefacts"]), "", *files],
        "Where it comes from": [f"Images: {_listed(card['images'])}; split.csv sha256 `{card['data_sha256']}`.", ""]
        + [f"Trained with {_listed(card['trained_with'])}.", "", f"Exported with {_listed(card['exported_with'])}."],
    }
    title, *rest = parts
    lines = [f"# {title}", "", *parts[title]]
    for heading in rest:
        lines += ["", f"## {heading}", "", *parts[heading]]
    return "\n".join(lines) + "\n"


def _unsure(reject: dict[str, Any]) -> str:
    promise = f"{100 * reject['target']:.0f} % of the answers can be promised to be right."
    if reject["confidence"] is None:
        return f"No confidence was found from which on {promise}"
    return f"Below a confidence of {reject['confidence']:.3f}, say `not sure`: above it {promise}"


def _ports(card: dict[str, Any]) -> list[str]:
    ports = [card[way] for way in ("input", "output", "novelty") if way in card]
    return [f"`{port['name']}` {port['shape']}: {port['type']}" for port in ports]


def _listed(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (values or {}).items())


def _items(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _grid(artefacts: Sequence[dict[str, Any]]) -> list[str]:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *table(artefacts)]
    return [f"| {' | '.join(row)} |" for row in rows] + ["", NOTE]
