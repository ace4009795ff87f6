"""What is written of an image: a row of a Parquet file."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.images.reasons import BadImageError
from ...data.sources.names import DataError
from ...evaluate.tree import sure_answer
from ...runs import legible
from ..runtime import Inputs
from .sources import read_image
from .tally import UNSURE


@dataclass
class Decoded:
    """Images that were read.

    Args:
        paths: [n].
        digests: [n] sha256 of their files, None where a file could not be read.
        notes: [n] what had to be assumed to see something in them, or "".
        reasons: [n] why they cannot be used, None where they can.
        pixels: uint8 [of those that can, views, size, size, 3].
    """

    paths: list[str] = field(default_factory=list)
    digests: list[str | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    pixels: np.ndarray | None = None


def decode(paths: Sequence[str], inputs: Inputs) -> Decoded:
    """Read and decode images one after the other. What cannot be used has a reason, and stops nothing."""
    found, pixels = Decoded(), []
    for path in paths:
        digest, note, reason = None, "", None
        try:
            contents = read_image(path)
            digest = hashlib.sha256(contents).hexdigest()
            views, note = inputs.load(contents)
            pixels.append(views)
        except BadImageError as error:
            reason = str(error)
        found.paths.append(path)
        found.digests.append(digest)
        found.notes.append(note)
        found.reasons.append(reason)
    found.pixels = np.stack(pixels) if pixels else None
    return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row of a job has in common.

    Args:
        class_names: of the run.
        top_k: how many classes a row names.
        least, above: thresholds of `PackedRun`.
        model: digest of the run's network and of all that goes with it.
        features: how many, or 0 where they are not written.
    """

    class_names: tuple[str, ...]
    top_k: int
    least: float | None
    above: tuple[float | None, ...]
    model: str
    features: int

    @property
    def schema(self) -> pa.Schema:
        """Columns; all but path, note and model are null where there is no answer."""
        text, number = pa.string(), pa.float32()
        columns = [("path", text), ("sha256", text), ("answer", text), ("confidence", number)]
        columns += [("classes", pa.list_(text)), ("probabilities", pa.list_(number)), ("novelty", number)]
        columns += [("note", text), ("reason", text), ("model", text)]
        columns += [("features", pa.list_(number, self.features))] * bool(self.features)
        return pa.schema(columns)

    def table(self, found: Decoded, classify: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> pa.Table:
        """Rows of images.

        Args:
            found: the images.
            classify: pixels to probabilities [n, classes], novelty [n] (NaN where nobody can say), features [n, f].
        """
        rows: list[dict[str, Any]] = [{"path": legible(path), "model": self.model} for path in found.paths]
        for row, digest, note, reason in zip(rows, found.digests, found.notes, found.reasons, strict=True):
            row |= {"sha256": digest, "note": note, "reason": None if reason is None else legible(reason)}
        good = [row for row in rows if row["reason"] is None]
        if found.pixels is not None:
            for row, *answer in zip(good, *classify(found.pixels), strict=True):
                row.update(self._answer(*answer))
        return pa.Table.from_pylist(rows, self.schema)

    def lost(self, path: str, reason: str) -> pa.Table:
        """The row of an image for which there is nothing but a reason."""
        return self.table(Decoded([path], [None], [""], [reason]), lambda pixels: ())

    def _answer(self, probabilities: np.ndarray, novelty: float, features: np.ndarray) -> dict:
        best = np.argsort(-probabilities, kind="stable")[: self.top_k]
        confidence = float(probabilities[best[0]])
        if self.above:
            found = sure_answer(probabilities, self.class_names, self.least, self.above)
            sure = found[0] if found else UNSURE
        else:
            sure = self.class_names[best[0]] if self.least is not None and confidence >= self.least else UNSURE
        answer = {
            "answer": sure,
            "confidence": confidence,
            "classes": [self.class_names[i] for i in best],
            "probabilities": probabilities[best].tolist(),
            "novelty": None if np.isnan(novelty) else float(novelty),
        }
        return answer | ({"features": features} if self.features else {})


def write_parquet(tables: Sequence[pa.Table], temporary: Path) -> None:
    """Rows as a Parquet file, compressed by Zstandard.

    Raises:
        DataError: if not one of the files could be read. A disk or a bucket that is gone for an hour would otherwise
            become rows without answers, which nobody would ask for again.
    """
    rows = pa.concat_tables(tables)
    if rows["sha256"].null_count == len(rows):
        raise DataError(
            f"None of {len(rows)} files can be read, such as {rows['path'][0].as_py()!r}: {rows['reason'][0].as_py()}. "
            "Is the disk or bucket there? Nothing was written of them."
        )
    pq.write_table(rows, temporary, compression="zstd")
