"""The same image more than once: equal files, copies that were recoded or resized, copies that only a network sees."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.fft import dctn

from ...labels import texts
from ..examples import Examples
from .facts import THUMBNAIL, Facts
from .findings import Finding

HAMMING_DISTANCE = 10
"""Of two perceptual hashes of 64 bits: images that differ in no more bits are compared closely."""
CORRELATION = 0.96
"""Of two thumbnails in grey: above it they count as the same image."""
COSINE_DISTANCE = 0.4
"""Of features, as a part of the median distance of an image to its nearest neighbour: closer ones are duplicates."""
LOW_CONTRAST = 3.0
"""Standard deviation of pixels, 0-255, below which an image shows next to nothing."""


def exact_duplicates(examples: Examples, facts: Facts) -> Iterator[Finding]:
    """Images with the same contents."""
    _, group, sizes = np.unique(facts.digest, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(facts.readable & (sizes[group] > 1)):
        groups.setdefault(int(group[row]), []).append(int(row))
    yield from _by_consequence(examples, [tuple(rows) for rows in groups.values()], "exact duplicates")


def near_duplicates(examples: Examples, facts: Facts) -> Iterator[Finding]:
    """Images that were recoded, resized, rotated by 90 degrees or flipped."""
    good = _comparable(facts)
    pairs = [(int(good[a]), int(good[b])) for a, b in near_pairs(facts.thumbnails[good])]
    pairs = [(a, b) for a, b in pairs if facts.digest[a] != facts.digest[b]]
    forms = " (recoded, resized, rotated or flipped)"
    yield from _by_consequence(examples, pairs, "near duplicates", forms)


def copies_of(known: Facts, others: Facts) -> list[tuple[int, int]]:
    """Pairs of rows, of a known image and another one with the same contents, or that was recoded, resized, rotated by
    90 degrees or flipped.
    """
    exact = np.argwhere(known.digest[:, None] == others.digest[None])
    mine, theirs = _comparable(known), _comparable(others)
    both = np.concatenate([known.thumbnails[mine], others.thumbnails[theirs]])
    near = {(int(mine[a]), int(theirs[b - len(mine)])) for a, b in near_pairs(both, first=len(mine))}
    return sorted(near | {(int(a), int(b)) for a, b in exact})


def _comparable(facts: Facts) -> np.ndarray:
    """Rows of images that are large enough: in a few pixels different ones look alike."""
    return np.flatnonzero(facts.readable & (np.minimum(facts.width, facts.height) >= THUMBNAIL // 2))


def feature_duplicates(examples: Examples, features: np.ndarray) -> Iterator[Finding]:
    """Images with similar features: copies that were cropped, rotated a little or recoloured.

    By the cosine distance of their features. How similar different images are depends on the network and the kind of
    images; so a pair counts if its distance is small beside that of most images to their nearest neighbour.

    Args:
        examples: n of them.
        features: float32 [n, f].
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    close = np.argwhere(np.triu(distances < COSINE_DISTANCE * np.median(distances.min(axis=1))))
    pairs = sorted(map(tuple, close.tolist()), key=lambda pair: distances[pair])
    if pairs:
        yield Finding(
            "similar images",
            "warning",
            f"Images with similar features (perhaps cropped, rotated or recoloured copies): {len(pairs)} pairs",
            "If they show the same thing, keep them in one part: give them the same `group` in a CSV file.",
            pairs,
        )


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Perceptual hashes (pHash) of 64 bits, one for each rotation and flip: uint64 [n, 8].

    The signs of the 8 x 8 lowest frequencies of the grey image about their median, which recoding and resizing hardly
    change (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). The first is of the
    image as it is.

    Args:
        thumbnails: uint8 [n, THUMBNAIL, THUMBNAIL, 3].
    """
    gray = thumbnails.astype(np.float32).mean(axis=3)
    hashes = []
    for images in (np.rot90(g, k, axes=(1, 2)) for g in (gray, gray[:, :, ::-1]) for k in range(4)):
        low = dctn(images, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(thumbnails), 64)
        bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
        hashes.append(np.packbits(bits, axis=1).view(np.uint64)[:, 0])
    return np.stack(hashes, axis=1)


def near_pairs(thumbnails: np.ndarray, first: int | None = None) -> list[tuple[int, int]]:
    """Pairs of rows that show the same image, perhaps recoded, resized, rotated by 90 degrees or flipped.

    Candidates by the Hamming distance of their hashes, confirmed by the correlation of the thumbnails in grey.

    Args:
        thumbnails: uint8 [n, THUMBNAIL, THUMBNAIL, 3].
        first: only pairs of one of so many at the beginning and one of those after them; None for all pairs.
    """
    hashes, pairs = perceptual_hashes(thumbnails), []
    gray = thumbnails.astype(np.float32).mean(axis=3).reshape(len(thumbnails), 16, 4, 16, 4).mean(axis=(2, 4))
    centered = gray - gray.mean(axis=(1, 2), keepdims=True)
    norms = np.sqrt((centered**2).sum(axis=(1, 2))) + 1e-6
    varied = norms > 16 * LOW_CONTRAST  # without contrast, any two images correlate
    for row in range(len(thumbnails) - 1 if first is None else first):
        if not varied[row]:
            continue
        start = row + 1 if first is None else first
        distances = np.bitwise_count(hashes[start:, :1] ^ hashes[row]).min(axis=1)
        for other in start + np.flatnonzero(distances <= HAMMING_DISTANCE):
            turned = [np.rot90(g, k) for g in (centered[row], centered[row][:, ::-1]) for k in range(4)]
            correlation = max(float((g * centered[other]).sum()) for g in turned) / (norms[row] * norms[other])
            if varied[other] and correlation > CORRELATION:
                pairs.append((row, int(other)))
    return pairs


def _by_consequence(
    examples: Examples, groups: Sequence[tuple[int, ...]], kind: str, forms: str = ""
) -> Iterator[Finding]:
    """Groups of duplicates: with different labels, across parts, or only repeated."""
    labels, parts = texts(examples.labels, examples.class_names), examples.parts
    contradicting = [g for g in groups if len({labels[row] for row in g}) > 1]
    across = [g for g in groups if g not in contradicting and len({str(parts[row]) for row in g}) > 1]
    only = [g for g in groups if g not in contradicting and g not in across]
    if contradicting:
        yield Finding(
            f"{kind} with different labels",
            "error",
            f"{kind.capitalize()}{forms} with different labels: {len(contradicting)}",
            "One of the labels is wrong, or the classes overlap. Decide which, and remove the others.",
            contradicting,
        )
    if across:
        yield Finding(
            f"{kind} across parts",
            "error",
            f"{kind.capitalize()}{forms} in more than one of train, val and test: {len(across)}",
            "Data leakage: the measured accuracy would be too high. Keep them in one part, and not in train/.",
            across,
        )
    if only:
        kept = "A split keeps them together." if kind == "exact duplicates" else "Give them one `group` in a CSV file."
        yield Finding(
            kind,
            "warning",
            f"{kind.capitalize()}{forms} of one class: {len(only)}",
            f"They add nothing to training, and must not be divided between train and test. {kept}",
            only,
        )
