"""Fine-tuning as a list of stages: thaw, train, average, keep the best, thaw more."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ..config import Backbone, Stage, Train
from ..data.pipeline import Source, ordered_batches, shuffled_batches, steps
from ..model.build import boundary, freeze
from .callbacks import Checkpoint, KeepBest, Log, State, read_checkpoint
from .features import divide

EMA_MOMENTUM = 0.9
"""Per step. Small data have few steps an epoch: this averages over about the last twenty."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Points on the line from the weights before a stage to those after it, tried on validation."""


@dataclass(frozen=True)
class How:
    """What does not change from stage to stage.

    Args:
        backbone: the settings that the model was built with.
        stages: what to thaw, how long and how fast.
        settings: batch size, monitor, patience, seed, size of the feature cache.
        cache: folder for activations that do not fit into memory.
    """

    backbone: Backbone
    stages: Sequence[Stage]
    settings: Train
    cache: Path


def fit(model: keras.Model, train: Source, val: Source, how: How, folder: Path) -> State:
    """Train a model through all stages, in place; afterwards it has the weights that validation liked best.

    Goes on where an earlier call with the same folder stopped, if it left a checkpoint there.

    Args:
        model: from `build`; its present weights are the first to beat.
        train: augmented training inputs.
        val: validation inputs, which choose weights and end stages.
        how: backbone, stages and settings.
        folder: for history.csv, tensorboard/ and checkpoints/.

    Returns:
        Where the training stands at the end: its `history`, and in `plan` what repeats it without validation.
    """
    settings = how.settings
    state, saved = read_checkpoint(folder / "checkpoints")
    for number, stage in list(enumerate(how.stages))[state.stage :]:
        title = f"stage {number + 1}/{len(how.stages)}"
        if state.gain < stage.only_if_gain:
            print(f"{title}: skipped, the stage before lowered the loss by {state.gain:.0%} only")
            state.plan.append({"start": state.epoch, "epochs": 0, "averaged": False, "share": 0.0})
            state.stage = number + 1
            continue
        trained = freeze(model, how.backbone, stage.unfreeze)
        print(f"{title}: unfreeze {stage.unfreeze!r}, {trained:,} of {model.count_params():,} weights train")
        assign(model.variables, saved.get("model", model.variables))
        network, inputs, held_out = _divided(model, stage, train, val, how)
        compile_for(network, stage, stage.epochs * steps(train, settings.batch_size), settings.label_smoothing)
        assign(network.optimizer.variables, saved.get("optimizer", network.optimizer.variables))
        validation = ordered_batches(held_out, model.output_shape[-1], settings.batch_size)
        if not saved:
            state.start, state.wait, state.best_epoch = state.epoch, 0, None
            start = _score(network, validation, settings.monitor)
            state.best = start if math.isfinite(start) else None
        before = saved.get("before") or network.get_weights()
        keep = KeepBest(state, f"val_{settings.monitor}", settings.patience, saved.get("best") or before)
        saved = {}
        end = state.start + stage.epochs
        if state.epoch < end and state.wait < settings.patience:
            log = Log(state, folder, title, end, len(train))
            checkpoint = Checkpoint(state, folder / "checkpoints", model, keep, before)
            _run_epochs(network, inputs, settings, range(state.epoch, end), validation, [keep, log, checkpoint])
        network.optimizer.finalize_variable_values(network.trainable_variables)  # to the moving average
        chosen = _choose(network, validation, state, settings.monitor, before, keep.weights)
        print(f"{title}: kept {chosen.pop('words')}")
        state.plan.append({"start": state.start, **chosen})
        state.stage = number + 1
    return state


def repeat(model: keras.Model, train: Source, plan: Sequence[dict], how: How) -> None:
    """Train a fresh model as `fit` did, for as many epochs and with the same averages, but without validation.

    So the pictures that made the choices are learned from too: with few pictures that is worth more than knowing the
    best epoch exactly.

    Args:
        model: as `fit` received it.
        train: augmented inputs, training and validation pictures together.
        plan: from `fit`: `start`, `epochs`, `averaged` and `share` of each stage.
        how: as in `fit`.
    """
    for number, (stage, done) in enumerate(zip(how.stages, plan, strict=True), start=1):
        if done["share"]:
            print(f"again on all {len(train)} pictures: stage {number}, {done['epochs']} epochs")
            freeze(model, how.backbone, stage.unfreeze)
            network, inputs, _ = _divided(model, dataclasses.replace(stage, epochs=done["epochs"]), train, None, how)
            # The schedule stays that of the whole stage: each epoch has the step size that it had the first time.
            total = stage.epochs * steps(train, how.settings.batch_size)
            compile_for(network, stage, total, how.settings.label_smoothing, averaged=done["averaged"])
            before = network.get_weights()
            _run_epochs(network, inputs, how.settings, range(done["start"], done["start"] + done["epochs"]))
            network.set_weights(between(before, network.get_weights(), done["share"]))


