"""Which images to label next: those of which a run is least certain, as different from each other as can be.

Zhdanov 2019, "Diverse mini-batch active learning" (arXiv 1901.05954): of the images with the smallest margins, a few
times as many as asked for, k-means of the features makes one cluster for each that is asked for, and the image nearest
to each centre is taken. Margins alone ask again and again for one kind of image; distances alone ask for oddities.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.preprocessing import normalize

from .. import progress
from ..config import Config
from ..data.array_file import ArrayFile
from ..data.audit.duplicates import COSINE_DISTANCE
from ..data.batches import inference_batches
from ..data.dataset import ArrayDataset
from ..data.decode import decode
from ..data.examples import Examples
from ..data.load import Parts
from ..model.inference import fold_batch_norm
from .predictor import with_features
from .tta import build_views

CANDIDATES = 3
"""So many times the number asked for are looked at, those with the smallest margins first. Two and five are as good on
flowers, hand signs and clothing; ten is nearer to chance."""


def unlabelled(files: Sequence[Path], config: Config) -> tuple[Examples, ArrayFile]:
    """Files as examples of no class, and their pixels as a run sees them; those that cannot be read are in `skipped`.

    Raises:
        DiskError: if there is no room for the pixels.
    """
    names = np.array([str(file) for file in files])
    found = Examples(names, list(files), np.zeros(len(files), np.int64), ("",), np.full(len(files), ""))
    return decode(found, config.data)


def views_of(examples: Examples, pixels: ArrayFile, config: Config) -> list[ArrayDataset]:
    """What a run is asked about, of decoded images: `build_views` of them."""
    return build_views(Parts.of(examples, pixels, "test", config.data), "test", config)


def predict_with_features(
    model: keras.Model, views: Sequence[ArrayDataset], batch_size: int, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """What a run says of images, as `predict.py` does, and what its head sees of them.

    Args:
        model: from `load_run`.
        views: of n images; the first is the plain one.
        batch_size: images a pass.
        temperature: from the run's calibration.json.

    Returns:
        Calibrated probabilities, float64 [n, classes], and features of the plain view, float32 [n, f].
    """
    model = fold_batch_norm(model)
    with progress.step("predicting"):
        logits, features = with_features(model).predict(inference_batches(views[0], batch_size), verbose=0)
        others = [model.predict(inference_batches(view, batch_size), verbose=0) for view in views[1:]]
    each = [softmax(np.asarray(logits, np.float64), axis=1) for logits in (logits, *others)]
    mean = np.log(np.clip(np.mean(each, axis=0), 1e-30, None))[: len(views[0])]
    return softmax(mean / temperature, axis=1), np.asarray(features, np.float32)[: len(views[0])]


def margins(probabilities: np.ndarray) -> np.ndarray:
    """How far the most likely class is ahead of the next: float64 [n], 0 where the two are equally likely."""
    best = np.sort(probabilities, axis=1)
    return best[:, -1] - best[:, -2]


def select_next(probabilities: np.ndarray, features: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    """Rows of the images to label, the least certain first.

    Args:
        probabilities: calibrated, [n, classes].
        features: float32 [n, f].
        number: how many; all, if there are no more.
        seed: of k-means.
    """
    margin = margins(probabilities)
    order = np.argsort(margin, kind="stable")
    if number >= len(order):
        return order
    candidates = order[: CANDIDATES * number]
    scaled = features[candidates] - features.mean(axis=0)
    kmeans = KMeans(number, n_init=1, random_state=seed)
    distances = kmeans.fit_transform(scaled, sample_weight=1 - margin[candidates] + 1e-6)
    own = distances[np.arange(len(candidates)), kmeans.labels_]
    nearest = np.lexsort((own, kmeans.labels_))  # of each cluster, the first in this order
    chosen = nearest[np.unique(kmeans.labels_[nearest], return_index=True)[1]]
    others = np.setdiff1d(np.arange(len(candidates)), chosen)[: number - len(chosen)]  # where clusters are empty
    rows = candidates[np.sort(np.concatenate([chosen, others]))]
    return give_every_class_some(rows, probabilities)


def give_every_class_some(rows: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The same number of rows, so that each predicted class has half of an equal share, as far as there are images.

    A class that is rare in the pool, or learned badly, would otherwise wait for its turn.

    Args:
        rows: chosen, the least certain first.
        probabilities: calibrated, [n, classes].
    """
    predicted, margin, chosen = probabilities.argmax(axis=1), margins(probabilities), list(rows)
    share = len(rows) // (2 * probabilities.shape[1])
    for label in range(probabilities.shape[1]):
        mine = [row for row in np.flatnonzero(predicted == label) if row not in set(chosen)]
        missing = share - int((predicted[chosen] == label).sum())
        for row in sorted(mine, key=lambda row: margin[row])[: max(0, missing)]:
            counts = np.bincount(predicted[chosen], minlength=probabilities.shape[1])
            rich = [other for other in chosen if counts[predicted[other]] > share]
            if not rich:
                break
            chosen[chosen.index(max(rich, key=lambda other: margin[other]))] = row
    return np.array(sorted(chosen, key=lambda row: margin[row]), np.int64)


def copies(features: np.ndarray, known: np.ndarray, digests: np.ndarray, known_digests: np.ndarray) -> np.ndarray:
    """Whether each image shows what a labelled one shows already: the same contents, or nearly the same features.

    Args:
        features: [n, f] of the pool.
        known: [m, f] of labelled images, by the same network; m may be 0.
        digests: [n] of the contents.
        known_digests: of labelled images, any number.

    Returns:
        bool [n].
    """
    same = np.isin(digests, known_digests)
    if len(known) == 0 or len(features) < 2:
        return same
    pool, labelled = normalize(features), normalize(known)
    within = 1 - pool @ pool.T
    np.fill_diagonal(within, np.inf)
    return same | ((1 - pool @ labelled.T).min(axis=1) < COSINE_DISTANCE * np.median(within.min(axis=1)))
