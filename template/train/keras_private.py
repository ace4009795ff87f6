"""What we use of Keras that it does not document: all private names are in this module, checked against 3.15.

A new version of Keras may change any of them; tests/test_keras_private.py then fails and says which.
"""

from collections.abc import Callable

import keras
from keras import ops
from keras.optimizers import schedules


def set_weight_decay_filter(optimizer: keras.optimizers.Optimizer, decays: Callable[[keras.Variable], bool]) -> None:
    """Let weight decay be for those variables only of which a function says so.

    `exclude_from_weight_decay` goes by names, and the scales of ConvNeXt are called `variable_7`.

    Args:
        optimizer: changed in place.
        decays: variable -> whether it decays.
    """
    optimizer._use_weight_decay = decays


def has_weight_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether weight decay is for this variable. There is no public way to ask."""
    return optimizer._use_weight_decay(variable)


def average_after_steps(optimizer: keras.optimizers.Optimizer, batches: int) -> None:
    """Update the moving average of the weights (EMA) after each step only, of so many batches.

    With `gradient_accumulation_steps` Keras averages after every batch, of which most move nothing: its momentum would
    be another.

    Args:
        optimizer: with `use_ema`; changed in place.
        batches: of a step.
    """
    average = optimizer._update_model_variables_moving_average

    def after_a_step(variables: list[keras.Variable]) -> None:
        # `iterations` counts steps, not batches, and cannot tell the last batch of a step.
        ops.cond((optimizer._iterations + 1) % batches == 0, lambda: average(variables), lambda: None)

    optimizer._update_model_variables_moving_average = after_a_step


def clip_after_sum(optimizer: keras.optimizers.Optimizer) -> None:
    """Clip the gradient of the whole batch, and not the parts of it that several devices have.

    Under `tf.distribute` Keras clips each part and then adds them.

    Args:
        optimizer: changed in place.
    """
    clip, add_up = optimizer._clip_gradients, optimizer._all_reduce_sum_gradients
    optimizer._clip_gradients = lambda gradients: clip([g for g, _ in add_up([(g, None) for g in gradients])])
    optimizer._all_reduce_sum_gradients = lambda pairs: pairs


def variable_index(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """Number of a variable among those that the optimizer was built for, as `update_step` needs it."""
    return optimizer._get_variable_index(variable)


def schedule_of(optimizer: keras.optimizers.Optimizer) -> schedules.LearningRateSchedule | keras.Variable:
    """The schedule of an optimizer, or its constant learning rate. `learning_rate` is the present value only."""
    return getattr(optimizer, "inner_optimizer", optimizer)._learning_rate  # in float16, `compile` has wrapped it
