"""Settings from the data: what a person who has trained many small data sets would begin with."""

import math

from .config import Stage


def stages(images: int, batch_size: int, blocks: int, pretrained: bool) -> tuple[Stage, ...]:
    """Stages for a recipe that names none.

    Pretrained: first the top sixth of the blocks, then the top half. Each stage is kept only as far as validation
    likes it, so the second matters where the pictures are far from ImageNet and does no harm where they are near.
    From scratch: everything at once.

    Args:
        images: in the training part.
        batch_size: pictures a step.
        blocks: of the backbone.
        pretrained: whether it has weights to be careful with.
    """

    def epochs(wanted_steps: int) -> int:
        """Small data need more passes to move as far: a number of steps, in 6 to 40 epochs."""
        return min(40, max(6, math.ceil(wanted_steps / math.ceil(images / batch_size))))

    if not pretrained:
        return (Stage(unfreeze="all", epochs=epochs(480), learning_rate=3e-3),)
    return (
        Stage(unfreeze=max(1, round(blocks / 6)), epochs=epochs(64), learning_rate=3e-4),
        Stage(unfreeze=max(2, math.ceil(blocks / 2)), epochs=epochs(128), learning_rate=3e-4, only_if_gain=0.1),
    )
