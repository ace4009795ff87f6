"""A small local page on which a person labels images: to be compared with a classifier, or to be learned from."""

import dataclasses
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import runs
from ..config import Data
from ..data.examples import DataError, Examples
from ..data.images.load import BadImageError, data_url, load
from ..data.sources.names import tidy
from ..evaluate import metrics
from ..evaluate.intervals import share_interval
from ..evaluate.predictions import Predictions

SIZE = 640
"""Side of the images that are shown, in pixels."""
NONE = ""
"""The label of an image that is of no class."""
LONGEST = 100
"""Characters of a new class's name."""


class Annotations:
    """Images to be labelled by a person, and their labels so far.

    Args:
        examples: the images to show.
        file: JSON, {id: class name}; written whole after every answer, and read if it is there.
        data: how the run decodes images, so that the person sees what the classifier sees.
        new_classes: whether other classes than those of the examples may be named, and `NONE` of them.
    """

    def __init__(self, examples: Examples, file: Path, data: Data | None = None, *, new_classes: bool = False) -> None:
        self.examples, self.file, self.new_classes = examples, file, new_classes
        self.settings = dataclasses.replace(data or Data(), image_size=SIZE, resize="pad")
        self.labels: dict[str, str] = runs.read_json(file) if file.exists() else {}

    @property
    def class_names(self) -> list[str]:
        """Those of the examples, and those that were named since."""
        return list(dict.fromkeys([*self.examples.class_names, *filter(None, self.labels.values())]))

    def answers(self) -> list[str | None]:
        """The label of each image, None of those that have none yet."""
        return [self.labels.get(str(name)) for name in self.examples.ids]

    def annotate(self, row: int, label: str | None) -> None:
        """Save a label, in memory and on disk; None takes it back.

        Raises:
            ValueError: if there is no such image or class.
        """
        if row not in range(len(self.examples)) or not self._is_class(label):
            raise ValueError(
                f"Expected an image from 0 to {len(self.examples) - 1} and a class. Received: {row} {label!r}"
            )
        if label is None:
            self.labels.pop(str(self.examples.ids[row]), None)
        else:
            self.labels[str(self.examples.ids[row])] = tidy(label)
        runs.write_json(self.file, self.labels)

    def _is_class(self, label: str | None) -> bool:
        if label is None or label in self.examples.class_names:
            return True
        return self.new_classes and (label == NONE or 0 < len(tidy(label)) <= LONGEST)

    def image(self, row: int) -> str:
        """A whole image as a data URL, without its name or label."""
        return data_url(load(self.examples.images[row], self.settings)[0])


def sample(examples: Examples, predictions: Predictions, count: int) -> Examples:
    """A random sample of the images that a run was evaluated on, the same every time.

    Raises:
        DataError: if one of them is not among the examples any more.
    """
    rows = np.random.default_rng(0).permutation(len(predictions.ids))[:count]
    where = {str(name): row for row, name in enumerate(examples.ids)}
    gone = [str(name) for name in predictions.ids[rows] if str(name) not in where]
    if gone:
        raise DataError(f"{len(gone)} images that the run was evaluated on are missing, such as {gone[0]!r}.")
    return examples.take(np.array([where[str(name)] for name in predictions.ids[rows]]))


def compare(answers: dict[str, str], predictions: Predictions) -> dict[str, Any]:
    """A person against labels and classifier, on the images that the person has labelled.

    Args:
        answers: {id: class name}.
        predictions: of the classifier.

    Returns:
        `images`; `human` and `classifier`, their accuracies, and `agreement` of the two, with intervals;
        `cohen_kappa` of person and labels; `disagreements`: (id, label, answer) where the person chose another class.

    Raises:
        ValueError: if the person has labelled none of them.
    """
    rows = [row for row, name in enumerate(predictions.ids) if str(name) in answers]
    if not rows:
        raise ValueError("Expected at least one answer. Received: none")
    shared, names = predictions.take(rows), predictions.class_names
    chosen = np.array([names.index(answers[str(name)]) for name in shared.ids])
    human = Predictions(shared.ids, shared.labels, 10 * np.eye(len(names), dtype=np.float32)[chosen], names)
    correct = {
        "human": chosen == shared.labels,
        "classifier": shared.predicted == shared.labels,
        "agreement": chosen == shared.predicted,
    }
    wrong = np.flatnonzero(chosen != shared.labels)
    return {
        "images": len(rows),
        **{key: share_interval(values, groups=shared.groups) for key, values in correct.items()},
        "cohen_kappa": metrics.score(human)["cohen_kappa"],
        "disagreements": [(str(shared.ids[i]), names[shared.labels[i]], names[chosen[i]]) for i in wrong],
    }


class Server(ThreadingHTTPServer):
    """Serves the page, to this machine alone; call its `serve_forever`.

    Args:
        annotations: the images and their labels.
        port: to listen on; 0 for any that is free.

    Raises:
        OSError: if the port is taken.
    """

    def __init__(self, annotations: Annotations, port: int) -> None:
        environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
        self.annotations, self._page = annotations, environment.get_template("annotate.html")
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def page(self) -> str:
        """With a button for each class that there is by now."""
        return self._page.render(class_names=self.annotations.class_names, new_classes=self.annotations.new_classes)


class _Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        """The page, the labels so far, or an image."""
        if not self._is_same_origin():
            return
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/answers":
            self._send(200, json.dumps(self.server.annotations.answers()))
        elif self.path.removeprefix("/image/").isdecimal():
            row = int(self.path.removeprefix("/image/"))
            try:
                self._send(200, json.dumps(self.server.annotations.image(row)))
            except (IndexError, BadImageError) as error:
                self._send(404, json.dumps(str(error)))
        else:
            self._send(404, "null")

    def do_POST(self) -> None:
        """A label: `{"row": 3, "label": "cat"}`, or null to take it back."""
        if not self._is_same_origin():
            return
        try:
            given = json.loads(self.rfile.read(min(10_000, int(self.headers.get("Content-Length", 0)))))
            self.server.annotations.annotate(given["row"], given["label"])
            self._send(200, "null")
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, json.dumps(str(error)))
        except OSError as error:  # the disk is full, or the drive is gone
            self._send(500, json.dumps(f"The label could not be saved: {error.strerror}"))

    def _is_same_origin(self) -> bool:
        """Whether a request comes from this page; those of other sites are refused."""
        port = self.server.server_address[1]
        same = self.headers.get("Host") in {f"127.0.0.1:{port}", f"localhost:{port}"}
        if same and (self.command == "GET" or self.headers.get("Content-Type") == "application/json"):
            return True
        self._send(403, "null")
        return False

    def _send(self, status: int, body: str, kind: str = "application/json") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
