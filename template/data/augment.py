"""Variation of training pictures: one affine warp and one colour matrix a picture, then erasing.

Several geometric layers in a row resample several times, slower and blurrier; here crop, scale, aspect, flip,
rotation, shear and translation are one 2x3 matrix (one bilinear resampling), and brightness, contrast, saturation and
hue one 3x4 matrix. All random numbers of a picture are a function of (seed, epoch, index) alone, so neither batch
size, nor threads, nor a resumed run changes them.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Policy:
    """Ranges to draw from, uniformly unless said otherwise."""

    flip: bool = False
    """Mirror half of the pictures left to right."""
    area: float = 1.0
    """Smallest part of the picture's area that a crop shows, in (0, 1]; the largest is 1."""
    aspect: float = 1.0
    """A crop's width / height lies in [1 / aspect, aspect] (uniform in its logarithm)."""
    rotation: float = 0.0
    """Largest rotation either way, in degrees."""
    shear: float = 0.0
    """Largest horizontal shear either way, in degrees."""
    translation: float = 0.0
    """Largest shift either way on each axis, as a part of the side, on top of the crop's own position."""
    brightness: float = 0.0
    """Colours are multiplied by 1 +- this."""
    contrast: float = 0.0
    """Distances from mid-grey are multiplied by 1 +- this."""
    saturation: float = 0.0
    """Distances from the grey of the same luminance are multiplied by 1 +- this."""
    hue: float = 0.0
    """Largest rotation of colours about the grey axis either way, in degrees."""
    erasing: float = 0.0
    """Chance that a rectangle of 2 to 20 % of the area is overwritten with one random colour
    (Zhong et al. 2020, "Random Erasing Data Augmentation")."""


POLICIES = {
    "none": Policy(),
    "light": Policy(area=0.8, aspect=1.1, rotation=5, brightness=0.1, contrast=0.1),
    "medium": Policy(area=0.5, aspect=4 / 3, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, hue=5),
    "heavy": Policy(area=0.25, aspect=4 / 3, rotation=20, shear=10, translation=0.05, brightness=0.4, contrast=0.4,
                    saturation=0.4, hue=15, erasing=0.3),
}  # fmt: skip

_LUMINANCE = np.array([0.299, 0.587, 0.114])


def augment(images: np.ndarray, policy: Policy, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Vary a batch of pictures.

    Args:
        images: uint8 [n, size, size, 3].
        policy: what to draw from.
        seed: of the run.
        epoch: pass over the data, or number of the view.
        indices: [n] position of each picture in its data set.

    Returns:
        uint8 [n, size, size, 3].
    """
    if policy == Policy():
        return images
    size = images.shape[1]
    out = np.empty_like(images)
    for image, index, result in zip(images, indices, out, strict=True):
        u = draws(seed, epoch, int(index))
        warp, colour = warp_matrix(u, policy, size), colour_matrix(u, policy)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(image, warp, (size, size), dst=result, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        if not np.array_equal(colour, np.eye(3, 4)):
            cv2.transform(result, colour, dst=result)
        if u[12] < policy.erasing:
            top, left, bottom, right = _rectangle(u[13:17], size)
            result[top:bottom, left:right] = u[17:20] * 255
    return out


def draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """20 uniform numbers in [0, 1) that belong to this picture in this epoch (Philox, a counter-based generator)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, index])).random(20)


def warp_matrix(u: np.ndarray, policy: Policy, size: int) -> np.ndarray:
    """Affine map from output pixel (x, y, 1) to input pixel (x, y), float64 [2, 3].

    Linear part: rotation * shear * scale(crop width, crop height, mirrored or not), about the crop's centre.
    """
    area = 1 - u[0] * (1 - policy.area)
    stretch = np.sqrt(policy.aspect ** (2 * u[1] - 1))
    width, height = np.minimum(np.sqrt(area) * np.array([stretch, 1 / stretch]), 1)
    turn, slant = np.deg2rad((2 * u[2:4] - 1) * [policy.rotation, policy.shear])
    mirror = -1 if policy.flip and u[4] < 0.5 else 1
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotate @ np.array([[1, np.tan(slant)], [0, 1]]) @ np.diag([mirror * width, height])
    middle = (size - 1) / 2
    slack = (1 - np.array([width, height])) / 2 + policy.translation
    centre = middle + (2 * u[5:7] - 1) * slack * size
    return np.column_stack([linear, centre - linear @ [middle, middle]])


def colour_matrix(u: np.ndarray, policy: Policy) -> np.ndarray:
    """Affine map of colours (r, g, b, 1) in 0-255, float64 [3, 4]: hue, then saturation, contrast, brightness."""
    strengths = np.array([policy.brightness, policy.contrast, policy.saturation])
    brightness, contrast, saturation = 1 + (2 * u[7:10] - 1) * strengths
    angle = np.deg2rad((2 * u[10] - 1) * policy.hue)
    # Rodrigues' rotation about (1, 1, 1) / sqrt(3): greys stay as they are.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix = (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMINANCE, (3, 1))) @ matrix
    return brightness * np.column_stack([contrast * matrix, np.full(3, (1 - contrast) * 127.5)])


def _rectangle(u: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a rectangle of 2 to 20 % of the area with aspect 0.3 to 3.3, inside the picture."""
    side, stretch = size * np.sqrt(0.02 + 0.18 * u[0]), np.sqrt(0.3 * 11 ** u[1])
    width, height = int(min(side * stretch, size)), int(min(side / stretch, size))
    left, top = int(u[2] * (size - width + 1)), int(u[3] * (size - height + 1))
    return top, left, top + height, left + width