def compile_for(
    model: keras.Model, stage: Stage, total_steps: int, label_smoothing: float, averaged: bool = True
) -> None:
    """Give the model a new optimizer for a stage: AdamW, warm-up and cosine, no decay on biases and normalisation.

    Args:
        model: to train.
        stage: learning rate, warm-up and decay.
        total_steps: of the whole stage, for the schedule.
        label_smoothing: in [0, 1); of the training loss only.
        averaged: when Keras's `fit` ends it leaves the moving average of the weights in the model, not the last ones.
    """
    warmup = round(total_steps * stage.warmup)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else stage.learning_rate,
        decay_steps=max(1, total_steps - warmup),
        warmup_target=stage.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=stage.weight_decay, use_ema=averaged, ema_momentum=EMA_MOMENTUM
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing),
        metrics=[
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.CategoricalCrossentropy(from_logits=True, name="cross_entropy"),  # plain
            keras.metrics.F1Score(average="macro", name="macro_f1"),
        ],
    )
    model.optimizer.build(model.trainable_variables)  # in float16, compile has wrapped it to scale the loss


def between(before: Sequence[np.ndarray], after: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
    """Weights on the line from before (share 0) to after (share 1), as in WiSE-FT (Wortsman et al. 2022)."""
    return [(1 - share) * a + share * b for a, b in zip(before, after, strict=True)]


def assign(variables: Sequence[keras.Variable], values: Sequence) -> None:
    """Put back all variables of a checkpoint, those of dropout's random generators included."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _divided(
    model: keras.Model, stage: Stage, train: Source, val: Source | None, how: How
) -> tuple[keras.Model, Source, Source | None]:
    """What a stage trains, and on what: the tail on stored activations if that pays, else the whole on pictures."""
    views = min(stage.views or stage.epochs, stage.epochs)
    limit = how.settings.feature_cache_gb * 2**30
    tensor = boundary(model, how.backbone, stage.unfreeze)
    storage = {"batch_size": how.settings.batch_size, "folder": how.cache, "limit_bytes": limit}
    return divide(model, tensor, train, val, views=views, **storage)


def _run_epochs(
    network: keras.Model,
    train: Source,
    settings: Train,
    epochs: range,
    validation: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Run `fit` over the epochs with these numbers."""
    network.fit(
        shuffled_batches(train, network.output_shape[-1], settings.batch_size, settings.seed, epochs),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=steps(train, settings.batch_size),
        validation_data=validation,
        callbacks=list(callbacks),
        shuffle=False,  # it already is
        verbose=0,
    )


def _score(network: keras.Model, validation: tf.data.Dataset, monitor: str) -> float:
    return float(network.evaluate(validation, verbose=0, return_dict=True)[monitor])


def _choose(
    network: keras.Model, validation: tf.data.Dataset, state: State, monitor: str, before: list, best: list
) -> dict:
    """Leave the best of: before the stage, its best epoch, its moving average, and points on the lines between."""
    sign = 1 if monitor in {"accuracy", "macro_f1"} else -1
    averaged = network.get_weights()
    ends = [(state.epoch - state.start, True, averaged)]
    if state.best_epoch is not None:
        ends.append((state.best_epoch - state.start, False, best))
    tried = [({"epochs": 0, "averaged": False, "share": 0.0, "words": "the weights from before"}, before)]
    for epochs, is_average, weights in ends:
        name = "moving average" if is_average else f"epoch {state.start + epochs}"
        for share in SHARES:
            words = f"{share:.0%} of the way to its {name}"
            entry = {"epochs": epochs, "averaged": is_average, "share": share, "words": words}
            tried.append((entry, between(before, weights, share)))

    def score(weights: list[np.ndarray]) -> float:
        network.set_weights(weights)
        return _score(network, validation, monitor)

    scores = np.array([score(weights) for _, weights in tried])
    winner = int(np.argmax(np.where(np.isfinite(scores), sign * scores, -np.inf)))
    network.set_weights(tried[winner][1])
    state.best = float(scores[winner])
    state.gain = float((scores[0] - scores[winner]) / (scores[0] if sign < 0 else scores[0] - 1)) if winner else 0.0
    tried[winner][0]["words"] += f", validation {monitor.replace('_', '-')} {scores[winner]:.3f} (was {scores[0]:.3f})"
    return tried[winner][0]
