"""Whether an image is like anything in training: the distance to its nearest neighbour among what was trained on.

A classifier answers for any image, of whatever; confidence says which of its classes it is, not whether it is of one.
Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors" (ICML), of what the head sees. Between
flowers, hand signs, clothing and objects it tells strangers better than confidence, energy or residuals do
(docs/labels.md has the figures).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.preprocessing import normalize

from .. import disk, runs
from ..data.dataset import evenly_spaced

FILE = "novelty.npz"
FALSE_ALARMS = 0.05
"""Share of images like those of training that are beyond the threshold: so many of these are, of each other."""
MOST = 2_000
"""Images of training that are kept to compare with: more find strangers no better, and take memory in use."""


@dataclass(frozen=True)
class Novelty:
    """Compares images with those of training.

    Args:
        features: of unit length, float16 [n, f].
        threshold: cosine distance to the nearest of them, beyond which an image is unlike anything in training.
    """

    features: np.ndarray
    threshold: float

    @classmethod
    def fit(cls, features: np.ndarray, clusters: np.ndarray) -> "Novelty":
        """From what the head sees of training images.

        The threshold is a conformal quantile of the distance of each to the nearest of another cluster (Vovk et al.
        2005; leave-one-out, so a little wide).

        Args:
            features: float [n, f].
            clusters: [n] numbers; copies of one image, or images of one group, share one.

        Raises:
            ValueError: if there are fewer than two clusters.
        """
        if len(np.unique(clusters)) < 2:
            raise ValueError(f"Expected images of at least two clusters. Received: {len(np.unique(clusters))}")
        rows = evenly_spaced(len(features), MOST)
        unit, clusters = normalize(features[rows]).astype(np.float16), clusters[rows]
        similarity = unit.astype(np.float32) @ unit.astype(np.float32).T
        similarity[clusters[:, None] == clusters[None]] = -1.0
        distances = np.sort(1 - similarity.max(axis=1))
        rank = int(np.ceil((len(distances) + 1) * (1 - FALSE_ALARMS)))
        return cls(unit, max(float(distances[min(rank, len(distances)) - 1]), 1e-6))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Distance to the nearest image of training, as a part of the threshold: float64 [m]; above 1, unlike any.

        Args:
            features: float [m, f], of the same network.
        """
        similarity = normalize(np.asarray(features, np.float32)) @ self.features.astype(np.float32).T
        return np.maximum(1 - similarity.max(axis=1), 0).astype(np.float64) / self.threshold

    def save(self, folder: Path) -> None:
        """Into the folder of a run."""
        with runs.replacing(folder / FILE) as temporary, temporary.open("wb") as out:
            np.savez(out, features=self.features, threshold=np.float64(self.threshold))

    @classmethod
    def load(cls, folder: Path) -> "Novelty | None":
        """Of a run; None if it has none, as those of before.

        Raises:
            DamagedError: if the file cannot be read.
        """
        if not (folder / FILE).exists():
            return None
        try:
            with np.load(folder / FILE, allow_pickle=False) as saved:
                return cls(saved["features"], float(saved["threshold"]))
        except Exception as error:  # of zip or NumPy
            raise disk.DamagedError(
                f"{str(folder / FILE)!r} is damaged: {error}. Remove it: all but the novelty of images works without."
            ) from error
