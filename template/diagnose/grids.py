"""Images in rows and columns with their labels, drawn from the very tensors that enter the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..config import Train
from ..data.batches import Mixing, shuffled_batch, shuffled_rows
from ..data.dataset import ArrayDataset, evenly_spaced
from ..evaluate import fonts
from ..labels import texts, to_matrix

GRID_ROWS = 12
"""Images that `epochs_grid` shows, about; at least one of each class."""


def epochs_grid(
    plain: ArrayDataset,
    augmented: ArrayDataset,
    class_names: Sequence[str],
    settings: Train,
    mixing: Mixing,
    epochs: int,
) -> Image.Image:
    """A few images of each class, a row each: as it is, then each time that it enters the network, as it does then.

    Cut from the very batches of training. With balanced sampling an image may enter an epoch several times, or never.

    Args:
        plain: training images as they are.
        augmented: the same, varied.
        class_names: in the order of the labels.
        settings: batch size, seed and sampling.
        mixing: of the batches.
        epochs: to look at, from the first on; also the most times that an image is shown.
    """
    each, class_names = max(1, GRID_ROWS // len(class_names)), fonts.drawable(class_names)
    rows = [np.flatnonzero(has) for has in to_matrix(plain.labels, len(class_names)).T]
    chosen = np.concatenate([mine[evenly_spaced(len(mine), each)] for mine in rows])
    chosen = np.array(list(dict.fromkeys(chosen.tolist())))  # an image of several classes is shown once
    names = texts(plain.labels[chosen], class_names)
    found = {row: [(plain.read(0, chosen[[i]])[0], names[i])] for i, row in enumerate(chosen)}
    for epoch in range(epochs):
        order = shuffled_rows(plain.labels, settings.batch_size, settings.seed, epoch, settings.sampling)
        for number, (_, members) in enumerate(order):
            wanted = np.isin(members, chosen)
            if wanted.any():
                which = (settings.batch_size, settings.seed, epoch, number)
                options: dict[str, Any] = {"mixing": mixing, "sampling": settings.sampling}
                images, labels = shuffled_batch(augmented, len(class_names), *which, **options)
                for row, image, label in zip(members[wanted], images[wanted], labels[wanted], strict=True):
                    found[row].append((image, f"epoch {epoch + 1}: {label_text(label, class_names)}"))
    blank = (np.full_like(found[chosen[0]][0][0], 255), "")
    tiles = [tile for row in chosen for tile in (found[row] + epochs * [blank])[: epochs + 1]]
    return grid(np.stack([image for image, _ in tiles]), [name for _, name in tiles], columns=epochs + 1)


def label_text(label: np.ndarray, class_names: Sequence[str]) -> str:
    """Text of a one-hot, multi-hot or mixed label, [classes]: the classes, largest first, of 1 % and more, with their
    weights where those are not 1.
    """
    classes = [i for i in np.argsort(-label, kind="stable") if label[i] >= 0.005]
    return " ".join(class_names[i] if label[i] >= 0.995 else f"{class_names[i]} {label[i]:.2f}" for i in classes)


def grid(pixels: np.ndarray, names: Sequence[str], columns: int = 8) -> Image.Image:
    """Images [n, size, size, 3] in 0-255, row by row, pixel by pixel, each with its name below.

    Small ones are enlarged by a whole number, so that every pixel is a square of one colour.
    """
    size = pixels.shape[1]
    side, rows, gap, line = size * -(-160 // size), -(-len(pixels) // columns), 4, 18
    out = Image.new("RGB", (columns * (side + gap), rows * (side + line)), "white")
    draw = ImageDraw.Draw(out)
    for number, (image, name) in enumerate(zip(pixels, names, strict=True)):
        left, top = number % columns * (side + gap), number // columns * (side + line)
        out.paste(Image.fromarray(image.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST), (left, top))
        text, font = fonts.visible(name), fonts.for_pillow(fonts.visible(name), 10)
        while draw.textlength(text, font) > side - 6:
            text = text[:-1]
        draw.text((left + 3, top + side + 3), text, fill="black", font=font)
    return out
