"""Which part of an image an answer comes from, whatever the runtime: what happens to it when a part is covered.

Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks"; explain.py has the same for Keras.
"""

from collections.abc import Sequence

import numpy as np

PATCHES = 7
"""Squares a side; each is covered with grey in turn, which takes a pass."""


def covered(image: np.ndarray) -> np.ndarray:
    """Copies of an image, each with another square covered, row by row.

    Args:
        image: uint8 [size, size, 3].

    Returns:
        uint8 [PATCHES^2, size, size, 3].
    """
    edges = np.linspace(0, len(image), PATCHES + 1).round().astype(int)
    copies = np.repeat(image[None], PATCHES**2, axis=0)
    for copy, (i, j) in zip(copies, np.ndindex(PATCHES, PATCHES), strict=True):
        copy[edges[i] : edges[i + 1], edges[j] : edges[j + 1]] = 128
    return copies


def evidence(whole: np.ndarray, each: Sequence[np.ndarray]) -> np.ndarray:
    """How much the logarithm of the likeliest class's probability falls where a square is covered.

    Args:
        whole: [classes] probabilities of the image.
        each: [classes] of each of its `covered` copies.

    Returns:
        [PATCHES, PATCHES], in nats; negative where a part speaks against the class.
    """
    row = int(whole.argmax())
    fall = np.log(max(whole[row], 1e-30)) - np.log(np.maximum(np.stack(each)[:, row], 1e-30))
    return fall.reshape(PATCHES, PATCHES)
