"""Several devices: each takes its part of every batch, and all make the same step (`tf.distribute.MirroredStrategy`).

Losses, weights and predictions are those of one device up to rounding. What Keras does otherwise is mended where it
happens: parts of different size (`batches.share_evenly`), and a gradient that is clipped before it is summed
(`keras_private.clip_after_sum`).
"""

import contextlib
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ..config import ConfigError, Train
from ..data.batches import replicas


def on_devices(settings: Train) -> contextlib.AbstractContextManager:
    """Where models are built, trained and asked, so that all devices work. With one device it is nothing at all.

    The devices are GPUs, or without any, those that TensorFlow has made of the CPU, which are several in tests only.

    Args:
        settings: `devices`, and what does not go with several.

    Raises:
        ConfigError: if there are not so many, or a setting does not work with several.
    """
    if settings.devices == 1:
        return contextlib.nullcontext()
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    wanted = len(found) if settings.devices == "auto" else settings.devices
    if wanted > len(found):
        raise ConfigError(
            f"train.devices: expected auto, or at most {len(found)}, of which there are so many: "
            f"{', '.join(device.name for device in found)}. Received: {wanted}. What is seen: scripts/doctor.py"
        )
    if wanted == 1:
        return contextlib.nullcontext()
    if settings.gradient_accumulation_steps > 1:
        raise ConfigError(
            f"train.gradient_accumulation_steps: expected 1 with {wanted} devices, since Keras cannot accumulate under "
            f"tf.distribute. Received: {settings.gradient_accumulation_steps}. Take a larger train.batch_size, of "
            "which each device has a part only; or train.devices=1"
        )
    names = [device.name for device in found[:wanted]]
    print(f"{wanted} devices share each batch: {', '.join(name.removeprefix('/device:') for name in names)}")
    return _strategy(tuple(names)).scope()


@functools.cache  # two of them in one process mix up their sums: both number these from the same number on
def _strategy(names: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    return tf.distribute.MirroredStrategy(names)


def on_all(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of a batch, computed by all devices, each for its part; as it is, with one device.

    Args:
        function: of inputs [n, ...] to outputs [n, ...], of each row for itself.
    """
    count, strategy = replicas(), tf.distribute.get_strategy()
    if count == 1:
        return function
    step = _on_each(strategy, function)

    def shared(inputs: tf.Tensor) -> tf.Tensor:
        n = len(inputs)
        size = -(-n // count)
        rows = np.minimum(np.arange(count * size), n - 1)  # the last one again, for all to have as many
        parts = strategy.experimental_distribute_values_from_function(
            lambda context: tf.gather(inputs, rows[context.replica_id_in_sync_group * size :][:size])
        )
        return tf.concat(strategy.experimental_local_results(step(parts)), axis=0)[:n]

    return shared


@functools.lru_cache(maxsize=4)  # as model.inference
def _on_each(strategy: tf.distribute.Strategy, function: Callable[[tf.Tensor], tf.Tensor]) -> Callable:
    return tf.function(lambda parts: strategy.run(function, args=(parts,)), reduce_retracing=True)
