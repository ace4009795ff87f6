"""How many of the 16 bits of a file are used: cameras and microscopes of 10, 12 and 14 bits leave the upper ones empty.

Scaled by 65,535, such an image is nearly black. A file alone cannot tell a dark image of 12 bits from one of 10, so the
rule has two halves: a file says what it needs at least (`significant_bits`), and all files of one data set are scaled
by what the most demanding of them needs (`data.bits`, which a run settles once and predict.py uses too).
"""

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


def to_uint8(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale uint16 by a range of so many bits; what lies beyond becomes white."""
    table = np.minimum(np.arange(65536) * 255 / (2**bits - 1), 255).round().astype(np.uint8)
    return table[values]
