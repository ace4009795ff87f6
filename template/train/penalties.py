"""L1, L2 and L2-SP penalties on unfrozen kernels of the backbone; those of the head are its layers' own."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from ..config import Stage
from ..model.blocks import Blocks


def penalise(model: keras.Model, stage: Stage, blocks: Blocks, pretrained: Sequence[np.ndarray]) -> None:
    """Give the kernels of the backbone the penalties of a stage, and take off those of the stage before.

    Keras reads `layer.kernel_regularizer` only while it builds the layer. It reads `variable.regularizer` in every
    step, for all that trains, also in a part of the model; and does not save it, as prediction needs no penalty.

    Args:
        model: the whole.
        stage: `l1`, `l2`, `l2_sp`, each >= 0.
        blocks: of the model.
        pretrained: values of `model.variables` that `l2_sp` holds on to; not looked at without it.

    Raises:
        ValueError: if `l2_sp` has not one value for each variable.
    """
    backbone = [layer for layer in model.layers if layer.name not in blocks.head]
    kernels = [v for layer in backbone for v in layer.weights if v.name.endswith("kernel")]
    for kernel in kernels:
        kernel.regularizer = keras.regularizers.L1L2(stage.l1, stage.l2) if stage.l1 or stage.l2 else None
    if stage.l2_sp:
        start = {id(v): value for v, value in zip(model.variables, pretrained, strict=True)}
        for kernel in kernels:
            kernel.regularizer = StartingPoint(stage.l1, stage.l2, stage.l2_sp, start[id(kernel)])


@keras.saving.register_keras_serializable("template")
class StartingPoint(keras.regularizers.L1L2):
    """l1 * sum |w| + l2 * sum w^2 + l2_sp * sum (w - start)^2.

    Weight decay forgets what the pretrained network knew; this remembers it (Li et al. 2018, "Explicit inductive bias
    for transfer learning with convolutional networks").

    Args:
        l1: >= 0.
        l2: >= 0.
        l2_sp: >= 0.
        start: pretrained values.
    """

    def __init__(self, l1: float, l2: float, l2_sp: float, start: Sequence | np.ndarray) -> None:
        super().__init__(l1, l2)
        self.l2_sp, self.start = l2_sp, ops.convert_to_tensor(start)  # an array would be copied into the graph

    def __call__(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Penalty of a kernel, a scalar."""
        return super().__call__(x) + self.l2_sp * ops.sum(ops.square(x - self.start))

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {**super().get_config(), "l2_sp": self.l2_sp, "start": np.asarray(self.start).tolist()}
