"""Which layer belongs to which block: freezing, feature caching, layer-wise learning rates and penalties go by it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from ..config import Backbone, ConfigError
from .backbones import family


@dataclass(frozen=True)
class Blocks:
    """Layers of a classifier by block; from `find_blocks`. They hold for every copy and part with these layer names.

    Args:
        numbers: block of each layer by name, in the order of the model: the number in its name, else that of the layer
            before it; None before the first block.
        head: names of the layers above the backbone.
        pretrained: whether batch normalisation of the backbone keeps its pretrained statistics.
    """

    numbers: Mapping[str, int | None]
    head: frozenset[str]
    pretrained: bool

    @property
    def order(self) -> list[int]:
        """Numbers of the blocks, lowest first."""
        return sorted({number for number in self.numbers.values() if number is not None})

    @property
    def depths(self) -> dict[str, int]:
        """How many blocks below the head each layer is: 0 the head, 1 the top block, and so on down to the stem."""
        below = {number: depth for depth, number in enumerate([*reversed(self.order), None], start=1)}
        return {name: 0 if name in self.head else below[number] for name, number in self.numbers.items()}

    @property
    def titles(self) -> dict[str, str]:
        """What to call the block of each layer: `head`, `block3`, or `stem` for what is below the first block."""
        names = {name: "stem" if number is None else f"block{number}" for name, number in self.numbers.items()}
        return {name: "head" if name in self.head else title for name, title in names.items()}

    def lowest(self, unfreeze: int | str) -> float:
        """Number of the lowest block that `unfreeze` makes trainable; infinite for none.

        Raises:
            ConfigError: if there is no such block, naming those there are.
        """
        blocks = self.order
        if unfreeze == "all":
            return blocks[0]
        if isinstance(unfreeze, str):
            match = re.fullmatch(r"[A-Za-z_]+([0-9]+)", unfreeze)  # "2" alone may mean block 2 or two blocks
            if not match or int(match[1]) not in blocks:
                raise ConfigError(
                    f"unfreeze: expected one of {[f'block{b}' for b in blocks]}, which this backbone has, a number of "
                    f"top blocks from 0 to {len(blocks)}, or 'all'. Received: {unfreeze!r}"
                )
            return int(match[1])
        return blocks[-min(unfreeze, len(blocks))] if unfreeze else float("inf")


def find_blocks(model: keras.Model, backbone: Backbone) -> Blocks:
    """The blocks of a classifier, or of a backbone without a head.

    The unnumbered layers at the top (`top_conv`, `post_bn`, the head) belong to the last block, so that no layer that
    should learn stays frozen for want of a number.

    Args:
        model: from `build` or `build_backbone`.
        backbone: the settings it was built with.
    """
    numbers, current, pattern = {}, None, family(backbone.name).block
    for layer in model.layers:
        match = re.search(pattern, layer.name)
        current = int(match[1]) if match else current
        numbers[layer.name] = current
    head = frozenset(name for name in numbers if name.startswith(("pool", "head_", "logits")))
    return Blocks(numbers, head, backbone.weights != "none")


def freeze(model: keras.Model, blocks: Blocks, unfreeze: int | str) -> int:
    """Make the head and the chosen top of the backbone trainable, and nothing else.

    Pretrained batch normalisation never trains: it keeps using the statistics of ImageNet, which do not move (in
    Keras a layer with trainable=False runs in inference mode). Trained from scratch (weights "none") it does.

    Args:
        model: from `build`.
        blocks: its layers.
        unfreeze: 0 for the head alone, k for the top k blocks, "block4" or "conv4" for that block and all above,
            "all" for everything.

    Returns:
        Number of weights that will be trained.

    Raises:
        ConfigError: if there is no such block, naming those there are.
    """
    lowest = blocks.lowest(unfreeze)
    for layer in model.layers:
        block = blocks.numbers[layer.name]
        is_frozen_norm = blocks.pretrained and isinstance(layer, layers.BatchNormalization)
        above = layer.name in blocks.head or unfreeze == "all" or (block is not None and block >= lowest)
        layer.trainable = above and not is_frozen_norm
    return int(sum(np.prod(weight.shape) for weight in model.trainable_weights))


def block_outputs(base: keras.Model, blocks: Blocks) -> list[keras.KerasTensor]:
    """Output of each block of a backbone (or of the classifier on it), lowest first."""
    return [*_block_inputs(base, blocks)[1:], base.outputs[0]]


def boundary(model: keras.Model, blocks: Blocks, unfreeze: int | str) -> keras.KerasTensor | None:
    """Tensor below which everything is frozen and which everything above comes from; None for "all".

    It is the input of the head, or of the lowest unfrozen block; of a lower one if the head pools its output too.
    """
    if unfreeze == "all":
        return None
    if unfreeze == 0:
        return model.get_layer("head_dropout").input
    pooled = [model.get_layer(name).input for name in blocks.head]
    lowest = blocks.lowest(unfreeze)
    inputs = zip(blocks.order, _block_inputs(model, blocks), strict=True)
    return next(x for number, x in inputs if number >= lowest or any(x is each for each in pooled))


def lowest_boundary(model: keras.Model, blocks: Blocks, unfreeze: Sequence[int | str]) -> keras.KerasTensor | None:
    """`boundary` of the stage that unfreezes most, below which a run trains nothing; of the head without stages."""
    return boundary(model, blocks, min(unfreeze, key=lambda u: (blocks.lowest(u), u != "all"), default=0))


def _block_inputs(model: keras.Model, blocks: Blocks) -> list[keras.KerasTensor]:
    """Input of the first layer of each block, lowest block first."""
    firsts: dict[int | None, str] = {}
    for name, number in blocks.numbers.items():
        firsts.setdefault(number, name)
    return [model.get_layer(firsts[number]).input for number in blocks.order]
