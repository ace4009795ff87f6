"""What is counted over all rows of a job, in no more memory than for one part."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

UNSURE = "not sure"
"""The answer below the reject level of a run."""
SHOWN = 10
"""Images that cannot be read, of which the reason is kept."""


@dataclass
class Tally:
    """Counts of rows.

    Args:
        edges: of the bins of the confidence, ascending.
        images, unreadable, unsure: how many.
        counts: images in each bin, [edges + 1].
        confidence: sum, and sum of squares.
        novel: images beyond the threshold of novelty, and of how many that is known.
        problems: the first images that cannot be read, with reasons.
    """

    edges: np.ndarray
    images: int = 0
    unreadable: int = 0
    unsure: int = 0
    counts: np.ndarray = field(init=False)
    confidence: tuple[float, float] = (0.0, 0.0)
    novel: tuple[int, int] = (0, 0)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) + 1, np.int64)

    @property
    def classified(self) -> int:
        """How many images have an answer."""
        return self.images - self.unreadable

    def add(self, confidence: np.ndarray, novelty: np.ndarray) -> None:
        """Rows: float64 [n] each, NaN where there is no answer or nobody can say."""
        known, new = confidence[~np.isnan(confidence)], novelty[~np.isnan(novelty)]
        self.images += len(confidence)
        self.unreadable += len(confidence) - len(known)
        self.counts += np.bincount(np.searchsorted(self.edges, known, "right"), minlength=len(self.counts))
        self.confidence = self.confidence[0] + float(known.sum()), self.confidence[1] + float((known**2).sum())
        self.novel = self.novel[0] + int((new > 1).sum()), self.novel[1] + len(new)

    def describe(self) -> Iterator[str]:
        """Lines on what there is, and on what could not be read."""
        unsure = f" ({self.unsure:,} of them {UNSURE})" if self.unsure else ""
        yield f"{self.images:,} images, {self.classified:,} classified{unsure}, {self.unreadable:,} could not be read"
        yield from (f"  {path!r}: {reason}" for path, reason in self.problems)
        if self.unreadable > len(self.problems):
            yield f"  and {self.unreadable - len(self.problems):,} more"


def tally_parts(files: Iterable[Path], edges: np.ndarray) -> Tally:
    """Count the rows of finished parts."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counted = Tally(edges)
    for file in files:
        rows = pq.read_table(file, columns=["path", "answer", "confidence", "novelty", "reason"])
        counted.add(*(rows[name].to_numpy().astype(np.float64) for name in ("confidence", "novelty")))
        counted.unsure += pc.sum(pc.equal(rows["answer"], UNSURE)).as_py() or 0
        bad = rows.filter(pc.is_valid(rows["reason"])).slice(0, SHOWN - len(counted.problems))
        counted.problems += zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True)
    return counted
