"""How many of the 16 bits of a file are used: cameras and microscopes of 10, 12 and 14 bits leave the upper ones empty.

Scaled by 65,535, such an image is nearly black. A file alone cannot tell a dark image of 12 bits from one of 10, so the
rule has two halves: a file says what it needs at least (`significant_bits`), and all files of one data set are scaled
by what the most demanding of them needs (`bits_of_set`, which a run settles once as `data.bits` and predict.py uses
too), unless the set plainly comes from several devices.
"""

from collections.abc import Sequence

import numpy as np

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that devices have."""


def significant_bits(values: np.ndarray, declared: int = 0) -> int:
    """How many bits the values of an image need: of `DEPTHS` the smallest that holds them, or what the file declares.

    Args:
        values: uint16, of any shape.
        declared: bits that the file says it has (sBIT of PNG, MaxSampleValue or BitsPerSample of TIFF), or 0.

    Returns:
        8 to 16; 0 if the values do not tell: all zero, or 8 bits that were stretched to 16 (multiples of 257).
    """
    most = int(values.max())
    if declared and most < 2**declared:
        return max(declared, DEPTHS[0])
    if not most or (most < 2**14 and not (values % 257).any()):
        return 0
    return next(bits for bits in DEPTHS if most < 2**bits)


def bits_of_set(files: Sequence[tuple[int, int]]) -> int:
    """By how many bits to scale all 16-bit files of a data set.

    By what the most demanding needs, so that dark images stay dark beside bright ones. But where most of those that
    need fewer fill these nearly, they are no dark images: they come from another device, and each file is on its own.

    Args:
        files: the bits that each file needs, and its largest value.

    Returns:
        8 to 16; 0 if each is on its own, or none has 16 bits.
    """
    most = max((bits for bits, _ in files), default=0)
    for depth in {bits for bits, _ in files} - {0, most}:
        full = [largest >= 7 / 8 * 2**depth for bits, largest in files if bits == depth]
        if 2 * sum(full) > len(full):
            return 0
    return most


def to_uint8(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale uint16 by a range of so many bits; what lies beyond becomes white."""
    table = np.minimum(np.arange(65536) * 255 / (2**bits - 1), 255).round().astype(np.uint8)
    return table[values]
