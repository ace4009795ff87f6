"""Which part of an image an answer comes from, whatever the runtime: what happens to it when a part is covered.

Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks".
"""

from collections.abc import Sequence

import numpy as np

PATCHES = 7
"""Squares a side; each is covered with grey in turn, which takes a pass."""


def covered(image: np.ndarray, patches: int = PATCHES) -> np.ndarray:
    """Copies of an image, each with another square covered, row by row.

    Args:
        image: [size, size, 3], RGB 0-255, of any number type.
        patches: squares a side.

    Returns:
        [patches^2, size, size, 3].
    """
    edges = np.linspace(0, len(image), patches + 1).round().astype(int)
    copies = np.repeat(image[None], patches**2, axis=0)
    for copy, (i, j) in zip(copies, np.ndindex(patches, patches), strict=True):
        copy[edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = 128
    return copies


def evidence(whole: np.ndarray, each: Sequence[np.ndarray], label: int) -> np.ndarray:
    """How much the logarithm of a class's probability falls where a square is covered.

    Args:
        whole: [classes] probabilities of the image.
        each: [classes] of each of its `covered` copies.
        label: row of the class.

    Returns:
        [patches, patches], in nats; negative where a part speaks against the class.
    """
    logarithms = np.log(np.maximum(np.stack([whole, *each])[:, label], 1e-30))
    side = round(len(each) ** 0.5)
    return (logarithms[0] - logarithms[1:]).reshape(side, side)
