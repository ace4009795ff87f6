"""Class names that are a tree: `dog/husky` and `dog/poodle` are both `dog`. Needs NumPy alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """A level of the tree above the classes.

    Args:
        names: of its nodes, sorted: a class without so many parts is a node itself.
        nodes: int64 [classes], the node that each class belongs to.
    """

    names: tuple[str, ...]
    nodes: np.ndarray

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Those of the nodes: sums over their classes.

        Args:
            probabilities: [..., classes].

        Returns:
            float64 [..., nodes].
        """
        return np.asarray(probabilities, np.float64) @ (self.nodes[:, None] == np.arange(len(self.names)))


def coarser_levels(class_names: Sequence[str]) -> list[Level]:
    """Levels above the classes, the coarsest first; none for names that are no tree.

    What stands before the first `/` names a node, what stands before the second one below it. A level where all classes
    are one node (`photos/cat`, `photos/dog`) or each its own (`and/or`, `n/a`) tells nothing, and is left out.
    """
    paths = [[part for part in name.split("/") if part] or [name] for name in class_names]
    levels: list[Level] = []
    for depth in range(1, max(map(len, paths), default=0)):
        heads = ["/".join(path[:depth]) for path in paths]
        names, nodes = np.unique(heads, return_inverse=True)
        if (len(levels[-1].names) if levels else 1) < len(names) < len(class_names):
            levels.append(Level(tuple(map(str, names)), nodes))
    return levels


def describe(class_names: Sequence[str]) -> Iterator[str]:
    """Lines on what was recognised in names with a `/`."""
    slashed = [name for name in class_names if "/" in name]
    levels = coarser_levels(class_names)
    if slashed and not levels:
        yield f"class names with a / ({slashed[0]!r}, ...) are no tree: what stands before it groups no classes"
    if levels:
        counts = ", ".join(f"{len(level.names)} at level {depth}" for depth, level in enumerate(levels, 1))
        yield f"class names are a tree: {counts} above {len(class_names)} classes; at the first {_shown(levels[0])}"
    for name in class_names:
        if below := [other for other in class_names if other.startswith(f"{name}/")]:
            yield f"class {name!r} is also above others ({below[0]!r}, ...): as an answer it may mean either"


def sure_answer(
    probabilities: np.ndarray, class_names: Sequence[str], confidence: float | None, above: Sequence[float | None]
) -> tuple[str, float] | None:
    """The finest name of which the network is sure enough: a class, or what is above it, with its probability.

    Args:
        probabilities: calibrated, [classes].
        class_names: in the order of their indices.
        confidence: threshold of the reject option, or None if no class is ever sure enough.
        above: the same of `coarser_levels`, in their order.

    Returns:
        None where the network is not sure at any level.
    """
    levels = [*zip(coarser_levels(class_names), above, strict=True)]
    own = Level(tuple(class_names), np.arange(len(class_names)))
    for level, least in [(own, confidence), *reversed(levels)]:
        each = level.probabilities(probabilities)
        best = int(each.argmax())
        if least is not None and each[best] >= least:
            return level.names[best], float(each[best])
    return None


def _shown(level: Level, most: int = 10) -> str:
    """Names of the nodes of a level, and of how many classes each consists."""
    counts = np.bincount(level.nodes)
    named = [f"{name} ({count})" for name, count in zip(level.names, counts, strict=True)]
    return ", ".join(named[:most]) + f", and {len(named) - most} more" * (len(named) > most)
