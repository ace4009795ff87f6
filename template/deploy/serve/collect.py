"""Corrected answers, kept as a data set: images, and a table of their labels that train.py takes."""

import csv
import hashlib
import io
import threading
from pathlib import Path

from ... import runs
from ...data.images.read import read_header

TABLE, IMAGES = "labels.csv", "images"


class Corrections:
    """A folder of images and of labels that people gave them: `scripts/train.py --data.path=FOLDER/labels.csv`.

    Args:
        folder: what is in its table already is kept.

    Raises:
        OSError: if its table cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.Lock()
        self.labels: dict[str, str] = {}
        if (folder / TABLE).exists():
            with (folder / TABLE).open(newline="", encoding="utf-8") as table:
                self.labels = {row["path"]: row["label"] for row in csv.DictReader(table)}

    def add(self, contents: bytes, label: str) -> str:
        """Write an image under a name made of its contents, and its label; the last label of an image counts.

        Args:
            contents: of a file that `load` can read.
            label: a class.

        Returns:
            Its path in the table.
        """
        ending = {"JPEG": "jpg", "MPO": "jpg"}.get(kind := read_header(contents)[0], kind.lower())
        path = f"{IMAGES}/{hashlib.sha256(contents).hexdigest()}.{ending}"
        with self._lock:
            if not (self.folder / path).exists():
                with runs.replacing(self.folder / path) as temporary:
                    temporary.write_bytes(contents)
            self.labels[path] = label
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows([("path", "label"), *self.labels.items()])
            runs.write_text(self.folder / TABLE, out.getvalue())
        return path
