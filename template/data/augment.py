"""Augmentation: one affine warp and one colour matrix per image, then blur, solarize, random erasing.

Several geometric layers in a row resample several times, slower and blurrier; here crop, scale, aspect, flip,
rotation, shear and translation are one 2x3 matrix (one bilinear resampling), and brightness, contrast, saturation and
hue one 3x4 matrix. All random numbers of an image are a function of (seed, epoch, index) alone, so neither batch
size, nor threads, nor a resumed run changes them.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

VERSION = 1
"""Part of cache keys. Raise it when the same policy and random numbers give other pixels."""


@dataclass(frozen=True)
class Policy:
    """Ranges to draw from, uniformly unless stated otherwise."""

    hflip: bool = False
    """Flip half of the images horizontally."""
    area: float = 1.0
    """Smallest part of the image's area that a crop shows, in (0, 1]; the largest is 1."""
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
    random_erasing: float = 0.0
    """Probability that a rectangle of 2 to 20 % of the area is overwritten with one random colour
    (Zhong et al. 2020, "Random Erasing Data Augmentation")."""
    grayscale: float = 0.0
    """Probability that all colours become the grey of their luminance (Chen et al. 2020, SimCLR)."""
    blur: float = 0.0
    """Probability of a Gaussian blur with a sigma of 0.1 pixel to a 112th of the side, 2 pixels of 224 (Chen et al.
    2020, SimCLR); to 1 pixel in images so small that this would not show."""
    solarize: float = 0.0
    """Probability that the upper half of each channel's range is turned upside down: 128-255 become 127-0
    (Cubuk et al. 2019, AutoAugment; Grill et al. 2020, BYOL)."""
    num_ops: int = 0
    """Of rotation, shear, brightness, contrast, saturation and hue, apply so many to an image, drawn anew for each,
    at full strength (as in RandAugment, Cubuk et al. 2020); 0 for all of them, at a strength drawn from the range."""


POLICIES = {
    "none": Policy(),
    "light": Policy(area=0.8, aspect=1.1, rotation=5, brightness=0.1, contrast=0.1),
    "medium": Policy(area=0.5, aspect=4 / 3, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, hue=5),
    "heavy": Policy(area=0.25, aspect=4 / 3, rotation=20, shear=10, translation=0.05, brightness=0.4, contrast=0.4,
                    saturation=0.4, hue=15, random_erasing=0.3),
    "random": Policy(area=0.5, aspect=4 / 3, rotation=25, shear=15, brightness=0.4, contrast=0.4, saturation=0.6,
                     hue=20, num_ops=2),
}  # fmt: skip

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_MIN_AREA = 0.08
"""A crop shows no less, as in Szegedy et al. 2015: less is seldom of the class any more."""
_MAX_COLOR = 0.9
"""Brightness, contrast and saturation vary by no more: at 1, an image could become black or grey all over."""


def strengthen(policy: Policy, strength: float) -> Policy:
    """The policy with all its ranges wider or narrower; probabilities and `num_ops` stay.

    Args:
        policy: to start from.
        strength: factor on every range, > 0; of area and aspect, which are ratios, on their logarithm.

    Returns:
        With strength 1 an equal policy. Crops show 8 % of the area at least, and colours vary by 0.9 at most.
    """
    wider = {name: strength * getattr(policy, name) for name in ("rotation", "shear", "translation", "hue")}
    for name in ("brightness", "contrast", "saturation"):
        wider[name] = min(strength * getattr(policy, name), _MAX_COLOR)
    area = max(policy.area**strength, _MIN_AREA)
    return replace(policy, area=area, aspect=policy.aspect**strength, **wider)


def augment(images: np.ndarray, policy: Policy, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Augment a batch of images.

    Args:
        images: uint8 [n, size, size, 3].
        policy: what to draw from.
        seed: of the run.
        epoch: number of the epoch, or of the cached augmentation.
        indices: [n] position of each image in its data set.

    Returns:
        uint8 [n, size, size, 3].
    """
    if policy == Policy() or not len(images):
        return images
    size = images.shape[1]
    u = select_ops(np.stack([uniform_draws(seed, epoch, int(index)) for index in indices]), policy)
    warps, colors = affine_matrix(u, policy, size), color_matrix(u, policy)
    recolored = (colors != np.eye(3, 4)).any(axis=(1, 2))
    out, flags = np.empty_like(images), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for row, result in enumerate(out):
        cv2.warpAffine(images[row], warps[row], (size, size), result, flags, cv2.BORDER_REFLECT_101)
        if recolored[row]:
            cv2.transform(result, colors[row], result)
        if u[row, 27] < policy.blur:
            cv2.GaussianBlur(result, (0, 0), 0.1 + u[row, 28] * (max(1, size / 112) - 0.1), result)
        if u[row, 29] < policy.solarize:
            np.minimum(result, 255 - result, out=result)
        if u[row, 12] < policy.random_erasing:
            top, left, bottom, right = _rectangle(u[row, 13:17], size)
            result[top:bottom, left:right] = u[row, 17:20] * 255
    return out


def uniform_draws(seed: int, epoch: int, index: int) -> np.ndarray:
    """30 uniform numbers in [0, 1) that belong to this image in this epoch (Philox, a counter-based generator)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, index])).random(30)


