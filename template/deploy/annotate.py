"""How well does a person do? A small local page that shows test images, and what one said of them."""

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
from ..evaluate import metrics
from ..evaluate.intervals import share_interval
from ..evaluate.predictions import Predictions

SIDE = 640
"""Pixels that a person sees."""


class Questions:
    """Images to be named by a person, and what was said of them so far.

    Args:
        examples: the images to show.
        file: JSON, {id: class name}; written whole after every answer, and read if it is there.
        data: how the run read them, for what a person sees to be what the classifier saw.
    """

    def __init__(self, examples: Examples, file: Path, data: Data | None = None) -> None:
        self.examples, self.file = examples, file
        self.how = dataclasses.replace(data or Data(), image_size=SIDE, resize="pad")
        self.said: dict[str, str] = runs.read_json(file) if file.exists() else {}

    def answers(self) -> list[str | None]:
        """What was said of each image, None of those that are still to be named."""
        return [self.said.get(str(name)) for name in self.examples.ids]

    def answer(self, row: int, said: str) -> None:
        """Keep an answer, in memory and on disk.

        Raises:
            ValueError: if there is no such image or class.
        """
        if row not in range(len(self.examples)) or said not in self.examples.class_names:
            raise ValueError(
                f"Expected an image from 0 to {len(self.examples) - 1} and a class. Received: {row} {said!r}"
            )
        self.said[str(self.examples.ids[row])] = said
        runs.write_json(self.file, self.said)

    def image(self, row: int) -> str:
        """An image as a data URL: the whole of it, and nothing that gives its label or name away."""
        return data_url(load(self.examples.images[row], self.how)[0])


def drawn(examples: Examples, predictions: Predictions, count: int) -> Examples:
    """So many of the images that a run was measured on, in an order that says nothing.

    Raises:
        DataError: if one of them is not among the examples any more.
    """
    rows = np.random.default_rng(0).permutation(len(predictions.ids))[:count]
    where = {str(name): row for row, name in enumerate(examples.ids)}
    gone = [str(name) for name in predictions.ids[rows] if str(name) not in where]
    if gone:
        raise DataError(f"{len(gone)} images that the run was measured on are gone, such as {gone[0]!r}.")
    return examples.take([where[str(name)] for name in predictions.ids[rows]])


def compared(said: dict[str, str], predictions: Predictions) -> dict[str, Any]:
    """A person against labels and against the classifier, on the images that the person has named.

    Returns:
        `images`; `person` and `classifier`, their accuracies, and `same`, how often they agree, with intervals;
        `cohen_kappa` of person and labels, beyond chance; `differs`: (id, label, said) where the person sees another
        class than the label says.

    Raises:
        ValueError: if the person has named none of them.
    """
    rows = [row for row, name in enumerate(predictions.ids) if str(name) in said]
    if not rows:
        raise ValueError("Expected at least one answer. Received: none")
    theirs, names = predictions.take(rows), predictions.class_names
    answers = np.array([names.index(said[str(name)]) for name in theirs.ids])
    person = Predictions(theirs.ids, theirs.labels, 10 * np.eye(len(names), dtype=np.float32)[answers], names)
    hits = [one == other for one, other in (
        (answers, theirs.labels), (theirs.predicted, theirs.labels), (answers, theirs.predicted))]  # fmt: skip
    differs = np.flatnonzero(answers != theirs.labels)
    return {
        "images": len(rows),
        **{
            key: share_interval(right, groups=theirs.groups)
            for key, right in zip(("person", "classifier", "same"), hits, strict=True)
        },
        "cohen_kappa": metrics.score(person)["cohen_kappa"],
        "differs": [(str(theirs.ids[i]), names[theirs.labels[i]], names[answers[i]]) for i in differs],
    }


class Server(ThreadingHTTPServer):
    """Serves the page, to this machine alone; call its `serve_forever`.

    Args:
        questions: to ask.
        port: to listen on; 0 for any that is free.

    Raises:
        OSError: if the port is taken.
    """

    def __init__(self, questions: Questions, port: int) -> None:
        environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
        page = environment.get_template("annotate.html").render(class_names=list(questions.examples.class_names))
        self.questions, self.page = questions, page
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        """The page, the answers so far, or an image."""
        if not self._from_here():
            return
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/answers":
            self._send(200, json.dumps(self.server.questions.answers()))
        elif self.path.removeprefix("/image/").isdecimal():
            row = int(self.path.removeprefix("/image/"))
            try:
                self._send(200, json.dumps(self.server.questions.image(row)))
            except (IndexError, BadImageError) as error:
                self._send(404, json.dumps(str(error)))
        else:
            self._send(404, "null")

    def do_POST(self) -> None:
        """An answer: `{"row": 3, "said": "cat"}`."""
        if not self._from_here():
            return
        try:
            given = json.loads(self.rfile.read(min(10_000, int(self.headers.get("Content-Length", 0)))))
            self.server.questions.answer(given["row"], given["said"])
            self._send(200, "null")
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, json.dumps(str(error)))
        except OSError as error:  # the disk is full, or the drive has gone
            self._send(500, json.dumps(f"The answer could not be saved: {error.strerror}"))

    def _from_here(self) -> bool:
        """No page of another site may ask or answer: its address, or its kind of request, is another."""
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
        """Say nothing."""