def select_ops(u: np.ndarray, policy: Policy) -> np.ndarray:
    """Numbers [n, 30] of which, if the policy has `num_ops`, so many operations remain, at full strength either way."""
    if policy.num_ops:
        ops, u = [2, 3, 7, 8, 9, 10], u.copy()  # rotation, shear, brightness, contrast, saturation, hue
        chosen = u[:, 20:26].argsort(axis=1).argsort(axis=1) < policy.num_ops
        u[:, ops] = np.where(chosen, u[:, ops].round(), 0.5)
    return u


def affine_matrix(u: np.ndarray, policy: Policy, size: int) -> np.ndarray:
    """Affine maps from output pixel (x, y, 1) to input pixel (x, y), float64 [..., 2, 3], for numbers u [..., 30].

    Linear part: rotation * shear * scale(crop width, crop height, flipped or not), about the crop's centre.
    """
    side = np.sqrt(1 - u[..., 0] * (1 - policy.area))
    stretch = policy.aspect ** (u[..., 1] - 0.5)
    crop = np.minimum(np.stack([side * stretch, side / stretch], axis=-1), 1)
    turn, slant = np.deg2rad(_symmetric(u[..., 2], policy.rotation)), np.deg2rad(_symmetric(u[..., 3], policy.shear))
    cos, sin, tan = np.cos(turn), np.sin(turn), np.tan(slant)
    linear = np.stack([cos, cos * tan - sin, sin, sin * tan + cos], axis=-1).reshape(*u.shape[:-1], 2, 2)
    linear = linear * crop[..., None, :]
    linear[..., 0] *= np.where(policy.hflip & (u[..., 4] < 0.5), -1, 1)[..., None]
    middle = (size - 1) / 2
    center = middle + size * _symmetric(u[..., 5:7], (1 - crop) / 2 + policy.translation)
    return np.concatenate([linear, (center - linear.sum(axis=-1) * middle)[..., None]], axis=-1)


def color_matrix(u: np.ndarray, policy: Policy) -> np.ndarray:
    """Affine maps of colours (r, g, b, 1) in 0-255, float64 [..., 3, 4]: hue, saturation, contrast, brightness.

    Last, with the probability `grayscale`, all three channels become the luminance.
    """
    strengths = np.array([policy.brightness, policy.contrast, policy.saturation])
    brightness, contrast, saturation = np.moveaxis(1 + _symmetric(u[..., 7:10], strengths), -1, 0)[..., None, None]
    angle = np.deg2rad(_symmetric(u[..., 10], policy.hue))[..., None, None]
    # Rodrigues' rotation about (1, 1, 1) / sqrt(3): greys stay as they are.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    matrix = (saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMINANCE, (3, 1))) @ matrix
    shift = (1 - contrast) * np.full((3, 1), 127.5)
    matrix = brightness * np.concatenate([contrast * matrix, shift], axis=-1)
    if not policy.grayscale:
        return matrix
    return np.where((u[..., 26] < policy.grayscale)[..., None, None], np.tile(_LUMINANCE, (3, 1)) @ matrix, matrix)


def _symmetric(u: np.ndarray, most: float | np.ndarray) -> np.ndarray:
    """Uniform in [0, 1) to uniform in [-most, most)."""
    return (2 * u - 1) * most


def _rectangle(u: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a rectangle of 2 to 20 % of the area with aspect 0.3 to 3.3, inside the image."""
    side, stretch = size * np.sqrt(0.02 + 0.18 * u[0]), np.sqrt(0.3 * 11 ** u[1])
    width, height = int(min(side * stretch, size)), int(min(side / stretch, size))
    left, top = int(u[2] * (size - width + 1)), int(u[3] * (size - height + 1))
    return top, left, top + height, left + width
